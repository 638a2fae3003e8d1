-- The locking and the set-based statements of the books. Locks are taken in a statement of their own, in ascending
-- account id: a CTE's snapshot is older than its lock wait, and an order shared by all writers cannot deadlock.

-- name: lock_accounts
SELECT id, balance, held, version, allocated_version, debt, frozen_at IS NOT NULL AS stopped,
    due_at <= clock_timestamp() AS due, world
FROM accounts
WHERE id = ANY(CAST(:ids AS bigint[])) AND kind = 'user'
ORDER BY id
FOR NO KEY UPDATE

-- name: lock_accounts_of_keys
SELECT id, balance, held, version, allocated_version, debt, frozen_at IS NOT NULL AS stopped,
    due_at <= clock_timestamp() AS due, world
FROM accounts
WHERE id = ANY(ARRAY(
    SELECT a.id
    FROM api_keys k
    JOIN accounts a ON a.user_id = k.user_id AND a.world = k.world
    WHERE k.secret_hash = ANY(CAST(:hashes AS bytea[]))
))
ORDER BY id
FOR NO KEY UPDATE

-- name: accounts_of_keys
SELECT id, balance, held, version, allocated_version, debt, frozen_at IS NOT NULL AS stopped,
    due_at <= clock_timestamp() AS due, world
FROM accounts
WHERE (user_id, world) IN (
    SELECT user_id, world FROM api_keys WHERE secret_hash = ANY(CAST(:hashes AS bytea[]))
)

-- name: ensure_house_accounts
-- A house account for each code, in the world of the account that it is to meet.
INSERT INTO accounts (kind, code, world)
SELECT DISTINCT split_part(g.code, ':', 1), g.code, a.world
FROM unnest(CAST(:codes AS text[]), CAST(:account_ids AS bigint[])) AS g (code, account_id)
JOIN accounts a ON a.id = g.account_id
WHERE NOT EXISTS (SELECT 1 FROM accounts h WHERE h.code = g.code AND h.world = a.world)
ON CONFLICT (code, world) DO NOTHING

-- name: post
-- Transfers, both sides of each, and the users' new balances, in one statement. The accounts are locked already.
-- A transfer on a house account (a debt) moves no balance.
WITH given AS (
    SELECT *
    FROM unnest(
        CAST(:kinds AS text[]), CAST(:account_ids AS bigint[]), CAST(:houses AS text[]), CAST(:amounts AS bigint[]),
        CAST(:tools AS text[]), CAST(:references AS text[]), CAST(:hold_ids AS text[]), CAST(:released AS bigint[]),
        CAST(:price_versions AS integer[]), CAST(:reasons AS text[]), CAST(:event_ats AS timestamptz[]),
        CAST(:reverses_ids AS bigint[]), CAST(:key_ids AS text[]), CAST(:units AS bigint[]), CAST(:frees AS bigint[])
    ) WITH ORDINALITY
    AS g (
        kind, account_id, house, amount, tool, reference, hold_id, released, price_version, reason, event_at,
        reverses_id, key_id, units_milli, free_after, place
    )
),
moved AS (
    INSERT INTO transfers (
        kind, account_id, tool, reference, amount, hold_id, price_version, reason, event_at, reverses_id, key_id,
        units_milli, free_after
    )
    SELECT
        kind, account_id, tool, reference, amount, hold_id, price_version, reason, event_at, reverses_id, key_id,
        units_milli, free_after
    FROM given
    ORDER BY place
    RETURNING id, account_id, tool, reference
),
numbered AS (
    SELECT
        m.id AS transfer_id,
        g.account_id,
        h.id AS house_id,
        g.amount,
        CASE WHEN a.kind = 'user' THEN a.version + row_number() OVER w ELSE m.id END AS version,
        CASE WHEN a.kind = 'user' THEN CAST(a.balance + sum(g.amount) OVER w AS bigint) END AS balance_after
    FROM given g
    JOIN moved m USING (account_id, tool, reference)
    JOIN accounts a ON a.id = g.account_id
    JOIN accounts h ON h.code = g.house AND h.world = a.world
    WINDOW w AS (PARTITION BY g.account_id ORDER BY g.place)
),
sides AS (
    INSERT INTO entries (account_id, version, transfer_id, amount, balance_after)
    SELECT account_id, version, transfer_id, amount, balance_after FROM numbered
    UNION ALL
    SELECT house_id, transfer_id, transfer_id, -amount, NULL FROM numbered
),
updated AS (
    UPDATE accounts a
    SET balance = a.balance + d.amount, held = a.held - d.released, version = a.version + d.moves
    FROM (
        SELECT account_id, CAST(sum(amount) AS bigint) AS amount, CAST(sum(released) AS bigint) AS released,
            count(*) AS moves
        FROM given
        GROUP BY account_id
    ) d
    WHERE a.id = d.account_id AND a.kind = 'user'
)
SELECT transfer_id, version FROM numbered ORDER BY transfer_id

-- name: place_holds
WITH given AS (
    SELECT *
    FROM unnest(
        CAST(:ids AS text[]), CAST(:account_ids AS bigint[]), CAST(:tools AS text[]), CAST(:references AS text[]),
        CAST(:amounts AS bigint[]), CAST(:price_versions AS integer[]), CAST(:expires_ats AS timestamptz[]),
        CAST(:key_ids AS text[]), CAST(:cap_windows AS date[])
    ) AS g (id, account_id, tool, reference, amount, price_version, expires_at, key_id, cap_window)
),
placed AS (
    INSERT INTO holds (id, account_id, tool, reference, amount, price_version, expires_at, key_id, cap_window)
    SELECT id, account_id, tool, reference, amount, price_version, expires_at, key_id, cap_window FROM given
)
UPDATE accounts a
SET held = a.held + d.amount
FROM (SELECT account_id, CAST(sum(amount) AS bigint) AS amount FROM given GROUP BY account_id) d
WHERE a.id = d.account_id

-- name: lock_hold
SELECT id, account_id, tool, reference, amount, captured, state, price_version, key_id, cap_window
FROM holds
WHERE id = :id
FOR NO KEY UPDATE

-- name: use_of_reference
-- What a reference was used for: a transfer, or a hold that owns it until it is captured under it.
SELECT id, kind, -amount AS charged, units_milli, free_after
FROM transfers
WHERE account_id = :account_id AND tool = :tool AND reference = :reference
UNION ALL
SELECT NULL, 'hold', NULL, NULL, NULL
FROM holds
WHERE account_id = :account_id AND tool = :tool AND reference = :reference AND state = 'pending'

-- name: resolve_hold
UPDATE holds
SET state = :state, captured = :captured, resolved_at = clock_timestamp()
WHERE id = :id AND state = 'pending'

-- name: release_held
UPDATE accounts SET held = held - :amount WHERE id = :id

-- name: authenticate
-- `limited`: the key carries a limit of any kind; a session's end is none. `unused`: its last use was written a minute
-- ago or longer.
SELECT g.place, k.id AS key_id, k.user_id, k.world, a.id AS account_id, u.email, u.suspended_at IS NOT NULL AS suspended,
    k.scopes,
    k.allowed_ips IS NULL OR coalesce(g.ip <<= ANY (k.allowed_ips), false) AS admitted,
    coalesce(k.last_used_at < clock_timestamp() - interval '1 minute', true) AS unused,
    k.kind = 'key' AND num_nonnulls(k.parent_id, k.expires_at, k.scopes, k.allowed_ips, k.cap_tokens) > 0 AS limited,
    num_nonnulls(k.parent_id, k.cap_tokens) > 0 AS capped
FROM unnest(CAST(:hashes AS bytea[]), CAST(:ips AS inet[])) WITH ORDINALITY AS g (secret_hash, ip, place)
JOIN api_keys k ON k.secret_hash = g.secret_hash
JOIN users u ON u.id = k.user_id
JOIN accounts a ON a.user_id = k.user_id AND a.world = k.world
WHERE k.revoked_at IS NULL
    AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())

-- name: note_use
-- The account first, as every writer; nothing is waited for.
WITH idle AS (
    SELECT user_id, world
    FROM accounts
    WHERE id = ANY(CAST(:account_ids AS bigint[]))
    ORDER BY id
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE api_keys k
SET last_used_at = clock_timestamp()
FROM idle
WHERE k.user_id = idle.user_id AND k.world = idle.world AND k.id = ANY(CAST(:key_ids AS text[]))

-- name: caps
-- The caps of keys and of their ancestors, on this UTC day.
SELECT g.key_id AS spender, d.today, c.*
FROM (SELECT CAST(statement_timestamp() AT TIME ZONE 'UTC' AS date) AS today) d,
    unnest(CAST(:key_ids AS text[])) AS g (key_id),
    LATERAL key_caps(g.key_id, d.today) c

-- name: save_caps
UPDATE api_keys k
SET cap_used = g.used, cap_window = g.started
FROM unnest(CAST(:ids AS text[]), CAST(:used AS bigint[]), CAST(:windows AS date[])) AS g (id, used, started)
WHERE k.id = g.id

-- name: give_back_cap
-- What a hold set aside and did not cost, from the key's cap and its ancestors', within the windows of its day.
UPDATE api_keys k
SET cap_used = greatest(0, k.cap_used - :amount)
FROM key_line(:key_id) line
WHERE k.id = line.id AND k.cap_window = cap_window(k.cap_per, CAST(:capped_on AS date))

-- name: balances_by_key
SELECT g.place, a.balance, a.held, u.suspended_at IS NOT NULL AS suspended, k.scopes, k.id AS key_id, a.id AS account_id,
    k.allowed_ips IS NULL OR coalesce(g.ip <<= ANY (k.allowed_ips), false) AS admitted,
    coalesce(k.last_used_at < clock_timestamp() - interval '1 minute', true) AS unused
FROM unnest(CAST(:hashes AS bytea[]), CAST(:ips AS inet[])) WITH ORDINALITY AS g (secret_hash, ip, place)
JOIN api_keys k ON k.secret_hash = g.secret_hash
JOIN users u ON u.id = k.user_id
JOIN accounts a ON a.user_id = k.user_id AND a.world = k.world
WHERE k.revoked_at IS NULL
    AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())

-- name: trial_balance
SELECT a.world, a.kind, count(DISTINCT a.id) AS accounts, count(*) AS entries, CAST(sum(e.amount) AS bigint) AS amount
FROM entries e
JOIN accounts a ON a.id = e.account_id
GROUP BY a.world, a.kind
ORDER BY a.world, a.kind
