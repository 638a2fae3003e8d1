-- What the models took and what they earned.

-- name: revenue
WITH worked AS (
    SELECT
        j.application, j.metrics ->> 'model' AS model, j.account_id, a.outcome, a.busy_us, a.on_gpu,
        -- The charge belongs to the attempt that succeeded, of which a job has one.
        CASE WHEN a.outcome = 'succeeded' THEN j.hold_id END AS hold_id
    FROM job_attempts a
    JOIN jobs j ON j.id = a.job_id
    WHERE a.ended_at >= :since AND a.ended_at < :until
    UNION ALL
    SELECT w.application, w.model, h.account_id, w.outcome, w.busy_us, w.on_gpu, w.hold_id
    FROM chat_turns w
    JOIN holds h ON h.id = w.hold_id
    WHERE w.ended_at >= :since AND w.ended_at < :until
)
SELECT
    w.application,
    max(w.model) AS model,
    w.on_gpu,
    count(*) AS attempts,
    count(*) FILTER (WHERE w.outcome = 'succeeded') AS succeeded,
    CAST(sum(w.busy_us) AS bigint) AS busy_us,
    CAST(coalesce(sum(w.busy_us) FILTER (WHERE t.id IS NULL), 0) AS bigint) AS unpaid_us,
    CAST(coalesce(sum(-t.amount - coalesce(r.returned, 0)), 0) AS bigint) AS tokens
FROM worked w
JOIN accounts c ON c.id = w.account_id AND c.world = 'live'
LEFT JOIN transfers t ON t.hold_id = w.hold_id
LEFT JOIN LATERAL (SELECT sum(b.amount) AS returned FROM transfers b WHERE b.reverses_id = t.id) r ON true
GROUP BY w.application, w.on_gpu
ORDER BY tokens DESC, w.application, w.on_gpu
