-- Referrals. Whoever changes one holds the lock of an account of its two, so that a read under both locks is the newest.

-- name: make_code
INSERT INTO referral_codes (account_id, code) VALUES (:account_id, :code)
ON CONFLICT DO NOTHING
RETURNING code

-- name: code_of
SELECT code FROM referral_codes WHERE account_id = :account_id

-- name: standing
SELECT
    count(*) FILTER (WHERE state = 'applied') AS applied,
    count(*) FILTER (WHERE state = 'ordered') AS ordered,
    count(*) FILTER (WHERE state = 'rewarded') AS rewarded,
    CAST(coalesce(sum(reward) FILTER (WHERE state = 'ordered'), 0) AS bigint) AS pending,
    CAST(coalesce(sum(reward) FILTER (WHERE state = 'rewarded'), 0) AS bigint) AS earned
FROM referrals
WHERE referrer_id = :account_id

-- name: applied
SELECT c.code, r.applied_at
FROM referrals r
JOIN referral_codes c ON c.account_id = r.referrer_id
WHERE r.referee_id = :account_id

-- name: lock_parties
-- The account behind the key and that of the code's owner, before anything of them is read, and before the key's last
-- use is noted, which would lock one of them out of order.
SELECT id
FROM accounts
WHERE id = ANY(ARRAY(
    SELECT account_id FROM referral_codes WHERE code = :code
    UNION ALL
    SELECT a.id FROM api_keys k JOIN accounts a ON a.user_id = k.user_id AND a.world = k.world
    WHERE k.secret_hash = :hash
))
ORDER BY id
FOR NO KEY UPDATE

-- name: owner_of_code
SELECT c.account_id, u.email, coalesce(u.suspended_at, u.deleted_at) IS NOT NULL AS suspended
FROM referral_codes c
JOIN accounts a ON a.id = c.account_id
JOIN users u ON u.id = a.user_id
WHERE c.code = :code

-- name: one_at_a_time
-- Two new referrals may close a ring that neither closes alone; the trigger `no_ring` takes the same lock.
SELECT pg_advisory_xact_lock(hashtextextended('payments.referrals', 0))

-- name: may_apply
-- Under the account's lock, which a fulfilment takes before it notes the first order.
SELECT r.referrer_id AS applied_to, r.applied_at,
    EXISTS (
        SELECT FROM grants g JOIN purchases p ON p.id = g.purchase_id
        WHERE g.account_id = :account_id AND g.source = 'purchase' AND p.paid_minor > 0
    ) AS has_ordered,
    referred_by(CAST(:owner_id AS bigint), :account_id) AS brought_owner
FROM (SELECT 1) one
LEFT JOIN referrals r ON r.referee_id = :account_id

-- name: note_order
UPDATE referrals
SET state = 'ordered', purchase_id = :purchase_id, ordered_at = clock_timestamp()
WHERE referee_id = :account_id AND state = 'applied'

-- name: due
-- Orders that have stood for the holding time, the oldest first, and rewards whose order was taken back.
(SELECT id FROM referrals WHERE state = 'rewarded' AND taken_back_at IS NOT NULL ORDER BY taken_back_at LIMIT :limit)
UNION ALL
(SELECT id FROM referrals WHERE state = 'ordered' AND ordered_at <= clock_timestamp() - CAST(:hold AS interval)
ORDER BY ordered_at, id LIMIT :limit)

-- name: decide
-- All that a decision on one referral rests on, at the time `now`.
SELECT r.id, r.state, r.reward, r.referrer_id, r.purchase_id, r.taken_back_at,
    r.ordered_at <= CAST(:now AS timestamptz) - CAST(:hold AS interval) AS ripe,
    referrer.email AS referrer_email, referee.email AS referee_email, p.email AS payer_email,
    coalesce(referrer.suspended_at, referrer.deleted_at, referee.suspended_at, referee.deleted_at) IS NOT NULL AS suspended,
    EXISTS (
        SELECT FROM purchases theirs
        WHERE theirs.card_fingerprint = p.card_fingerprint AND theirs.user_id = referrer.id AND theirs.world = 'live'
    ) AS same_card,
    given.this_month, given.tokens
FROM referrals r
JOIN accounts ra ON ra.id = r.referrer_id
JOIN users referrer ON referrer.id = ra.user_id
JOIN accounts ea ON ea.id = r.referee_id
JOIN users referee ON referee.id = ea.user_id
LEFT JOIN purchases p ON p.id = r.purchase_id
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE g.rewarded_at >= date_trunc('month', CAST(:now AS timestamptz))) AS this_month,
        CAST(coalesce(sum(g.reward), 0) AS bigint) AS tokens
    FROM referrals g
    WHERE g.referrer_id = r.referrer_id AND g.state = 'rewarded'
) given
WHERE r.id = :id

-- name: reward_left
-- What of a reward has neither run out nor been reversed or clawed back, whether it was spent or not.
SELECT g.amount - g.clawed - CAST(coalesce(sum(d.amount), 0) AS bigint)
FROM grants g
LEFT JOIN (
    draws d
    JOIN entries e ON e.account_id = d.account_id AND e.version = d.from_version
    JOIN transfers t ON t.id = e.transfer_id AND t.kind IN ('expiry', 'reversal')
) ON d.grant_id = g.id AND d.amount > 0
WHERE g.account_id = :account_id AND g.purchase_id = :purchase_id
GROUP BY g.id
