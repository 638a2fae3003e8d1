"""Money that went back, heard of in any order: the credits clawed back are always its share, and the last word wins."""

from __future__ import annotations

import asyncio
import dataclasses
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from kit.ids import new_id
from ledger.balances import balance
from ledger.users import account_of_email
from payments import purchases, stripe_returns
from payments.packages import Package
from payments.purchases import OpenPurchase, PaidSession

BUILDER = Package("builder_600", "Builder", 60_001, 5_000, "usd")


def refund(status, amount=1_000, refund_id="re_1"):
    found = {"id": refund_id, "amount": amount, "currency": "usd", "status": status}
    return stripe_returns.refund(found)


def dispute(status, *moves, amount=1_000, dispute_id="du_1"):
    moved = [{"amount": move} for move in moves]
    found = {
        "id": dispute_id,
        "amount": amount,
        "currency": "usd",
        "status": status,
        "balance_transactions": moved,
    }
    return stripe_returns.dispute(found)


async def paid_for(conn, email="dev@company.com", **facts):
    command = OpenPurchase(new_id("pur"), "stripe", email, BUILDER, None)
    purchase = await purchases.open_purchase(conn, command, None)
    session_id = f"cs_test_{purchase.id}"
    await purchases.attach_session(conn, purchase.id, session_id)
    return PaidSession(
        "stripe", session_id, purchase.id, 5_000, "usd", livemode=False, expect_livemode=False, **facts
    )


async def tokens_of(conn, email="dev@company.com"):
    return (await balance(conn, (await account_of_email(conn, email)).account_id)).available_tokens


@pytest.mark.parametrize("status", ["pending", "requires_action", "succeeded", "some_day"])
async def test_a_refund_takes_its_credits_from_its_beginning(conn, status):
    paid = await paid_for(conn)
    done = await purchases.fulfil(conn, dataclasses.replace(paid, returns=(refund(status, 5_000),)))
    assert (done.returned_minor, await tokens_of(conn)) == (5_000, 0)


@pytest.mark.parametrize(
    ("found", "stands"),
    [
        (dispute("warning_needs_response"), False),
        (dispute("warning_under_review"), False),
        (dispute("warning_closed"), False),
        (dispute("needs_response"), True),
        (dispute("needs_response", -1_000), True),
        (dispute("under_review", -1_000), True),
        (dispute("under_review", -1_000, 1_000), False),
        (dispute("lost", -1_000), True),
        (dispute("won", -1_000), False),
        (dispute("won", -1_000, 1_000), False),
        (dispute("appeal_under_review", -1_000), True),
        (dispute("prevented"), False),
        (dispute("some_day"), False),
        (dispute("some_day", -1_000), True),
    ],
)
async def test_a_dispute_takes_credits_while_its_money_is_gone_or_claimed(conn, found, stands):
    paid = await paid_for(conn)
    await purchases.fulfil(conn, dataclasses.replace(paid, returns=(found,)))
    assert await tokens_of(conn) == (48_001 if stands else 60_001)


async def test_a_return_before_its_grant_is_heard_of_leaves_only_the_rest(conn):
    paid = await paid_for(conn, returns=(refund("succeeded", 4_999),))
    await purchases.fulfil(conn, paid)
    assert await tokens_of(conn) == 60_001 - 60_001 * 4_999 // 5_000


async def test_parts_that_add_up_to_the_whole_take_the_whole(conn):
    paid = await paid_for(conn)
    parts = tuple(refund("succeeded", part, f"re_{part}") for part in (1_665, 1_666, 1_667, 2))
    for place in range(len(parts)):
        await purchases.fulfil(conn, dataclasses.replace(paid, returns=parts[: place + 1]))
    assert await tokens_of(conn) == 0


async def test_a_return_of_one_payment_never_counts_for_another(conn):
    first, second = await paid_for(conn), await paid_for(conn)
    await purchases.fulfil(conn, dataclasses.replace(first, returns=(refund("succeeded", 5_000),)))
    await purchases.fulfil(conn, dataclasses.replace(second, returns=(refund("failed", 5_000),)))
    assert await tokens_of(conn) == 60_001


async def test_concurrent_news_of_one_refund_takes_its_credits_once(db, assert_sound):
    async with db.transaction() as conn:
        paid = dataclasses.replace(await paid_for(conn), returns=(refund("succeeded", 2_500),))
    await asyncio.gather(*(db.run(purchases.fulfil, paid) for _ in range(10)))
    async with db.transaction() as conn:
        assert await tokens_of(conn) == 60_001 - 30_000
        assert await conn.scalar(text("SELECT count(*) FROM transfers WHERE kind = 'clawback'")) == 1
    await assert_sound(db)


REFUNDS = [
    ["succeeded"],
    ["pending", "succeeded"],
    ["pending", "succeeded", "failed"],
    ["pending", "canceled"],
]
DISPUTES = [
    [("warning_needs_response",), ("warning_closed",)],
    [("warning_needs_response",), ("needs_response",), ("needs_response", -1), ("lost", -1)],
    [("needs_response",), ("needs_response", -1), ("under_review", -1), ("won", -1), ("won", -1, 1)],
    [("needs_response", -1), ("lost", -1), ("appeal_under_review", -1), ("won", -1), ("won", -1, 1)],
    [("needs_response", -1), ("under_review", -1), ("under_review", -1, 1), ("lost", -1, 1, -1)],
]
HISTORIES = st.lists(
    st.tuples(st.sampled_from(REFUNDS + DISPUTES), st.integers(1, 4_000)), min_size=1, max_size=4
)


def as_told(history, amount):
    name = new_id("ret")
    return [
        refund(step, amount, name)
        if isinstance(step, str)
        else dispute(step[0], *(move * amount for move in step[1:]), amount=amount, dispute_id=name)
        for step in history
    ]


async def test_reads_of_the_provider_in_any_order_end_at_the_latest(db, assert_sound):
    loop = asyncio.get_running_loop()

    async def hear(histories, seed):
        chance = random.Random(seed)
        told = [as_told(*history) for history in histories]
        # What a reader sees is some prefix of each history, and the slowest reader may be the last to write.
        reads = [tuple(h[chance.randrange(len(h))] for h in told if chance.random() < 0.8) for _ in range(6)]
        reads.append(tuple(h[-1] for h in told))
        chance.shuffle(reads)
        email = f"{new_id('user')}@life.example"
        async with db.transaction() as conn:
            paid = await paid_for(conn, email)
            await purchases.fulfil(conn, paid)
        for read in reads:
            await db.run(purchases.fulfil, dataclasses.replace(paid, returns=read))
        returned = min(5_000, sum(h[-1].amount_minor for h in told if h[-1].stands))
        async with db.transaction() as conn:
            assert await tokens_of(conn, email) == 60_001 - 60_001 * returned // 5_000

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(histories=HISTORIES, seed=st.integers(0, 2**32))
    def in_any_order(histories, seed):
        asyncio.run_coroutine_threadsafe(hear(histories, seed), loop).result(60)

    await asyncio.to_thread(in_any_order)
    await assert_sound(db)
