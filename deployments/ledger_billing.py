"""Who a user is at a payment provider, and how far its events have come. Part of the Ledger deployment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from ledger import keys
from ledger.keys import Credential
from payments import customers, purchases, webhooks
from payments.customers import Customer
from payments.purchases import Purchase


class LedgerBilling:
    """The use cases of customers and missed events in `LedgerServer`."""

    _run: Callable[..., Awaitable[Any]]

    async def billing_customer(self, provider: str, credential: Credential, need: str) -> Customer:
        """Return who the caller is at a provider."""

        async def look(conn: AsyncConnection) -> Customer:
            caller = await keys.caller_of(conn, credential, need)
            return await customers.customer_of(conn, provider, caller.user_id, caller.email)

        found: Customer = await self._run("billing_customer", look)
        return found

    async def remember_customer(
        self, provider: str, user_id: str, customer_id: str, instead_of: str | None
    ) -> None:
        """Link a user to a customer, once."""
        await self._run(
            "remember_customer", customers.remember_customer, provider, user_id, customer_id, instead_of
        )

    async def purchase_by_id(self, purchase_id: str) -> Purchase:
        """Return a purchase."""
        found: Purchase = await self._run("purchase_by_id", purchases.by_id, purchase_id)
        return found

    async def newest_event(self, provider: str) -> datetime | None:
        """Return when a provider's last event came in."""
        newest: datetime | None = await self._run("newest_event", webhooks.newest, provider)
        return newest
