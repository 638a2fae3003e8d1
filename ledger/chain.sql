-- The hash chain: which transfers may be sealed, what a block holds as one digest, and who looks wrong in a broken one.

-- name: try_lock
-- One chainer at a time, whoever runs it: the other one returns at once.
SELECT pg_try_advisory_xact_lock(hashtextextended('ledger.chain', 0))

-- name: read_alike
-- For this transaction: times are written into a digest as UTC, whatever the session says; and a range is read by its
-- index, since the planner, which does not see how narrow it is, may prefer to read all of a large table.
SELECT set_config('timezone', 'UTC', true), set_config('enable_seqscan', 'off', true)

-- name: issued
-- The last number that the sequence gave out. `early`: this transaction has no id yet, so the one that it will get is
-- later than that of every transaction which holds one of these numbers.
SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS up_to, pg_current_xact_id_if_assigned() IS NULL AS early
FROM transfers_id_seq

-- name: mark
-- A mark that we can see was written by a transaction before this snapshot's end; one that says otherwise came with a
-- dump or a failover from another counter of transactions.
SELECT up_to,
    CAST(CAST(xid AS text) AS xid8) < pg_snapshot_xmin(pg_current_snapshot()) AS ripe,
    CAST(CAST(xid AS text) AS xid8) >= pg_snapshot_xmax(pg_current_snapshot()) AS stale
FROM chain_mark

-- name: set_mark
INSERT INTO chain_mark (up_to, xid)
VALUES (:up_to, CAST(CAST(pg_current_xact_id() AS text) AS bigint))
ON CONFLICT (one) DO UPDATE SET up_to = excluded.up_to, xid = excluded.xid

-- name: next_range
SELECT max(id) AS to_id, count(*) AS transfers
FROM (
    SELECT id FROM transfers WHERE id > :after_id AND id <= :up_to ORDER BY id LIMIT :limit
) next

-- name: digests
-- Every row of a range as text, each behind its length so that no two contents read alike, in the order of its key.
-- An entry counts by the transfer that it names, whether or not that is there.
-- Nulls are left out: a column that is added later and is null in old rows leaves their digests as they are. One with
-- a value in old rows would not, nor would a renamed column: such a change must begin a new chain.
SELECT r.number, d.transfers, d.entries, d.content, clock_timestamp() AS made_at
FROM unnest(CAST(:numbers AS bigint[]), CAST(:after_ids AS bigint[]), CAST(:to_ids AS bigint[]))
    AS r (number, after_id, to_id)
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE side = 0) AS transfers,
        count(*) FILTER (WHERE side = 1) AS entries,
        sha256(convert_to(coalesce(
            string_agg(octet_length(body) || ':' || body, '' ORDER BY transfer_id, side, account_id, version), ''
        ), 'UTF8')) AS content
    FROM (
        SELECT t.id AS transfer_id, 0 AS side, 0 AS account_id, 0 AS version,
            CAST(jsonb_strip_nulls(to_jsonb(t)) AS text) AS body
        FROM transfers t
        WHERE t.id > r.after_id AND t.id <= r.to_id
        UNION ALL
        SELECT e.transfer_id, 1, e.account_id, e.version, CAST(jsonb_strip_nulls(to_jsonb(e)) AS text)
        FROM entries e
        WHERE e.transfer_id > r.after_id AND e.transfer_id <= r.to_id
    ) lines
) d
ORDER BY r.number

-- name: suspects
-- The digest says that a block was changed, not where: rows that contradict each other show it.
SELECT transfer_id, account_id, version, problem
FROM (
    SELECT t.id AS transfer_id, t.account_id, CAST(NULL AS bigint) AS version,
        'its two sides do not sum to zero' AS problem
    FROM transfers t LEFT JOIN entries e ON e.transfer_id = t.id
    WHERE t.id > :after_id AND t.id <= :to_id
    GROUP BY t.id HAVING count(e.*) <> 2 OR sum(e.amount) <> 0
    UNION ALL
    SELECT t.id, t.account_id, e.version, 'its entry does not carry its amount'
    FROM transfers t LEFT JOIN entries e ON e.transfer_id = t.id AND e.account_id = t.account_id
    WHERE t.id > :after_id AND t.id <= :to_id AND e.amount IS DISTINCT FROM t.amount
    UNION ALL
    SELECT e.transfer_id, e.account_id, e.version, 'an entry without its transfer'
    FROM entries e
    WHERE e.transfer_id > :after_id AND e.transfer_id <= :to_id
        AND NOT EXISTS (SELECT 1 FROM transfers t WHERE t.id = e.transfer_id)
    UNION ALL
    SELECT e.transfer_id, e.account_id, e.version, 'its balance does not follow from the entry before'
    FROM entries e
    JOIN accounts a ON a.id = e.account_id AND a.kind = 'user'
    LEFT JOIN entries p ON p.account_id = e.account_id AND p.version = e.version - 1
    WHERE e.transfer_id > :after_id AND e.transfer_id <= :to_id
        AND e.balance_after IS DISTINCT FROM coalesce(p.balance_after, 0) + e.amount
) found
ORDER BY transfer_id, version NULLS FIRST
LIMIT :limit
