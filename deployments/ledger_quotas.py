"""Counting requests in the Ledger deployment: alone, or as the first step of a batch that carries their takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

from gateway import quotas
from gateway.quotas import Counted, Quota, Take
from kit.db import Database
from kit.errors import AppError

S = TypeVar("S", bound="LedgerQuotas")
I = TypeVar("I")  # noqa: E741  # an item of a batch

BatchMethod = Callable[[S, list[I]], Awaitable[list[Any]]]
CountedMethod = Callable[..., Awaitable[list[Any]]]


class LedgerQuotas:
    """The rate limits' part of `LedgerServer`."""

    _db: Database
    _batch: Callable[..., Awaitable[list[Any]]]

    async def take_many(self, takes: list[Take]) -> list[Quota | AppError]:
        """Count each request, in one statement that waits for no disk."""
        # A statement of its own even before a write: its locks are gone before the books' locks are asked for.
        return await self._batch("take", quotas.take_many, takes, self._db.read)


def counted(method: BatchMethod[S, I]) -> CountedMethod:
    """Let a batch method take `takes` beside its items: one that is refused keeps its item out of the batch.

    An item with a take gets a `Counted` outcome, or the error that its take ended in.
    """

    @wraps(method)
    async def count_first(self: S, items: list[I], takes: Sequence[Take | None] | None = None) -> list[Any]:
        if takes is None:
            return await method(self, items)
        asked = [place for place, take in enumerate(takes) if take is not None]
        answers = await self.take_many([take for take in takes if take is not None])
        quotas_of = dict(zip(asked, answers, strict=True))
        outcomes: list[Any] = [quotas_of.get(place) for place in range(len(items))]
        goes_on = [place for place, quota in enumerate(outcomes) if not isinstance(quota, AppError)]
        if goes_on:
            done = await method(self, [items[place] for place in goes_on])
            for place, outcome in zip(goes_on, done, strict=True):
                quota = outcomes[place]
                outcomes[place] = outcome if quota is None else Counted(quota, outcome)
        return outcomes

    return count_first
