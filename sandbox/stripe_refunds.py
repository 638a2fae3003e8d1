"""Refunds of what a session paid: whole or in parts, and never more than was paid."""

from __future__ import annotations

from sandbox import stripe_shapes as shapes
from sandbox.stripe_errors import invalid, missing, wrong_state
from sandbox.stripe_order import AMOUNT_MOST_MINOR
from sandbox.stripe_params import Params, names
from sandbox.stripe_shapes import Json
from sandbox.stripe_state import BY_THE_BUYER, Origin, TwinState

_KNOWN = names("amount charge expand metadata payment_intent reason")
_BEYOND_THE_TWIN = names(
    "currency customer instructions_email origin refund_application_fee reverse_transfer"
)


def read_refund(params: Params) -> Json:
    """Check the parameters of a refund and give them in plain form; changes nothing."""
    params.only(_KNOWN, _BEYOND_THE_TWIN)
    wish: Json = {
        "amount": params.integer("amount", least=1, most=AMOUNT_MOST_MINOR),
        "charge": params.text("charge"),
        "metadata": params.metadata(),
        "payment_intent": params.text("payment_intent"),
        "reason": params.choice("reason", ("duplicate", "fraudulent", "requested_by_customer")),
    }
    if wish["charge"] is None and wish["payment_intent"] is None:
        raise missing("payment_intent")
    if wish["charge"] is not None and wish["payment_intent"] is not None:
        raise invalid("charge", "Send `payment_intent` or `charge`, not both.")
    return wish


def refund(state: TwinState, wish: Json, origin: Origin) -> Json:
    """Give money back out of a paid charge, at most what is left of it, with both of Stripe's events."""
    charge = _charge_of(state, wish)
    if charge["status"] != "succeeded":
        raise wrong_state(
            f"Charge {charge['id']} was not paid, so it cannot be refunded.", param="payment_intent"
        )
    left_minor = charge["amount"] - charge["amount_refunded"]
    if left_minor == 0:
        raise wrong_state(f"Charge {charge['id']} has already been refunded.", "charge_already_refunded")
    amount_minor = wish["amount"] if wish["amount"] is not None else left_minor
    if amount_minor > left_minor:
        left = shapes.amount_text(left_minor, charge["currency"])
        raise wrong_state(f"The refund is greater than what is left of the charge ({left}).", param="amount")
    refund_id = state.new_id("re_3", 23)
    made = state.add("refunds", shapes.refund(refund_id, charge, amount_minor, wish, int(state.now())))
    charge["amount_refunded"] += amount_minor
    charge["refunded"] = charge["amount_refunded"] == charge["amount"]
    state.emit("refund.created", made, origin)
    state.emit("charge.refunded", charge, origin)
    return made


def fail(state: TwinState, refund_id: str) -> Json:
    """Take a refund back that the payer's bank refused: the money is the shop's again.

    Raises: ApiError if it failed before.
    """
    made = state.get("refunds", refund_id, "refund", in_path=True)
    if made["status"] == "failed":
        raise wrong_state(f"Refund {refund_id} failed before.")
    made.update(status="failed", failure_reason="expired_or_canceled_card")
    charge = state.get("charges", made["charge"], "charge")
    charge["amount_refunded"] -= made["amount"]
    charge["refunded"] = False
    state.emit("refund.failed", made, BY_THE_BUYER)
    state.emit("refund.updated", made, BY_THE_BUYER)
    return made


def _charge_of(state: TwinState, wish: Json) -> Json:
    if wish["charge"] is not None:
        return state.get("charges", wish["charge"], "charge")
    intent = state.get("payment_intents", wish["payment_intent"], "payment_intent")
    return state.get("charges", intent["latest_charge"], "charge")
