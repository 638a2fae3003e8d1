"""The Runner on the real books, with models that the test drives: whatever happens, one charge or none."""

from __future__ import annotations

import asyncio
import io
import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from PIL import Image
from sqlalchemy import text

from deployments.handles import ModelAway, ModelGone, local_ledger
from deployments.ledger import LedgerServer
from deployments.models.contract import Media, Metrics, ModelBusy, ModelFailed, ModelRefused, Output, Progress
from deployments.runner import Runner
from gateway.leases import Settlement
from gateway.ports import SubmitJob
from kit.errors import Unavailable
from kit.ids import new_id
from kit.settings import Settings
from kit.storage import ObjectStore
from ledger.balances import balance
from payments import stripe_checkout
from payments.webhooks import ProviderEvent

PICTURE = Output(
    [Media("image/png", b"PNG", {"width": 8, "height": 8, "seed": 1})], Metrics(12, 0.0, 1), "Qwen-Image"
)


class Models:
    """Answers each call with the next behaviour given; the last one stays."""

    def __init__(self, *behaviours):
        self.behaviours = list(behaviours)
        self.calls = 0
        self.started = asyncio.Event()
        self.stopped = asyncio.Event()

    async def generate(self, application, request):
        behaviour = self.behaviours[min(self.calls, len(self.behaviours) - 1)]
        self.calls += 1
        self.started.set()
        if isinstance(behaviour, Exception):
            raise behaviour
        if behaviour == "wait":
            await asyncio.Event().wait()
        yield Progress(0.5, 1, 2, Metrics(10, 0.5, 7, 0.5, 2))
        if behaviour == "hang":
            try:
                await asyncio.Event().wait()
            finally:
                self.stopped.set()
        yield behaviour


class Books:
    """The LedgerServer behind a call that a test may break at a method."""

    def __init__(self, server):
        self.server = server
        self.broken = {}
        self.seen = []

    async def __call__(self, method, *args):
        self.seen.append(method)
        if method in self.broken:
            await self.broken[method](*args)
        return await getattr(self.server, method)(*args)


@pytest_asyncio.fixture
async def house(db, fresh_url, tmp_path, customers, monkeypatch):
    monkeypatch.setattr("deployments.runner.BEAT_S", 0.1)
    monkeypatch.setattr("deployments.runner.SWEEP_S", 0.1)
    settings = Settings(
        database_url=fresh_url, data_dir=tmp_path, secret="s", job_attempts=3, job_run_ttl_s=30
    )
    server = LedgerServer(settings)
    async with db.transaction() as conn:
        customer = await customers(conn, 250)
    yield House(settings, server, db, customer, ObjectStore(str(tmp_path / "objects")))
    await server.close()


class House:
    def __init__(self, settings, server, db, customer, objects):
        self.settings, self.server, self.db = settings, server, db
        self.customer, self.objects = customer, objects

    async def submit(self, deadline=None):
        command = SubmitJob(
            self.customer.credential, new_id("job"), "image.generate", "image", "image", {"prompt": "fox"}, 1000,
            100, 1, None, "f", 0, deadline,
        )  # fmt: skip
        return (await self.server.submit_job_many([command]))[0].job_id

    @asynccontextmanager
    async def runner(self, models, books=None, checkouts=()):
        runner = Runner(
            self.settings, books or Books(self.server), models, self.objects, checkouts, {"image": 2}
        )
        task = asyncio.create_task(runner.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def job(self, job_id):
        return (await self.server.job_many([(self.customer.credential, job_id)]))[0]

    async def ended(self, job_id):
        async with asyncio.timeout(20):
            while (job := await self.job(job_id)).finished_at is None:
                await asyncio.sleep(0.02)
        return job

    async def free(self):
        async with self.db.transaction() as conn:
            return (await balance(conn, self.customer.account_id)).available_tokens

    def stored(self):
        """Return the keys of what lies in the object store."""
        root = self.objects.local_dir
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_a_job_is_stored_charged_once_and_measured(house, assert_sound):
    job_id = await house.submit()
    async with house.runner(Models(PICTURE)):
        job = await house.ended(job_id)
    assert (job.status, job.charged_tokens, job.attempts) == ("succeeded", 100, 1)
    assert (job.metrics["runMs"], job.metrics["model"]) == (12, "Qwen-Image")
    assert job.metrics["queueMs"] >= 0
    file = job.output[0]
    assert await house.objects.get(file.storage_key) == b"PNG"
    assert (file.facts, file.size_bytes) == ({"width": 8, "height": 8, "seed": 1}, 3)
    assert await house.free() == 150
    await assert_sound(house.db)


async def test_a_model_that_always_fails_costs_nothing(house, assert_sound):
    job_id = await house.submit()
    models = Models(ModelFailed("It broke."))
    async with house.runner(models):
        job = await house.ended(job_id)
    assert (job.status, job.charged_tokens, job.error_code, job.error_message) == (
        "failed",
        0,
        "model_failed",
        "It broke.",
    )
    assert models.calls == 3
    assert await house.free() == 250
    await assert_sound(house.db)


async def test_a_refused_input_is_not_tried_again(house):
    job_id = await house.submit()
    models = Models(ModelRefused("prompt", "is too strange"))
    async with house.runner(models):
        job = await house.ended(job_id)
    assert (job.status, job.error_code) == ("failed", "invalid_request")
    assert models.calls == 1


async def test_a_replica_that_dies_in_the_work_is_replaced_by_another_attempt(house, assert_sound):
    job_id = await house.submit()
    async with house.runner(Models(ModelGone("image"), PICTURE)):
        job = await house.ended(job_id)
    assert (job.status, job.attempts, job.charged_tokens) == ("succeeded", 2, 100)
    await assert_sound(house.db)


async def test_a_model_that_is_away_costs_no_attempt(house, monkeypatch):
    monkeypatch.setattr("deployments.runner.AWAY_S", 0.05)
    job_id = await house.submit()
    async with house.runner(Models(*[ModelAway("starting")] * 5, PICTURE)):
        job = await house.ended(job_id)
    assert (job.status, job.attempts) == ("succeeded", 1)


async def test_a_canceled_running_job_stops_its_model_and_costs_nothing(house, assert_sound):
    job_id = await house.submit()
    models = Models("hang")
    async with house.runner(models):
        await models.started.wait()
        assert (await house.server.cancel_job(house.customer.credential, job_id)).cancel_requested
        job = await house.ended(job_id)
        async with asyncio.timeout(5):
            await models.stopped.wait()
    assert (job.status, job.charged_tokens) == ("canceled", 0)
    assert await house.free() == 250
    await assert_sound(house.db)


async def test_a_runner_that_dies_between_output_and_settlement_costs_one_charge(house, assert_sound):
    job_id = await house.submit()
    dying = Books(house.server)
    reached = asyncio.Event()

    async def die(*args):
        if args and isinstance(args[0], Settlement):
            reached.set()
        await asyncio.Event().wait()

    async def claim_once(*_):
        if dying.seen.count("claim_jobs") > 1:
            await asyncio.Event().wait()

    silent = ("settle_job", "renew_leases", "give_back_job", "sweep")
    dying.broken = {**dict.fromkeys(silent, die), "claim_jobs": claim_once}
    async with house.runner(Models(PICTURE), dying):
        await reached.wait()
        assert (await house.job(job_id)).status == "running"
        async with house.db.transaction() as conn:  # its lease runs out
            await conn.execute(text("UPDATE jobs SET lease_until = now()"))
        async with house.runner(Models(PICTURE)):
            job = await house.ended(job_id)
    assert (job.status, job.charged_tokens, job.attempts) == ("succeeded", 100, 2)
    assert len(job.output) == 1
    assert await house.free() == 150
    await assert_sound(house.db)


async def test_a_runner_whose_lease_went_elsewhere_stops_its_model(house):
    job_id = await house.submit()
    models = Models("hang")
    async with house.runner(models):
        await models.started.wait()
        async with house.db.transaction() as conn:
            await conn.execute(text("UPDATE jobs SET fence = fence + 1, runner = 'run_other'"))
        async with asyncio.timeout(5):
            await models.stopped.wait()
        assert (await house.job(job_id)).charged_tokens is None


async def test_a_settlement_whose_answer_is_lost_is_charged_once(house, assert_sound):
    job_id = await house.submit()
    books = Books(house.server)

    async def answer_lost(settlement):
        if books.seen.count("settle_job") == 1:
            await house.server.settle_job(settlement)
            raise Unavailable("The ledger", 1)

    books.broken = {"settle_job": answer_lost}
    async with house.runner(Models(PICTURE), books):
        job = await house.ended(job_id)
        async with asyncio.timeout(5):
            while books.seen.count("settle_job") < 2:
                await asyncio.sleep(0.02)
    assert (job.status, job.charged_tokens) == ("succeeded", 100)
    assert house.stored() == [job.output[0].storage_key]
    assert await house.free() == 150
    await assert_sound(house.db)


async def test_a_result_that_comes_after_the_cancellation_leaves_no_bytes(house):
    job_id = await house.submit()
    books = Books(house.server)

    async def canceled_first(_):
        assert len(house.stored()) == 2
        await house.server.cancel_job(house.customer.credential, job_id)

    books.broken = {"settle_job": canceled_first}
    async with house.runner(Models(with_preview()), books):
        job = await house.ended(job_id)
        async with asyncio.timeout(5):
            while house.stored():
                await asyncio.sleep(0.02)
    assert (job.status, job.charged_tokens) == ("canceled", 0)


async def test_a_result_of_a_lost_lease_leaves_no_bytes(house):
    job_id = await house.submit()
    books = Books(house.server)

    async def taken_over(_):
        if books.seen.count("settle_job") == 1:
            async with house.db.transaction() as conn:
                await conn.execute(
                    text("UPDATE jobs SET fence = fence + 1, runner = 'run_other', lease_until = now()")
                )

    books.broken = {"settle_job": taken_over}
    async with house.runner(Models(with_preview()), books):
        job = await house.ended(job_id)  # the other's lease ran out, and the job was taken again
    assert (job.status, job.charged_tokens) == ("succeeded", 100)
    assert house.stored() == sorted([job.output[0].storage_key, job.output[0].preview_key])


async def test_a_store_that_fails_between_two_files_of_a_job_keeps_neither(house, monkeypatch):
    await house.submit()
    put, failed = house.objects.put, asyncio.Event()

    async def fail_the_second(key, data, content_type):
        if "-1." in key:
            assert len(house.stored()) == 1
            failed.set()
            raise Unavailable("The object store", 5)
        await put(key, data, content_type)

    monkeypatch.setattr(house.objects, "put", fail_the_second)
    async with house.runner(Models(replace(PICTURE, media=PICTURE.media * 2))):
        await failed.wait()
        async with asyncio.timeout(5):
            while house.stored():
                await asyncio.sleep(0.02)


def with_preview():
    """Return an output that a preview can be made of."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    return replace(PICTURE, media=[replace(PICTURE.media[0], data=picture.getvalue())])


async def test_a_runner_that_is_stopped_gives_its_jobs_back_at_once(house):
    job_id = await house.submit()
    models = Models("hang")
    async with house.runner(models):
        await models.started.wait()
    job = await house.job(job_id)
    assert (job.status, job.attempts) == ("queued", 0)


async def test_a_payment_provider_that_hangs_keeps_no_dead_runners_job_waiting(house, monkeypatch):
    monkeypatch.setattr(stripe_checkout, "TIMEOUT_S", 3600.0)
    event = ProviderEvent("stripe", "evt_1", "checkout.session.completed", "cs_test_1", b"{}")
    await house.server.store_event(event)
    async with house.db.transaction() as conn:
        await conn.execute(text("UPDATE provider_events SET retry_at = now()"))
    books = Books(house.server)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes what it is sent, and says nothing
        shop = {
            "stripe_secret_key": "sk_test_1",
            "stripe_webhook_secret": "whsec_1",
            "stripe_api_base": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        settings = Settings.model_validate(house.settings.model_dump() | shop)
        checkout = stripe_checkout.checkout_for(settings, local_ledger(house.server))
        async with house.runner(Models(PICTURE), books, [checkout]), asyncio.timeout(60):
            while "due_events" not in books.seen:
                await asyncio.sleep(0.02)
            swept = books.seen.count("sweep")
            while books.seen.count("sweep") < swept + 2:
                await asyncio.sleep(0.02)
        await checkout.close()


async def test_a_model_that_hangs_is_stopped_after_its_time(house):
    hurried = house.settings.model_copy(update={"job_run_ttl_s": 1, "job_attempts": 1})
    house.settings, house.server._settings = hurried, hurried
    job_id = await house.submit()
    models = Models("hang")
    async with house.runner(models):
        job = await house.ended(job_id)
    assert (job.status, job.error_code) == ("failed", "timed_out")
    assert await house.free() == 250


@pytest.mark.parametrize("places", [1, 2])
async def test_no_more_jobs_are_in_flight_than_there_are_places(house, places):
    for _ in range(2):
        await house.submit()
    models = Models("hang")
    runner = Runner(house.settings, Books(house.server), models, house.objects, [], {"image": places})
    task = asyncio.create_task(runner.run())
    await models.started.wait()
    claimed = await house.server._db.run(_running)
    task.cancel()
    await asyncio.wait([task])
    assert claimed == places


async def _running(conn):
    return (await conn.execute(text("SELECT count(*) FROM jobs WHERE status = 'running'"))).scalar_one()


async def test_a_run_ends_with_the_deadline_of_its_job_and_is_not_tried_again(house):
    job_id = await house.submit(deadline=datetime.now(UTC) + timedelta(seconds=4))
    async with house.runner(Models("hang")):
        job = await house.ended(job_id)
    assert (job.status, job.error_code, job.attempts) == ("failed", "deadline_passed", 1)
    assert await house.free() == 250


async def test_a_model_with_too_much_to_do_leaves_the_job_in_the_queue(house, monkeypatch):
    monkeypatch.setattr("deployments.runner.AWAY_S", 0.05)
    job_id = await house.submit()
    async with house.runner(Models(*[ModelBusy("image", 5)] * 3, PICTURE)):
        job = await house.ended(job_id)
    assert (job.status, job.attempts) == ("succeeded", 1)


async def test_a_job_that_only_waited_at_its_model_is_not_timed_out(house, monkeypatch):
    monkeypatch.setattr("deployments.runner.AWAY_S", 0.05)
    hurried = house.settings.model_copy(update={"job_run_ttl_s": 1, "job_attempts": 1})
    house.settings, house.server._settings = hurried, hurried
    job_id = await house.submit()
    async with house.runner(Models("wait", PICTURE)):
        job = await house.ended(job_id)
    assert (job.status, job.attempts) == ("succeeded", 1)
