"""The Runner's dealings with media inputs and with work whose amount is known only once it is done."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
import pytest_asyncio

from deployments.ledger import LedgerServer
from deployments.models.contract import Media, Metrics, Output
from deployments.runner import Runner
from gateway.leases import ClaimedJob
from gateway.ports import NewFile, SubmitJob
from kit.fetch import Fetcher, InputRefused
from kit.ids import new_id
from kit.settings import Settings
from kit.storage import ObjectStore
from ledger.balances import balance

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels" * 20


class Model:
    """Makes so much of its unit, and remembers what it was given."""

    def __init__(self, made_milli=None):
        self.made_milli = made_milli
        self.requests = []

    async def generate(self, application, request):
        self.requests.append(request)
        yield Output(
            [Media("audio/mpeg", b"ID3", {"durationSeconds": 2.0})], Metrics(1, 0.0, 1), "M", self.made_milli
        )


class Net(Fetcher):
    """Answers with bytes, or with an error; every name is public."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def fetch(self, url, field, *, max_bytes, check):
        self.asked.append((url, field, max_bytes))
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        check(answer)
        return answer


@pytest_asyncio.fixture
async def house(db, fresh_url, tmp_path, customers):
    settings = Settings(
        database_url=fresh_url, data_dir=tmp_path, secret="s", lease_s=0.6, job_attempts=2, job_run_ttl_s=30
    )
    server = LedgerServer(settings)
    async with db.transaction() as conn:
        owner, stranger = await customers(conn, 1_000), await customers(conn, 1_000)
    yield House(settings, server, db, owner, stranger, ObjectStore("memory://"))
    await server.close()


class House:
    def __init__(self, settings, server, db, owner, stranger, objects):  # noqa: PLR0917
        self.settings, self.server, self.db = settings, server, db
        self.owner, self.stranger, self.objects = owner, stranger, objects

    async def submit(self, job_input, units_milli=1_000, cost=100, task="image.edit"):
        command = SubmitJob(
            self.owner.credential, new_id("job"), task, task, "it", job_input, units_milli, cost, 1, None, "f"
        )
        return (await self.server.submit_job_many([command]))[0].job_id

    async def upload(self, owner, data, content_type="image/png"):
        file_id = new_id("file")
        await self.objects.put(f"uploads/{file_id}", data, content_type)
        await self.server.add_file(
            NewFile(
                owner.credential, file_id, "a.png", f"uploads/{file_id}", content_type, len(data), "0" * 64
            )
        )
        return file_id

    @asynccontextmanager
    async def runner(self, model, net=None):
        async def call(method, *args):
            return await getattr(self.server, method)(*args)

        runner = Runner(self.settings, call, model, self.objects, [], {"it": 2}, fetcher=net or Net(PNG))
        task = asyncio.create_task(runner.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def ended(self, job_id):
        async with asyncio.timeout(20):
            while (
                job := (await self.server.job_many([(self.owner.credential, job_id)]))[0]
            ).finished_at is None:
                await asyncio.sleep(0.02)
        return job

    async def free(self):
        async with self.db.transaction() as conn:
            return (await balance(conn, self.owner.account_id)).available_tokens


async def run(house, model, job_input, net=None, **order):
    job_id = await house.submit(job_input, **order)
    async with house.runner(model, net):
        return await house.ended(job_id)


async def test_a_url_is_fetched_when_the_job_runs(house):
    model, net = Model(), Net(PNG)
    job = await run(house, model, {"prompt": "noir", "sourceImageUrl": "https://cdn.example.com/a.png"}, net)
    assert job.status == "succeeded"
    [request] = model.requests
    assert request.media["sourceImage"].data == PNG
    assert request.media["sourceImage"].content_type == "image/png"
    assert net.asked == [
        ("https://cdn.example.com/a.png", "input.sourceImageUrl", house.settings.max_upload_bytes)
    ]


async def test_an_uploaded_file_is_read_from_the_store(house):
    model = Model()
    file_id = await house.upload(house.owner, PNG)
    job = await run(house, model, {"prompt": "noir", "sourceImageFileId": file_id}, Net(OSError("not asked")))
    assert job.status == "succeeded"
    assert model.requests[0].media["sourceImage"].data == PNG


@pytest.mark.parametrize("of", ["stranger", "nobody"])
async def test_a_file_that_is_not_the_owners_ends_the_job_at_no_cost(house, of, assert_sound):
    file_id = await house.upload(house.stranger, PNG) if of == "stranger" else "file_gone"
    model = Model()
    job = await run(house, model, {"prompt": "noir", "sourceImageFileId": file_id})
    assert (job.status, job.error_code, job.charged_tokens, job.attempts) == ("failed", "input_refused", 0, 1)
    assert model.requests == []
    await assert_sound(house.db)


async def test_what_is_no_picture_ends_the_job_at_no_cost(house, assert_sound):
    model = Model()
    job = await run(
        house, model, {"prompt": "noir", "sourceImageUrl": "https://a.example/"}, Net(b"<html>" + b"x" * 100)
    )
    assert (job.status, job.error_code, job.attempts) == ("failed", "input_refused", 1)
    assert "must be image" in job.error_message
    assert model.requests == []
    assert await house.free() == 1_000
    await assert_sound(house.db)


async def test_a_voice_recorded_in_a_browser_is_taken_though_its_container_is_a_films(house):
    model, recorded = Model(), b"\x1aE\xdf\xa3" + b"opus" * 100
    ask = {"text": "hi", "referenceAudioUrl": "https://a.example/voice.webm"}
    job = await run(house, model, ask, Net(recorded), task="voice.clone")
    assert job.status == "succeeded"
    assert model.requests[0].media["referenceAudio"].data == recorded


async def test_a_way_inside_ends_the_job_at_no_cost(house):
    async def resolve(_host, _port):
        return [ip_address("169.254.169.254")]

    job = await run(
        house,
        Model(),
        {"prompt": "x", "sourceImageUrl": "http://metadata.example/latest"},
        Fetcher(resolve=resolve),
    )
    assert (job.status, job.error_code) == ("failed", "input_refused")
    assert "public internet" in job.error_message
    assert "169.254" not in job.error_message
    assert await house.free() == 1_000


async def test_a_host_that_is_away_costs_attempts_and_then_nothing(house):
    from kit.fetch import InputUnreachable

    away = InputUnreachable("input.sourceImageUrl", "took too long")
    ask = {"prompt": "noir", "sourceImageUrl": "https://a.example/a.png"}
    job = await run(house, Model(), ask, Net(away, PNG))
    assert (job.status, job.attempts) == ("succeeded", 2)
    job = await run(house, Model(), ask, Net(away))
    assert (job.status, job.error_code, job.attempts) == ("failed", "input_unreachable", 2)
    assert await house.free() == 900


@pytest.mark.parametrize(
    ("made_milli", "charged"), [(None, 8), (2_000, 2), (8_000, 8), (9_000, 8), (1, 1), (0, 0)]
)
async def test_what_was_made_is_charged_and_never_more_than_was_held(
    house, assert_sound, made_milli, charged
):
    model = Model(made_milli)
    job = await run(house, model, {"text": "hi"}, units_milli=8_000, cost=8, task="audio.speak")
    assert (job.status, job.quoted_tokens, job.charged_tokens) == ("succeeded", 8, charged)
    assert model.requests[0].units_milli == 8_000
    assert await house.free() == 1_000 - charged
    assert job.metrics.get("units") == (None if made_milli is None else made_milli / 1000)
    await assert_sound(house.db)


def test_a_part_of_a_quote_is_rounded_up_and_exact_for_whole_units():
    job = ClaimedJob("j", 1, "t", "a", {}, 100, 10_000, 1, 1, None, None, None)
    assert [job.cost_tokens(milli) for milli in (1, 100, 101, 9_999, 10_000)] == [1, 1, 2, 100, 100]


def test_a_refusal_of_an_input_is_public_and_not_tried_again():
    assert not InputRefused("input.audioUrl", "x").retryable
