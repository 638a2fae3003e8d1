-- The queue's locking statements.

-- name: claim_jobs
WITH picked AS (
    SELECT id
    FROM jobs
    WHERE status = 'queued' AND application = :application AND expires_at > now()
    ORDER BY id
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
)
UPDATE jobs j
SET status = 'running',
    attempts = j.attempts + 1,
    fence = j.fence + 1,
    runner = :runner,
    lease_until = now() + CAST(:lease AS interval),
    progress_percent = 0,
    started_at = now()
FROM picked
WHERE j.id = picked.id
RETURNING j.id, j.account_id, j.task, j.application, j.input, j.quoted, j.units_milli, j.fence, j.attempts, j.created_at, j.started_at

-- name: renew_leases
UPDATE jobs j
SET lease_until = now() + CAST(:lease AS interval),
    progress_percent = greatest(j.progress_percent, b.percent)
FROM unnest(CAST(:ids AS text[]), CAST(:fences AS bigint[]), CAST(:percents AS smallint[])) AS b (id, fence, percent)
WHERE j.id = b.id AND j.fence = b.fence AND j.status = 'running'
RETURNING j.id, j.cancel_requested_at IS NOT NULL AS cancel_requested

-- name: due_jobs
(
    SELECT id, account_id, status, fence, lease_until
    FROM jobs WHERE status = 'running' AND lease_until < now()
    ORDER BY lease_until LIMIT :limit
)
UNION ALL
(
    SELECT id, account_id, status, fence, lease_until
    FROM jobs WHERE status = 'queued' AND expires_at < now()
    ORDER BY id LIMIT :limit
)
