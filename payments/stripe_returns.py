"""What Stripe's refunds and disputes mean for the money: gone, going, or not.

Source: https://docs.stripe.com/api/refunds/object and https://docs.stripe.com/api/disputes/object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from payments.returns import Return
from payments.stripe_amounts import from_stripe

REFUND_PHASES: Final = {"pending": 0, "requires_action": 0, "succeeded": 1, "failed": 2, "canceled": 2}
"""A refund that succeeded may still fail weeks later, when the bank sends it back; never the other way."""
REFUND_ENDED: Final = frozenset({"failed", "canceled"})
DISPUTE_PHASES: Final = {
    "warning_needs_response": 0,
    "warning_under_review": 0,
    "warning_closed": 0,
    "needs_response": 1,
    "under_review": 2,
    "lost": 3,
    "appeal_needs_response": 4,
    "appeal_under_review": 5,
    "won": 6,
    "prevented": 6,
}
DISPUTE_STANDS: Final = frozenset(
    {"needs_response", "under_review", "lost", "appeal_needs_response", "appeal_under_review"}
)
"""Inquiries (`warning_*`) move no money; what was won or prevented came back."""
UNKNOWN_PHASE: Final = 1
MOVEMENT: Final = 10
"""Each movement of a dispute's money, withdrawn or reinstated, outweighs any status."""


def refund(found: Mapping[str, Any]) -> Return:
    """Read a refund. It stands from its beginning, so that its credits are not spent while it is under way."""
    status = str(found["status"] or "succeeded")
    return Return(
        id=found["id"],
        kind="refund",
        amount_minor=from_stripe(found["amount"], found["currency"]),
        status=status,
        phase=REFUND_PHASES.get(status, UNKNOWN_PHASE),
        stands=status not in REFUND_ENDED,
    )


def dispute(found: Mapping[str, Any]) -> Return:
    """Read a dispute. Where money has moved that decides, unless it was won; before, its status does."""
    status = str(found["status"])
    moved = [int(each["amount"]) for each in found.get("balance_transactions") or ()]
    stands = status in DISPUTE_STANDS
    if moved and status not in ("won", "prevented"):
        stands = sum(moved) < 0
    return Return(
        id=found["id"],
        kind="dispute",
        amount_minor=from_stripe(found["amount"], found["currency"]),
        status=status,
        phase=MOVEMENT * len(moved) + DISPUTE_PHASES.get(status, UNKNOWN_PHASE),
        stands=stands,
    )
