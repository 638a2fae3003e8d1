"""Stripe Checkout behind our provider interface. With `stripe_cards`, the only file that knows the `stripe` package.

Source: Stripe's Checkout Sessions API and webhook signatures, API version of stripe 16.1.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, TypeVar

import orjson
import stripe

from kit.errors import InvalidRequest, NotFound
from kit.outbox import has_mailbox
from kit.settings import Settings
from payments import stripe_cards, stripe_returns
from payments.cards import CardBooks, CardCheckout, RefundOrder
from payments.checkout import ProviderSession, SessionRequest
from payments.errors import NotRefundable, PaymentsUnavailable
from payments.returns import Return
from payments.stripe_amounts import from_stripe, to_stripe
from payments.topup_charges import ChargeRefused, DueCharge
from payments.webhooks import ProviderEvent, name_of

T = TypeVar("T")

TIMEOUT_S: Final = 10.0
"""Stripe answers in under a second; past ten a caller is better served by an error and a retry."""
NETWORK_RETRIES: Final = 2
"""The SDK repeats with the same idempotency key, so that a repeat creates nothing twice."""
SESSION_EVENTS: Final = frozenset(
    f"checkout.session.{what}"
    for what in ("completed", "async_payment_succeeded", "async_payment_failed", "expired")
)
PAYMENT_EVENTS: Final = frozenset(
    {
        "refund.created",
        "refund.updated",
        "refund.failed",
        "charge.refunded",
        "charge.dispute.created",
        "charge.dispute.updated",
        "charge.dispute.closed",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.funds_reinstated",
    }
)
"""About a refund, a dispute or a charge: each names the payment that it belongs to."""
WARNING_EVENTS: Final = frozenset({"radar.early_fraud_warning.created"})
CHARGE_EVENTS: Final = frozenset({"payment_intent.succeeded"})
"""Of a saved card; those of a checkout say nothing that its session does not."""
HANDLED_EVENTS: Final = SESSION_EVENTS | PAYMENT_EVENTS | WARNING_EVENTS | CHARGE_EVENTS
"""The events to subscribe to; others are kept and acknowledged."""
PAGE: Final = 100
"""Stripe's largest page."""
EXPANDED: Final = "payment_intent.latest_charge"


@dataclass(frozen=True, slots=True)
class StripeOptions:
    """How a checkout is offered; see the settings of the same names."""

    receipts: bool = False
    invoices: bool = False
    promotion_codes: bool = False
    tax: str = ""


class StripeCheckout:
    """Hosted Stripe Checkout in payment mode, with customers, refunds and a portal."""

    name: Final = "stripe"
    signature_header: Final = "stripe-signature"
    session_ids: Final = re.compile(r"cs_[A-Za-z0-9_]{1,200}")
    paid_events: Final = frozenset({"checkout.session.async_payment_succeeded"})

    def __init__(
        self,
        secret_key: str,
        webhook_secrets: Sequence[str],
        api_base: str = "",
        *,
        options: StripeOptions | None = None,
        tolerance_s: int = 300,
    ) -> None:
        """Connect to nothing yet. Of several webhook secrets each is valid: a new one beside the old."""
        if not secret_key or not all(secret.strip() for secret in webhook_secrets):
            raise ValueError("Stripe needs its secret key, and an empty webhook secret verifies anything")
        self.livemode = secret_key.startswith(("sk_live_", "rk_live_"))
        self._webhook_secrets = tuple(webhook_secrets)
        self._options = options or StripeOptions()
        self._tolerance_s = tolerance_s
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

    # -- a checkout --------------------------------------------------------------------------------------------

    async def create(self, request: SessionRequest) -> ProviderSession:
        """Open a hosted session; repeated for the same purchase it returns the same session.

        Raises: InvalidRequest for an address that Stripe does not take; PaymentsUnavailable.
        """
        create = self._client.v1.checkout.sessions.create_async
        key = request.purchase_id
        try:
            made = await create(self._session_params(request), {"idempotency_key": key})
        except stripe.InvalidRequestError as error:
            if error.code == "email_invalid":
                raise InvalidRequest(
                    "email", "is an address that the payment provider does not take"
                ) from error
            if request.customer_id is None or error.param != "customer":
                raise _unavailable(error) from error
            # Deleted at Stripe: the payer types everything anew, and is not kept from paying.
            stranger = self._session_params(replace(request, customer_id=None))
            made = await _answered(create(stranger, {"idempotency_key": f"{key}:stranger"}))
        except stripe.StripeError as error:
            raise _unavailable(error) from error
        return _session(made, (), warned=False)

    def _session_params(self, request: SessionRequest) -> Any:
        package, options = request.package, self._options
        metadata = {"purchase_id": request.purchase_id, "package_code": package.code}
        price: dict[str, Any] = {
            "currency": package.currency,
            "unit_amount": to_stripe(package.price_minor, package.currency),
            "product_data": {"name": request.product_name},
        }
        intent: dict[str, Any] = {"metadata": metadata}
        params: dict[str, Any] = {
            "mode": "payment",
            "client_reference_id": request.purchase_id,
            "line_items": [{"quantity": 1, "price_data": price}],
            "metadata": metadata,
            "payment_intent_data": intent,
            "success_url": request.success_url + "?session_id={CHECKOUT_SESSION_ID}",
            "cancel_url": request.cancel_url,
        }
        if request.customer_id is None:
            params |= {"customer_email": request.email, "customer_creation": "always"}
        else:
            params["customer"] = request.customer_id
        if options.receipts:
            intent["receipt_email"] = request.email
        if options.invoices:
            params["invoice_creation"] = {"enabled": True}
        if options.promotion_codes:
            params["allow_promotion_codes"] = True
        if options.tax:
            price["tax_behavior"] = options.tax
            params["automatic_tax"] = {"enabled": True}
            if request.customer_id is not None:  # tax needs an address, which the customer may not have yet
                params["customer_update"] = {"address": "auto"}
        return params

    async def retrieve(self, object_id: str) -> ProviderSession:
        """Read a session as Stripe has it now, by its own id, its payment's or an early fraud warning's.

        Raises: NotFound, PaymentsUnavailable.
        """
        if object_id.startswith("cs_"):
            session = await _found(
                self._client.v1.checkout.sessions.retrieve_async(object_id, {"expand": [EXPANDED]})
            )
            if session.mode != "payment":
                raise NotFound("checkout session")  # it saves a card
            return _session(session, await self._returns(session.payment_intent, at_all=False), warned=False)
        payment_id = object_id
        if not object_id.startswith("pi_"):
            warning = await _found(self._client.v1.radar.early_fraud_warnings.retrieve_async(object_id))
            if (payment_id := _id(warning.payment_intent) or "") == "":
                raise NotFound("payment")
            warned = True
        else:
            warned = bool(await self._warned({"payment_intent": payment_id, "limit": 1}))
        page = await _found(
            self._client.v1.checkout.sessions.list_async(
                {"payment_intent": payment_id, "limit": 1, "expand": [f"data.{EXPANDED}"]}
            )
        )
        if not page.data:
            return await self._charged(payment_id, warned=warned)
        session = page.data[0]
        returns = await self._returns(session.payment_intent, at_all=True)
        return _session(session, returns, warned=warned)

    async def _charged(self, payment_id: str, *, warned: bool = False) -> ProviderSession:
        """Read a payment with a saved card, which is its own session. Raises: NotFound, PaymentsUnavailable."""
        intent = await _found(
            self._client.v1.payment_intents.retrieve_async(payment_id, {"expand": ["latest_charge"]})
        )
        if not _is_ours(intent):
            raise NotFound("checkout session")
        return _charge(intent, await self._returns(intent, at_all=True), warned=warned)

    async def _returns(
        self, intent: stripe.PaymentIntent | str | None, *, at_all: bool
    ) -> tuple[Return, ...]:
        """Return the refunds and disputes of a payment: at all, or if its charge says that some stand.

        A refund that failed does not show in the charge, so that news of one is no reason to believe it.
        """
        charge = intent.latest_charge if isinstance(intent, stripe.PaymentIntent) else None
        if not isinstance(charge, stripe.Charge) or not (at_all or charge.amount_refunded or charge.disputed):
            return ()
        of_payment: Any = {"payment_intent": charge.payment_intent, "limit": PAGE}
        refunds = await _answered(self._client.v1.refunds.list_async(of_payment))
        disputes = await _answered(self._client.v1.disputes.list_async(of_payment))
        return (
            *[stripe_returns.refund(each.to_dict()) async for each in _all(refunds)],
            *[stripe_returns.dispute(each.to_dict()) async for each in _all(disputes)],
        )

    async def payments(self, since: datetime, until: datetime) -> AsyncIterator[ProviderSession]:
        """Go over the payments that were begun, made, refunded or disputed in a span, each as it stands now.

        A session is begun before anything happens to it: what went back since then is all that went back of it, and no
        warning of it is older. Of an older one the whole is read by itself. Raises: PaymentsUnavailable.
        """
        begun: Any = {"gte": int(since.timestamp()), "lt": math.ceil(until.timestamp())}
        returns = await self._returns_since(begun["gte"])
        warned = await self._warned({"created": {"gte": begun["gte"]}, "limit": PAGE})
        sessions: Any = {"created": begun, "limit": PAGE, "expand": [f"data.{EXPANDED}"]}
        seen: set[str] = set()
        async for session in _all(await _answered(self._client.v1.checkout.sessions.list_async(sessions))):
            if session.mode != "payment":
                continue  # it saves a card
            payment_id = _id(session.payment_intent) or ""
            seen.add(payment_id)
            yield _session(session, tuple(returns.get(payment_id, ())), warned=payment_id in warned)
        intents: Any = {"created": begun, "limit": PAGE}
        made = _all(await _answered(self._client.v1.payment_intents.list_async(intents)))
        older = {each.id async for each in made if "purchase_id" in each.metadata} | returns.keys() | warned
        for payment_id in sorted(older - seen):
            with suppress(NotFound):  # of a shop beside ours
                yield await self.retrieve(payment_id)

    async def _warned(self, wanted: Any) -> set[str]:
        """Return the payments that these early fraud warnings are about."""
        warnings = _all(await _answered(self._client.v1.radar.early_fraud_warnings.list_async(wanted)))
        # A charge without a payment was never a checkout's.
        return {payment_id async for each in warnings if (payment_id := _id(each.payment_intent))}

    async def _returns_since(self, moment: int) -> dict[str, list[Return]]:
        """Return the refunds and disputes since then, by their payment."""
        since: Any = {"created": {"gte": moment}, "limit": PAGE}
        found: dict[str, list[Return]] = {}
        async for each in _all(await _answered(self._client.v1.refunds.list_async(since))):
            found.setdefault(_id(each.payment_intent) or "", []).append(stripe_returns.refund(each.to_dict()))
        async for each in _all(await _answered(self._client.v1.disputes.list_async(since))):
            found.setdefault(_id(each.payment_intent) or "", []).append(
                stripe_returns.dispute(each.to_dict())
            )
        found.pop("", None)  # a charge without a payment was never a checkout's
        return found

    # -- customers and refunds ---------------------------------------------------------------------------------

    async def create_customer(self, user_id: str, email: str, instead_of: str | None) -> str:
        """Make a customer; repeated for the same user it returns the same one. Raises: PaymentsUnavailable."""
        params: Any = {"email": email, "metadata": {"user_id": user_id}}
        if not has_mailbox(email):
            del params["email"]  # a wallet's: Stripe refuses it
        key = f"customer:{user_id}" + (f":{instead_of}" if instead_of else "")
        return (await _answered(self._client.v1.customers.create_async(params, {"idempotency_key": key}))).id

    async def portal(self, customer_id: str, return_url: str) -> str:
        """Open a portal session; returns its address. Raises: NotFound for no customer, PaymentsUnavailable."""
        opened = self._client.v1.billing_portal.sessions.create_async(
            {"customer": customer_id, "return_url": return_url}
        )
        return (await _found(opened, "customer")).url

    async def has_card(self, customer_id: str) -> bool:
        """Tell whether a card is saved that may be charged. Raises: PaymentsUnavailable."""
        return await _answered(stripe_cards.saved_card(self._client, customer_id)) is not None

    async def card_page(self, customer_id: str, back_url: str) -> str:
        """Open a page that saves a card; returns its address. Raises: NotFound for no customer, PaymentsUnavailable."""
        return await _found(stripe_cards.card_page(self._client, customer_id, back_url), "customer")

    async def charge_saved(self, charge: DueCharge) -> ProviderSession | ChargeRefused:
        """Charge a saved card, once. Raises: PaymentsUnavailable, when nobody knows whether money moved."""
        receipt_email = charge.email if self._options.receipts and has_mailbox(charge.email) else None
        made = await _answered(stripe_cards.charge_saved(self._client, charge, receipt_email))
        return made if isinstance(made, ChargeRefused) else await self._charged(made.id)

    @property
    def charges_saved_cards(self) -> bool:
        """Whether it does: a tax that is worked out at each checkout is not worked out without one."""
        return not self._options.tax

    async def refund(self, order: RefundOrder) -> str:
        """Give money back; returns the refund's id. Raises: NotRefundable, PaymentsUnavailable."""
        params: Any = {"payment_intent": order.payment_id, "metadata": {"purchase_id": order.purchase_id}}
        if order.amount_minor is not None:
            params["amount"] = to_stripe(order.amount_minor, order.currency)
        if order.reason is not None:
            params["reason"] = order.reason
        try:
            made = await self._client.v1.refunds.create_async(params, {"idempotency_key": order.key})
        except stripe.InvalidRequestError as error:
            raise NotRefundable((error.user_message or "Stripe refuses it").rstrip(".")) from error
        except stripe.IdempotencyError as error:
            raise NotRefundable("its reference was used for another refund before") from error
        except stripe.StripeError as error:
            raise _unavailable(error) from error
        return made.id

    # -- events ------------------------------------------------------------------------------------------------

    async def session_of(self, event: ProviderEvent) -> ProviderSession | None:
        """Read the session whose payment an event names. Raises: NotFound, PaymentsUnavailable."""
        return None if event.object_id is None else await self.retrieve(event.object_id)

    def verify(self, body: bytes, headers: Mapping[str, str]) -> ProviderEvent:
        """Return the event of a webhook that one of the secrets signed within the tolerance.

        A stamp from the future only says that our clock is behind; an event is applied once by its id.
        Raises: InvalidRequest; NotFound without a secret.
        """
        if not self._webhook_secrets:
            raise NotFound("path")
        signature = headers.get(self.signature_header, "")
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest("body", "is not UTF-8") from error
        for secret in self._webhook_secrets:
            try:
                stripe.WebhookSignature.verify_header(text, signature, secret)
            except (stripe.SignatureVerificationError, ValueError):
                continue
            break
        else:
            raise InvalidRequest("Stripe-Signature", "the signature does not verify")
        signed_at = int(re.search(r"(?:^|,)t=(\d+)", signature)[1])  # type: ignore[index]  # it verified
        if (age_s := int(time.time()) - signed_at) > self._tolerance_s:
            raise InvalidRequest(
                "Stripe-Signature", f"was made {age_s} s ago by this server's clock; is that clock right?"
            )
        try:
            return _event(orjson.loads(body), body)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest("body", "not a Stripe event") from error

    async def events_since(self, moment: datetime) -> list[ProviderEvent]:
        """Return what happened since then of the types that we handle, the oldest first.

        Raises: PaymentsUnavailable.
        """
        wanted: Any = {
            "created": {"gte": int(moment.timestamp())},
            "types": sorted(HANDLED_EVENTS),
            "limit": PAGE,
        }
        found: list[ProviderEvent] = []
        async for event in _all(await _answered(self._client.v1.events.list_async(wanted))):
            as_sent = event.to_dict()
            found.append(_event(as_sent, orjson.dumps(as_sent)))
        return found[::-1]


def checkout_for(settings: Settings, books: CardBooks) -> CardCheckout | None:
    """Return the checkout that the settings configure, or None where no provider is."""
    secret_key = settings.stripe_secret_key.get_secret_value()
    if not secret_key:
        return None
    provider = StripeCheckout(
        secret_key,
        settings.stripe_webhook_secrets,
        settings.stripe_api_base,
        options=StripeOptions(
            receipts=settings.stripe_receipts,
            invoices=settings.stripe_invoices,
            promotion_codes=settings.stripe_promotion_codes,
            tax=settings.stripe_tax,
        ),
        tolerance_s=settings.webhook_tolerance_s,
    )
    return CardCheckout(books, provider, settings.base_url)


def _event(event: Mapping[str, Any], body: bytes) -> ProviderEvent:
    """Read an event's name, and what it is about if we handle its type. Raises: KeyError, TypeError, ValueError."""
    event_id, kind = name_of(event["id"]), name_of(event["type"])
    about: object = None
    if kind in HANDLED_EVENTS:
        subject = event["data"]["object"]
        about = subject["payment_intent"] if kind in PAYMENT_EVENTS else subject["id"]
        if kind in CHARGE_EVENTS and (subject.get("metadata") or {}).get("kind") != stripe_cards.KIND:
            about = None
    return ProviderEvent("stripe", event_id, kind, about if isinstance(about, str) else None, body)


def _session(
    session: stripe.checkout.Session, returns: tuple[Return, ...], *, warned: bool
) -> ProviderSession:
    currency = (session.currency or "").lower()
    total = session.amount_total or 0
    price = session.amount_subtotal or 0
    details = session.total_details
    discount = details.amount_discount if details and session.allow_promotion_codes else 0
    tax = details.amount_tax if details and session.automatic_tax.enabled else 0
    if total not in (price - discount, price - discount + tax):  # tax is within the price or comes on top
        price = total  # something that we did not ask for: let it differ from the package
    intent = session.payment_intent
    unpaid_for_ever = isinstance(intent, stripe.PaymentIntent) and intent.status in (
        "requires_payment_method",
        "canceled",
    )
    paid = session.payment_status != "unpaid"
    failed = not paid and (session.status == "expired" or (session.status == "complete" and unpaid_for_ever))
    return ProviderSession(
        id=session.id,
        url=session.url or "",
        purchase_id=session.client_reference_id or "",
        paid=paid,
        amount_minor=from_stripe(price, currency),
        currency=currency,
        livemode=session.livemode,
        failed=failed,
        closed=failed,
        final=failed,
        paid_minor=from_stripe(total, currency),
        payment_id=_id(intent),
        customer_id=_id(session.customer),
        returns=returns,
        warned=warned,
        card_fingerprint=_card_fingerprint(intent),
    )


def _is_ours(intent: stripe.PaymentIntent) -> bool:
    return bool(intent.metadata) and intent.metadata.to_dict().get("kind") == stripe_cards.KIND


def _charge(intent: stripe.PaymentIntent, returns: tuple[Return, ...], *, warned: bool) -> ProviderSession:
    """Read a payment with a saved card as the session that it stands for."""
    currency = intent.currency.lower()
    amount = from_stripe(intent.amount, currency)
    paid = intent.status == "succeeded"
    failed = intent.status in ("requires_payment_method", "canceled")
    return ProviderSession(
        id=intent.id,
        url="",
        purchase_id=intent.metadata.to_dict().get("purchase_id", "") if intent.metadata else "",
        paid=paid,
        amount_minor=amount,
        currency=currency,
        livemode=intent.livemode,
        failed=failed,
        closed=failed,
        final=failed,
        received_minor=from_stripe(intent.amount_received, currency),
        payment_id=intent.id,
        customer_id=_id(intent.customer),
        returns=returns,
        warned=warned,
        card_fingerprint=_card_fingerprint(intent),
    )


def _id(reference: str | stripe.StripeObject | None) -> str | None:
    """Return the id behind a field that holds an id or, expanded, the object."""
    return reference if reference is None or isinstance(reference, str) else str(reference["id"])


async def _all(page: Any) -> AsyncIterator[Any]:
    """Go over a list's objects, page after page. Raises: PaymentsUnavailable."""
    try:
        async for each in page.auto_paging_iter():
            yield each
    except stripe.StripeError as error:
        raise _unavailable(error) from error


async def _found(call: Awaitable[T], param: str | None = None) -> T:
    """Await what is asked of an object that may not be there. Raises: NotFound, PaymentsUnavailable.

    `param`: which parameter names the object, where others name some too.
    """
    try:
        return await call
    except stripe.StripeError as error:
        is_missing = error.code == "resource_missing" or error.http_status == HTTPStatus.NOT_FOUND
        if is_missing and param in (None, getattr(error, "param", None)):
            raise NotFound("checkout session") from error
        raise _unavailable(error) from error


async def _answered(call: Awaitable[T]) -> T:
    """Await a call. Raises: PaymentsUnavailable."""
    try:
        return await call
    except stripe.StripeError as error:
        raise _unavailable(error) from error


def _card_fingerprint(intent: stripe.PaymentIntent | str | None) -> str | None:
    """Return Stripe's name for the card that paid, where the intent came with its charge and a card paid."""
    charge = intent.latest_charge if isinstance(intent, stripe.PaymentIntent) else None
    details = charge.payment_method_details if isinstance(charge, stripe.Charge) else None
    card = details.card if details and details.type == "card" else None  # others lack the field
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
