"""Turns: whoever waits with one job is not behind a thousand of another."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, text

from gateway import jobs, leases, turns
from gateway.ports import SubmitJob
from gateway.tables import account_shares
from gateway.turns import Concurrency
from kit.ids import new_id
from ledger import keys

HOUR = timedelta(hours=1)
LEASE = timedelta(seconds=30)


def job_of(customer, priority=0, credential=None, deadline=None):
    return SubmitJob(
        credential=credential or customer.credential,
        job_id=new_id("job"),
        task="image.generate",
        tool="image",
        application="image",
        input={"prompt": "fox"},
        units_milli=1000,
        cost_tokens=1,
        price_version=1,
        idempotency_key=None,
        fingerprint="a",
        priority=priority,
        deadline=deadline,
    )


async def queue(conn, customer, number, **kwargs):
    sent = [job_of(customer, **kwargs) for _ in range(number)]
    for start in range(0, number, 100):
        await jobs.submit_many(conn, sent[start : start + 100], HOUR)
    return [each.job_id for each in sent]


async def claim(conn, limit=1, **bounds):
    return await leases.claim(conn, "run", "image", limit, LEASE, Concurrency(**bounds))


async def next_accounts(conn, number):
    """Claim and run one job after the other; returns whose they were."""
    found = []
    for _ in range(number):
        [job] = await claim(conn)
        found.append(job.account_id)
    return found


async def place(conn, customer, job_id):
    return (await jobs.job(conn, customer.account_id, job_id)).queue_position


async def test_one_job_waits_for_no_more_than_the_job_ahead_of_a_thousand(conn, customers):
    noisy, quiet = await customers(conn, 2000), await customers(conn, 10)
    await queue(conn, noisy, 1000)
    assert await next_accounts(conn, 5) == [noisy.account_id] * 5
    [single] = await queue(conn, quiet, 1)
    assert await place(conn, quiet, single) == 1
    assert (await claim(conn))[0].id == single


async def test_accounts_take_turns(conn, customers):
    people = [await customers(conn, 100) for _ in range(3)]
    for person in people:
        await queue(conn, person, 10)
    served = await next_accounts(conn, 12)
    for start in range(0, 12, 3):
        assert len(set(served[start : start + 3])) == 3


async def test_a_claim_of_many_shares_them_out(conn, customers):
    first, second = await customers(conn, 100), await customers(conn, 100)
    await queue(conn, first, 20)
    await queue(conn, second, 20)
    claimed = await claim(conn, 10)
    assert Counter(job.account_id for job in claimed) == {first.account_id: 5, second.account_id: 5}


async def test_a_heavier_account_gets_turns_by_its_weight(conn, customers):
    heavy, light = await customers(conn, 100), await customers(conn, 100)
    await conn.execute(insert(account_shares).values(account_id=heavy.account_id, weight=3))
    await queue(conn, heavy, 30)
    await queue(conn, light, 30)
    served = Counter(await next_accounts(conn, 20))
    assert served == {heavy.account_id: 15, light.account_id: 5}


async def test_time_spent_idle_is_not_saved_up(conn, customers):
    busy, idle = await customers(conn, 100), await customers(conn, 100)
    await queue(conn, idle, 1)
    await queue(conn, busy, 40)
    await next_accounts(conn, 21)
    await queue(conn, idle, 10)
    assert Counter(await next_accounts(conn, 10)) == {busy.account_id: 5, idle.account_id: 5}


async def test_priorities_order_ones_own_jobs_and_nobody_elses(conn, customers):
    pushy, other = await customers(conn, 100), await customers(conn, 100)
    low = await queue(conn, pushy, 1, priority=-1)
    normal = await queue(conn, pushy, 1)
    high = await queue(conn, pushy, 2, priority=1)
    others = await queue(conn, other, 4)
    claimed = [(await claim(conn))[0] for _ in range(8)]
    assert [job.id for job in claimed if job.account_id == pushy.account_id] == high + normal + low
    assert [job.id for job in claimed if job.account_id == other.account_id] == others
    assert {claimed[0].account_id, claimed[1].account_id} == {pushy.account_id, other.account_id}


async def test_places_in_line_are_the_order_in_which_jobs_are_taken(conn, customers):
    people = [await customers(conn, 100) for _ in range(3)]
    await conn.execute(insert(account_shares).values(account_id=people[2].account_id, weight=2))
    waiting = {}
    for number, person in enumerate(people):
        for job_id in await queue(conn, person, 3 + number):
            waiting[job_id] = person
    await claim(conn, 2)
    while left := [
        (place, job_id) for job_id, place in (await turns.places_in_line(conn, list(waiting))).items()
    ]:
        first = {job_id for place, job_id in left if place == 1}
        [taken] = await claim(conn)
        assert taken.id in first
        assert min(left)[0] == 1
        assert max(left)[0] <= len(left)


async def test_no_more_jobs_of_an_account_run_than_it_may(conn, customers):
    bound, free = await customers(conn, 100), await customers(conn, 100)
    await queue(conn, bound, 10)
    claimed = await claim(conn, 10, per_account=3)
    assert len(claimed) == 3
    assert await claim(conn, 10, per_account=3) == []
    await queue(conn, free, 2)
    assert len(await claim(conn, 10, per_account=3)) == 2
    await leases.fail(conn, leases.Failure(claimed[0].id, 1, "x", "x", retryable=False, metrics={}), 1)
    assert [job.account_id for job in await claim(conn, 10, per_account=3)] == [bound.account_id]
    await conn.execute(insert(account_shares).values(account_id=bound.account_id, max_running=5))
    assert len(await claim(conn, 10, per_account=3)) == 2


async def test_claims_of_two_applications_at_once_keep_an_accounts_bound(db, customers):
    async with db.transaction() as conn:
        bound = await customers(conn, 100)
        await queue(conn, bound, 1)
        [elsewhere] = await queue(conn, bound, 1)
        await conn.execute(
            text("UPDATE jobs SET application = 'video' WHERE id = :id").bindparams(id=elsewhere)
        )

    async def claim_film(conn):
        return await leases.claim(conn, "run_b", "video", 1, LEASE, Concurrency(per_account=1))

    async with db.transaction() as conn:
        assert len(await claim(conn, per_account=1)) == 1
        other = asyncio.create_task(db.run(claim_film))
        await asyncio.wait([other], timeout=0.5)
    assert await other == []


async def test_no_more_jobs_of_a_key_run_than_it_may_and_its_siblings_go_on(conn, customers):
    owner = await customers(conn, 100)
    sibling = await keys.mint(conn, owner.user_id, "second", brand="amai")
    credential = keys.Credential(keys.hash_key(sibling.secret))
    await queue(conn, owner, 10)
    await queue(conn, owner, 3, credential=credential)
    taken = []
    while claimed := await claim(conn, 4, per_key=2):
        taken += claimed
        assert len(taken) < 20
    by_key = Counter((await conn.execute(text("SELECT key_id FROM jobs WHERE status = 'running'"))).scalars())
    assert sorted(by_key.values()) == [2, 2]


async def test_turns_that_the_clock_passed_are_forgotten_and_change_nothing(conn, customers):
    gone, busy = await customers(conn, 100), await customers(conn, 100)
    await queue(conn, gone, 1)
    await queue(conn, busy, 10)
    await next_accounts(conn, 8)
    await turns.forget_turns(conn)
    left = (await conn.execute(text("SELECT account_id FROM queue_turns"))).scalars().all()
    assert left == [busy.account_id]
    await queue(conn, gone, 1)
    assert await next_accounts(conn, 1) == [gone.account_id]


@pytest.mark.parametrize("seconds", [-1, 3])
async def test_a_job_expires_by_its_deadline(conn, customers, seconds):
    owner = await customers(conn, 100)
    deadline = datetime.now(UTC) + timedelta(seconds=seconds)
    [job_id] = await queue(conn, owner, 1, deadline=deadline)
    claimed = await claim(conn)
    if seconds < 0:
        assert claimed == []
        assert await leases.sweep(conn, 3) == {job_id: "expired"}
    else:
        assert claimed[0].deadline == deadline
        assert await leases.sweep(conn, 3) == {}
