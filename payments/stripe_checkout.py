"""Stripe Checkout behind our provider interface. The only file that knows the `stripe` package.

Source: Stripe's Checkout Sessions API and webhook signatures, API version of stripe 16.1.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
import stripe

from kit.errors import InvalidRequest, NotFound
from kit.settings import Settings
from payments.checkout import Checkout, ProviderSession, PurchaseBooks, SessionRequest
from payments.errors import PaymentsUnavailable
from payments.webhooks import ProviderEvent

TIMEOUT_S: Final = 10.0
"""Stripe answers in under a second; past ten a caller is better served by an error and a retry."""
NETWORK_RETRIES: Final = 2
"""The SDK repeats with the same idempotency key, so that a repeat creates nothing twice."""
SESSION_EVENTS: Final = frozenset({"checkout.session.completed", "checkout.session.async_payment_succeeded"})
"""The events after which a session may be paid; others are kept and acknowledged."""


class StripeCheckout:
    """Hosted Stripe Checkout in payment mode."""

    name: Final = "stripe"

    def __init__(self, secret_key: str, webhook_secret: str, api_base: str = "") -> None:
        """Connect to nothing yet. An empty webhook secret is refused: an empty key verifies anything."""
        if not secret_key or not webhook_secret:
            raise ValueError("Stripe needs both its secret key and its webhook secret")
        self.livemode = secret_key.startswith(("sk_live_", "rk_live_"))
        self._webhook_secret = webhook_secret
        self._http = stripe.HTTPXClient(timeout=TIMEOUT_S)
        self._client = stripe.StripeClient(
            secret_key,
            http_client=self._http,
            base_addresses={"api": api_base} if api_base else None,
            max_network_retries=NETWORK_RETRIES,
        )

    async def close(self) -> None:
        """Close the connections to Stripe."""
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def create(self, request: SessionRequest) -> ProviderSession:
        """Open a hosted session; repeated for the same purchase it returns the same session.

        Raises: PaymentsUnavailable.
        """
        metadata = {"purchase_id": request.purchase_id, "package_code": request.package.code}
        params: Any = {
            "mode": "payment",
            "client_reference_id": request.purchase_id,
            "customer_email": request.email,
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": request.package.currency,
                        "unit_amount": request.package.price_minor,
                        "product_data": {"name": request.product_name},
                    },
                }
            ],
            "metadata": metadata,
            "payment_intent_data": {"metadata": metadata},
            "success_url": request.success_url + "?session_id={CHECKOUT_SESSION_ID}",
            "cancel_url": request.cancel_url,
        }
        try:
            session = await self._client.v1.checkout.sessions.create_async(
                params, {"idempotency_key": request.purchase_id}
            )
        except stripe.StripeError as error:
            raise _unavailable(error) from error
        return _session(session)

    async def retrieve(self, session_id: str) -> ProviderSession:
        """Read a session as Stripe has it now. Raises: NotFound, PaymentsUnavailable."""
        try:
            session = await self._client.v1.checkout.sessions.retrieve_async(
                session_id, {"expand": ["payment_intent.latest_charge"]}
            )
        except stripe.InvalidRequestError as error:
            raise NotFound("checkout session") from error
        except stripe.StripeError as error:
            raise _unavailable(error) from error
        return _session(session)

    def verify(self, body: bytes, signature: str) -> ProviderEvent:
        """Return the event of a webhook whose signature and time are right. Raises: InvalidRequest."""
        try:
            stripe.WebhookSignature.verify_header(body, signature, self._webhook_secret, tolerance=300)
            event = orjson.loads(body)
            subject = event["data"]["object"]
            event_id, kind = str(event["id"]), str(event["type"])
        except stripe.SignatureVerificationError as error:
            raise InvalidRequest("Stripe-Signature", "the signature does not verify") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest("body", "not a Stripe event") from error
        about_session = kind in SESSION_EVENTS and isinstance(subject, dict)
        return ProviderEvent(self.name, event_id, kind, subject.get("id") if about_session else None, body)


def checkout_for(settings: Settings, books: PurchaseBooks) -> Checkout | None:
    """Return the checkout that the settings configure, or None where no provider is."""
    secret_key = settings.stripe_secret_key.get_secret_value()
    if not secret_key:
        return None
    webhook_secret = settings.stripe_webhook_secret.get_secret_value()
    return Checkout(
        books, StripeCheckout(secret_key, webhook_secret, settings.stripe_api_base), settings.base_url
    )


def _session(session: stripe.checkout.Session) -> ProviderSession:
    return ProviderSession(
        id=session.id,
        url=session.url or "",
        purchase_id=session.client_reference_id or "",
        paid=session.payment_status != "unpaid",
        amount_minor=session.amount_total or 0,
        currency=(session.currency or "").lower(),
        livemode=session.livemode,
        card_fingerprint=_card_fingerprint(session.payment_intent),
    )


def _card_fingerprint(intent: stripe.PaymentIntent | str | None) -> str | None:
    """Return Stripe's name for the card that paid, where the intent came with its charge and a card paid."""
    charge = intent.latest_charge if isinstance(intent, stripe.PaymentIntent) else None
    details = charge.payment_method_details if isinstance(charge, stripe.Charge) else None
    card = details.card if details else None
    return card.fingerprint if card else None


def _unavailable(error: stripe.StripeError) -> PaymentsUnavailable:
    """Keep Stripe's own words for the log (the cause); callers hear what they can do."""
    if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        return PaymentsUnavailable(
            "The payment provider refused this server's credentials; tell the operator."
        )
    return PaymentsUnavailable(
        "The payment provider does not answer right now; nothing was charged. Try again."
    )
