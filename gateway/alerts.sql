-- What the sweep over alerts looks at. No account is locked: a spend neither waits for this nor keeps it waiting.

-- name: moved
-- Alerts whose account was found on the other side of the threshold, in a slice by account; and where the slice ends.
WITH slice AS MATERIALIZED (
    SELECT account_id, threshold, armed, alerted_version
    FROM balance_alerts
    WHERE account_id > :after
    ORDER BY account_id
    LIMIT :limit
)
SELECT
    (SELECT max(account_id) FROM slice HAVING count(*) = :limit) AS up_to,
    ARRAY(
        SELECT s.account_id
        FROM slice s
        JOIN accounts a ON a.id = s.account_id
        WHERE s.armed <> (a.balance - a.held >= s.threshold) AND coalesce(a.version > s.alerted_version, true)
        ORDER BY s.account_id
    ) AS moved

-- name: lock_alert
SELECT 1 FROM balance_alerts WHERE account_id = :account_id FOR NO KEY UPDATE

-- name: as_it_stands
SELECT b.threshold, b.webhook_url, b.armed, b.alerted_version, a.balance - a.held AS free, a.version, a.world,
    u.email, u.suspended_at IS NOT NULL OR u.deleted_at IS NOT NULL AS away
FROM balance_alerts b
JOIN accounts a ON a.id = b.account_id
JOIN users u ON u.id = a.user_id
WHERE b.account_id = :account_id

-- name: credited_since
SELECT EXISTS (
    SELECT 1 FROM entries WHERE account_id = :account_id AND version > :version AND version <= :up_to AND amount > 0
)
