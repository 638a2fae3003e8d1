"""What a card provider has beyond a checkout: customers with a portal, refunds of ours, and a record of its events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import structlog

from kit.errors import AppError, NotFound
from kit.telemetry import errors_total
from ledger import scopes
from ledger.keys import Credential
from payments.auto_topups import AutoTopup, TopupWish
from payments.checkout import Checkout, Provider, ProviderSession, PurchaseBooks
from payments.customers import Customer
from payments.errors import CardNeeded, NotRefundable, PaymentsUnavailable
from payments.packages import Package
from payments.purchases import Purchase
from payments.topup_charges import ChargeRefused, DueCharge
from payments.webhooks import ProviderEvent

log = structlog.get_logger(__name__)

LOOK_BACK: Final = timedelta(hours=1)
"""Before what was looked through last, or came in last: webhooks overtake each other by minutes."""
FIRST_LOOK: Final = timedelta(days=1)
"""At the least, when a process begins: after an outage webhooks come again before what was missed is looked for."""


@dataclass(frozen=True, slots=True)
class RefundOrder:
    """Money to give back. Units: minor units; None: all that is left. `key` makes a repeat the same refund."""

    payment_id: str
    purchase_id: str
    amount_minor: int | None
    currency: str
    reason: str | None
    key: str


CHARGES_AT_ONCE: Final = 8
"""Side by side in one sweep, so that each has its whole lease; the next sweep is seconds away."""


class CardProvider(Provider, Protocol):
    """A hosted checkout that keeps customers."""

    async def create_customer(self, user_id: str, email: str, instead_of: str | None) -> str:
        """Make a customer, or one instead of one who is gone; a repeat gives the same customer. Returns its id."""

    async def portal(self, customer_id: str, return_url: str) -> str:
        """Return the address of a portal session: invoices, receipts and saved cards. Raises: NotFound."""

    async def refund(self, order: RefundOrder) -> str:
        """Give money back; returns the refund's id. Raises: NotRefundable."""

    async def events_since(self, moment: datetime) -> list[ProviderEvent]:
        """Return what happened since then of the types that we handle, the oldest first."""

    @property
    def charges_saved_cards(self) -> bool:
        """Whether it charges saved cards with nobody at the screen, as it is configured."""

    async def has_card(self, customer_id: str) -> bool:
        """Tell whether a card is saved that may be charged."""

    async def card_page(self, customer_id: str, back_url: str) -> str:
        """Return the address of a page that saves a card, and charges nothing. Raises: NotFound."""

    async def charge_saved(self, charge: DueCharge) -> ProviderSession | ChargeRefused:
        """Charge a saved card, once. Raises: PaymentsUnavailable, when nobody knows whether money moved."""


class TopupBooks(Protocol):
    """The transactions of automatic top-ups."""

    async def auto_topup(self, credential: Credential) -> AutoTopup | None:
        """Return the caller's automatic top-up. Raises: AuthRequired, Forbidden for a limited key."""

    async def switch_topup_on(self, credential: Credential, wish: TopupWish) -> AutoTopup:
        """Set the caller's automatic top-up. Raises: AuthRequired, Forbidden, also for the test world."""

    async def switch_topup_off(self, credential: Credential) -> None:
        """Forget the caller's automatic top-up; a charge that was asked for comes to its end."""

    async def begin_topups(self, provider: str, on_sale: Mapping[str, Package] | None) -> int:
        """Write a charge for each account that is short and may be charged; returns how many.

        `on_sale` None: none may be, and an account that is short is told so, once.
        """

    async def take_topups(self, provider: str, limit: int) -> list[DueCharge]:
        """Take charges that nobody is at."""

    async def refuse_topup(self, purchase_id: str, refused: ChargeRefused) -> bool:
        """End a charge that moved no money; returns whether this call ended it."""


class CardBooks(PurchaseBooks, TopupBooks, Protocol):
    """The transactions beyond a purchase's own; see `gateway.ports.Ledger` for their guarantees."""

    async def billing_customer(self, provider: str, credential: Credential, need: str) -> Customer: ...

    async def remember_customer(
        self, provider: str, user_id: str, customer_id: str, instead_of: str | None
    ) -> None: ...

    async def newest_event(self, provider: str) -> datetime | None: ...


class CardCheckout(Checkout):
    """Sells packages through a card provider, and looks after what was paid."""

    def __init__(self, books: CardBooks, provider: CardProvider, base_url: str) -> None:
        super().__init__(books, provider, base_url)
        self._cards = provider
        self._card_books = books
        self._caught_up_at: datetime | None = None

    async def portal(self, credential: Credential) -> str:
        """Return where the caller sees invoices and saved cards.

        Raises: AuthRequired, Forbidden, PaymentsUnavailable.
        """
        return await self._page(credential, self._cards.portal, f"{self._base_url}/")

    async def refund(self, purchase: Purchase, amount_minor: int | None, reason: str | None, key: str) -> str:
        """Give a payer money back and take its credits along; returns the refund's id.

        Raises: NotRefundable, PaymentsUnavailable. If the credits could not be taken now, the webhook does.
        """
        if purchase.provider != self.provider.name:
            raise NotRefundable(f"{purchase.provider} took it; give it back there")
        session = await self.settle(purchase.session_id) if purchase.session_id else None
        if session is None or session.payment_id is None:
            raise NotRefundable("nothing was paid for it by card")
        refund_id = await self._cards.refund(
            RefundOrder(session.payment_id, purchase.id, amount_minor, purchase.currency, reason, key)
        )
        try:
            await self.settle(session.id)
        except AppError as error:  # the money is on its way: whoever hears of a failure gives it back again
            log.warning("credits left to the webhook", refund_id=refund_id, problem=str(error))
        return refund_id

    async def card_page(self, credential: Credential) -> str:
        """Return where the caller saves a card; nothing is charged.

        Raises: AuthRequired, Forbidden, PaymentsUnavailable.
        """
        return await self._page(credential, self._cards.card_page, f"{self._base_url}/credits")

    async def switch_topup_on(
        self, credential: Credential, package: Package, threshold_tokens: int, month_most_minor: int
    ) -> AutoTopup:
        """Switch automatic top-up on, for a caller whose card is saved.

        Raises: AuthRequired, Forbidden, CardNeeded, PaymentsUnavailable.
        """
        if not self._cards.charges_saved_cards:
            raise PaymentsUnavailable(
                "Automatic top-up is not offered here, since the tax of each payment is worked out at its checkout:"
                " buy a package at /credits, or with POST /api/v1/checkout/stripe."
            )
        self._refuse_test_key(credential)
        customer_id = await self._known_customer(credential, scopes.BILLING)
        if not await self._cards.has_card(customer_id):
            raise CardNeeded
        wish = TopupWish(self.provider.name, customer_id, threshold_tokens, package, month_most_minor)
        return await self._card_books.switch_topup_on(credential, wish)

    async def top_up(self, on_sale: Mapping[str, Package]) -> None:
        """Charge for accounts that are short of what they wish to have, and end what an earlier try left open.

        Where saved cards are not charged, or not any more, nothing new is asked for.
        """
        charges = self._cards.charges_saved_cards
        await self._card_books.begin_topups(self.provider.name, on_sale if charges else None)
        taken = await self._card_books.take_topups(self.provider.name, CHARGES_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for charge in taken:
                group.create_task(self._end(replace(charge, only_look=charge.only_look or not charges)))

    async def _end(self, charge: DueCharge) -> None:
        """Bring one charge to its end; what nobody knows of is taken up again when its lease is over."""
        try:
            outcome = await self._cards.charge_saved(charge)
            if isinstance(outcome, ChargeRefused):
                level = log.error if outcome.reason == "not_offered" else log.info
                level(
                    "top-up refused",
                    purchase_id=charge.purchase_id,
                    reason=outcome.reason,
                    said=outcome.problem,
                )
                await self._card_books.refuse_topup(charge.purchase_id, outcome)
            else:
                await self._book(outcome)
        except AppError as error:
            log.warning("top-up left open", purchase_id=charge.purchase_id, problem=str(error))
        except Exception:  # what a provider answers to one must not break off the others
            errors_total.labels("topups").inc()
            log.exception("top-up left open", purchase_id=charge.purchase_id)

    async def catch_up(self) -> int:
        """Take in what the provider sent and we never received; returns how many events those were."""
        began_at = datetime.now(UTC)
        if self._caught_up_at is None:
            newest = await self._card_books.newest_event(self.provider.name) or began_at
            since = min(newest - LOOK_BACK, began_at - FIRST_LOOK)
        else:
            since = self._caught_up_at - LOOK_BACK
        missed = 0
        for event in await self._cards.events_since(since):
            if await self._books.store_event(event):
                missed += 1
                log.warning("webhook missed", event_id=event.event_id, type=event.type)
                await self.apply(event)
        self._caught_up_at = began_at
        return missed

    async def _customer_of(self, credential: Credential | None) -> str | None:
        return None if credential is None else await self._known_customer(credential, scopes.CHECKOUT)

    async def _page(
        self, credential: Credential, page: Callable[[str, str], Awaitable[str]], back_url: str
    ) -> str:
        """Open a page of the caller's customer, whom the provider may have deleted: then they are made anew."""
        self._refuse_test_key(credential)
        customer_id = await self._known_customer(credential, scopes.BILLING)
        try:
            return await page(customer_id, back_url)
        except NotFound:
            made = await self._known_customer(credential, scopes.BILLING, gone=customer_id)
            return await page(made, back_url)

    async def _known_customer(self, credential: Credential, need: str, gone: str | None = None) -> str:
        """Return who the caller is at the provider, making that customer the first time, or when one is `gone`."""
        name = self.provider.name
        customer = await self._card_books.billing_customer(name, credential, need)
        if customer.customer_id is not None and customer.customer_id != gone:
            return customer.customer_id
        made = await self._cards.create_customer(customer.user_id, customer.email, gone)
        await self._card_books.remember_customer(name, customer.user_id, made, gone)
        return made
