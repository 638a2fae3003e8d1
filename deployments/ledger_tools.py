"""What tools hold and spend out of holds. Part of the Ledger deployment; a hot path: batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import tool_holds
from gateway.tool_holds import Held, PlaceHold, SpendHeld
from kit.db import Database
from kit.errors import AppError
from kit.settings import Settings
from ledger.spends import Allowance, Spent


class LedgerTools:
    """The use cases of tool holds in `LedgerServer`."""

    _db: Database
    _settings: Settings
    _batch: Callable[..., Awaitable[list[Any]]]

    async def hold_tool_many(self, commands: list[PlaceHold]) -> list[Held | Allowance | AppError]:
        """Hold the cost of each check that may be spent, in one transaction."""
        ttl = timedelta(seconds=self._settings.tool_hold_s)

        async def place(
            conn: AsyncConnection, batch: Sequence[PlaceHold]
        ) -> list[Held | Allowance | AppError]:
            return await tool_holds.place_many(conn, batch, ttl)

        return await self._batch("hold_tool", place, commands, self._db.run)

    async def spend_held_many(self, commands: list[SpendHeld]) -> list[Spent | AppError]:
        """Charge each spend to its hold, or refuse it, in one transaction."""
        return await self._batch("spend_held", tool_holds.spend_many, commands, self._db.run)
