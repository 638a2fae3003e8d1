"""What becomes of a payment without the shop: disputes with their money, and early fraud warnings.

An inquiry moves no money until it is escalated. A dispute takes the money when it opens and gives it back when it is
won; each movement is one of its balance transactions.

Source: https://docs.stripe.com/api/disputes/object and https://docs.stripe.com/api/radar/early_fraud_warnings/object
"""

from __future__ import annotations

from typing import Literal

from sandbox.stripe_errors import wrong_state
from sandbox.stripe_shapes import Json
from sandbox.stripe_state import BY_THE_BUYER, TwinState

Step = Literal["escalate", "respond", "win", "lose", "close"]
STEPS: tuple[Step, ...] = ("escalate", "respond", "win", "lose", "close")

INQUIRY = frozenset({"warning_needs_response", "warning_under_review"})
OPEN = frozenset({"needs_response", "under_review"})
# Stripe's fee of a dispute in US dollars; it is the shop's and never the payer's.
FEE_MINOR = 1500


def paid_charge(state: TwinState, payment_intent_id: str) -> Json:
    """Give the charge that paid a payment.

    Raises: ApiError if there is none.
    """
    intent = state.get("payment_intents", payment_intent_id, "payment_intent", in_path=True)
    charge = state.get("charges", intent["latest_charge"], "charge")
    if charge["status"] != "succeeded":
        raise wrong_state(f"Charge {charge['id']} was not paid.")
    return charge


def dispute(state: TwinState, payment_intent_id: str, amount_minor: int | None, *, is_inquiry: bool) -> Json:
    """Let the payer's bank question a payment, wholly or in part."""
    charge = paid_charge(state, payment_intent_id)
    opened = state.add(
        "disputes", _shape(state, charge, amount_minor or charge["amount"], is_inquiry=is_inquiry)
    )
    charge["disputed"] = True
    state.emit("charge.dispute.created", opened, BY_THE_BUYER)
    if not is_inquiry:
        _move(state, opened, -opened["amount"], "charge.dispute.funds_withdrawn")
    return opened


def advance(state: TwinState, dispute_id: str, step: Step) -> Json:
    """Take a dispute one step on.

    Raises: ApiError for a step that does not follow.
    """
    found = state.get("disputes", dispute_id, "dispute", in_path=True)
    from_inquiry = step in {"escalate", "close"}
    if found["status"] not in (INQUIRY if from_inquiry else OPEN):
        raise wrong_state(f"A dispute that is `{found['status']}` cannot {step}.")
    if step == "escalate":
        found.update(status="needs_response", is_charge_refundable=False)
        state.emit("charge.dispute.updated", found, BY_THE_BUYER)
        _move(state, found, -found["amount"], "charge.dispute.funds_withdrawn")
    elif step == "respond":
        found.update(status="under_review")
        state.emit("charge.dispute.updated", found, BY_THE_BUYER)
    else:
        found.update(status={"win": "won", "lose": "lost", "close": "warning_closed"}[step])
        state.emit("charge.dispute.closed", found, BY_THE_BUYER)
        if step == "win":
            _move(state, found, found["amount"], "charge.dispute.funds_reinstated")
    return found


def warn(state: TwinState, payment_intent_id: str) -> Json:
    """Let a card network call a payment fraudulent before anybody disputes it."""
    charge = paid_charge(state, payment_intent_id)
    warning = state.add(
        "warnings",
        {
            "id": state.new_id("issfr_", 24),
            "object": "radar.early_fraud_warning",
            "actionable": not charge["refunded"] and not charge["disputed"],
            "charge": charge["id"],
            "created": int(state.now()),
            "fraud_type": "made_with_stolen_card",
            "livemode": False,
            "payment_intent": payment_intent_id,
        },
    )
    state.emit("radar.early_fraud_warning.created", warning, BY_THE_BUYER)
    return warning


def _move(state: TwinState, found: Json, amount_minor: int, event_type: str) -> None:
    fee = FEE_MINOR if amount_minor < 0 else 0
    found["balance_transactions"].append(
        {
            "id": state.new_id("txn_1", 23),
            "object": "balance_transaction",
            "amount": amount_minor,
            "created": int(state.now()),
            "currency": found["currency"],
            "fee": fee,
            "net": amount_minor - fee,
            "reporting_category": "dispute" if amount_minor < 0 else "dispute_reversal",
            "source": found["id"],
            "type": "adjustment",
        }
    )
    state.emit(event_type, found, BY_THE_BUYER)


def _shape(state: TwinState, charge: Json, amount_minor: int, *, is_inquiry: bool) -> Json:
    return {
        "id": state.new_id("du_1", 23),
        "object": "dispute",
        "amount": amount_minor,
        "balance_transactions": [],
        "charge": charge["id"],
        "created": int(state.now()),
        "currency": charge["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {},
        "evidence_details": {
            "due_by": None,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
        },
        "is_charge_refundable": is_inquiry,
        "livemode": False,
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "payment_method_details": {"card": {"brand": "visa", "case_type": "chargeback"}, "type": "card"},
        "reason": "fraudulent",
        "status": "warning_needs_response" if is_inquiry else "needs_response",
    }
