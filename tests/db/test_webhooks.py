"""The inbox: an event is kept once as it was received, handled until it took, given up in the end, and replayed."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from kit.errors import NotFound
from payments import webhooks
from payments.webhooks import ATTEMPTS, ProviderEvent

PAID = ProviderEvent(
    "stripe", "evt_1", "checkout.session.completed", "cs_test_1", b'{\n  "id": "evt_1", "x": "\xc3\xa9"}'
)
NEWS = ProviderEvent("stripe", "evt_2", "v3.of.the.future", None, b'{"id": "evt_2"}')


async def time_passes(conn):
    """Let every pause be over."""
    await conn.execute(text("UPDATE provider_events SET retry_at = now() - interval '1 second'"))


async def states(conn):
    return {each.event.event_id: each.state for each in await webhooks.listed(conn, None, None, 100)}


async def test_an_event_is_kept_once_as_it_was_received(conn):
    assert await webhooks.store(conn, PAID)
    assert not await webhooks.store(conn, PAID), "somebody is at it"
    assert (await webhooks.kept(conn, "evt_1")).event == PAID
    with pytest.raises(DBAPIError, match="append-only"):
        await conn.execute(text("UPDATE provider_events SET body = 'else'"))


async def test_an_event_is_left_to_whoever_took_it_up_and_to_others_after_that(conn):
    await webhooks.store(conn, PAID)
    assert await webhooks.due(conn, 10) == []
    await time_passes(conn)
    assert await webhooks.due(conn, 10) == [PAID]
    assert await webhooks.due(conn, 10) == [], "taken up again"
    await time_passes(conn)
    assert await webhooks.store(conn, PAID), "the sender's repeat is as good a reason as the sweep"
    await webhooks.finish(conn, "stripe", "evt_1", None)
    await time_passes(conn)
    assert await webhooks.due(conn, 10) == []
    assert not await webhooks.store(conn, PAID)
    assert await states(conn) == {"evt_1": "applied"}


async def test_concurrent_sweeps_never_take_up_one_event_twice(db):
    events = [ProviderEvent("stripe", f"evt_{n}", "x", "cs_1", b"{}") for n in range(40)]
    async with db.transaction() as conn:
        for event in events:
            await webhooks.store(conn, event)
        await time_passes(conn)
    taken = await asyncio.gather(*(db.run(webhooks.due, 10) for _ in range(8)))
    ids = [event.event_id for batch in taken for event in batch]
    assert sorted(ids) == sorted(event.event_id for event in events)


async def test_pauses_between_tries_double_up_to_an_hour(conn):
    await webhooks.store(conn, PAID)
    pauses = []
    for _ in range(14):
        await webhooks.finish(conn, "stripe", "evt_1", "the provider was away")
        pauses.append(
            await conn.scalar(text("SELECT extract(epoch FROM retry_at - now()) FROM provider_events"))
        )
        await time_passes(conn)
        await webhooks.due(conn, 10)
    assert [int(pause) for pause in pauses] == [
        2,
        4,
        8,
        16,
        32,
        64,
        128,
        256,
        512,
        1024,
        2048,
        3600,
        3600,
        3600,
    ]


async def test_a_problem_that_no_retry_solves_makes_a_dead_letter_at_once(conn):
    await webhooks.store(conn, PAID)
    await webhooks.finish(conn, "stripe", "evt_1", "the amount differs\x00", final=True)
    await time_passes(conn)
    assert await webhooks.due(conn, 10) == []
    dead = await webhooks.kept(conn, "evt_1")
    assert (dead.state, dead.problem, dead.retry_at) == ("dead", "the amount differs", None)


async def test_an_event_is_given_up_when_its_tries_are_used_up(conn):
    await webhooks.store(conn, PAID)
    await conn.execute(text("UPDATE provider_events SET attempts = :most"), {"most": ATTEMPTS - 1})
    await webhooks.finish(conn, "stripe", "evt_1", "away")
    assert await states(conn) == {"evt_1": "pending"}
    await time_passes(conn)
    await webhooks.due(conn, 10)
    await webhooks.finish(conn, "stripe", "evt_1", "away")
    assert await states(conn) == {"evt_1": "dead"}


async def test_an_event_that_ends_every_process_that_handles_it_is_given_up_too(conn):
    await webhooks.store(conn, PAID)
    for _ in range(ATTEMPTS):
        await time_passes(conn)
        await webhooks.due(conn, 10)
    await time_passes(conn)
    assert await webhooks.due(conn, 10) == []
    dead = await webhooks.kept(conn, "evt_1")
    assert (dead.state, dead.problem) == ("dead", "its handling began and never ended")


async def test_unknown_types_are_kept_and_named_as_ignored(conn):
    await webhooks.store(conn, NEWS)
    await webhooks.finish(conn, "stripe", "evt_2", None)
    assert await states(conn) == {"evt_2": "ignored"}
    assert (await webhooks.kept(conn, "evt_2")).event.body == NEWS.body


async def test_a_replay_makes_an_event_due_whatever_became_of_it(conn):
    for event in (PAID, NEWS):
        await webhooks.store(conn, event)
    await webhooks.finish(conn, "stripe", "evt_1", "broken", final=True)
    await webhooks.finish(conn, "stripe", "evt_2", None)
    assert await webhooks.replay(conn, None) == ["evt_1"], "the dead letters alone"
    assert [event.event_id for event in await webhooks.due(conn, 10)] == ["evt_1"]
    assert await webhooks.replay(conn, ["evt_2"]) == ["evt_2"]
    with pytest.raises(NotFound):
        await webhooks.replay(conn, ["evt_2", "evt_none"])
    assert (await webhooks.kept(conn, "evt_1")).attempts == 1, "tries are counted anew"


async def test_a_dead_letter_that_the_provider_sends_again_is_work_again(conn):
    await webhooks.store(conn, PAID)
    await webhooks.finish(conn, "stripe", "evt_1", "broken", final=True)
    assert await webhooks.store(conn, PAID)
    assert await states(conn) == {"evt_1": "pending"}


async def test_a_list_is_the_newest_of_a_state_and_a_type(conn):
    for event in (PAID, NEWS):
        await webhooks.store(conn, event)
    await webhooks.finish(conn, "stripe", "evt_2", None)
    assert [e.event.event_id for e in await webhooks.listed(conn, "pending", None, 10)] == ["evt_1"]
    assert [e.event.event_id for e in await webhooks.listed(conn, None, "v3.of.the.future", 10)] == ["evt_2"]
    assert await webhooks.listed(conn, "dead", None, 10) == []


async def test_applied_events_are_forgotten_after_a_month_and_dead_letters_stay(conn):
    for n, (problem, days) in enumerate([(None, 31), (None, 29), ("broken", 31)]):
        await webhooks.store(conn, ProviderEvent("stripe", f"evt_{n}", "x", "cs_1", b"{}"))
        await webhooks.finish(conn, "stripe", f"evt_{n}", problem, final=True)
        await conn.execute(text("ALTER TABLE provider_events DISABLE TRIGGER kept_as_received"))
        await conn.execute(
            text(
                "UPDATE provider_events SET received_at = now() - make_interval(days => :days) WHERE event_id = :id"
            ),
            {"days": days, "id": f"evt_{n}"},
        )
    await webhooks.forget_old(conn)
    assert await states(conn) == {"evt_1": "applied", "evt_2": "dead"}
