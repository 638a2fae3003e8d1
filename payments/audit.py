"""The invariants that tie purchases to the books."""

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
        "nothing is granted for a payment that came short",
        """SELECT id AS purchase_id, received_minor, amount_minor FROM purchases
           WHERE fulfilled_at IS NOT NULL AND received_minor < amount_minor""",
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
           WHERE g.clawed <> coalesce(
               div(CAST(p.credits_tokens AS numeric) * p.returned_minor, nullif(p.paid_minor, 0)), 0)""",
    ),
)
