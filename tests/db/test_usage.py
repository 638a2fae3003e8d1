"""Usage over real jobs and spends: the task of a job, the dimensions asked for, and bounds on an answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from sqlalchemy import text

from deployments.ledger import LedgerServer
from gateway import usage as usage_module
from gateway.leases import Settlement
from gateway.ports import StoredFile, SubmitJob
from gateway.usage import DIMENSIONS, EVERY_DIMENSION, usage
from kit.errors import InvalidRequest
from kit.ids import new_id
from kit.settings import Settings
from ledger import refunds
from ledger.spends import Spend

TODAY = datetime.now(UTC).date()
DAYS = (TODAY - timedelta(days=1), TODAY + timedelta(days=1))


@pytest_asyncio.fixture
async def server(fresh_url, tmp_path):
    server = LedgerServer(Settings(database_url=fresh_url, data_dir=tmp_path, secret="s"))
    yield server
    await server.close()


async def run_job(server, customer, task, tool, cost):
    job_id = new_id("job")
    command = SubmitJob(
        credential=customer.credential,
        job_id=job_id,
        task=task,
        tool=tool,
        application="image",
        input={},
        units_milli=2500,
        cost_tokens=cost,
        price_version=3,
        idempotency_key=None,
        fingerprint="f",
    )
    (receipt,) = await server.submit_job_many([command])
    assert receipt.job_id == job_id
    output = StoredFile(
        new_id("file"), "0.png", f"outputs/{job_id}", "image/png", 1, "0" * 64, datetime.now(UTC), job_id
    )
    (claimed,) = await server.claim_jobs("runner", {"image": 1}, 0.0)
    await server.settle_job(Settlement(job_id, claimed.fence, [output], cost, {}))
    return job_id


async def spend(server, customer, reference, cost=5):
    (done,) = await server.spend_many([Spend(customer.credential, "chat", reference, 1000, cost, 3)])
    assert done.charged_tokens == cost
    return done.transfer_id


@pytest_asyncio.fixture
async def busy(server, db, customers):
    """An account with two spends, two jobs of one tool under two tasks, and a refund of a job."""
    async with db.transaction() as conn:
        customer = await customers(conn, 1000)
    await spend(server, customer, "a")
    await spend(server, customer, "b")
    await run_job(server, customer, "image.generate", "image", 100)
    edited = await run_job(server, customer, "image.edit", "image", 70)
    async with db.transaction() as conn:
        charge = (
            await conn.execute(text("SELECT id FROM transfers WHERE reference = :r"), {"r": edited})
        ).scalar_one()
        await refunds.refund(
            conn, customer.account_id, transfer_id=charge, amount_tokens=30, reference="sorry", reason="late"
        )
    return customer


def table(rows):
    return [
        (row.tool, row.task, row.charges, row.units_milli, row.charged_tokens, row.refunded_tokens)
        for row in rows
    ]


async def test_a_job_counts_under_its_task_and_a_refund_under_that_of_its_charge(db, busy):
    rows = await db.run(usage, busy.account_id, *DAYS)
    assert table(rows) == [
        ("chat", None, 2, 2000, 10, 0),
        ("image", "image.edit", 1, 2500, 70, 30),
        ("image", "image.generate", 1, 2500, 100, 0),
    ]
    assert {(row.day, row.key_id) for row in rows} == {(TODAY, busy.key_id)}
    assert {row.key_prefix for row in rows} == {busy.secret.removeprefix("amai_live_")[:10]}


@pytest.mark.parametrize("left_out", DIMENSIONS)
async def test_leaving_a_dimension_out_adds_its_rows_up(db, busy, left_out):
    whole = await db.run(usage, busy.account_id, *DAYS)
    names = {"day": "day", "tool": "tool", "task": "task", "key": "key_id"}
    kept = [name for dimension, name in names.items() if dimension != left_out]
    summed: dict[tuple[object, ...], list[int]] = {}
    for row in whole:
        sums = summed.setdefault(tuple(getattr(row, name) for name in kept), [0, 0, 0])
        for place, value in enumerate((row.charges, row.charged_tokens, row.refunded_tokens)):
            sums[place] += value
    rows = await db.run(usage, busy.account_id, *DAYS, EVERY_DIMENSION - {left_out})
    assert all(getattr(row, names[left_out]) is None for row in rows)
    assert {
        tuple(getattr(row, name) for name in kept): [row.charges, row.charged_tokens, row.refunded_tokens]
        for row in rows
    } == summed


async def test_nothing_apart_is_one_row(db, busy):
    (row,) = await db.run(usage, busy.account_id, *DAYS, frozenset())
    assert (row.charges, row.charged_tokens, row.refunded_tokens, row.net_tokens) == (4, 180, 30, 150)


async def test_an_answer_with_too_many_rows_is_refused_and_a_coarser_one_given(db, busy, monkeypatch):
    monkeypatch.setattr(usage_module, "ROWS_OF_USAGE", 2)
    with pytest.raises(InvalidRequest, match="groupBy"):
        await db.run(usage, busy.account_id, *DAYS)
    assert len(await db.run(usage, busy.account_id, *DAYS, frozenset({"tool"}))) == 2


async def test_the_tasks_of_jobs_are_found_along_an_index(db, busy):
    """A planner that would read all jobs for an account's day shows it in its plan."""
    async with db.transaction() as conn:
        await conn.execute(text("SET LOCAL enable_seqscan = off"))
        values = {"account_id": busy.account_id, "after": 0, "up_to": 9, "limit": 9}
        values |= {f"by_{dimension}": True for dimension in DIMENSIONS}
        plan = "\n".join(
            (await conn.execute(text("EXPLAIN " + usage_module.queries["usage"].text), values)).scalars()
        )
    assert "jobs_hold_id_key" in plan
    assert "Seq Scan" not in plan
