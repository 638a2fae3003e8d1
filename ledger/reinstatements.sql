-- What a clawback moved and has not come back yet, the last moved first. Under the account's lock.

-- name: taken
-- Of one grant.
SELECT t.id, t.price_version, CAST(-t.amount - coalesce(b.amount, 0) AS bigint) AS left_tokens
FROM transfers t
JOIN entries e ON e.transfer_id = t.id AND e.account_id = t.account_id
JOIN draws d ON d.account_id = e.account_id AND d.from_version = e.version AND d.grant_id = :grant_id
LEFT JOIN LATERAL (SELECT sum(r.amount) AS amount FROM transfers r WHERE r.reverses_id = t.id) b ON true
WHERE t.account_id = :account_id AND t.kind = 'clawback' AND -t.amount > coalesce(b.amount, 0)
ORDER BY t.id DESC

-- name: unreturned
-- Of a kind, whichever grant it was about: what is owed, and what was paid on it, is one sum.
SELECT t.id, t.price_version, CAST(-t.amount - coalesce(b.amount, 0) AS bigint) AS left_tokens
FROM transfers t
LEFT JOIN LATERAL (SELECT sum(r.amount) AS amount FROM transfers r WHERE r.reverses_id = t.id) b ON true
WHERE t.account_id = :account_id AND t.kind = :kind AND -t.amount > coalesce(b.amount, 0)
ORDER BY t.id DESC

-- name: reinstated
-- What came back under a reference, and how much of it to the user; debt payments give back what is counted already.
SELECT CAST(sum(r.amount) FILTER (WHERE t.kind <> 'debt_payment') AS bigint) AS amount,
    CAST(coalesce(sum(r.amount) FILTER (WHERE r.account_id = :account_id), 0) AS bigint) AS returned
FROM transfers r JOIN transfers t ON t.id = r.reverses_id
WHERE r.account_id IN (:account_id, :owed_by) AND r.tool = 'reinstatement' AND starts_with(r.reference, :prefix)
