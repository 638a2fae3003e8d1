"""The invariants that tie purchases and vouchers to the books."""

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
               OR a.user_id <> p.user_id""",
    ),
    Check(
        "every purchase transfer belongs to a fulfilled purchase",
        """SELECT t.id AS transfer_id, t.reference FROM transfers t
           WHERE t.kind = 'purchase' AND NOT EXISTS (SELECT 1 FROM purchases p WHERE p.transfer_id = t.id)""",
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
