"""What a card provider has beyond a checkout: customers with a portal, refunds of ours, and a record of its events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import structlog

from ledger import scopes
from ledger.keys import Credential
from payments.checkout import Checkout, Provider, PurchaseBooks
from payments.customers import Customer
from payments.errors import NotRefundable
from payments.purchases import Purchase
from payments.webhooks import ProviderEvent

log = structlog.get_logger(__name__)

LOOK_BACK: Final = timedelta(hours=1)
"""Before the newest event that came in: webhooks overtake each other by minutes."""
FIRST_LOOK: Final = timedelta(days=1)
"""Where no event ever came in: long enough to notice in the evening what was sold in the morning."""


@dataclass(frozen=True, slots=True)
class RefundOrder:
    """Money to give back. Units: minor units; None: all that is left. `key` makes a repeat the same refund."""

    payment_id: str
    purchase_id: str
    amount_minor: int | None
    currency: str
    reason: str | None
    key: str


class CardProvider(Provider, Protocol):
    """A hosted checkout that keeps customers."""

    async def create_customer(self, user_id: str, email: str) -> str:
        """Make a customer; the same user gives the same customer. Returns its id."""

    async def portal(self, customer_id: str, return_url: str) -> str:
        """Return the address of a portal session: invoices, receipts and saved cards of this customer."""

    async def refund(self, order: RefundOrder) -> str:
        """Give money back; returns the refund's id. Raises: NotRefundable."""

    async def events_since(self, moment: datetime) -> list[ProviderEvent]:
        """Return what happened since then of the types that we handle, the oldest first."""


class CardBooks(PurchaseBooks, Protocol):
    """The transactions beyond a purchase's own; see `gateway.ports.Ledger` for their guarantees."""

    async def billing_customer(self, provider: str, credential: Credential, need: str) -> Customer: ...

    async def remember_customer(self, provider: str, user_id: str, customer_id: str) -> None: ...

    async def newest_event(self, provider: str) -> datetime | None: ...


class CardCheckout(Checkout):
    """Sells packages through a card provider, and looks after what was paid."""

    def __init__(self, books: CardBooks, provider: CardProvider, base_url: str) -> None:
        super().__init__(books, provider, base_url)
        self._cards = provider
        self._card_books = books

    async def portal(self, credential: Credential) -> str:
        """Return where the caller sees invoices and saved cards.

        Raises: AuthRequired, Forbidden, PaymentsUnavailable.
        """
        self._refuse_test_key(credential)
        customer_id = await self._known_customer(credential, scopes.BILLING)
        return await self._cards.portal(customer_id, f"{self._base_url}/")

    async def refund(self, purchase: Purchase, amount_minor: int | None, reason: str | None, key: str) -> str:
        """Give a payer money back and take its credits along; returns the refund's id.

        Raises: NotRefundable, PaymentsUnavailable. If the credits could not be taken now, the webhook does.
        """
        payment_id = (
            None if purchase.session_id is None else (await self.settle(purchase.session_id)).payment_id
        )
        if payment_id is None or purchase.session_id is None:
            raise NotRefundable("nothing was paid for it by card")
        refund_id = await self._cards.refund(
            RefundOrder(payment_id, purchase.id, amount_minor, purchase.currency, reason, key)
        )
        await self.settle(purchase.session_id)
        return refund_id

    async def catch_up(self) -> int:
        """Take in what the provider sent and we never received; returns how many events those were."""
        newest = await self._card_books.newest_event(self._provider.name)
        since = newest - LOOK_BACK if newest else datetime.now(UTC) - FIRST_LOOK
        missed = 0
        for event in await self._cards.events_since(since):
            if await self._books.store_event(event):
                missed += 1
                log.warning("webhook missed", event_id=event.event_id, type=event.type)
                await self.apply(event)
        return missed

    async def _customer_of(self, credential: Credential | None) -> str | None:
        return None if credential is None else await self._known_customer(credential, scopes.CHECKOUT)

    async def _known_customer(self, credential: Credential, need: str) -> str:
        """Return who the caller is at the provider, making that customer the first time."""
        name = self._provider.name
        customer = await self._card_books.billing_customer(name, credential, need)
        if customer.customer_id is not None:
            return customer.customer_id
        made = await self._cards.create_customer(customer.user_id, customer.email)
        await self._card_books.remember_customer(name, customer.user_id, made)
        return made
