"""The money of chat turns. Part of the Ledger deployment."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import chat_turns
from gateway.conversations import BeginTurn, MeteredTurn, TurnBegun, TurnCharged
from kit.db import Database
from kit.settings import Settings
from kit.telemetry import ledger_seconds

P = ParamSpec("P")
T = TypeVar("T")

SPARE_S: Final = 60
"""A hold outlives the longest turn by this: the charge at its end must find it open."""


class LedgerChat:
    """The use cases of chat turns of `LedgerServer`."""

    _settings: Settings
    _db: Database

    async def begin_turn(self, command: BeginTurn) -> TurnBegun:
        """Hold a turn's cost."""
        ttl = timedelta(seconds=self._settings.chat_start_s + self._settings.chat_turn_s + SPARE_S)
        return await self._turn("begin_turn", chat_turns.begin, command, ttl)

    async def finish_turn(
        self, hold_id: str, turn: MeteredTurn, answer: dict[str, Any] | None
    ) -> TurnCharged:
        """Charge a turn."""
        return await self._turn("finish_turn", chat_turns.finish, hold_id, turn, answer)

    async def abandon_turn(self, hold_id: str, turn: MeteredTurn | None) -> None:
        """Free a turn's hold."""
        await self._turn("abandon_turn", chat_turns.abandon, hold_id, turn)

    async def _turn(
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
