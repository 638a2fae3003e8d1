"""From a package to granted credits: the provider's calls on one side, the books' transactions on the other.

Nothing here holds a transaction open while it talks to a provider. Every step may be repeated: the session is made
under the purchase's id, a payment is settled to where the provider is, an event is handled until it took.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from kit.errors import AppError, NotFound
from kit.ids import new_id
from kit.telemetry import errors_total, webhooks_total
from ledger.keys import Credential
from payments.errors import PaymentFailed, PaymentsUnavailable
from payments.packages import Package
from payments.purchases import Claim, OpenPurchase, PaidSession, Purchase
from payments.returns import Return
from payments.webhooks import ProviderEvent

log = structlog.get_logger(__name__)

SESSION_ID: Final = re.compile(r"cs_[A-Za-z0-9_]{1,200}")
"""What may be asked of the provider: anything else is unknown without a network call."""


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What the provider is told of a purchase. `customer_id`: who the payer is there, if that is known."""

    purchase_id: str
    email: str
    package: Package
    product_name: str
    success_url: str
    cancel_url: str
    customer_id: str | None = None


@dataclass(frozen=True, slots=True)
class ProviderSession:
    """A provider's session as it stands now, with what became of its payment; see `PaidSession`. Units: minor units.

    `failed`: it will never be paid.
    """

    id: str
    url: str
    purchase_id: str
    paid: bool
    amount_minor: int
    currency: str
    livemode: bool
    failed: bool = False
    card_fingerprint: str | None = None
    paid_minor: int | None = None
    payment_id: str | None = None
    customer_id: str | None = None
    returns: tuple[Return, ...] = ()
    warned: bool = False


class Provider(Protocol):
    """A hosted checkout."""

    @property
    def name(self) -> str:
        """The provider's name in the books."""

    livemode: bool

    async def create(self, request: SessionRequest) -> ProviderSession:
        """Open a session; the same purchase gives the same session."""

    async def retrieve(self, object_id: str) -> ProviderSession:
        """Read a session, by its own id or by what an event says it is about. Raises: NotFound."""

    def verify(self, body: bytes, signature: str) -> ProviderEvent:
        """Return the event of a rightly signed webhook."""

    async def close(self) -> None:
        """Close the connections to the provider."""


class PurchaseBooks(Protocol):
    """The transactions of a purchase; see `gateway.ports.Ledger` for their guarantees."""

    async def open_purchase(self, command: OpenPurchase) -> Purchase: ...

    async def attach_session(self, purchase_id: str, session_id: str) -> None: ...

    async def purchase(self, provider: str, session_id: str) -> Purchase: ...

    async def fulfil(self, paid: PaidSession) -> Purchase: ...

    async def claim(self, provider: str, session_id: str, label: str) -> Claim: ...

    async def store_event(self, event: ProviderEvent) -> bool: ...

    async def finish_event(
        self, provider: str, event_id: str, problem: str | None, final: bool = False
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class StartedCheckout:
    """Where the payer goes."""

    checkout_url: str
    session_id: str
    purchase: Purchase


class Checkout:
    """Sells packages through one provider."""

    def __init__(self, books: PurchaseBooks, provider: Provider, base_url: str) -> None:
        self._books = books
        self._provider = provider
        self._base_url = base_url

    async def close(self) -> None:
        """Close the connections to the provider."""
        await self._provider.close()

    async def start(self, email: str, package: Package, credential: Credential | None) -> StartedCheckout:
        """Write the purchase down, then open the provider's session for it.

        Raises: PaymentsUnavailable, also for a test key where the provider takes real money.
        """
        self._refuse_test_key(credential)
        customer_id = await self._customer_of(credential)
        purchase = await self._books.open_purchase(
            OpenPurchase(new_id("pur"), self._provider.name, email, package, credential)
        )
        session = await self._provider.create(
            SessionRequest(
                purchase_id=purchase.id,
                email=purchase.email,
                package=package,
                product_name=f"{package.name}: {package.credits_tokens // 100} credits",
                success_url=f"{self._base_url}/checkout/success",
                cancel_url=f"{self._base_url}/checkout/canceled",
                customer_id=customer_id,
            )
        )
        await self._books.attach_session(purchase.id, session.id)
        return StartedCheckout(session.url, session.id, purchase)

    def _refuse_test_key(self, credential: Credential | None) -> None:
        """Keep the test world away from real money. Raises: PaymentsUnavailable."""
        if credential is not None and credential.world == "test" and self._provider.livemode:
            raise PaymentsUnavailable(
                "Payments here are real, and test keys cannot make them; POST /api/v1/test/refill costs nothing."
            )

    async def _customer_of(self, credential: Credential | None) -> str | None:  # noqa: ARG002
        """Return who the payer is at the provider, where it keeps customers and the payer is known."""
        return None

    async def claim(self, session_id: str, label: str) -> Claim:
        """Hand out the first key of a payment, also when its webhook has not come yet.

        Raises: NotFound, PaymentPending, PaymentFailed, AlreadyClaimed, AccountExists, PaymentMismatch,
        PaymentsUnavailable.
        """
        if not SESSION_ID.fullmatch(session_id):
            raise NotFound("checkout session")
        try:
            paid = (await self._books.purchase(self._provider.name, session_id)).paid
        except NotFound:
            paid = False  # opened, but its session was not written down: the provider knows whose it is
        if not paid and (await self.settle(session_id)).failed:
            raise PaymentFailed
        return await self._books.claim(self._provider.name, session_id, label)

    async def receive_webhook(self, body: bytes, signature: str) -> ProviderEvent | None:
        """Verify and store an event; returns it if it is the caller's to `apply` now, once the sender has its answer.

        None: it was applied before, or somebody is at it. A failure after it is stored is not the sender's.
        Raises: InvalidRequest for a bad signature, with nothing stored.
        """
        event = self._provider.verify(body, signature)
        return event if await self._books.store_event(event) else None

    async def apply(self, event: ProviderEvent) -> None:
        """Handle a stored event. What keeps it from taking is noted, and the event stays due or is given up.

        Raises: Unavailable when the books are away; the event is then taken up again by whoever finds it due.
        """
        problem: str | None = None
        final = False
        try:
            if event.object_id is not None:
                await self.settle(event.object_id)
        except NotFound:
            log.info("event of a payment that is not ours", event_id=event.event_id, type=event.type)
        except AppError as error:
            problem, final = str(error), not error.retryable
            level = log.error if final else log.warning
            level("event not applied", event_id=event.event_id, type=event.type, problem=problem)
        except Exception as error:  # what a provider sends one day must not stop the other events
            problem = f"unexpected {type(error).__name__}"
            errors_total.labels("webhooks").inc()
            log.exception("event not applied", event_id=event.event_id, type=event.type)
        webhooks_total.labels(
            event.provider, "applied" if problem is None else "dead" if final else "failed"
        ).inc()
        await self._books.finish_event(event.provider, event.event_id, problem, final)

    async def settle(self, object_id: str) -> ProviderSession:
        """Bring the books to where the provider is with a payment: grant what is paid, take back what went back.

        The provider is asked, whatever an event said: events come late, twice, out of order, or never.
        Raises: NotFound, PaymentMismatch, PaymentsUnavailable.
        """
        session = await self._provider.retrieve(object_id)
        if session.paid:
            await self._books.fulfil(
                PaidSession(
                    provider=self._provider.name,
                    session_id=session.id,
                    purchase_id=session.purchase_id,
                    amount_minor=session.amount_minor,
                    currency=session.currency,
                    livemode=session.livemode,
                    expect_livemode=self._provider.livemode,
                    paid_minor=session.paid_minor,
                    payment_id=session.payment_id,
                    customer_id=session.customer_id,
                    returns=session.returns,
                    warned=session.warned,
                    card_fingerprint=session.card_fingerprint,
                )
            )
        return session
