"""The Ledger deployment's reads of what the models take and earn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import metering
from gateway.metering import Revenue
from gateway.operator_ports import Signed
from ledger.operators import actor_of


class LedgerMetering:
    """By `gateway.metering.Meters`."""

    _run: Callable[..., Awaitable[Any]]

    async def revenue(self, by: Signed, since: datetime, until: datetime) -> list[Revenue]:
        """Return what each model took and earned."""

        async def look(conn: AsyncConnection) -> list[Revenue]:
            await actor_of(conn, by.credential, by.request_id)
            return await metering.revenue(conn, since, until)

        found: list[Revenue] = await self._run("revenue", look)
        return found
