-- Whose turn it is: start-time fair queuing between the accounts that wait for an application.

-- name: claim_in_turn
WITH RECURSIVE waiting AS (  -- the accounts with queued jobs, each found by one step in the index
    (
        SELECT account_id
        FROM jobs
        WHERE status = 'queued' AND application = :application
        ORDER BY account_id
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT j.account_id
        FROM jobs j
        WHERE j.status = 'queued' AND j.application = :application AND j.account_id > w.account_id
        ORDER BY j.account_id
        LIMIT 1
    )
    FROM waiting w
    WHERE w.account_id IS NOT NULL
),
clock AS (SELECT coalesce(max(begun), 0) AS now FROM queue_turns WHERE application = :application),
standing AS (
    SELECT
        w.account_id,
        greatest(t.ended, c.now) AS begins,
        CAST(:turn AS bigint) / coalesce(s.weight, 1) AS turn,
        coalesce(s.max_running, CAST(:account_limit AS bigint), 1000000) - r.running AS room
    FROM waiting w
    CROSS JOIN clock c
    LEFT JOIN queue_turns t ON t.application = :application AND t.account_id = w.account_id
    LEFT JOIN account_shares s ON s.account_id = w.account_id
    CROSS JOIN LATERAL (
        SELECT count(*) AS running FROM jobs j WHERE j.status = 'running' AND j.account_id = w.account_id
    ) r
    WHERE w.account_id IS NOT NULL
),
fit AS (  -- the first jobs of each account, those of a key that runs as many as it may left out
    SELECT
        j.*, s.account_id, s.begins, s.turn,
        row_number() OVER (PARTITION BY j.key_id ORDER BY j.priority DESC, j.id) + j.running AS of_key
    FROM standing s
    CROSS JOIN LATERAL (
        SELECT q.id, q.key_id, q.priority, k.running
        FROM jobs q
        CROSS JOIN LATERAL (
            SELECT count(*) AS running
            FROM jobs x
            WHERE CAST(:key_limit AS bigint) IS NOT NULL
                AND x.status = 'running' AND x.account_id = q.account_id AND x.key_id = q.key_id
        ) k
        WHERE q.status = 'queued' AND q.application = :application AND q.account_id = s.account_id
            AND q.expires_at > now()
            AND (CAST(:key_limit AS bigint) IS NULL OR k.running < :key_limit)
        ORDER BY q.priority DESC, q.id
        LIMIT least(CAST(:limit AS bigint), greatest(s.room, 0))
    ) j
),
line AS (
    SELECT
        id, account_id, turn,
        begins + turn * (row_number() OVER (PARTITION BY account_id ORDER BY priority DESC, id) - 1) AS begins
    FROM fit
    WHERE CAST(:key_limit AS bigint) IS NULL OR of_key <= :key_limit
),
picked AS (
    SELECT j.id, l.account_id, l.begins, l.turn
    FROM line l
    JOIN jobs j ON j.id = l.id
    WHERE j.status = 'queued'
    ORDER BY l.begins, j.id
    LIMIT :limit
    FOR UPDATE OF j SKIP LOCKED
),
moved AS (
    INSERT INTO queue_turns (application, account_id, begun, ended)
    SELECT :application, account_id, max(begins), max(begins) + max(turn) FROM picked GROUP BY account_id
    ON CONFLICT (application, account_id) DO UPDATE SET begun = excluded.begun, ended = excluded.ended
),
claimed AS (
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
    RETURNING j.id, j.account_id, j.task, j.application, j.input, j.quoted, j.units_milli, j.fence, j.attempts,
        j.created_at, j.started_at, j.deadline, picked.begins
)
SELECT * FROM claimed ORDER BY begins, id

-- name: places_in_line
WITH asked AS (
    SELECT id, application, account_id, priority FROM jobs WHERE id = ANY(:ids) AND status = 'queued'
),
lines AS (
    SELECT application, account_id, count(*) AS waiting
    FROM jobs
    WHERE status = 'queued' AND application IN (SELECT application FROM asked)
    GROUP BY application, account_id
),
clocks AS (SELECT application, max(begun) AS now FROM queue_turns GROUP BY application),
standing AS (
    SELECT
        l.application, l.account_id, l.waiting,
        greatest(t.ended, c.now, 0) AS begins,
        CAST(:turn AS bigint) / coalesce(s.weight, 1) AS turn
    FROM lines l
    LEFT JOIN clocks c USING (application)
    LEFT JOIN queue_turns t USING (application, account_id)
    LEFT JOIN account_shares s USING (account_id)
),
placed AS (
    SELECT a.id, a.application, a.account_id, o.before, m.begins + m.turn * o.before AS begins
    FROM asked a
    JOIN standing m USING (application, account_id)
    CROSS JOIN LATERAL (
        SELECT count(*) AS before
        FROM jobs q
        WHERE q.status = 'queued' AND q.application = a.application AND q.account_id = a.account_id
            AND (-q.priority, q.id) < (-a.priority, a.id)
    ) o
)
SELECT
    p.id,
    CAST(1 + p.before + coalesce(sum(
        least(s.waiting, greatest(0, (p.begins - s.begins + s.turn - 1) / s.turn))
    ) FILTER (WHERE s.account_id <> p.account_id), 0) AS bigint) AS place
FROM placed p
JOIN standing s USING (application)
GROUP BY p.id, p.before

-- name: forget_turns
DELETE FROM queue_turns t
USING (SELECT application, max(begun) AS now FROM queue_turns GROUP BY application) c
WHERE t.application = c.application AND t.ended <= c.now
