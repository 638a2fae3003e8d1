-- Automatic top-ups. No account is locked: a spend neither waits for this nor keeps it waiting.

-- name: due
-- Accounts that are short of what they wish to have, in a slice by account; and where the slice ends.
WITH slice AS MATERIALIZED (
    SELECT account_id, threshold, rest_until, state
    FROM auto_topups
    WHERE account_id > :after AND provider = :provider
    ORDER BY account_id
    LIMIT :limit
)
SELECT
    (SELECT max(account_id) FROM slice HAVING count(*) = :limit) AS up_to,
    ARRAY(
        SELECT s.account_id
        FROM slice s
        JOIN accounts a ON a.id = s.account_id
        WHERE s.state = 'on' AND coalesce(s.rest_until <= now(), true)
            AND a.balance - a.held < s.threshold AND a.frozen_at IS NULL AND a.debt = 0
            AND NOT EXISTS (
                SELECT FROM auto_topup_charges c WHERE c.account_id = s.account_id AND c.state = 'charging'
            )
        ORDER BY s.account_id
    ) AS due

-- name: lock_wish
SELECT 1 FROM auto_topups WHERE account_id = :account_id FOR NO KEY UPDATE

-- name: as_it_stands
-- All that a charge is decided on, under the wish's lock.
SELECT w.*, u.id AS user_id, u.email,
    w.state = 'on' AND coalesce(w.rest_until <= now(), true)
        AND a.balance - a.held < w.threshold AND a.frozen_at IS NULL AND a.debt = 0 AND a.world = 'live'
        AND u.suspended_at IS NULL AND u.deleted_at IS NULL
        AND NOT EXISTS (
            SELECT FROM auto_topup_charges c WHERE c.account_id = w.account_id AND c.state = 'charging'
        ) AS is_due,
    CAST(date_trunc('month', now() AT TIME ZONE 'UTC') AS date) AS month,
    (date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC' AS next_month,
    (
        SELECT CAST(coalesce(sum(c.amount_minor), 0) AS bigint)
        FROM auto_topup_charges c
        WHERE c.account_id = w.account_id AND c.currency = w.currency AND c.state <> 'refused'
            AND c.month = CAST(date_trunc('month', now() AT TIME ZONE 'UTC') AS date)
    ) AS spent_minor
FROM auto_topups w
JOIN accounts a ON a.id = w.account_id
JOIN users u ON u.id = a.user_id
WHERE w.account_id = :account_id

-- name: take
-- Charges that nobody is at. The first try asks the provider to charge; a later one looks first what the first did.
UPDATE auto_topup_charges c
SET attempts = c.attempts + 1, due_at = now() + make_interval(secs => :lease_s * power(2, least(c.attempts, 5)))
FROM (
    SELECT w.id
    FROM auto_topup_charges w
    JOIN purchases p ON p.id = w.id
    WHERE w.state = 'charging' AND w.due_at <= now() AND p.provider = :provider
    ORDER BY w.due_at
    LIMIT :limit
    FOR UPDATE OF w SKIP LOCKED
) ready, purchases p, accounts a, users u
WHERE c.id = ready.id AND p.id = c.id AND a.id = c.account_id AND u.id = a.user_id
RETURNING c.id, c.customer_id, c.amount_minor, c.currency, c.attempts, c.created_at, p.email, p.credits_tokens,
    c.created_at < now() - make_interval(secs => :repeatable_s)
        OR a.frozen_at IS NOT NULL OR a.debt > 0 OR u.suspended_at IS NOT NULL OR u.deleted_at IS NOT NULL
        OR NOT EXISTS (SELECT FROM auto_topups w WHERE w.account_id = c.account_id AND w.state = 'on') AS only_look

-- name: note_paid
UPDATE auto_topup_charges
SET state = 'paid', ended_at = now(), problem = NULL
WHERE id = :id AND state <> 'paid'
RETURNING account_id

-- name: forgive_declines
UPDATE auto_topups SET declines = 0, rest_until = NULL WHERE account_id = :account_id AND state = 'on'

-- name: refuse
UPDATE auto_topup_charges
SET state = 'refused', ended_at = now(), problem = :problem
WHERE id = :id AND state = 'charging'
RETURNING account_id, created_at

-- name: close_purchase
UPDATE purchases
SET closed_at = coalesce(closed_at, now()), look_at = NULL
WHERE id = :id AND fulfilled_at IS NULL
