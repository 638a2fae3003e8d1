-- Grants: which credits burn first, what was drawn on them, and when the next one starts or ends.
-- Every statement runs under the account's lock.

-- name: open_grants
-- In the order in which they burn: priority, expiry, age.
SELECT id, house, amount, remaining, clawed, expires_at, opened_version, expires_at <= CAST(:now AS timestamptz) AS expired
FROM grants
WHERE account_id = :account_id AND remaining > 0 AND transfer_id IS NOT NULL
ORDER BY priority, expires_at NULLS LAST, id

-- name: starting_grants
SELECT id, source, reference, house, reason, amount
FROM grants
WHERE account_id = :account_id AND remaining > 0 AND transfer_id IS NULL AND starts_at <= CAST(:now AS timestamptz)
ORDER BY starts_at, id

-- name: undrawn_debits
SELECT version, -amount AS amount
FROM entries
WHERE account_id = :account_id AND version > :after AND version <= :up_to AND amount < 0
ORDER BY version

-- name: draw
-- `amounts` is positive for what was drawn, negative for what was given back.
WITH given AS (
    SELECT *
    FROM unnest(
        CAST(:grant_ids AS bigint[]), CAST(:from_versions AS bigint[]), CAST(:to_versions AS bigint[]),
        CAST(:amounts AS bigint[])
    ) AS g (grant_id, from_version, to_version, amount)
),
written AS (
    INSERT INTO draws (account_id, from_version, grant_id, to_version, amount)
    SELECT :account_id, from_version, grant_id, to_version, amount FROM given
)
UPDATE grants g
SET remaining = g.remaining - d.amount
FROM (SELECT grant_id, CAST(sum(amount) AS bigint) AS amount FROM given GROUP BY grant_id) d
WHERE g.id = d.grant_id

-- name: drawn_by
-- What one debit drew on each grant and has not been given back; what was drawn last comes first.
SELECT d.grant_id, coalesce(CASE WHEN d.from_version < d.to_version THEN e.amount * -1 ELSE d.amount END, 0)
    - coalesce(back.amount, 0) AS amount
FROM entries e
JOIN draws d ON d.account_id = e.account_id AND e.version BETWEEN d.from_version AND d.to_version
JOIN grants g ON g.id = d.grant_id
LEFT JOIN LATERAL (
    SELECT CAST(-sum(r.amount) AS bigint) AS amount
    FROM transfers t
    JOIN entries te ON te.transfer_id = t.id AND te.account_id = e.account_id
    JOIN draws r ON r.account_id = e.account_id AND r.from_version = te.version AND r.grant_id = d.grant_id
    WHERE t.reverses_id = e.transfer_id
) back ON true
WHERE e.account_id = :account_id AND e.transfer_id = :transfer_id
ORDER BY g.priority DESC, g.expires_at DESC NULLS FIRST, g.id DESC

-- name: set_allocated
UPDATE accounts SET allocated_version = :version WHERE id = :account_id

-- name: set_due
-- The next start or expiry. What an expiry had to leave for a hold is looked at again after a minute.
UPDATE accounts
SET due_at = (
    SELECT min(CASE
        WHEN transfer_id IS NULL THEN starts_at
        WHEN expires_at <= CAST(:now AS timestamptz) THEN CAST(:now AS timestamptz) + interval '1 minute'
        ELSE expires_at
    END)
    FROM grants
    WHERE account_id = :account_id AND remaining > 0 AND (transfer_id IS NULL OR expires_at IS NOT NULL)
)
WHERE id = :account_id

-- name: due_by
UPDATE accounts SET due_at = least(due_at, CAST(:at AS timestamptz)) WHERE id = :account_id

-- name: accounts_due
SELECT id FROM accounts WHERE due_at <= clock_timestamp() ORDER BY due_at LIMIT :limit

-- name: accounts_behind
-- A slice of the accounts by id, so that a look at all of them is spread over many sweeps.
SELECT id, version > allocated_version AS behind
FROM accounts
WHERE id > :after AND kind = 'user'
ORDER BY id
LIMIT :limit
