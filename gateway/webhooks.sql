-- Whom an event concerns, and what is due. An endpoint that is told of something is kept until that has committed.

-- name: told_of_job
SELECT j.account_id, 'job.' || j.status AS event, e.id AS endpoint_id, coalesce(e.url, j.webhook_url) AS url
FROM jobs j
JOIN webhook_endpoints e ON e.account_id = j.account_id
WHERE j.id = :job_id AND e.disabled_at IS NULL
    AND CASE
        WHEN e.url IS NULL THEN j.webhook_url IS NOT NULL AND coalesce('job.' || j.status = ANY(j.webhook_events), true)
        ELSE coalesce('job.' || j.status = ANY(e.events), true)
    END
ORDER BY e.id
FOR KEY SHARE OF e

-- name: told_of_balance
SELECT e.id AS endpoint_id, coalesce(e.url, :named_url) AS url
FROM webhook_endpoints e
WHERE e.account_id = :account_id AND e.disabled_at IS NULL
    AND CASE
        WHEN e.url IS NULL THEN CAST(:named_url AS text) IS NOT NULL
        ELSE coalesce('balance.low' = ANY(e.events), true)
    END
ORDER BY e.id
FOR KEY SHARE OF e

-- name: take_due
-- The oldest, few of each endpoint: one that is slow holds up its own alone.
WITH due AS MATERIALIZED (
    SELECT id, endpoint_id, retry_at
    FROM webhook_deliveries
    WHERE delivered_at IS NULL AND given_up_at IS NULL AND retry_at <= now()
        AND endpoint_id <> ALL(CAST(:busy AS text[]))
    ORDER BY retry_at
    LIMIT :looked_at
),
turns AS (
    SELECT id, row_number() OVER (PARTITION BY endpoint_id ORDER BY retry_at, id) AS turn FROM due
),
chosen AS (
    SELECT d.id
    FROM webhook_deliveries d
    JOIN turns t ON t.id = d.id
    WHERE t.turn <= :each AND d.delivered_at IS NULL AND d.given_up_at IS NULL AND d.retry_at <= now()
    ORDER BY t.turn, d.retry_at
    LIMIT :limit
    FOR UPDATE OF d SKIP LOCKED
)
UPDATE webhook_deliveries d
SET attempts = d.attempts + 1, retry_at = now() + :held
FROM chosen c, webhook_endpoints e
WHERE d.id = c.id AND e.id = d.endpoint_id
RETURNING d.id, d.endpoint_id, d.url, d.body, d.attempts AS attempt, e.salt,
    CASE WHEN e.old_until > now() THEN e.old_salt END AS old_salt
