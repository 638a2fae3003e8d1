"""Waiting calls share the next batch; each gets its own outcome; nothing is forgotten."""

from __future__ import annotations

import asyncio

import pytest

from deployments.handles import BATCH_ITEMS, Coalescer, LedgerClient
from kit.errors import AuthRequired, NotFound, Unavailable


class Far:
    """The far side of a coalescer: answers a batch when the test says so."""

    def __init__(self):
        self.batches = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items):
        self.batches.append(list(items))
        await self.gate.wait()
        return [NotFound("thing") if item < 0 else item * 10 for item in items]


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_lone_item_goes_at_once():
    far = Far()
    assert await Coalescer(far)(4) == 40
    assert far.batches == [[4]]


async def test_what_waits_while_a_batch_is_away_travels_as_the_next_one():
    far = Far()
    far.gate.clear()
    send = Coalescer(far)
    calls = [asyncio.create_task(send(n)) for n in (1, 2, 3)]
    await settle()
    more = [asyncio.create_task(send(n)) for n in (4, 5, 6)]
    await settle()
    assert far.batches == [[1, 2, 3]], "one batch in flight"
    far.gate.set()
    assert await asyncio.gather(*calls, *more) == [10, 20, 30, 40, 50, 60]
    assert far.batches == [[1, 2, 3], [4, 5, 6]]


async def test_each_gets_its_own_outcome_and_an_error_is_raised_to_its_asker_alone():
    outcomes = await asyncio.gather(*(map(Coalescer(Far()), (1, -1, 2))), return_exceptions=True)
    assert outcomes == [10, NotFound("thing"), 20]


async def test_a_batch_that_fails_whole_fails_for_all_who_were_in_it_and_for_nobody_after():
    broken = True

    async def send(items):
        if broken:
            raise ConnectionError("gone")
        return items

    ask = Coalescer(send)
    outcomes = await asyncio.gather(ask(1), ask(2), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]
    broken = False
    assert await ask(3) == 3


async def test_a_caller_that_goes_away_hurts_no_neighbour():
    far = Far()
    far.gate.clear()
    send = Coalescer(far)
    leaving, staying = asyncio.create_task(send(1)), asyncio.create_task(send(2))
    await settle()
    leaving.cancel()
    far.gate.set()
    assert await staying == 20
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await send(3) == 30


async def test_a_flood_is_cut_into_bounded_batches_and_none_is_forgotten():
    far = Far()
    send = Coalescer(far)
    outcomes = await asyncio.gather(*(send(n) for n in range(BATCH_ITEMS * 3 + 1)))
    assert outcomes == [n * 10 for n in range(BATCH_ITEMS * 3 + 1)]
    assert max(map(len, far.batches)) == BATCH_ITEMS


async def test_an_item_that_comes_just_as_a_batch_ends_is_sent():
    far = Far()
    send = Coalescer(far)
    for n in range(200):  # every answer lets the next in at the very moment that the sender stops
        assert await send(n) == n * 10
    assert len(far.batches) == 200


async def test_cold_methods_pass_under_their_own_name():
    seen = []

    async def call(method, *args):
        seen.append((method, args))
        return [AuthRequired()] if method.endswith("_many") else "answer"

    client = LedgerClient(call)
    assert await client.revoke_key(b"k", "abcde") == "answer"
    with pytest.raises(AuthRequired):
        await client.balance(b"k")
    assert seen == [("revoke_key", (b"k", "abcde")), ("balance_many", ([b"k"],))]
