"""A value that is made at most once in a while, however many ask for it at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """What `make` returned within the last `keep_s` seconds. Failures are not kept."""

    def __init__(self, make: Callable[[], Awaitable[T]], keep_s: float) -> None:
        self._make = make
        self._keep_s = keep_s
        self._turn = asyncio.Lock()
        self._value: tuple[float, T] | None = None

    async def __call__(self) -> T:
        """Return the kept value, or make it while the others wait for it."""
        if (value := self._fresh()) is not None:
            return value[1]
        async with self._turn:
            if (value := self._fresh()) is None:
                value = self._value = (monotonic() + self._keep_s, await self._make())
            return value[1]

    def _fresh(self) -> tuple[float, T] | None:
        return self._value if self._value is not None and monotonic() < self._value[0] else None
