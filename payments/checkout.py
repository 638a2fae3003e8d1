"""From a package to granted credits: the provider's calls on one side, the books' transactions on the other.

A provider takes cards or coins; all stand behind one interface. Nothing here holds a transaction open while it talks to
one. Every step may be repeated: the session is made under the purchase's id, a payment is settled to where the provider
is, an event is handled until it took.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from kit.errors import AppError, NotFound
from kit.ids import new_id
from kit.telemetry import errors_total, webhooks_total
from ledger.keys import Credential
from payments.errors import PaymentFailed, PaymentsUnavailable
from payments.packages import Package
from payments.purchases import Claim, OpenPurchase, PaidSession, Purchase, UnpaidSession
from payments.returns import Return
from payments.webhooks import ProviderEvent

log = structlog.get_logger(__name__)

OWN_ID: Final = re.compile(r"pur_[0-9a-z]{26}")
"""A purchase's own id: it stands for the session in the address of a provider's return page, which must be known
before the session is. As hard to guess as a session's, and never shown to anyone but the payer."""
NOT_SHOWN: Final = "the provider's own record does not show this payment yet"
"""Why an event of a payment stays due: providers send it before every part of theirs has heard of it."""


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

    `paid`: the whole price is there for good. `closed`: the session is over without that. `failed`: it will not be
    paid; `final`: it cannot be, however late. `received_minor`: what is there for good, where the provider says so;
    None: the price if it is paid.
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
    received_minor: int | None = None
    closed: bool = False
    final: bool = False


class Provider(Protocol):
    """A hosted checkout."""

    @property
    def name(self) -> str:
        """The provider's name in the books."""

    @property
    def signature_header(self) -> str:
        """The header that signs its webhooks, in lower case."""

    @property
    def session_ids(self) -> re.Pattern[str]:
        """What may be asked of it: anything else is unknown without a network call."""

    @property
    def paid_events(self) -> frozenset[str]:
        """The types of events that mean that the whole price is there."""

    @property
    def livemode(self) -> bool:
        """Whether it moves real money."""

    async def create(self, request: SessionRequest) -> ProviderSession:
        """Open a session; the same purchase gives the same session."""

    async def retrieve(self, object_id: str) -> ProviderSession:
        """Read a session, by its own id or by what an event says it is about. Raises: NotFound."""

    async def session_of(self, event: ProviderEvent) -> ProviderSession | None:
        """Return the session that an event is about as it stands now; None for an event about none."""

    def verify(self, body: bytes, headers: Mapping[str, str]) -> ProviderEvent:
        """Return the event of a rightly signed webhook; header names are in lower case."""

    async def close(self) -> None:
        """Close the connections to the provider."""


class PurchaseBooks(Protocol):
    """The transactions of a purchase; see `gateway.ports.Ledger` for their guarantees."""

    async def open_purchase(self, command: OpenPurchase) -> Purchase: ...

    async def attach_session(self, purchase_id: str, session_id: str) -> None: ...

    async def purchase(self, provider: str, session_id: str) -> Purchase: ...

    async def fulfil(self, paid: PaidSession) -> Purchase: ...

    async def note_unpaid(self, seen: UnpaidSession) -> Purchase: ...

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
        self.provider: Final = provider
        self._books = books
        self._base_url = base_url

    async def close(self) -> None:
        """Close the connections to the provider."""
        await self.provider.close()

    async def start(self, email: str, package: Package, credential: Credential | None) -> StartedCheckout:
        """Write the purchase down, then open the provider's session for it.

        Raises: PaymentsUnavailable, also for a test key where the provider takes real money.
        """
        self._refuse_test_key(credential)
        customer_id = await self._customer_of(credential)
        purchase = await self._books.open_purchase(
            OpenPurchase(new_id("pur"), self.provider.name, email, package, credential)
        )
        session = await self.provider.create(
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
        if credential is not None and credential.world == "test" and self.provider.livemode:
            raise PaymentsUnavailable(
                "Payments here are real, and test keys cannot make them; POST /api/v1/test/refill costs nothing."
            )

    async def _customer_of(self, credential: Credential | None) -> str | None:  # noqa: ARG002
        """Return who the payer is at the provider, where it keeps customers and the payer is known."""
        return None

    async def claim(self, session_id: str, label: str) -> Claim:
        """Hand out the first key of a payment, also when its webhook has not come yet.

        Raises: NotFound, PaymentPending, PaymentFailed, AlreadyClaimed, AccountExists, ClaimExpired, PaymentMismatch,
        PaymentsUnavailable.
        """
        await self._arrive(session_id)
        return await self._books.claim(self.provider.name, session_id, label)

    async def arrive(self, session_id: str) -> Purchase:
        """Return the purchase of a payer who comes back, granted if it is paid, also when no webhook has come yet.

        Raises: NotFound, PaymentFailed, PaymentMismatch, PaymentsUnavailable.
        """
        await self._arrive(session_id)
        return await self._books.purchase(self.provider.name, session_id)

    async def _arrive(self, session_id: str) -> None:
        """Ask the provider about a purchase that is not paid so far. Raises: as `arrive`.

        A session that is not written down was shown to nobody: the provider is not bothered with what people make up.
        """
        if not self.knows(session_id):
            raise NotFound("checkout session")
        purchase = await self._books.purchase(self.provider.name, session_id)
        if purchase.paid or purchase.session_id is None:
            return
        with suppress(NotFound):  # a provider that can no longer be asked: its webhooks alone tell
            if (await self.settle(purchase.session_id)).failed:
                raise PaymentFailed

    def knows(self, session_id: str) -> bool:
        """Tell whether this may name a session of the provider, or a purchase of ours."""
        return bool(self.provider.session_ids.fullmatch(session_id))

    async def settle(self, object_id: str) -> ProviderSession:
        """Bring the books to where the provider is with a payment: grant what is paid, take back what went back.

        The provider is asked, whatever an event said: events come late, twice, out of order, or never.
        Raises: NotFound, PaymentMismatch, PaymentsUnavailable.
        """
        session = await self.provider.retrieve(object_id)
        await self._book(session)
        return session

    async def receive_webhook(self, body: bytes, headers: Mapping[str, str]) -> ProviderEvent | None:
        """Verify and store an event; returns it if it is the caller's to `apply` now, once the sender has its answer.

        None: it was applied before, or somebody is at it. A failure after it is stored is not the sender's.
        Raises: InvalidRequest for a bad signature, with nothing stored.
        """
        event = self.provider.verify(body, headers)
        return event if await self._books.store_event(event) else None

    async def apply(self, event: ProviderEvent) -> None:
        """Handle a stored event. What keeps it from taking is noted, and the event stays due or is given up.

        Raises: Unavailable when the books are away; the event is then taken up again by whoever finds it due.
        """
        problem: str | None = None
        final = False
        try:
            session = await self.provider.session_of(event)
            if session is not None:
                await self._book(session)
                if event.type in self.provider.paid_events and not (session.paid or session.closed):
                    problem = NOT_SHOWN
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

    async def _book(self, session: ProviderSession) -> None:
        """Bring what a session says into the books: its grant, or what arrived of it."""
        if not session.paid:
            if session.received_minor or session.closed:
                await self._note(session)
            return
        purchase = await self._books.fulfil(
            PaidSession(
                provider=self.provider.name,
                session_id=session.id,
                purchase_id=session.purchase_id,
                amount_minor=session.amount_minor,
                currency=session.currency,
                livemode=session.livemode,
                expect_livemode=self.provider.livemode,
                received_minor=session.received_minor,
                paid_minor=session.paid_minor,
                payment_id=session.payment_id,
                customer_id=session.customer_id,
                returns=session.returns,
                warned=session.warned,
                card_fingerprint=session.card_fingerprint,
            )
        )
        if purchase.received_minor > purchase.amount_minor:
            log.warning("more was paid than asked for", **_facts(purchase))

    async def _note(self, session: ProviderSession) -> None:
        purchase = await self._books.note_unpaid(
            UnpaidSession(
                provider=self.provider.name,
                session_id=session.id,
                purchase_id=session.purchase_id,
                received_minor=session.received_minor or 0,
                closed=session.closed,
                final=session.final,
            )
        )
        if session.closed and purchase.received_minor and not purchase.paid:
            log.warning("a checkout closed with a part of its price", **_facts(purchase))


def _facts(purchase: Purchase) -> dict[str, object]:
    return {
        "purchase_id": purchase.id,
        "received_minor": purchase.received_minor,
        "amount_minor": purchase.amount_minor,
        "currency": purchase.currency,
    }
