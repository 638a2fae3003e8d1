"""The invariants that tie purchases, vouchers and referrals to the books."""

from __future__ import annotations

from typing import Final

from ledger.audit import Check

PAYMENT_CHECKS: Final = (
    Check(
        "a fulfilled purchase has one transfer of what was sold, to the payer's account",
        """SELECT p.id AS purchase_id, p.credits_tokens, t.amount, t.kind
           FROM purchases p
           JOIN transfers t ON t.id = p.transfer_id
           JOIN accounts a ON a.id = t.account_id
           WHERE t.kind <> 'purchase' OR t.amount <> p.credits_tokens OR t.reference <> p.id
               OR a.user_id <> p.user_id OR a.world <> p.world""",
    ),
    Check(
        "every purchase transfer belongs to a fulfilled purchase",
        """SELECT t.id AS transfer_id, t.reference FROM transfers t
           WHERE t.kind = 'purchase' AND NOT EXISTS (SELECT 1 FROM purchases p WHERE p.transfer_id = t.id)""",
    ),
    Check(
        "nothing is granted for a payment that came short",
        """SELECT id AS purchase_id, received_minor, amount_minor FROM purchases
           WHERE fulfilled_at IS NOT NULL AND received_minor < amount_minor""",
    ),
    Check(
        "a settled x402 payment is one purchase of what it bought, and every such purchase was settled",
        """SELECT x.id AS payment_id, p.id AS purchase_id
           FROM x402_payments x
           FULL JOIN (SELECT * FROM purchases WHERE provider = 'x402') p ON p.id = x.purchase_id
           WHERE (x.state = 'settled' OR p.id IS NOT NULL)
               AND (x.id IS NULL OR p.fulfilled_at IS NULL OR p.session_id IS DISTINCT FROM x.id
                   OR p.credits_tokens <> x.credits_tokens OR p.amount_minor <> x.amount_minor)""",
    ),
    Check(
        "a top-up charge is paid when its purchase is granted, and stays within its account",
        """SELECT c.id AS purchase_id, c.state, p.fulfilled_at
           FROM auto_topup_charges c
           JOIN purchases p ON p.id = c.id
           JOIN accounts a ON a.id = c.account_id
           WHERE (c.state = 'paid') <> (p.fulfilled_at IS NOT NULL) OR c.amount_minor <> p.amount_minor
               OR c.currency <> p.currency OR p.world <> 'live'
               OR p.fulfilled_at IS NOT NULL AND p.topup_user_id IS NOT NULL AND p.user_id <> a.user_id""",
    ),
    Check(
        "what went back of a payment is what stands of its refunds and disputes",
        """SELECT p.id AS purchase_id, p.paid_minor, p.returned_minor, coalesce(r.standing, 0) AS standing
           FROM purchases p
           LEFT JOIN (
               SELECT purchase_id, sum(amount_minor) AS standing FROM payment_returns WHERE stands GROUP BY purchase_id
           ) r ON r.purchase_id = p.id
           WHERE p.returned_minor <> least(coalesce(r.standing, 0), coalesce(p.paid_minor, 0))""",
    ),
    Check(
        "the credits clawed back of a payment are the share of the money that went back",
        """SELECT p.id AS purchase_id, p.credits_tokens, p.paid_minor, p.returned_minor, g.clawed
           FROM purchases p
           JOIN accounts a ON a.user_id = p.user_id
           JOIN grants g ON g.account_id = a.id AND g.purchase_id = p.id
           WHERE EXISTS (SELECT 1 FROM payment_returns r WHERE r.purchase_id = p.id) AND g.clawed <> coalesce(
               div(CAST(p.credits_tokens AS numeric) * p.returned_minor, nullif(p.paid_minor, 0)), 0)""",
    ),
    Check(
        "a referral is rewarded with one transfer of what was promised, to whoever brought the customer",
        """SELECT r.id AS referral_id, r.state, r.reward, t.amount, t.kind
           FROM referrals r
           JOIN transfers t ON t.id = r.transfer_id
           WHERE t.kind <> 'referral' OR t.amount <> r.reward OR t.account_id <> r.referrer_id
               OR t.reference <> r.id""",
    ),
    Check(
        "every reward belongs to a referral",
        """SELECT t.id AS transfer_id, t.reference
           FROM accounts h
           JOIN entries e ON e.account_id = h.id
           JOIN transfers t ON t.id = e.transfer_id AND t.kind = 'referral'
           WHERE h.code = 'promotion:referral'
               AND NOT EXISTS (SELECT 1 FROM referrals r WHERE r.transfer_id = t.id)""",
    ),
    Check(
        "a referral waits or is rewarded for an order of the account that was brought",
        """SELECT r.id AS referral_id, r.state, p.user_id
           FROM referrals r
           LEFT JOIN purchases p ON p.id = r.purchase_id
           JOIN accounts a ON a.id = r.referee_id
           WHERE r.purchase_id IS NOT NULL AND p.user_id IS DISTINCT FROM a.user_id
               OR r.state = 'applied' AND EXISTS (
                   SELECT 1 FROM grants g JOIN purchases o ON o.id = g.purchase_id
                   WHERE g.account_id = r.referee_id AND g.source = 'purchase' AND o.paid_minor > 0
               )""",
    ),
    Check(
        "a referral hears that its order was taken back, and leaves nothing of a reward that was reversed",
        """SELECT r.id AS referral_id, r.state, o.clawed, g.remaining, g.clawed AS reward_clawed
           FROM referrals r
           JOIN grants o ON o.purchase_id = r.purchase_id AND o.source = 'purchase'
           LEFT JOIN grants g ON g.transfer_id = r.transfer_id
           WHERE r.state IN ('ordered', 'rewarded') AND o.clawed > 0 AND r.taken_back_at IS NULL
               OR r.state = 'reversed' AND g.remaining > 0 AND g.clawed = 0""",
    ),
    Check(
        "a voucher counts its redemptions, each a grant of its amount to the account that redeemed it",
        """SELECT v.id AS voucher_id, v.redemptions, r.grants
           FROM vouchers v
           LEFT JOIN (
               SELECT r.voucher_id, count(*) AS redeemed, count(t.id) AS grants
               FROM voucher_redemptions r
               JOIN vouchers v ON v.id = r.voucher_id
               LEFT JOIN transfers t ON t.id = r.transfer_id AND t.account_id = r.account_id AND t.kind = 'grant'
                   AND t.amount = v.amount
               GROUP BY r.voucher_id
           ) r ON r.voucher_id = v.id
           WHERE v.redemptions <> coalesce(r.redeemed, 0) OR r.redeemed <> r.grants""",
    ),
)
