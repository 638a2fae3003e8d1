"""Saved cards: how one is saved, made the default, taken away - and charged while its owner is elsewhere.

The cards are Stripe's own test cards, known by their names (`pm_card_...`) and their last four digits, which decide
what their bank says. As with Stripe, a decline is recorded before it is answered: the payment stays, unpaid.

Source: https://docs.stripe.com/testing and https://docs.stripe.com/payments/save-and-reuse
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sandbox import stripe_shapes as shapes
from sandbox.stripe_errors import ApiError, invalid, no_such, unsupported, wrong_state
from sandbox.stripe_order import AMOUNT_LEAST_MINOR, AMOUNT_MOST_MINOR
from sandbox.stripe_params import Params, names
from sandbox.stripe_shapes import Charged, Json, Payer, amount_text
from sandbox.stripe_state import BY_THE_BUYER, Origin, TwinState

PAYMENT_REQUIRED = 402


@dataclass(frozen=True)
class TestCard:
    """What a card looks like, and what its bank says. `decline_code` None: it pays. `kind`: one may be no card."""

    brand: str
    last4: str
    decline_code: str | None = None
    saves: bool = True
    label: str = ""
    kind: str = "card"


CARDS = {
    "pm_card_visa": TestCard("visa", "4242", label="Card that pays"),
    "pm_card_mastercard": TestCard("mastercard", "4444", label="Another card that pays"),
    "pm_card_chargeCustomerFail": TestCard(
        "visa", "0341", "generic_decline", label="Card that is declined when it is charged"
    ),
    "pm_card_authenticationRequired": TestCard(
        "visa", "3184", "authentication_required", label="Card whose owner must confirm each payment"
    ),
    "pm_card_chargeDeclined": TestCard("visa", "0002", "generic_decline", saves=False),
    "pm_card_chargeDeclinedInsufficientFunds": TestCard("visa", "9995", "insufficient_funds", saves=False),
    "pm_card_chargeDeclinedExpiredCard": TestCard("visa", "0069", "expired_card", saves=False),
    "pm_usBankAccount": TestCard("", "6789", kind="us_bank_account"),
}
BY_LAST4 = {card.last4: card for card in CARDS.values()}
_MESSAGES = {
    "authentication_required": "Your card was declined. This transaction requires authentication.",
    "expired_card": "Your card has expired.",
    "insufficient_funds": "Your card has insufficient funds.",
    "generic_decline": "Your card was declined.",
}
_KNOWN = names("""
    allowed_payment_method_types amount confirm currency customer description error_on_requires_action expand metadata
    off_session payment_method receipt_email statement_descriptor statement_descriptor_suffix
""")
_BEYOND_THE_TWIN = names("""
    amount_details application_fee_amount automatic_payment_methods capture_method confirmation_method
    confirmation_token customer_account excluded_payment_method_types hooks mandate mandate_data on_behalf_of
    payment_details payment_method_configuration payment_method_data payment_method_options radar_options return_url
    setup_future_usage shipping transfer_data transfer_group use_stripe_sdk
""")


def payment_method(state: TwinState, card: TestCard, customer: Json | None, created: int) -> Json:
    """Make a card of a customer's, or of nobody's yet."""
    email = (customer and customer["email"]) or ""
    looks: Json = {"bank_name": "SANDBOX BANK", "last4": card.last4}
    if card.kind == "card":
        looks = {
            "brand": card.brand,
            "country": "US",
            "exp_month": 12,
            "exp_year": 2034,
            "fingerprint": fingerprint(email, card.last4),
            "funding": "credit",
            "last4": card.last4,
        }
    return state.add(
        "payment_methods",
        {
            "id": state.new_id("pm_1", 23),
            "object": "payment_method",
            "allow_redisplay": "limited",
            "billing_details": {
                "address": shapes.address("US"),
                "email": email or None,
                "name": "Sandbox Buyer",
                "phone": None,
                "tax_id": None,
            },
            card.kind: looks,
            "created": created,
            "customer": customer and customer["id"],
            "livemode": False,
            "metadata": {},
            "type": card.kind,
        },
    )


def fingerprint(email: str, last4: str) -> str:
    """Name a card; the usual one of a buyer is the one that pays their checkouts."""
    owner = email.casefold() if last4 == CARDS["pm_card_visa"].last4 else f"{email.casefold()}:{last4}"
    return hashlib.sha256(owner.encode()).hexdigest()[:16]


def saved(state: TwinState, customer_id: str) -> list[Json]:
    """Give a customer's cards, and what else they pay by, the newest first."""
    return [card for card in state.newest_first("payment_methods") if card["customer"] == customer_id]


def named(name: str, param: str) -> TestCard:
    """Give a test card by its name. Raises: ApiError."""
    if name not in CARDS:
        raise no_such("PaymentMethod", name, param)
    return CARDS[name]


def save(state: TwinState, customer_id: str, name: str, origin: Origin) -> Json:
    """Save a test card with a customer. Raises: ApiError for a card that its bank will not have saved."""
    customer = state.get("customers", customer_id, "customer")
    card = named(name, "payment_method")
    if not card.saves:
        raise _declined(card, {})
    made = payment_method(state, card, customer, int(state.now()))
    state.emit("payment_method.attached", made, origin)
    return made


def attach(state: TwinState, method_id: str, params: Params, origin: Origin) -> Json:
    """Save a card with a customer; a test card's name makes a new one of its kind."""
    params.only(names("customer expand"))
    customer_id = params.required_text("customer")
    if method_id in CARDS:
        return save(state, customer_id, method_id, origin)
    card = state.get("payment_methods", method_id, "payment_method", in_path=True)
    state.get("customers", customer_id, "customer")
    if card["customer"] not in {None, customer_id}:
        raise wrong_state("The payment method you provided has already been attached to a customer.")
    card["customer"] = customer_id
    state.emit("payment_method.attached", card, origin)
    return card


def detach(state: TwinState, method_id: str, origin: Origin) -> Json:
    """Take a card away from its customer, for good."""
    card = state.get("payment_methods", method_id, "payment_method", in_path=True)
    if card["customer"] is None:
        raise wrong_state("The payment method you provided is not attached to a customer.")
    customer = state.find("customers", card["customer"])
    if customer and customer["invoice_settings"]["default_payment_method"] == method_id:
        customer["invoice_settings"]["default_payment_method"] = None
    card["customer"] = None
    state.emit("payment_method.detached", card, origin)
    return card


def make_default(state: TwinState, customer: Json, method_id: str, origin: Origin) -> Json:
    """Choose the card that a customer is charged by. Raises: ApiError for a card that is not theirs."""
    card = state.get("payment_methods", method_id, "invoice_settings[default_payment_method]")
    if card["customer"] != customer["id"]:
        raise invalid(
            "invoice_settings[default_payment_method]", "The customer does not have this payment method."
        )
    customer["invoice_settings"]["default_payment_method"] = method_id
    state.emit("customer.updated", customer, origin)
    return customer


def read_charge(params: Params) -> Json:
    """Check the parameters of a payment with a saved card and give them in plain form; changes nothing."""
    params.only(_KNOWN, _BEYOND_THE_TWIN)
    for name in ("confirm", "off_session"):
        if not params.flag(name):
            raise unsupported(name)
    currency = params.required_text("currency").lower()
    amount = params.required_integer("amount", least=1, most=AMOUNT_MOST_MINOR)
    least = AMOUNT_LEAST_MINOR.get(currency, 1)
    if amount < least:
        message = f"Amount must be at least {amount_text(least, currency)}."
        raise invalid("amount", message, "amount_too_small")
    return {
        "allowed": params.words("allowed_payment_method_types"),
        "amount_total": amount,
        "currency": currency,
        "customer": params.required_text("customer"),
        "payment_method": params.required_text("payment_method"),
        "intent_data": {
            "description": params.text("description", max_length=1000),
            "metadata": params.metadata(),
            "receipt_email": params.email("receipt_email"),
            "setup_future_usage": None,
            "statement_descriptor": params.text("statement_descriptor", max_length=22),
            "statement_descriptor_suffix": params.text("statement_descriptor_suffix", max_length=22),
        },
    }


def charge(state: TwinState, wish: Json, origin: Origin) -> Json:
    """Charge a saved card while its owner is away. Raises: ApiError for a refusal, with the payment kept unpaid."""
    customer = state.get("customers", wish["customer"], "customer")
    created = int(state.now())
    if wish["payment_method"] in CARDS:
        method = payment_method(state, CARDS[wish["payment_method"]], customer, created)
    else:
        method = state.get("payment_methods", wish["payment_method"], "payment_method")
    if method["customer"] != customer["id"]:
        raise invalid("payment_method", "The provided PaymentMethod does not belong to this customer.")
    if wish["allowed"] and method["type"] not in wish["allowed"]:
        raise invalid("payment_method", f"A PaymentMethod of type {method['type']} is not allowed here.")
    if method["type"] != "card":
        raise unsupported("payment_method")
    ids = Charged(
        payment_intent_id=state.new_id("pi_3", 23),
        charge_id=state.new_id("ch_3", 23),
        payment_method_id=method["id"],
        customer_id=customer["id"],
        created=created,
        is_delayed=False,
    )
    intent = shapes.payment_intent(ids, wish, wish["intent_data"])
    made = shapes.charge(ids, intent, Payer(customer["email"] or "buyer@sandbox.example", "US"))
    made["payment_method_details"]["card"] = {
        name: method["card"][name] for name in ("brand", "country", "fingerprint", "funding", "last4")
    }
    state.add("payment_intents", intent)
    state.add("charges", made)
    card = BY_LAST4[method["card"]["last4"]]
    if card.decline_code is None:
        state.emit("payment_intent.succeeded", intent, origin)
        return intent
    refusal = _declined(card, method)
    made.update(
        status="failed",
        paid=False,
        captured=False,
        amount_captured=0,
        failure_code=refusal.code,
        failure_message=refusal.message,
    )
    intent.update(
        status="requires_payment_method",
        amount_received=0,
        payment_method=None,
        last_payment_error=refusal.body()["error"],
    )
    state.emit("payment_intent.payment_failed", intent, origin)
    refusal.more = {**(refusal.more or {}), "payment_intent": dict(intent)}
    raise refusal


def complete_setup(state: TwinState, session: Json, name: str) -> Json:
    """Save a card on the hosted page, and complete the session. Raises: ApiError for a card that can't be saved."""
    method = save(state, session["customer"], name, BY_THE_BUYER)
    intent = state.add(
        "setup_intents",
        {
            "id": state.new_id("seti_1", 23),
            "object": "setup_intent",
            "application": None,
            "cancellation_reason": None,
            "client_secret": None,
            "created": int(state.now()),
            "customer": session["customer"],
            "description": None,
            "last_setup_error": None,
            "latest_attempt": None,
            "livemode": False,
            "metadata": {},
            "next_action": None,
            "payment_method": method["id"],
            "payment_method_types": ["card"],
            "status": "succeeded",
            "usage": "off_session",
        },
    )
    session.update(
        status="complete",
        url=None,
        setup_intent=intent["id"],
        customer_details=shapes.customer_details(method["billing_details"]["email"], "US"),
    )
    state.emit("checkout.session.completed", session, BY_THE_BUYER)
    state.emit("setup_intent.succeeded", intent, BY_THE_BUYER)
    return session


def _declined(card: TestCard, method: Json) -> ApiError:
    decline_code = card.decline_code or "generic_decline"
    code = decline_code if decline_code in {"authentication_required", "expired_card"} else "card_declined"
    refusal = ApiError(PAYMENT_REQUIRED, "card_error", _MESSAGES[decline_code], code=code, executed=True)
    refusal.more = {"decline_code": decline_code} | ({"payment_method": dict(method)} if method else {})
    return refusal
