"""What models take and earn: every attempt that ended is measured, paid or not; only live customers count."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from sqlalchemy import text
from typer.testing import CliRunner

from deployments.cli import app
from deployments.ledger import LedgerServer
from gateway.leases import Failure, Settlement
from gateway.metering import revenue
from gateway.ports import StoredFile, SubmitJob
from kit.ids import new_id
from kit.settings import Settings
from ledger import accounts, keys, refunds
from ledger.refills import refill

AGES = (datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(days=1))


def took(busy_s, gpu_s=0.0, batch=1):
    return {
        "queueMs": 5, "runMs": 9000, "gpuSeconds": gpu_s, "busySeconds": busy_s, "peakMemoryBytes": 7,
        "batchSize": batch, "model": "Qwen-Image",
    }  # fmt: skip


@pytest_asyncio.fixture
async def server(fresh_url, tmp_path):
    server = LedgerServer(Settings(database_url=fresh_url, data_dir=tmp_path, secret="s", job_attempts=3))
    yield server
    await server.close()


@pytest_asyncio.fixture
async def customer(db, customers):
    async with db.transaction() as conn:
        return await customers(conn, 1000)


@pytest.fixture
def claimed(server, customer):
    """`await claimed()`: a job under a lease."""

    async def submit(credential=customer.credential):
        command = SubmitJob(
            credential, new_id("job"), "image.generate", "image", "image", {"prompt": "fox"}, 1000,
            100, 1, None, "f", 0, None, world=credential.world or "live",
        )  # fmt: skip
        await server.submit_job_many([command])
        [job] = await server.claim_jobs("runner", {"image": 1}, 0.0)
        return job

    return submit


async def settle(server, job, metrics):
    file = StoredFile(
        new_id("file"), "a.png", f"outputs/{job.id}/0.png", "image/png", 3, "0" * 64, datetime.now(UTC), job.id, {}
    )  # fmt: skip
    return await server.settle_job(Settlement(job.id, job.fence, [file], job.quoted_tokens, metrics))


async def told(db, *period):
    async with db.transaction() as conn:
        return await revenue(conn, *(period or AGES))


async def test_jobs_that_shared_a_batch_bear_their_parts_of_it(server, claimed, db):
    for _ in range(2):
        await settle(server, await claimed(), took(2.0, 2.0, 2))
    [image] = await told(db)
    assert (image.application, image.model, image.on_gpu) == ("image", "Qwen-Image", True)
    assert (image.succeeded, image.busy_s, image.unpaid_s, image.tokens) == (2, 4.0, 0.0, 200)
    assert image.tokens_per_s == 50.0


async def test_a_failed_and_a_canceled_attempt_cost_the_operator_and_not_the_customer(
    server, claimed, customer, db, assert_sound
):
    job = await claimed()
    failure = Failure(job.id, job.fence, "model_failed", "No.", retryable=True, metrics=took(3.0))
    assert await server.fail_job(failure) == "queued"
    [again] = await server.claim_jobs("runner", {"image": 1}, 0.0)
    await settle(server, again, took(1.0))
    stopped = await claimed()
    await server.cancel_job(customer.credential, stopped.id)
    canceled = Failure(stopped.id, stopped.fence, "canceled", "It was.", retryable=False, metrics=took(0.5))
    assert await server.fail_job(canceled) == "canceled"
    [image] = await told(db)
    assert (image.on_gpu, image.attempts, image.succeeded) == (False, 3, 1)
    assert (image.busy_s, image.unpaid_s, image.tokens) == (4.5, 3.5, 100)
    async with db.transaction() as conn:
        rows = await conn.execute(
            text("SELECT outcome, peak_memory_bytes FROM job_attempts ORDER BY ended_at")
        )
        assert [tuple(row) for row in rows] == [("failed", 7), ("succeeded", 7), ("canceled", 7)]
    await assert_sound(db)


async def test_what_was_given_back_is_not_earned(server, claimed, customer, db):
    await settle(server, await claimed(), took(1.0))
    async with db.transaction() as conn:
        charge = await conn.execute(text("SELECT id FROM transfers WHERE kind = 'capture'"))
        await refunds.refund(
            conn, customer.account_id, charge.scalar_one(), amount_tokens=30, reference="ticket-17"
        )
    [image] = await told(db)
    assert image.tokens == 70


async def test_an_attempt_that_never_ran_took_nothing(server, claimed, db):
    job = await claimed()
    await server.fail_job(Failure(job.id, job.fence, "interrupted", "No.", retryable=True, metrics={}))
    assert await told(db) == []


async def test_only_live_customers_and_the_period_count(server, claimed, customer, db):
    await settle(server, await claimed(), took(1.0))
    now = datetime.now(UTC)
    assert await told(db, now - timedelta(days=2), now - timedelta(days=1)) == []
    async with db.transaction() as conn:
        account_id = await accounts.open_account(conn, customer.user_id, "test")
        await refill(conn, account_id, 500)
        minted = await keys.mint(conn, customer.user_id, "test", brand="amai", world="test")
    await settle(
        server, await claimed(keys.Credential(keys.hash_key(minted.secret), None, "test")), took(9.0)
    )
    [image] = await told(db)
    assert (image.attempts, image.busy_s, image.tokens) == (1, 1.0, 100)


async def test_the_command_says_it_as_lines_and_as_json(server, claimed, fresh_url, monkeypatch):
    await settle(server, await claimed(), took(2.0))
    monkeypatch.setattr(os, "environ", {**os.environ, "DATABASE_URL": fresh_url})

    def farebox(*arguments):
        return CliRunner().invoke(app, ["revenue", *arguments])

    plain = await asyncio.to_thread(farebox)
    assert plain.output.splitlines()[1].split("\t") == [
        *("image", "Qwen-Image", "CPU", "1", "1", "2.0", "0.0", "1.00", "50.0"),
    ]
    [line] = json.loads((await asyncio.to_thread(farebox, "--json")).output)
    assert (line["device"], line["tokensPerSecond"]) == ("cpu", 50.0)
    wrong = await asyncio.to_thread(farebox, "--since", "yesterday")
    assert "since" in str(wrong.exception)
