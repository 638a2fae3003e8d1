-- Reads of the past. None takes a lock: entries never change and are numbered without a gap, so that a range of
-- versions means the same whenever it is read. LATERAL with LIMIT 1 (OFFSET 0 where there may be more rows) makes each
-- step a look along an index: a planner without fresh statistics would join by reading whole tables.

-- name: written_by
-- The last version written before each instant (or at it, where `included`), 0 before the first; NULL asks for now.
-- Stamps rise with versions, so each is found by halving: some 17 entries are looked at among 100,000.
WITH RECURSIVE search AS (
    SELECT i.place, i.instant, i.included, CASE WHEN i.instant IS NULL THEN a.version ELSE 0 END AS low,
        a.version AS high
    FROM unnest(CAST(:instants AS timestamptz[]), CAST(:included AS boolean[])) WITH ORDINALITY
        AS i (instant, included, place)
    JOIN accounts a ON a.id = :account_id AND a.kind = 'user'
    UNION ALL
    SELECT s.place, s.instant, s.included, CASE WHEN p.written THEN s.middle ELSE s.low END,
        CASE WHEN p.written THEN s.high ELSE s.middle - 1 END
    FROM (SELECT *, (low + high + 1) / 2 AS middle FROM search WHERE low < high) s
    CROSS JOIN LATERAL (
        SELECT t.created_at < s.instant OR (s.included AND t.created_at = s.instant) AS written
        FROM entries e
        JOIN transfers t ON t.id = e.transfer_id
        WHERE e.account_id = :account_id AND e.version = s.middle
        LIMIT 1
    ) p
)
SELECT s.low AS version, coalesce(e.balance_after, 0) AS balance
FROM search s
LEFT JOIN entries e ON e.account_id = :account_id AND e.version = s.low
WHERE s.low = s.high
ORDER BY s.place

-- name: lines
SELECT e.version, t.id AS transfer_id, t.kind, t.tool, t.reference, t.reason, t.key_id, t.units_milli, t.price_version,
    e.amount AS amount_tokens, e.balance_after AS balance_after_tokens, t.event_at AS happened_at,
    t.created_at AS written_at, t.reverses_id, t.hold_id
FROM entries e
CROSS JOIN LATERAL (SELECT * FROM transfers WHERE id = e.transfer_id LIMIT 1) t
WHERE e.account_id = :account_id AND e.version > :after AND e.version <= :up_to
ORDER BY e.version DESC

-- name: cost
-- What was charged or held under a reference, and what was given back of it, as one snapshot. A reference is unique
-- for the account and the tool: without the tool, the account's tools are walked along the index, one look for each.
WITH RECURSIVE tools AS (
    SELECT coalesce(
        CAST(:tool AS text),
        least(
            (SELECT min(tool) FROM transfers WHERE account_id = :account_id),
            (SELECT min(tool) FROM holds WHERE account_id = :account_id)
        )
    ) AS tool
    UNION ALL
    SELECT least(
        (SELECT min(t.tool) FROM transfers t WHERE t.account_id = :account_id AND t.tool > s.tool),
        (SELECT min(h.tool) FROM holds h WHERE h.account_id = :account_id AND h.tool > s.tool)
    )
    FROM tools s
    WHERE s.tool IS NOT NULL AND CAST(:tool AS text) IS NULL
),
placed AS (
    SELECT h.id, h.amount, h.state
    FROM tools s
    CROSS JOIN LATERAL (
        SELECT * FROM holds WHERE account_id = :account_id AND tool = s.tool AND reference = :reference LIMIT 1
    ) h
),
charges AS (
    SELECT t.id
    FROM tools s
    CROSS JOIN LATERAL (
        SELECT * FROM transfers WHERE account_id = :account_id AND tool = s.tool AND reference = :reference LIMIT 1
    ) t
    WHERE t.kind IN ('spend', 'capture')
    UNION
    SELECT t.id
    FROM placed h
    CROSS JOIN LATERAL (SELECT id FROM transfers WHERE hold_id = h.id LIMIT 1) t
),
involved AS (
    SELECT id, false AS back FROM charges
    UNION ALL
    SELECT t.id, true
    FROM charges c
    CROSS JOIN LATERAL (SELECT id FROM transfers WHERE reverses_id = c.id OFFSET 0) t
)
SELECT p.holds, p.held, l.*
FROM (
    SELECT count(*) AS holds, CAST(coalesce(sum(amount) FILTER (WHERE state = 'pending'), 0) AS bigint) AS held
    FROM placed
) p
LEFT JOIN (
    SELECT i.back, e.version, t.id AS transfer_id, t.kind, t.tool, t.reference, t.reason, t.key_id, t.units_milli,
        t.price_version, e.amount AS amount_tokens, e.balance_after AS balance_after_tokens,
        t.event_at AS happened_at, t.created_at AS written_at, t.reverses_id, t.hold_id
    FROM involved i
    CROSS JOIN LATERAL (SELECT * FROM transfers WHERE id = i.id LIMIT 1) t
    CROSS JOIN LATERAL (SELECT * FROM entries WHERE transfer_id = i.id AND account_id = :account_id LIMIT 1) e
) l ON true
ORDER BY l.version
