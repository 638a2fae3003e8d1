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
)
