"""The books' side of reconciliations. Part of the Ledger deployment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from payments import reconciliations
from payments.reconcile import Booked, Difference
from payments.reconciliations import Begun, Reconciliation, Result, Span


class LedgerReconcile:
    """The use cases of `LedgerServer` around what providers say of payments."""

    _run: Callable[..., Awaitable[Any]]

    async def booked_since(self, provider: str, span: Span, after: str, limit: int) -> list[Booked]:
        """Return a page of a provider's purchases of a span."""
        page: list[Booked] = await self._run(
            "booked_since", reconciliations.booked_since, provider, span, after, limit
        )
        return page

    async def booked_as(self, provider: str, purchase_ids: list[str]) -> list[Booked]:
        """Return purchases by their ids."""
        found: list[Booked] = await self._run("booked_as", reconciliations.booked_as, provider, purchase_ids)
        return found

    async def unsettled_wallets(self, span: Span) -> list[Difference]:
        """Return wallets' payments whose outcome nobody knows."""
        found: list[Difference] = await self._run(
            "unsettled_wallets", reconciliations.unsettled_wallets, span
        )
        return found

    async def begin_reconciliation(self, span: Span, repairs: bool) -> Begun:
        """Write down that a reconciliation begins."""
        begun: Begun = await self._run("begin_reconciliation", reconciliations.begin, span, repairs=repairs)
        return begun

    async def begin_reconciliation_if_due(
        self, every: timedelta, back: timedelta, repairs: bool
    ) -> Begun | None:
        """Begin the scheduled reconciliation, if it is time."""

        async def begin(conn: AsyncConnection) -> Begun | None:
            return await reconciliations.begin_if_due(conn, every, back, repairs=repairs)

        begun: Begun | None = await self._run("begin_reconciliation_if_due", begin)
        return begun

    async def finish_reconciliation(self, reconciliation_id: str, result: Result) -> None:
        """Keep what came of a reconciliation."""
        await self._run("finish_reconciliation", reconciliations.finish, reconciliation_id, result)

    async def last_reconciliation(self) -> Reconciliation:
        """Return the reconciliation that ended last."""
        found: Reconciliation = await self._run("last_reconciliation", reconciliations.last)
        return found
