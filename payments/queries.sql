-- The inbox's locking statements. A try counts when it begins: an event that ends its handler's process is given up too.

-- name: store
-- Kept once. What is there and not applied is work again when it was given up, or when nobody is at it.
INSERT INTO provider_events AS e (provider, event_id, type, object_id, body, attempts, retry_at)
VALUES (:provider, :event_id, :type, :object_id, :body, 1, now() + make_interval(secs => :handling_s))
ON CONFLICT (provider, event_id) DO UPDATE
SET attempts = CASE WHEN e.dead_at IS NULL THEN e.attempts + 1 ELSE 1 END,
    retry_at = now() + make_interval(secs => :handling_s),
    dead_at = NULL
WHERE e.applied_at IS NULL AND (e.dead_at IS NOT NULL OR e.retry_at <= now())
RETURNING true

-- name: finish
UPDATE provider_events
SET applied_at = CASE WHEN CAST(:problem AS text) IS NULL THEN now() END,
    dead_at = CASE WHEN CAST(:problem AS text) IS NOT NULL AND (:final OR attempts >= :attempts) THEN now() END,
    problem = :problem,
    retry_at = now() + make_interval(secs => least(power(2, least(attempts, 30)), :backoff_most_s))
WHERE provider = :provider AND event_id = :event_id AND applied_at IS NULL

-- name: give_up
UPDATE provider_events
SET dead_at = now(), problem = coalesce(problem, 'its handling began and never ended')
WHERE applied_at IS NULL AND dead_at IS NULL AND retry_at <= now() AND attempts >= :attempts

-- name: due
UPDATE provider_events e
SET attempts = e.attempts + 1, retry_at = now() + make_interval(secs => :handling_s)
FROM (
    SELECT provider, event_id FROM provider_events
    WHERE applied_at IS NULL AND dead_at IS NULL AND retry_at <= now()
    ORDER BY retry_at
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
) ready
WHERE e.provider = ready.provider AND e.event_id = ready.event_id
RETURNING e.provider, e.event_id, e.type, e.object_id, e.body, e.received_at

-- name: forget_old
-- Bodies name payers. What was given up stays until somebody has looked at it.
DELETE FROM provider_events
WHERE (provider, event_id) IN (
    SELECT provider, event_id FROM provider_events
    WHERE applied_at IS NOT NULL AND received_at < now() - make_interval(days => :days)
    ORDER BY received_at
    LIMIT :limit
)
