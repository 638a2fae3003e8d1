"""Saved cards at Stripe: saving one on Stripe's page, and charging it while its owner is away.

Source: https://docs.stripe.com/payments/save-and-reuse and https://docs.stripe.com/api/payment_intents/create.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import stripe

from payments.stripe_amounts import to_stripe
from payments.topup_charges import ChargeRefused, DueCharge, Refusal

KIND: Final = "auto_topup"
"""In a payment's metadata: it belongs to no checkout session, and is its own."""
CLOCKS_APART: Final = timedelta(hours=1)
"""Between Stripe's clock and ours, far beyond any that keep time at all."""
PAGE: Final = 100
ASKS: Final = "authentication_required"
GONE: Final = frozenset({"customer", "payment_method"})
"""What Stripe does not know any more when it names these parameters."""


async def saved_card(client: stripe.StripeClient, customer_id: str) -> str | None:
    """Return the card to charge: the customer's default if that is one, else the one saved last; None where none is.

    Raises: stripe.StripeError.
    """
    try:
        customer = await client.v1.customers.retrieve_async(customer_id)
    except stripe.InvalidRequestError:
        return None
    if getattr(customer, "deleted", False):
        return None
    chosen = customer.invoice_settings.default_payment_method if customer.invoice_settings else None
    # The portal may offer bank accounts and wallets, too, and the default may be one of these.
    cards = await client.v1.payment_methods.list_async(
        {"customer": customer_id, "type": "card", "limit": PAGE}
    )
    saved = [card.id for card in cards.data]
    preferred = chosen if chosen is None or isinstance(chosen, str) else chosen.id
    return preferred if preferred in saved else next(iter(saved), None)


async def card_page(client: stripe.StripeClient, customer_id: str, back_url: str) -> str:
    """Return the address of Stripe's page that saves a card; nothing is charged. Raises: stripe.StripeError."""
    params: Any = {
        "mode": "setup",
        "customer": customer_id,
        "allowed_payment_method_types": ["card"],
        "success_url": back_url,
        "cancel_url": back_url,
    }
    return (await client.v1.checkout.sessions.create_async(params)).url or ""


async def charge_saved(
    client: stripe.StripeClient, charge: DueCharge, receipt_email: str | None
) -> stripe.PaymentIntent | ChargeRefused:
    """Charge a saved card, once however often this is called; a repeat looks first what an earlier try did.

    Raises: stripe.StripeError, when nobody knows whether money moved.
    """
    if charge.attempt > 1 and (found := await _made_before(client, charge)) is not None:
        return found
    if charge.only_look:
        return ChargeRefused("not_charged", "the provider never heard of this charge")
    card = await saved_card(client, charge.customer_id)
    if card is None:
        return ChargeRefused("no_card", "no card is saved")
    params: Any = {
        "amount": to_stripe(charge.amount_minor, charge.currency),
        "currency": charge.currency,
        "customer": charge.customer_id,
        "payment_method": card,
        "allowed_payment_method_types": ["card"],
        "off_session": True,
        "confirm": True,
        "description": charge.description,
        "metadata": {"kind": KIND, "purchase_id": charge.purchase_id},
    }
    if receipt_email is not None:
        params["receipt_email"] = receipt_email
    try:
        return await client.v1.payment_intents.create_async(params, {"idempotency_key": charge.purchase_id})
    except stripe.CardError as error:
        return _refused(error.code, error.user_message)
    except stripe.InvalidRequestError as error:
        reason: Refusal = "no_card" if error.param in GONE else "not_offered"
        return ChargeRefused(reason, error.user_message or "the provider refuses the charge")


async def _made_before(
    client: stripe.StripeClient, charge: DueCharge
) -> stripe.PaymentIntent | ChargeRefused | None:
    """Return what an earlier try of this charge came to; None if Stripe never heard of it."""
    wanted: Any = {
        "customer": charge.customer_id,
        "created": {"gte": int((charge.begun_at - CLOCKS_APART).timestamp())},
        "limit": PAGE,
    }
    try:
        page = await client.v1.payment_intents.list_async(wanted)
    except stripe.InvalidRequestError:
        return None  # the customer is gone, and with them the card
    async for intent in page.auto_paging_iter():
        if intent.metadata and intent.metadata.to_dict().get("purchase_id") == charge.purchase_id:
            if intent.status in ("requires_payment_method", "requires_action", "canceled"):
                problem = intent.last_payment_error
                asks = intent.status == "requires_action" or (problem and problem.code == ASKS)
                message = (problem and problem.message) or "the card was not charged"
                return ChargeRefused(ASKS if asks else "card_declined", message)
            return intent
    return None


def _refused(code: str | None, message: str | None) -> ChargeRefused:
    reason: Refusal = ASKS if code == ASKS else "card_declined"
    return ChargeRefused(reason, message or code or "the card was declined")
