-- What the models took and what they earned.

-- name: revenue
SELECT
    j.application,
    max(j.metrics ->> 'model') AS model,
    a.on_gpu,
    count(*) AS attempts,
    count(*) FILTER (WHERE a.outcome = 'succeeded') AS succeeded,
    CAST(sum(a.busy_us) AS bigint) AS busy_us,
    CAST(coalesce(sum(a.busy_us) FILTER (WHERE a.outcome <> 'succeeded'), 0) AS bigint) AS unpaid_us,
    CAST(coalesce(sum(-t.amount - coalesce(r.returned, 0)), 0) AS bigint) AS tokens
FROM job_attempts a
JOIN jobs j ON j.id = a.job_id
JOIN accounts c ON c.id = j.account_id AND c.world = 'live'
-- The charge belongs to the attempt that succeeded, of which a job has one.
LEFT JOIN transfers t ON t.hold_id = j.hold_id AND a.outcome = 'succeeded'
LEFT JOIN LATERAL (SELECT sum(b.amount) AS returned FROM transfers b WHERE b.reverses_id = t.id) r ON true
WHERE a.ended_at >= :since AND a.ended_at < :until
GROUP BY j.application, a.on_gpu
ORDER BY tokens DESC, j.application, a.on_gpu
