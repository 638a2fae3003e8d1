"""Cold starts: measured by the Runner, whose calls cause them; told by the surface, to whoever waits for one."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import structlog

from gateway.kept import Kept
from gateway.ports import ModelState
from kit.errors import AppError

log = structlog.get_logger(__name__)

TIMES_KEPT_S: Final = 30.0
"""A new measurement changes little: it need not be told sooner."""
Call = Callable[..., Awaitable[Any]]
States = Callable[[], Awaitable[Mapping[str, ModelState]]]


class StartTimes:
    """How long models take to start: as measured, and as configured until then. Books that are away change nothing."""

    def __init__(self, ledger: Call, scale: str, default_s: int | None) -> None:
        self._times: Kept[dict[str, int]] = Kept(lambda: ledger("start_times", scale), TIMES_KEPT_S)
        self._default_s = default_s

    async def told(self, states: Sequence[ModelState]) -> list[ModelState]:
        """Return the states with what a starting model has to be waited for."""
        try:
            times = await self._times()
        except AppError:
            times = {}
        return [
            replace(each, starts_in_s=times.get(each.application, self._default_s))
            if each.state == "starting"
            else each
            for each in states
        ]


class ColdStarts:
    """Watches the models that jobs wait for, and notes how long each took from its first call to its first replica."""

    def __init__(
        self, states: States, ledger: Call, scale: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._states = states
        self._ledger = ledger
        self._scale = scale
        self._clock = clock
        self._since: dict[str, float] = {}

    async def look(self, waited_for: Collection[str]) -> None:
        """Look at the applications that calls wait for. A start that nobody waits for any more is forgotten."""
        if not waited_for:
            self._since.clear()
            return
        states = await self._states()
        for name in {*waited_for, *self._since}:
            state = states.get(name)
            if state is not None and state.state == "starting" and name in waited_for:
                self._since.setdefault(name, self._clock())
            elif (since := self._since.pop(name, None)) is not None and state and state.state == "ready":
                took_s = math.ceil(self._clock() - since)
                log.info("cold start", application=name, took_s=took_s)
                await self._ledger("note_start", name, self._scale, took_s)
