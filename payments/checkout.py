"""From a package to granted credits: the provider's calls on one side, the books' transactions on the other.

A provider takes cards or coins; all stand behind one interface. Nothing here holds a transaction open while it talks to
one. Every step may be repeated: the session is made under the purchase's id, a fulfilment grants once, an event is
applied until it took.
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
from ledger.keys import Credential
from payments.errors import PaymentMismatch
from payments.packages import Package
from payments.purchases import Claim, OpenPurchase, PaidSession, Purchase, UnpaidSession
from payments.webhooks import ProviderEvent

log = structlog.get_logger(__name__)

OWN_ID: Final = re.compile(r"pur_[0-9a-z]{26}")
"""A purchase's own id: it stands for the session in the address of a provider's return page, which must be known
before the session is. As hard to guess as a session's, and never shown to anyone but the payer."""
NOT_SHOWN: Final = "the provider's own record does not show this payment yet"
"""Why an event of a payment stays due: providers send it before every part of theirs has heard of it."""


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What the provider is told of a purchase."""

    purchase_id: str
    email: str
    package: Package
    product_name: str
    success_url: str
    cancel_url: str


@dataclass(frozen=True, slots=True)
class ProviderSession:
    """A provider's session as it stands now. Units: minor units.

    `paid`: the whole price is there for good. `closed`: the session is over without that. `received_minor`: what is
    there for good, where the provider says so; None: the price if it is paid, nothing if not.
    """

    id: str
    url: str
    purchase_id: str
    paid: bool
    amount_minor: int
    currency: str
    livemode: bool
    received_minor: int | None = None
    closed: bool = False


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

    async def retrieve(self, session_id: str) -> ProviderSession:
        """Read a session."""

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

    async def finish_event(self, provider: str, event_id: str, problem: str | None) -> None: ...


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
        """Write the purchase down, then open the provider's session for it. Raises: PaymentsUnavailable."""
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
            )
        )
        await self._books.attach_session(purchase.id, session.id)
        return StartedCheckout(session.url, session.id, purchase)

    async def claim(self, session_id: str, label: str) -> Claim:
        """Hand out the first key of a payment, also when its webhook has not come yet.

        Raises: NotFound, PaymentPending, AlreadyClaimed, AccountExists, PaymentMismatch, PaymentsUnavailable.
        """
        if not self.knows(session_id):
            raise NotFound("checkout session")
        try:
            purchase = await self._books.purchase(self.provider.name, session_id)
        except NotFound:
            purchase = None  # opened, but its session was not written down: the provider knows whose it is
        if purchase is None:
            if OWN_ID.fullmatch(session_id):
                raise NotFound("checkout session")
            await self.settle(session_id)
        elif not purchase.paid and purchase.session_id is not None:
            with suppress(NotFound):  # a provider that can no longer be asked: its webhooks alone tell
                await self.settle(purchase.session_id)
        return await self._books.claim(self.provider.name, session_id, label)

    def knows(self, session_id: str) -> bool:
        """Tell whether this may name a session of the provider, or a purchase of ours."""
        return bool(self.provider.session_ids.fullmatch(session_id))

    async def settle(self, session_id: str) -> ProviderSession:
        """Read a session from the provider itself and grant it if it is paid; events may lie about order.

        Raises: NotFound, PaymentMismatch, PaymentsUnavailable.
        """
        session = await self.provider.retrieve(session_id)
        await self._book(session)
        return session

    async def receive_webhook(self, body: bytes, headers: Mapping[str, str]) -> bool:
        """Verify, store and apply an event; returns whether it is a duplicate of an applied one.

        A failure after it is stored is not the sender's: the event is kept and tried again.
        Raises: InvalidRequest for a bad signature, with nothing stored.
        """
        event = self.provider.verify(body, headers)
        if not await self._books.store_event(event):
            return True
        await self.apply(event)
        return False

    async def apply(self, event: ProviderEvent) -> None:
        """Apply a stored event; whatever keeps it from taking is noted, and the event stays due."""
        problem: str | None = None
        try:
            session = await self.provider.session_of(event)
            if session is not None:
                await self._book(session)
                if event.type in self.provider.paid_events and not (session.paid or session.closed):
                    problem = NOT_SHOWN
        except NotFound:
            log.info("event of a session that is not ours", event_id=event.event_id, type=event.type)
        except AppError as error:
            problem = str(error)
            level = log.error if isinstance(error, PaymentMismatch) else log.warning
            level("event not applied", event_id=event.event_id, type=event.type, problem=problem)
        await self._books.finish_event(event.provider, event.event_id, problem)

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
