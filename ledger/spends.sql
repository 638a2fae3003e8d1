-- The hot path: what a reference was used for before, and a whole batch written in one statement.

-- name: find_references
-- Under the accounts' locks: a reference that is not here now will not be there until this transaction ends. A hold
-- owns its reference from its placing on, because its capture is booked under it.
-- Each look is written as a probe of a unique index, so that no plan reads a whole table, whatever its statistics say.
WITH given AS MATERIALIZED (
    SELECT
        at, tool, reference,
        (
            SELECT a.id
            FROM api_keys k
            JOIN accounts a ON a.user_id = k.user_id
            WHERE k.secret_hash = decode(g.hash, 'hex')
        ) AS account_id
    FROM json_to_recordset(CAST(:spends AS json)) AS g (at integer, hash text, tool text, reference text)
)
SELECT g.at, f.*
FROM given g
CROSS JOIN LATERAL (
    (
        SELECT t.id, t.kind, t.amount, t.units_milli, t.free_after
        FROM transfers t
        WHERE t.account_id = g.account_id AND t.tool = g.tool AND t.reference = g.reference
        LIMIT 1
    )
    UNION ALL
    (
        SELECT NULL, 'hold', NULL, NULL, NULL
        FROM holds h
        WHERE h.account_id = g.account_id AND h.tool = g.tool AND h.reference = g.reference AND h.state = 'pending'
        LIMIT 1
    )
) f

-- name: write_spends
-- Each spend with both sides, and each account as its last spend leaves it. Versions and balances were worked out on
-- locked accounts; the CHECKs and keys of the tables refuse the whole batch should that have gone wrong.
WITH given AS MATERIALIZED (
    SELECT
        nextval(pg_get_serial_sequence('transfers', 'id')) AS id,
        (SELECT h.id FROM accounts h WHERE h.code = 'revenue:' || g.tool) AS house_id,
        g.*
    FROM json_to_recordset(CAST(:spends AS json)) AS g (
        account_id bigint, tool text, reference text, cost bigint, units_milli bigint, price_version integer,
        key_id text, free_after bigint, version bigint, balance_after bigint
    )
),
moved AS (
    INSERT INTO transfers (
        id, kind, account_id, tool, reference, amount, price_version, event_at, key_id, units_milli, free_after
    )
    OVERRIDING SYSTEM VALUE
    SELECT id, 'spend', account_id, tool, reference, -cost, price_version, now(), key_id, units_milli, free_after
    FROM given
),
sides AS (
    INSERT INTO entries (account_id, version, transfer_id, amount, balance_after)
    SELECT account_id, version, id, -cost, balance_after FROM given
    UNION ALL
    SELECT house_id, id, id, cost, NULL FROM given
),
left_with AS (
    UPDATE accounts a
    SET balance = p.balance, version = p.version
    FROM json_to_recordset(CAST(:purses AS json)) AS p (id bigint, balance bigint, version bigint)
    WHERE a.id = p.id
)
SELECT account_id, version, id FROM given
