-- The queue's locking statements.

-- name: renew_leases
UPDATE jobs j
SET lease_until = now() + CAST(:lease AS interval),
    progress_percent = greatest(j.progress_percent, b.percent),
    -- A beat that was overtaken by a finished part says nothing new.
    stages = CASE
        WHEN b.percent >= j.progress_percent THEN coalesce(CAST(b.stages AS jsonb), j.stages) ELSE j.stages
    END
FROM unnest(
    CAST(:ids AS text[]), CAST(:fences AS bigint[]), CAST(:percents AS smallint[]), CAST(:stages AS text[])
) AS b (id, fence, percent, stages)
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
    ORDER BY expires_at LIMIT :limit
)
