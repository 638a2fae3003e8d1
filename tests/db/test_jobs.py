"""Jobs: the job and its hold are written together, a runner's late word is refused, a job ends once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from gateway import jobs, leases, stage_parts
from gateway.errors import CostExceedsLimit, IdempotencyKeyReused
from gateway.leases import Failure, Heartbeat, LeaseLost, Settlement
from gateway.ports import JobReceipt, StoredFile, SubmitJob
from gateway.stage_parts import StagePart
from gateway.stages import Stage
from kit.errors import AuthRequired, NotFound
from kit.ids import new_id
from ledger.balances import balance
from ledger.errors import InsufficientCredits
from ledger.keys import Credential

HOUR = timedelta(hours=1)
LEASE = timedelta(seconds=30)
SPEAKING = Stage("speak", "running", 0.5)


def submit_of(customer, *, key=None, fingerprint="a", cost=100, credential=None):
    return SubmitJob(
        credential=credential or customer.credential,
        job_id=new_id("job"),
        task="image.generate",
        tool="image",
        application="image",
        input={"prompt": "fox"},
        units_milli=1000,
        cost_tokens=cost,
        price_version=1,
        idempotency_key=key,
        fingerprint=fingerprint,
    )


def output_of(job_id, fence=1):
    return StoredFile(
        id=new_id("file"),
        name="0.png",
        storage_key=f"outputs/{job_id}/{fence}-0.png",
        content_type="image/png",
        size_bytes=3,
        sha256="x",
        created_at=datetime.now(UTC),
        job_id=job_id,
        facts={"width": 1},
    )


async def submitted(conn, customer, **kwargs):
    return (await jobs.submit_many(conn, [submit_of(customer, **kwargs)], HOUR))[0]


async def running(conn, customer):
    receipt = await submitted(conn, customer)
    claimed = await leases.claim(conn, "run_a", "image", 1, LEASE)
    assert [job.id for job in claimed] == [receipt.job_id]
    return claimed[0]


async def lapse(conn, job_id):
    await conn.execute(
        text("UPDATE jobs SET lease_until = now() - interval '1 s' WHERE id = :id"), {"id": job_id}
    )


async def free(conn, customer):
    return (await balance(conn, customer.account_id)).available_tokens


async def test_a_job_is_written_with_its_hold(conn, customers):
    customer = await customers(conn, 250)
    receipt = await submitted(conn, customer)
    assert (receipt.balance_after_tokens, receipt.replayed) == (150, False)
    job = await jobs.job(conn, customer.account_id, receipt.job_id)
    assert (job.status, job.queue_position, job.charged_tokens) == ("queued", 1, None)


async def test_a_refused_submit_leaves_no_trace(conn, customers):
    customer = await customers(conn, 99)
    assert await submitted(conn, customer, key="k") == InsufficientCredits(100, 99)
    for table in ("jobs", "holds", "idempotency"):
        assert (await conn.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one() == 0


async def test_a_refused_submit_leaves_its_key_free_for_after_a_top_up(conn, customers):
    customer = await customers(conn, 99)
    assert isinstance(await submitted(conn, customer, key="k"), InsufficientCredits)
    await customers(conn, 0)
    await conn.execute(text("SELECT 1"))
    from ledger.credits import credit

    await credit(
        conn, customer.account_id, kind="grant", house="promotion:t", amount_tokens=1, reference="top-up"
    )
    assert isinstance(await submitted(conn, customer, key="k"), JobReceipt)


async def test_each_submit_of_a_batch_is_decided_on_its_own(conn, customers):
    rich, poor = await customers(conn, 1000), await customers(conn, 150)
    outcomes = await jobs.submit_many(
        conn,
        [
            submit_of(rich),
            submit_of(rich, credential=Credential(b"?" * 32)),
            submit_of(poor),
            submit_of(poor),
            submit_of(rich),
        ],
        HOUR,
    )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [JobReceipt, AuthRequired, JobReceipt, InsufficientCredits, JobReceipt]
    assert [o.balance_after_tokens for o in outcomes if isinstance(o, JobReceipt)] == [900, 50, 800]


async def test_the_same_idempotency_key_gives_the_first_answer_again(conn, customers):
    customer = await customers(conn, 500)
    first = await submitted(conn, customer, key="job-001")
    await submitted(conn, customer)
    again = await submitted(conn, customer, key="job-001")
    assert again.replayed
    assert (again.job_id, again.balance_after_tokens, again.created_at) == (
        first.job_id,
        first.balance_after_tokens,
        first.created_at,
    )
    assert await free(conn, customer) == 300


async def test_what_cannot_be_done_any_more_is_refused_but_for_a_repeat(conn, customers):
    customer = await customers(conn, 250)
    first = await submitted(conn, customer, key="k")
    dearer = CostExceedsLimit(200, 100)
    sent = [replace(submit_of(customer, key=key, cost=200), refusal=dearer) for key in ("k", "new", None)]
    again, *others = await jobs.submit_many(conn, sent, HOUR)
    assert (again.job_id, again.replayed) == (first.job_id, True)
    assert others == [dearer, dearer]
    assert await free(conn, customer) == 150


async def test_the_same_idempotency_key_with_another_meaning_is_refused(conn, customers):
    customer = await customers(conn, 500)
    await submitted(conn, customer, key="job-001")
    assert await submitted(conn, customer, key="job-001", fingerprint="b") == IdempotencyKeyReused("job-001")


async def test_idempotency_keys_of_two_accounts_do_not_meet(conn, customers):
    one, two = await customers(conn, 100), await customers(conn, 100)
    outcomes = [await submitted(conn, one, key="k"), await submitted(conn, two, key="k", fingerprint="b")]
    assert [o.replayed for o in outcomes] == [False, False]


async def test_one_key_twice_in_a_batch_is_one_job(conn, customers):
    customer = await customers(conn, 500)
    commands = [
        submit_of(customer, key="k"),
        submit_of(customer, key="k"),
        submit_of(customer, key="k", fingerprint="b"),
    ]
    first, second, third = await jobs.submit_many(conn, commands, HOUR)
    assert (second.job_id, second.replayed) == (first.job_id, True)
    assert third == IdempotencyKeyReused("k")
    assert await free(conn, customer) == 400


async def test_two_hundred_concurrent_submits_on_a_balance_for_a_hundred_accept_a_hundred(
    db, customers, assert_sound
):
    async with db.transaction() as conn:
        customer = await customers(conn, 100 * 100)
    outcomes = await asyncio.gather(*(db.run(submitted, customer) for _ in range(200)))
    assert sum(isinstance(o, JobReceipt) for o in outcomes) == 100
    assert sum(isinstance(o, InsufficientCredits) for o in outcomes) == 100
    async with db.transaction() as conn:
        assert await free(conn, customer) == 0
    await assert_sound(db)


async def test_concurrent_retries_of_one_submit_make_one_job(db, customers):
    async with db.transaction() as conn:
        customer = await customers(conn, 1000)
    outcomes = await asyncio.gather(*(db.run(submitted, customer, key="retry") for _ in range(12)))
    assert len({o.job_id for o in outcomes}) == 1
    assert sum(not o.replayed for o in outcomes) == 1


async def test_two_runners_never_claim_the_same_job(db, customers):
    async with db.transaction() as conn:
        customer = await customers(conn, 100 * 40)
        await jobs.submit_many(conn, [submit_of(customer) for _ in range(40)], HOUR)
    batches = await asyncio.gather(*(db.run(leases.claim, f"run_{n}", "image", 10, LEASE) for n in range(8)))
    claimed = [job.id for batch in batches for job in batch]
    assert len(claimed) == len(set(claimed)) == 40


async def test_a_result_and_its_charge_are_written_together(conn, customers):
    customer = await customers(conn, 250)
    claimed = await running(conn, customer)
    settlement = Settlement(claimed.id, claimed.fence, [output_of(claimed.id)], 100, {"runMs": 5})
    assert await leases.settle(conn, settlement) == "succeeded"
    job = await jobs.job(conn, customer.account_id, claimed.id)
    assert (job.status, job.charged_tokens, job.progress_percent) == ("succeeded", 100, 100)
    assert [file.facts for file in job.output] == [{"width": 1}]
    stands = await balance(conn, customer.account_id)
    assert (stands.total_tokens, stands.held_tokens) == (150, 0)


async def test_a_settlement_with_an_old_fence_is_refused_whole(conn, customers):
    customer = await customers(conn, 250)
    old = await running(conn, customer)
    await lapse(conn, old.id)
    assert await leases.sweep(conn, 3) == {old.id: "queued"}
    new = (await leases.claim(conn, "run_b", "image", 1, LEASE))[0]
    assert new.fence > old.fence
    with pytest.raises(LeaseLost):
        await leases.settle(conn, Settlement(old.id, old.fence, [output_of(old.id)], 100, {}))
    assert (await jobs.job(conn, customer.account_id, old.id)).status == "running"
    await leases.settle(conn, Settlement(new.id, new.fence, [output_of(new.id, new.fence)], 100, {}))
    with pytest.raises(LeaseLost):
        await leases.settle(conn, Settlement(new.id, new.fence, [output_of(new.id, 9)], 100, {}))
    assert await free(conn, customer) == 150


async def test_a_failed_job_costs_nothing(conn, customers):
    customer = await customers(conn, 250)
    claimed = await running(conn, customer)
    assert (
        await leases.fail(conn, Failure(claimed.id, claimed.fence, "model_failed", "No.", False, {}), 3)
        == "failed"
    )
    job = await jobs.job(conn, customer.account_id, claimed.id)
    assert (job.status, job.charged_tokens, job.error_code, job.error_message) == (
        "failed",
        0,
        "model_failed",
        "No.",
    )
    assert await free(conn, customer) == 250


async def test_a_retryable_failure_is_tried_again_until_the_attempts_are_used_up(conn, customers):
    customer = await customers(conn, 250)
    await submitted(conn, customer)
    ended = []
    for _ in range(3):
        claimed = (await leases.claim(conn, "run_a", "image", 1, LEASE))[0]
        ended.append(await leases.fail(conn, Failure(claimed.id, claimed.fence, "x", "y", True, {}), 3))
    assert ended == ["queued", "queued", "failed"]
    assert await leases.claim(conn, "run_a", "image", 1, LEASE) == []
    assert await free(conn, customer) == 250


async def test_a_job_given_back_keeps_its_attempts(conn, customers):
    customer = await customers(conn, 250)
    claimed = await running(conn, customer)
    assert await leases.give_back(conn, claimed.id, claimed.fence) == "queued"
    assert (await leases.claim(conn, "run_b", "image", 1, LEASE))[0].attempts == 1


async def test_a_canceled_queued_job_ends_at_once_and_frees_its_hold(conn, customers):
    customer = await customers(conn, 250)
    receipt = await submitted(conn, customer)
    job = await jobs.cancel(conn, customer.account_id, receipt.job_id)
    assert (job.status, job.charged_tokens) == ("canceled", 0)
    assert await free(conn, customer) == 250
    assert (await jobs.cancel(conn, customer.account_id, receipt.job_id)).status == "canceled"
    assert await leases.claim(conn, "run_a", "image", 1, LEASE) == []


async def test_a_running_job_that_was_canceled_is_never_charged(conn, customers):
    customer = await customers(conn, 250)
    claimed = await running(conn, customer)
    job = await jobs.cancel(conn, customer.account_id, claimed.id)
    assert (job.status, job.cancel_requested) == ("running", True)
    assert await leases.renew(conn, [Heartbeat(claimed.id, claimed.fence, 50)], LEASE) == {claimed.id: True}
    done = Settlement(claimed.id, claimed.fence, [output_of(claimed.id)], 100, {})
    assert await leases.settle(conn, done) == "canceled"
    assert await free(conn, customer) == 250


async def test_anothers_job_can_be_neither_seen_nor_canceled(conn, customers):
    mine, theirs = await customers(conn, 100), await customers(conn, 0)
    receipt = await submitted(conn, mine)
    for look in (jobs.job, jobs.cancel):
        with pytest.raises(NotFound):
            await look(conn, theirs.account_id, receipt.job_id)


async def test_a_renewal_prolongs_only_a_lease_that_is_still_held(conn, customers):
    customer = await customers(conn, 250)
    claimed = await running(conn, customer)
    wrong = Heartbeat(claimed.id, claimed.fence + 1, 10)
    assert await leases.renew(conn, [wrong], LEASE) == {}
    assert await leases.renew(conn, [Heartbeat(claimed.id, claimed.fence, 40)], LEASE) == {claimed.id: False}
    assert (await jobs.job(conn, customer.account_id, claimed.id)).progress_percent == 40


async def test_a_dead_runners_job_is_taken_back_and_ends_after_its_last_attempt(conn, customers):
    customer = await customers(conn, 250)
    job_id = (await submitted(conn, customer)).job_id
    swept = []
    for _ in range(3):
        await leases.claim(conn, "run_a", "image", 1, LEASE)
        assert await leases.sweep(conn, 3) == {}, "its lease still runs"
        await lapse(conn, job_id)
        swept.append((await leases.sweep(conn, 3))[job_id])
    assert swept == ["queued", "queued", "failed"]
    assert (await jobs.job(conn, customer.account_id, job_id)).error_code == "interrupted"
    assert await free(conn, customer) == 250


async def test_a_job_that_no_model_took_in_time_expires_and_frees_its_hold(conn, customers):
    customer = await customers(conn, 250)
    job_id = (await jobs.submit_many(conn, [submit_of(customer)], timedelta(seconds=-1)))[0].job_id
    assert await leases.claim(conn, "run_a", "image", 1, LEASE) == []
    assert await leases.sweep(conn, 3) == {job_id: "expired"}
    job = await jobs.job(conn, customer.account_id, job_id)
    assert (job.status, job.charged_tokens, job.error_code) == ("expired", 0, "expired")
    assert await free(conn, customer) == 250


async def worked_for_two_hours(conn, customer, percent, deadline=None, stages=None):
    claimed = await running(conn, customer)
    await leases.renew(conn, [Heartbeat(claimed.id, claimed.fence, percent, stages)], LEASE)
    await conn.execute(
        text(
            "UPDATE jobs SET started_at = now() - interval '2 hours', expires_at = now() - interval '1 hour',"
            " deadline = :deadline WHERE id = :id"
        ),
        {"id": claimed.id, "deadline": deadline},
    )
    return claimed


@pytest.mark.parametrize("way", ["fail", "give_back", "lapse"])
async def test_time_at_work_is_no_waiting_so_that_an_interrupted_job_goes_on(conn, customers, way):
    customer = await customers(conn, 250)
    claimed = await worked_for_two_hours(conn, customer, 50)
    if way == "fail":
        await leases.fail(conn, Failure(claimed.id, claimed.fence, "x", "y", True, {}), 3)
    elif way == "give_back":
        await leases.give_back(conn, claimed.id, claimed.fence)
    else:
        await lapse(conn, claimed.id)
        await leases.sweep(conn, 3)
    assert await leases.sweep(conn, 3) == {}
    assert [job.id for job in await leases.claim(conn, "run_b", "image", 1, LEASE)] == [claimed.id]


async def test_of_a_job_in_stages_time_at_work_is_what_finished_a_part(conn, customers):
    customer = await customers(conn, 250)
    claimed = await worked_for_two_hours(conn, customer, 50, stages=(SPEAKING,))
    part = StagePart(claimed.id, "speak", 0, claimed.fence, "stages/a", {}, 1, 0, 1)
    await stage_parts.keep(conn, part, [SPEAKING], 50)
    await leases.give_back(conn, claimed.id, claimed.fence)
    assert await leases.sweep(conn, 3) == {}


@pytest.mark.parametrize(
    ("percent", "deadline", "stages"),
    [(0, None, None), (50, timedelta(minutes=-1), None), (50, None, (SPEAKING,))],
)
async def test_a_job_that_only_waited_or_whose_deadline_passed_expires_all_the_same(
    conn, customers, percent, deadline, stages
):
    customer = await customers(conn, 250)
    due = deadline and datetime.now(UTC) + deadline
    claimed = await worked_for_two_hours(conn, customer, percent, due, stages)
    await leases.give_back(conn, claimed.id, claimed.fence)
    assert await leases.sweep(conn, 3) == {claimed.id: "expired"}
    assert await free(conn, customer) == 250


async def test_settle_cancel_and_sweep_in_a_race_end_a_job_once(db, customers, assert_sound):
    async with db.transaction() as conn:
        customer = await customers(conn, 100 * 20)
        for _ in range(20):
            claimed = await running(conn, customer)
            await lapse(conn, claimed.id)
        rows = (await conn.execute(text("SELECT id, fence FROM jobs"))).all()

    async def quietly(work, *args):
        try:
            await db.run(work, *args)
        except LeaseLost:
            return

    calls = [quietly(leases.sweep, 1) for _ in range(3)]
    for job_id, fence in rows:
        calls.append(quietly(leases.settle, Settlement(job_id, fence, [output_of(job_id)], 100, {})))
        calls.append(quietly(jobs.cancel, customer.account_id, job_id))
    await asyncio.gather(*calls)
    await assert_sound(db)
    async with db.transaction() as conn:
        open_jobs = await conn.execute(text("SELECT count(*) FROM jobs WHERE finished_at IS NULL"))
        assert open_jobs.scalar_one() == 0


async def test_jobs_are_listed_newest_first_in_pages(conn, customers):
    customer = await customers(conn, 1000)
    made = [(await submitted(conn, customer)).job_id for _ in range(5)]
    made.sort(reverse=True)
    first = await jobs.list_jobs(conn, customer.account_id, 3, None, None)
    rest = await jobs.list_jobs(conn, customer.account_id, 3, first[-1].id, None)
    assert [job.id for job in first + rest] == made
    assert await jobs.list_jobs(conn, customer.account_id, 3, None, "failed") == []
