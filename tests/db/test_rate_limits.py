"""The laws of the counters: exact for all replicas together, by one clock, and nobody's count is another's."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
import pytest_asyncio
from sqlalchemy import text

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from gateway.errors import RateLimited
from gateway.limits import Tally, tallies
from gateway.quotas import Counted, Quota, Take, forget_old, take_many
from kit.errors import AuthRequired, NotFound
from kit.settings import load_settings
from ledger import keys
from ledger.balances import Balance
from ledger.errors import InsufficientCredits
from ledger.keys import Credential
from ledger.spends import Check, Spend, Spent


def by_key(customer, limit=3, bucket="key"):
    return Take(bucket, "key", customer.credential, "stranger:1", limit, 60)


def by_user(customer, limit=3, bucket="sensitive_auth"):
    return Take(bucket, "user", customer.credential, "stranger:1", limit, 60)


def by_name(name, limit=3):
    return Take("sensitive_auth", "user", None, f"email:{name}", limit, 60)


def summary(outcomes):
    return [o.remaining if isinstance(o, Quota) else "refused" for o in outcomes]


async def second_key(conn, customer):
    made = await keys.mint(conn, customer.user_id, "second", brand="amai")
    return replace(customer, key_id=made.key.id, secret=made.secret)


async def end_windows(conn, *, seconds_ago=0):
    await conn.execute(
        text("UPDATE rate_counters SET resets_at = statement_timestamp() - make_interval(secs => :s)"),
        {"s": seconds_ago},
    )


@pytest_asyncio.fixture
async def replicas(fresh_url, tmp_path):
    """Two Ledger replicas over the same books, each with its own pool."""
    made = [LedgerServer(load_settings(database_url=fresh_url, data_dir=tmp_path)) for _ in range(2)]
    yield made
    for server in made:
        await server.close()


async def test_the_first_requests_of_a_window_are_allowed_and_no_other(conn, customers):
    customer = await customers(conn, 0)
    first = await take_many(conn, [by_key(customer)] * 2)
    then = await take_many(conn, [by_key(customer)] * 3)
    assert summary(first + then) == [2, 1, 0, "refused", "refused"]
    assert 0 < first[0].reset_s <= 60
    refusal = then[-1]
    assert (refusal.status, refusal.code, refusal.bucket, refusal.limit) == (429, "rate_limited", "key", 3)
    assert 0 < refusal.retry_after_s <= 60


async def test_a_window_that_ended_opens_anew_in_full(conn, customers):
    customer = await customers(conn, 0)
    assert summary(await take_many(conn, [by_key(customer)] * 4)) == [2, 1, 0, "refused"]
    await end_windows(conn)
    again = await take_many(conn, [by_key(customer)] * 4)
    assert summary(again) == [2, 1, 0, "refused"]
    assert again[0].reset_s > 0


async def test_refused_requests_do_not_prolong_a_window(conn, customers):
    customer = await customers(conn, 0)
    await take_many(conn, [by_key(customer)] * 5)
    before = (await conn.execute(text("SELECT resets_at FROM rate_counters"))).scalar_one()
    await take_many(conn, [by_key(customer)] * 5)
    assert (await conn.execute(text("SELECT resets_at FROM rate_counters"))).scalar_one() == before


async def test_one_identity_never_hurts_another(conn, customers):
    greedy, modest = await customers(conn, 0), await customers(conn, 0)
    outcomes = await take_many(
        conn, [by_key(greedy)] * 5 + [by_key(modest)] + [by_name("a")] * 5 + [by_name("b")]
    )
    assert summary(outcomes) == [2, 1, 0, "refused", "refused", 2, 2, 1, 0, "refused", "refused", 2]


async def test_keys_of_one_user_share_the_users_count_and_have_each_their_own(conn, customers):
    first = await customers(conn, 0)
    second = await second_key(conn, first)
    of_the_user = await take_many(conn, [by_user(first), by_user(second), by_user(first), by_user(second)])
    of_the_keys = await take_many(conn, [by_key(first, 1), by_key(second, 1), by_key(first, 1)])
    assert summary(of_the_user) == [2, 1, 0, "refused"]
    assert summary(of_the_keys) == [0, 0, "refused"]


async def test_buckets_are_counted_apart(conn, customers):
    customer = await customers(conn, 0)
    outcomes = await take_many(conn, [by_user(customer, 1, name) for name in ("a", "b", "a")])
    assert summary(outcomes) == [0, 0, "refused"]


async def test_a_key_that_is_not_valid_counts_against_no_one_who_is(conn, customers):
    owner = await customers(conn, 0)
    revoked = await second_key(conn, owner)
    await keys.revoke(conn, owner.user_id, revoked.secret.split("_")[-1][:8])
    unknown = Take("sensitive_auth", "user", Credential(b"\7" * 32), "stranger:1", 3, 60)
    outcomes = await take_many(conn, [by_user(revoked), unknown, unknown, by_user(revoked), by_user(owner)])
    assert summary(outcomes) == [2, 1, 0, "refused", 2]


async def test_two_replicas_under_load_allow_exactly_the_limit(replicas, db, customers):
    async with db.transaction() as conn:
        several = [await customers(conn, 0) for _ in range(4)]
    takes = [by_key(customer, 60) for customer in several]
    batches = [
        server.take_many(takes[turn % 4 :] + takes[: turn % 4] + takes)
        for turn in range(30)
        for server in replicas
    ]
    outcomes = [outcome for batch in await asyncio.gather(*batches) for outcome in batch]
    assert Counter(type(outcome) for outcome in outcomes) == {Quota: 240, RateLimited: 240}
    assert sorted(o.remaining for o in outcomes if isinstance(o, Quota)) == sorted(list(range(60)) * 4)


async def test_a_refused_item_stays_out_of_its_batch_and_charges_nothing(replicas, db, customers):
    async with db.transaction() as conn:
        rich, poor = await customers(conn, 100), await customers(conn, 0)
    spends = [
        Spend(who.credential, "image", f"r{n}", 1000, 10, 1)
        for n, who in enumerate((rich, rich, poor, rich, rich))
    ]
    takes = [by_key(rich, 2), by_key(rich, 2), by_key(poor, 2), by_key(rich, 2), None]
    outcomes = await replicas[0].spend_many(spends, takes)
    assert [o.quota.remaining if isinstance(o, Counted) else type(o) for o in outcomes] == [
        1,
        0,
        1,
        RateLimited,
        Spent,
    ]
    assert [type(o.outcome) for o in outcomes[:3]] == [Spent, Spent, InsufficientCredits]
    (left,) = await replicas[1].balance_many([rich.credential])
    assert left.available_tokens == 70


async def test_the_first_call_of_a_request_carries_its_take_and_no_other(replicas, db, customers):
    async with db.transaction() as conn:
        customer = await customers(conn, 100)
    ledger = local_ledger(replicas[0])
    calls = {
        "hot": lambda: ledger.balance(customer.credential),
        "check": lambda: ledger.check(Check(customer.credential, 1, "chat")),
        "cold": lambda: ledger.keys(customer.credential),
    }
    for name, call in calls.items():
        tally = Tally(by_key(customer, 2, name), waits=True)
        token = tallies.set(tally)
        try:
            await call()
            assert tally.quota == Quota(name, 2, 60, 1, 60), name
            for _ in range(3):
                await call()
            tallies.set(over := Tally(by_key(customer, 1, name), waits=True))
            with pytest.raises(RateLimited):
                await call()
            assert over.quota.remaining == 0, name
        finally:
            tallies.reset(token)


async def test_an_error_of_a_counted_call_is_raised_as_it_is(replicas, customers, db):
    async with db.transaction() as conn:
        customer = await customers(conn, 0)
    ledger = local_ledger(replicas[0])
    for credential, error in ((Credential(b"\7" * 32), AuthRequired), (customer.credential, NotFound)):
        token = tallies.set(Tally(replace(by_key(customer), credential=credential), waits=True))
        with pytest.raises(error):
            await ledger.job(credential, "job_01k8z0c6m5n7q2r4t6v8x0y2z4")
        assert tallies.get().quota.remaining == 2
        tallies.reset(token)


async def test_a_call_without_a_take_counts_nothing(replicas, db, customers):
    async with db.transaction() as conn:
        customer = await customers(conn, 5)
    assert await local_ledger(replicas[0]).balance(customer.credential) == Balance(5, 0)
    async with db.transaction() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM rate_counters"))).scalar_one() == 0


async def test_a_sweep_forgets_windows_that_ended_long_ago_and_no_other(conn, customers):
    old, fresh = await customers(conn, 0), await customers(conn, 0)
    await take_many(conn, [by_key(old)] * 3)
    await end_windows(conn, seconds_ago=301)
    await take_many(conn, [by_key(fresh)] * 3)
    assert await forget_old(conn) == 1
    assert summary(await take_many(conn, [by_key(old), by_key(fresh)])) == [2, "refused"]
