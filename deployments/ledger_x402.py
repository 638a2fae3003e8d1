"""The payments of wallets: written down before they are settled, granted with the answer.

Part of the Ledger deployment.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from kit.db import Database
from kit.settings import Settings
from kit.telemetry import ledger_seconds
from payments import x402_payments
from payments.x402_facilitator import Settlement
from payments.x402_payments import Bill, Minter, Outcome, Settling

P = ParamSpec("P")
T = TypeVar("T")


class LedgerX402:
    """The use cases of x402 payments of `LedgerServer`."""

    _settings: Settings
    _db: Database

    async def resume_x402(self, bill: Bill) -> Outcome | None:
        """Return how a payment stands that was sent before."""
        return await self._x402("resume_x402", x402_payments.resume, bill, self._minter())

    async def begin_x402(self, bill: Bill) -> Outcome:
        """Write a verified payment down."""
        return await self._x402("begin_x402", x402_payments.begin, bill, self._minter())

    async def conclude_x402(self, payment_id: str, attempt: int, said: Settlement) -> Outcome:
        """Store the facilitator's answer, with the grant and the key."""
        return await self._x402(
            "conclude_x402", x402_payments.conclude, payment_id, attempt, said, self._minter()
        )

    async def due_x402(self, limit: int) -> list[Settling]:
        """Take payments to ask about again."""
        return await self._x402("due_x402", x402_payments.due, limit)

    def _minter(self) -> Minter:
        return Minter(self._settings.key_brand, self._settings.secret.get_secret_value().encode())

    async def _x402(
        self,
        method: str,
        work: Callable[Concatenate[AsyncConnection, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        began = time.perf_counter()
        try:
            return await self._db.run(work, *args, **kwargs)
        finally:
            ledger_seconds.labels(method).observe(time.perf_counter() - began)
