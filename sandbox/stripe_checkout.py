"""What can be done with a Checkout Session: open, pay, fail, settle later, expire.

Each function is one step on the state: it checks everything first and then changes, so a refusal leaves
nothing half done. A session leaves `open` exactly once, which is why nothing can be paid twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sandbox import stripe_shapes as shapes
from sandbox.stripe_errors import wrong_state
from sandbox.stripe_shapes import Charged, Json, Payer
from sandbox.stripe_state import BY_THE_BUYER, Origin, TwinState


@dataclass(frozen=True)
class Extras:
    """What a promotion code takes off, and the tax that Stripe works out. In minor units."""

    discount_minor: int = 0
    tax_minor: int = 0


NO_EXTRAS = Extras()


def open_session(state: TwinState, order: Json, public_url: str) -> Json:
    """Create the session that an order asks for: open, unpaid, with the address of its page."""
    if order["customer"] is not None:
        state.get("customers", order["customer"], "customer")
    created = int(state.now())
    session_id = state.new_id("cs_test_a1", 56)
    lines = [
        shapes.line_item(
            (state.new_id("li_1", 23), state.new_id("price_1", 23), state.new_id("prod_", 14)),
            line,
            order["currency"],
            created,
        )
        for line in order["lines"]
    ]
    url = f"{public_url}/c/pay/{session_id}"
    state.document["orders"][session_id] = {"intent_data": order["intent_data"], "line_items": lines}
    session = shapes.session(session_id, order, url, created, order["expires_at"])
    if order["mode"] == "setup":
        session.update(mode="setup", payment_status="no_payment_required", total_details=None)
    return state.add("sessions", session)


def must_be_open(state: TwinState, session_id: str) -> Json:
    """Give the session if it can still be paid.

    Raises: ApiError if there is no such session, or it is complete or expired.
    """
    session = state.get("sessions", session_id, "session", in_path=True)
    if session["status"] != "open":
        message = f"Only an open Checkout Session can do this; this one is `{session['status']}`."
        raise wrong_state(message, param="session")
    return session


def expire(state: TwinState, session_id: str, origin: Origin) -> Json:
    """Close an open session, so that it can never be paid."""
    session = must_be_open(state, session_id)
    state.close_as_expired(session, origin)
    return session


def pay(  # noqa: PLR0913  # what a buyer fills in
    state: TwinState,
    session_id: str,
    *,
    email: str | None,
    country: str,
    is_delayed: bool,
    extras: Extras = NO_EXTRAS,
) -> Json:
    """Complete an open session, once: paid, or with the money still on its way for a delayed method."""
    session = must_be_open(state, session_id)
    if session["mode"] != "payment":
        raise wrong_state("This session saves a card; nothing is paid by it.")
    _add_extras(state, session, extras)
    payer = Payer(_payer_email(state, session, email), country)
    created = int(state.now())
    ids = Charged(
        payment_intent_id=state.new_id("pi_3", 23),
        charge_id=state.new_id("ch_3", 23),
        payment_method_id=state.new_id("pm_1", 23),
        customer_id=_customer_of(state, session, payer, created),
        created=created,
        is_delayed=is_delayed,
    )
    session.update(
        customer=ids.customer_id,
        customer_details=shapes.customer_details(payer.email, payer.country),
        status="complete",
        url=None,
    )
    if session["automatic_tax"]["enabled"]:
        session["automatic_tax"]["status"] = "complete"
    if session["amount_total"] == 0:  # a code took all of the price away: no payment is made
        session["payment_status"] = "no_payment_required"
        state.emit("checkout.session.completed", session, BY_THE_BUYER)
        return session
    intent = shapes.payment_intent(ids, session, state.order_of(session_id)["intent_data"])
    state.add("payment_intents", intent)
    state.add("charges", shapes.charge(ids, intent, payer))
    session.update(payment_intent=ids.payment_intent_id, payment_status="unpaid" if is_delayed else "paid")
    state.emit("checkout.session.completed", session, BY_THE_BUYER)
    state.emit(
        "payment_intent.processing" if is_delayed else "payment_intent.succeeded", intent, BY_THE_BUYER
    )
    return session


def _add_extras(state: TwinState, session: Json, extras: Extras) -> None:
    """Change what a session costs by a discount and a tax, where it was opened with them."""
    if extras.discount_minor and not session["allow_promotion_codes"]:
        raise wrong_state("This session takes no promotion codes.")
    if extras.tax_minor and not session["automatic_tax"]["enabled"]:
        raise wrong_state("This session has no automatic tax.")
    lines = state.order_of(session["id"])["line_items"]
    is_on_top = lines[0]["price"]["tax_behavior"] != "inclusive"
    discount = min(extras.discount_minor, session["amount_subtotal"])
    session["amount_total"] = session["amount_subtotal"] - discount + (extras.tax_minor if is_on_top else 0)
    session["total_details"].update(amount_discount=discount, amount_tax=extras.tax_minor)


def settle(state: TwinState, session_id: str, *, succeeded: bool) -> Json:
    """End the wait of a delayed payment, once, with the money or without it."""
    session = state.get("sessions", session_id, "session", in_path=True)
    intent = state.find("payment_intents", session["payment_intent"] or "")
    if intent is None or intent["status"] != "processing":
        raise wrong_state(
            "This session has no payment on its way: only a delayed payment can be settled, once."
        )
    charge = state.get("charges", intent["latest_charge"], "charge")
    if succeeded:
        session["payment_status"] = "paid"
        intent.update(status="succeeded", amount_received=intent["amount"])
        charge.update(status="succeeded", paid=True, captured=True, amount_captured=charge["amount"])
        state.emit("checkout.session.async_payment_succeeded", session, BY_THE_BUYER)
        state.emit("payment_intent.succeeded", intent, BY_THE_BUYER)
    else:
        failure: dict[str, Any] = {
            "code": "payment_intent_payment_attempt_failed",
            "message": "The payment failed.",
        }
        intent.update(
            status="requires_payment_method",
            last_payment_error={**failure, "type": "invalid_request_error"},
            payment_method=None,
        )
        charge.update(status="failed", failure_code=failure["code"], failure_message=failure["message"])
        state.emit("checkout.session.async_payment_failed", session, BY_THE_BUYER)
        state.emit("payment_intent.payment_failed", intent, BY_THE_BUYER)
    return session


def return_address(session: Json, *, paid: bool) -> str | None:
    """Give the address that the buyer goes to next; Stripe replaces the one literal placeholder."""
    if not paid:
        cancel_url: str | None = session["cancel_url"]
        return cancel_url
    success_url: str = session["success_url"]
    return success_url.replace("{CHECKOUT_SESSION_ID}", session["id"])


def _payer_email(state: TwinState, session: Json, typed: str | None) -> str:
    customer = state.find("customers", session["customer"] or "")
    known = session["customer_email"] or (customer and customer["email"])
    # Stripe's page insists on an address. A script that names none pays as this buyer.
    return str(known or typed or "buyer@sandbox.example")


def _customer_of(state: TwinState, session: Json, payer: Payer, created: int) -> str | None:
    if session["customer"] is not None or session["customer_creation"] != "always":
        existing: str | None = session["customer"]
        return existing
    customer = shapes.customer(state.new_id("cus_", 14), payer.email, "Sandbox Buyer", {}, created)
    return str(state.add("customers", customer)["id"])
