"""What models take and earn: every attempt and turn that ended is measured once, paid or not; only live ones earn."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from sqlalchemy import text
from typer.testing import CliRunner

from deployments.cli import app
from deployments.ledger import LedgerServer
from gateway.catalog import Price
from gateway.conversations import BeginTurn, MeteredTurn
from gateway.leases import Failure, Settlement
from gateway.metering import revenue
from gateway.ports import StoredFile, SubmitJob
from kit.errors import Unavailable
from kit.ids import new_id
from kit.settings import Settings
from ledger import accounts, keys, refunds
from ledger.errors import HoldResolved
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

    async def submit(credential=customer.credential, application="image"):
        command = SubmitJob(
            credential, new_id("job"), "image.generate", "image", application, {"prompt": "fox"}, 1000,
            100, 1, None, "f", 0, None, world=credential.world or "live",
        )  # fmt: skip
        await server.submit_job_many([command])
        [job] = await server.claim_jobs("runner", {application: 1}, 0.0)
        return job

    return submit


async def settle(server, job, metrics):
    file = StoredFile(
        new_id("file"), "a.png", f"outputs/{job.id}/0.png", "image/png", 3, "0" * 64, datetime.now(UTC), job.id, {}
    )  # fmt: skip
    return await server.settle_job(Settlement(job.id, job.fence, [file], job.quoted_tokens, metrics))


@pytest.fixture
def begun(server, customer):
    """`await begun()`: the hold of a turn that costs five tokens."""

    async def begin(credential=customer.credential):
        command = BeginTurn(credential, new_id("chatcmpl"), Price(5, 1, 1), None, "f")
        return (await server.begin_turn(command)).hold_id

    return begin


def turned(outcome="succeeded", busy_s=1.0, **more):
    return MeteredTurn(
        **{
            "id": new_id("chatcmpl"), "application": "chat", "model": "Qwen3-8B", "outcome": outcome, "queue_ms": 5,
            "run_ms": 3000, "busy_us": round(busy_s * 1_000_000), "on_gpu": True, "prompt_tokens": 12,
            "completion_tokens": 34, **more,
        }
    )  # fmt: skip


async def measured(db):
    """The measures of turns: their holds, how these ended, and how the turns did."""
    async with db.transaction() as conn:
        rows = await conn.execute(
            text(
                "SELECT w.hold_id, h.state, w.outcome FROM chat_turns w JOIN holds h ON h.id = w.hold_id"
                " ORDER BY w.ended_at"
            )
        )
        return [tuple(row) for row in rows]


async def key_to_try_with(db, customer):
    """Open the customer's account in the test world; returns a key to it."""
    async with db.transaction() as conn:
        account_id = await accounts.open_account(conn, customer.user_id, "test")
        await refill(conn, account_id, 500)
        minted = await keys.mint(conn, customer.user_id, "test", brand="amai", world="test")
    return keys.Credential(keys.hash_key(minted.secret), None, "test")


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
    trying = await key_to_try_with(db, customer)
    await settle(server, await claimed(trying), took(9.0))
    [image] = await told(db)
    assert (image.attempts, image.busy_s, image.tokens) == (1, 1.0, 100)


async def test_a_turn_is_charged_and_measured_once_however_often_it_is_finished(
    server, begun, db, assert_sound
):
    hold_id, turn = await begun(), turned()
    first = await server.finish_turn(hold_id, turn, None)
    assert await server.finish_turn(hold_id, turn, None) == first
    await server.abandon_turn(hold_id, replace(turn, outcome="failed"))
    assert await measured(db) == [(hold_id, "captured", "succeeded")]
    [chat] = await told(db)
    assert (chat.application, chat.model, chat.on_gpu) == ("chat", "Qwen3-8B", True)
    assert (chat.attempts, chat.succeeded, chat.busy_s, chat.unpaid_s, chat.tokens) == (1, 1, 1.0, 0.0, 5)
    await assert_sound(db)


@pytest.mark.parametrize("delivered", [True, False], ids=["answer lost", "message lost"])
async def test_a_turn_whose_commit_got_lost_is_measured_with_its_charge(line, begun, db, tmp_path, delivered):
    shaky = LedgerServer(Settings(database_url=line.url, data_dir=tmp_path, secret="s"))
    hold_id, turn = await begun(), turned()
    line.cut_at(b"COMMIT", delivered=delivered)
    with pytest.raises(Unavailable):
        await shaky.finish_turn(hold_id, turn, None)
    assert await measured(db) == ([(hold_id, "captured", "succeeded")] if delivered else [])
    await shaky.finish_turn(hold_id, turn, None)
    assert await measured(db) == [(hold_id, "captured", "succeeded")]
    await shaky.close()


async def test_a_turn_that_failed_is_unpaid_and_one_that_was_left_after_words_is_paid(
    server, begun, db, assert_sound
):
    await server.abandon_turn(await begun(), turned("failed", 3.0))
    await server.abandon_turn(await begun(), turned("canceled", 0.5))
    await server.finish_turn(await begun(), turned("canceled", 2.0), None)
    await server.abandon_turn(await begun(), None)  # no model took it up
    assert [each[1:] for each in await measured(db)] == [
        ("voided", "failed"),
        ("voided", "canceled"),
        ("captured", "canceled"),
    ]
    [chat] = await told(db)
    assert (chat.attempts, chat.succeeded, chat.busy_s, chat.unpaid_s, chat.tokens) == (3, 0, 5.5, 3.5, 5)
    await assert_sound(db)


async def test_a_turn_whose_hold_ran_out_is_unpaid_and_measured_once(server, begun, db):
    hold_id, turn = await begun(), turned()
    async with db.transaction() as conn:
        await conn.execute(text("UPDATE holds SET expires_at = now()"))
    with pytest.raises(HoldResolved):
        await server.finish_turn(hold_id, turn, None)
    assert await measured(db) == []
    await server.sweep()
    for _ in range(2):
        await server.abandon_turn(hold_id, replace(turn, outcome="failed"))
    assert await measured(db) == [(hold_id, "expired", "failed")]
    [chat] = await told(db)
    assert (chat.unpaid_s, chat.tokens) == (1.0, 0)


async def test_jobs_and_turns_of_one_application_are_one_line(server, claimed, begun, customer, db):
    await settle(server, await claimed(application="chat"), took(2.0, 2.0))
    await server.finish_turn(await begun(), turned(), None)
    await server.finish_turn(await begun(), turned(on_gpu=False), None)
    async with db.transaction() as conn:
        charge = await conn.scalar(text("SELECT max(id) FROM transfers WHERE kind = 'capture'"))
        await refunds.refund(conn, customer.account_id, charge, amount_tokens=2, reference="ticket-18")
    on_gpu, on_cpu = await told(db)
    assert (on_gpu.application, on_gpu.attempts, on_gpu.succeeded) == ("chat", 2, 2)
    assert (on_gpu.busy_s, on_gpu.tokens, on_gpu.tokens_per_s) == (3.0, 105, 35.0)
    assert (on_cpu.application, on_cpu.on_gpu, on_cpu.tokens) == ("chat", False, 3)


async def test_turns_of_the_test_world_and_of_other_times_earn_nothing(server, begun, customer, db):
    await server.finish_turn(await begun(await key_to_try_with(db, customer)), turned(), None)
    assert [each[1:] for each in await measured(db)] == [("captured", "succeeded")]
    assert await told(db) == []
    await server.finish_turn(await begun(), turned(), None)
    now = datetime.now(UTC)
    assert await told(db, now - timedelta(days=2), now - timedelta(days=1)) == []
    assert len(await told(db)) == 1


async def test_only_its_own_account_is_told_of_a_turn(server, begun, customer, customers, db):
    turn = turned()
    await server.finish_turn(await begun(), turn, None)
    async with db.transaction() as conn:
        other = await customers(conn, 10)
    assert await server.turn(customer.credential, turn.id) == turn
    assert await server.turn(other.credential, turn.id) is None


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
