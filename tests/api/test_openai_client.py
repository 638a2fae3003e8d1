"""OpenAI's own client against our routes, by base URL and key alone: what it asks for is done, shown and paid for."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import re
import sys
import wave
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import httpx2
import openai
import pytest
import pytest_asyncio
import uvicorn

import gateway.answered
from gateway.leases import ClaimedJob, Failure, Settlement
from gateway.ports import StoredFile
from kit.ids import new_id

PIXELS = b"\x89PNG\r\n\x1a\n" + b"pixels" * 100
APPLICATIONS = ("image", "image-edit", "speech", "transcription")


def sound(seconds: float = 1.0) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as made:
        made.setnchannels(1)
        made.setsampwidth(2)
        made.setframerate(24_000)
        made.writeframes(b"\x01\x02" * int(24_000 * seconds))
    return file.getvalue()


HEARD = {
    "text": "Good evening.",
    "language": "en",
    "durationSeconds": 60.0,
    "segments": [
        {
            "start": 0.0,
            "end": 1.5,
            "text": "Good evening.",
            "words": [
                {"start": 0.2, "end": 0.7, "word": "Good", "probability": 0.98},
                {"start": 0.7, "end": 1.4, "word": "evening.", "probability": 0.97},
            ],
        }
    ],
}
OUTPUTS: dict[str, list[tuple[str, bytes, dict[str, Any]]]] = {
    "image.generate": [("image/png", PIXELS, {"width": 288, "height": 192})],
    "image.edit": [("image/png", PIXELS, {"width": 256, "height": 256})],
    "audio.speak": [("audio/wav", sound(), {})],
    "audio.transcribe": [
        ("application/json", json.dumps(HEARD).encode(), {}),
        ("application/x-subrip", b"1\n00:00:00,000 --> 00:00:01,500\nGood evening.\n\n", {}),
        ("text/vtt", b"WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nGood evening.\n\n", {}),
    ],
}


class Worker:
    """Does the Runner's part for every job that comes, as the test wants it."""

    def __init__(self, server: Any, objects: Any) -> None:
        self.server, self.objects = server, objects
        self.jobs: list[ClaimedJob] = []
        self.fails: Callable[[ClaimedJob], tuple[str, str] | None] = lambda _: None
        self.idle = False

    async def run(self) -> None:
        while True:
            if not self.idle:
                places = dict.fromkeys(APPLICATIONS, 10)
                for job in await self.server.claim_jobs("runner", places, 0.0):
                    self.jobs.append(job)
                    await self.end(job)
            await asyncio.sleep(0.01)

    async def end(self, job: ClaimedJob) -> None:
        if (failure := self.fails(job)) is not None:
            await self.server.fail_job(Failure(job.id, job.fence, *failure, retryable=False, metrics={}))
            return
        files = []
        for place, (kind, data, facts) in enumerate(OUTPUTS[job.task]):
            key = f"outputs/{job.id}/{place}"
            await self.objects.put(key, data, kind)
            sha256 = hashlib.sha256(data).hexdigest()
            now = datetime.now(UTC)
            files.append(StoredFile(new_id("file"), key, key, kind, len(data), sha256, now, job.id, facts))
        charged = 10 if job.task == "audio.transcribe" else job.quoted_tokens
        await self.server.settle_job(Settlement(job.id, job.fence, files, charged, {}))


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.answered, "LOOK_S", 0.02)


@pytest_asyncio.fixture
async def worker(server, objects) -> AsyncIterator[Worker]:
    working = Worker(server, objects)
    task = asyncio.create_task(working.run())
    yield working
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


@pytest_asyncio.fixture
async def ai(app, owner) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client with our base URL and key, and otherwise as it comes."""
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app, raise_app_exceptions=False))
    async with openai.AsyncOpenAI(
        api_key=owner.key, base_url="http://farebox.test/v1", http_client=client
    ) as made:
        yield made


@pytest_asyncio.fixture
async def owner(customer):
    return await customer(1_000)


async def files_of(owner) -> list[dict[str, Any]]:
    return [file for file in (await owner.client.get("/api/v1/files")).json()["data"] if not file["jobId"]]


async def held(owner) -> int:
    return int((await owner.client.get("/api/v1/credits/balance")).json()["held"]["tokens"])


# -- models --------------------------------------------------------------------------------------------------------


async def test_models_are_listed_with_their_prices(ai):
    models = {model.id: model async for model in ai.models.list()}
    assert {"qwen-image", "whisper-large-v3-turbo", "qwen3-tts"} <= models.keys()
    offer = models["qwen-image"].model_extra["tasks"][0]
    assert (offer["task"], offer["state"], offer["price"]["tokens"]) == ("image.generate", "ready", 100)
    assert {each["task"] for each in models["qwen3-tts"].model_extra["tasks"]} == {
        "audio.speak",
        "voice.clone",
    }
    one = await ai.models.retrieve("qwen-image")
    assert one == models["qwen-image"]
    assert (await ai.models.retrieve("image.generate")).model_extra["name"] == "Qwen-Image"


async def test_an_unknown_model_or_key_is_told_as_openai_tells_it(ai):
    with pytest.raises(openai.NotFoundError) as unknown:
        await ai.models.retrieve("gpt-9")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError) as refused:
        await ai.with_options(api_key="amai_live_" + "x" * 43).models.list()
    assert refused.value.code == "invalid_api_key"
    assert refused.value.request_id
    with pytest.raises(openai.NotFoundError) as other:
        await ai.images.generate(prompt="a fox", model="qwen3-tts")
    assert other.value.code == "model_not_found"


# -- pictures ------------------------------------------------------------------------------------------------------


async def test_pictures_are_made_shown_and_paid_for_one_by_one(  # noqa: PLR0917  # fixtures
    ai, worker, owner, client, db, assert_sound
):
    made = await ai.images.generate(
        model="qwen-image", prompt="a fox", n=3, size="1536x1024", quality="high", user="u1"
    )
    assert len(made.data) == 3
    assert (made.size, made.output_format) == ("288x192", "png")
    assert made.model_extra["cost"] == {"credits": 3.0, "tokens": 300}
    assert (await client.get(made.data[0].url)).content == PIXELS
    assert [job.input for job in worker.jobs] == [
        {"prompt": "a fox", "outputFormat": "png", "aspectRatio": "3:2"}
    ] * 3
    assert await owner.tokens() == 700
    await assert_sound(db)


async def test_a_picture_comes_as_base64_too(ai, worker):
    made = await ai.images.generate(
        prompt="a fox", response_format="b64_json", output_format="webp", output_compression=60
    )
    assert base64.b64decode(made.data[0].b64_json) == PIXELS
    assert made.data[0].url is None
    assert worker.jobs[0].input["outputFormat"] == "webp"
    assert worker.jobs[0].input["outputQuality"] == 60


async def test_too_few_credits_for_all_is_402_and_holds_nothing(ai, worker, owner, customer):
    await ai.images.generate(prompt="a fox", n=10, size="auto")
    with pytest.raises(openai.APIStatusError) as refused:
        await ai.images.generate(prompt="a fox")
    assert refused.value.status_code == 402
    poor = await customer(250)
    told = (await poor.client.post("/v1/images/generations", json={"prompt": "a fox", "n": 3})).json()[
        "error"
    ]
    assert (told["type"], told["code"]) == ("insufficient_quota", "insufficient_credits")
    assert (told["cost_tokens"], told["balance"]) == (300, 250)
    assert await poor.tokens() == 250
    assert await held(poor) == 0


async def test_failed_work_costs_nothing_and_is_not_asked_for_again(ai, worker, owner, db, assert_sound):
    worker.fails = lambda _: ("model_failed", "The picture was empty.")
    with pytest.raises(openai.InternalServerError) as failed:
        await ai.images.generate(prompt="a fox")
    assert (failed.value.code, len(worker.jobs)) == ("job_failed", 1)
    worker.fails = lambda _: ("invalid_request", "input.prompt: too strange")
    with pytest.raises(openai.BadRequestError) as refused:
        await ai.images.generate(prompt="a fox")
    assert (refused.value.code, refused.value.param) == ("invalid_request", "prompt")
    assert await owner.tokens() == 1_000
    await assert_sound(db)


async def test_of_several_pictures_those_that_were_made_come_and_are_paid_for(ai, worker, owner):
    worker.fails = lambda job: None if len(worker.jobs) == 1 else ("model_failed", "Empty.")
    made = await ai.images.generate(prompt="a fox", n=2)
    assert (len(made.data), made.model_extra["cost"]["tokens"], await owner.tokens()) == (1, 100, 900)


async def test_the_same_key_finds_the_same_work(ai, worker, owner):
    def again(**more: Any) -> Any:
        return ai.images.with_raw_response.generate(
            prompt="a fox", n=2, extra_headers={"Idempotency-Key": "k1"}, **more
        )

    first, second = await again(), await again()
    assert first.headers["x-job-id"] == second.headers["x-job-id"]
    assert second.headers["idempotent-replayed"] == "true"
    assert (first.headers["x-cost-tokens"], await owner.tokens()) == ("200", 800)
    with pytest.raises(openai.ConflictError) as reused:
        await again(size="1024x1536")
    assert reused.value.code == "idempotency_key_reused"
    assert "'k1'" in reused.value.message


async def test_work_that_is_not_done_in_time_goes_on_and_can_be_fetched(app, ai, worker, owner):
    parts = app.state.parts
    worker.idle = True
    object.__setattr__(parts, "settings", parts.settings.model_copy(update={"answer_wait_s": 0}))
    with pytest.raises(openai.APIStatusError) as late:
        await ai.images.generate(prompt="a fox", extra_headers={"Idempotency-Key": "k1"})
    assert (late.value.status_code, late.value.code) == (504, "job_running")
    job_id = late.value.body["job_id"]
    assert (await owner.client.get(f"/api/v1/media/jobs/{job_id}")).json()["status"] == "queued"
    worker.idle = False
    object.__setattr__(parts, "settings", parts.settings.model_copy(update={"answer_wait_s": 60}))
    made = await ai.images.with_raw_response.generate(prompt="a fox", extra_headers={"Idempotency-Key": "k1"})
    assert made.headers["x-job-id"] == job_id
    assert await owner.tokens() == 900


@pytest.mark.parametrize(("key", "status"), [(None, "canceled"), ("k1", "queued")])
async def test_a_caller_who_hangs_up_without_a_key_cancels_the_work(ai, worker, owner, key, status):
    worker.idle = True
    headers = {"Idempotency-Key": key} if key else {}
    request = asyncio.create_task(ai.images.generate(prompt="a fox", n=2, extra_headers=headers))
    async with asyncio.timeout(20):
        while len((await owner.client.get("/api/v1/media/jobs")).json()["data"]) < 2:
            await asyncio.sleep(0.02)
        request.cancel()
        await asyncio.wait([request])
        jobs = (await owner.client.get("/api/v1/media/jobs")).json()["data"]
    assert {job["status"] for job in jobs} == {status}
    assert await held(owner) == (0 if key is None else 200)


async def test_a_picture_is_edited_and_what_was_sent_is_deleted(ai, worker, owner, objects):
    made = await ai.images.edit(
        image=("fox.png", PIXELS), prompt="a red hat", n=2, response_format="b64_json"
    )
    assert [base64.b64decode(each.b64_json) for each in made.data] == [PIXELS] * 2
    assert {job.task for job in worker.jobs} == {"image.edit"}
    assert worker.jobs[0].input["sourceImageFileId"] == worker.jobs[1].input["sourceImageFileId"]
    assert await files_of(owner) == []
    assert await owner.tokens() == 800


async def test_an_edit_that_cannot_be_done_says_so_and_keeps_nothing(ai, worker, owner):
    with pytest.raises(openai.BadRequestError) as masked:
        await ai.images.edit(image=PIXELS, mask=PIXELS, prompt="a hat")
    assert masked.value.param == "mask"
    with pytest.raises(openai.BadRequestError) as two:
        await ai.images.edit(image=[PIXELS, PIXELS], prompt="a hat")
    assert two.value.param == "image"
    await ai.images.edit(image=PIXELS, prompt="a hat", n=10)
    with pytest.raises(openai.APIStatusError) as poor:
        await ai.images.edit(image=PIXELS, prompt="a hat")
    assert poor.value.status_code == 402
    assert await files_of(owner) == []


async def test_what_the_work_finds_wrong_is_named_as_the_caller_sent_it(ai, worker, owner):
    worker.fails = lambda job: (
        ("invalid_request", "input.sourceImageUrl: is a damaged picture, or of a kind that is not read")
        if job.task == "image.edit"
        else ("input_refused", "input.audioFileId: must be audio or video; its content is image/png")
    )
    with pytest.raises(openai.BadRequestError, match="image: is a damaged picture") as damaged:
        await ai.images.edit(image=PIXELS, prompt="a hat")
    with pytest.raises(openai.BadRequestError, match="file: must be audio") as unheard:
        await ai.audio.transcriptions.create(model="whisper-large-v3-turbo", file=("s.wav", PIXELS))
    assert (damaged.value.param, unheard.value.param) == ("image", "file")
    with pytest.raises(openai.BadRequestError) as lossless:
        await ai.images.generate(prompt="a fox", output_compression=50)
    assert lossless.value.param == "output_compression"


# -- sound ---------------------------------------------------------------------------------------------------------


async def test_speech_streams_as_bytes(ai, worker):
    async with ai.audio.speech.with_streaming_response.create(
        model="qwen3-tts", input="Good evening.", voice="onyx", instructions="Slowly.", response_format="wav"
    ) as spoken:
        data = await spoken.read()
        assert spoken.headers["content-type"] == "audio/wav"
        assert spoken.headers["x-job-id"] == worker.jobs[0].id
    assert data == sound()
    assert worker.jobs[0].input == {
        "text": "Good evening.",
        "language": "Auto",
        "voiceDescription": "A deep, authoritative man's voice. Slowly.",
        "outputFormat": "wav",
    }


async def test_pcm_is_the_bare_samples(ai, worker):
    spoken = await ai.audio.speech.create(
        model="qwen3-tts", input="Hi.", voice="a very old sailor", response_format="pcm"
    )
    assert spoken.content == b"\x01\x02" * 24_000
    assert spoken.response.headers["content-type"].startswith("audio/pcm;rate=24000;channels=1")
    assert worker.jobs[0].input["voiceDescription"] == "a very old sailor"


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"speed": 1.5}, "speed"),
        ({"voice": "aloy"}, "voice"),
        ({"response_format": "aac"}, "response_format"),
        ({"stream_format": "sse"}, "stream_format"),
        ({"input": ""}, "input"),
        ({"extra_body": {"pitch": 1}}, "pitch"),
    ],
)
async def test_what_cannot_be_spoken_is_refused_by_its_name(ai, worker, wish, param):
    with pytest.raises(openai.BadRequestError) as refused:
        await ai.audio.speech.create(**{"model": "qwen3-tts", "input": "Hi.", "voice": "alloy", **wish})
    assert refused.value.param == param
    assert worker.jobs == []


@pytest.mark.parametrize(
    ("kind", "beginning"), [("text", "Good evening.\n"), ("srt", "1\n00:00:00,000"), ("vtt", "WEBVTT\n")]
)
async def test_a_transcript_comes_as_text_and_subtitles(ai, worker, kind: str, beginning: str):
    heard = await ai.audio.transcriptions.create(
        model="whisper-large-v3-turbo", file=("s.wav", sound()), response_format=kind
    )
    assert heard.startswith(beginning)


async def test_a_transcript_is_charged_by_its_minutes_and_the_recording_deleted(ai, worker, owner):
    heard = await ai.audio.transcriptions.create(
        model="whisper-large-v3-turbo", file=("s.wav", sound(2)), language="en"
    )
    assert heard.text == "Good evening."
    assert heard.usage.model_extra["cost"]["tokens"] == 10
    assert worker.jobs[0].input["maxMinutes"] == 1
    assert await owner.tokens() == 990
    assert await files_of(owner) == []
    verbose = await ai.audio.transcriptions.create(
        model="audio.transcribe",
        file=("s.wav", sound(2)),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        temperature=0,
        extra_body={"max_minutes": 2},
    )
    assert (verbose.duration, verbose.language) == (60.0, "en")
    assert verbose.segments[0].end == 1.5
    assert [(word.word, word.start, word.end) for word in verbose.words] == [
        ("Good", 0.2, 0.7),
        ("evening.", 0.7, 1.4),
    ]
    assert worker.jobs[1].input["maxMinutes"] == 2


async def test_what_cannot_be_heard_is_refused_by_its_name(ai, worker, owner):
    for wish, param in (
        ({"timestamp_granularities": ["letter"]}, "timestamp_granularities[].0"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities[]"),
        ({"temperature": 0.4}, "temperature"),
        ({"prompt": "Names: Ada."}, "prompt"),
        ({"language": "xx"}, "language"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"file": ("s.wav", b"")}, "file"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await ai.audio.transcriptions.create(
                **{"model": "whisper-large-v3-turbo", "file": ("s.wav", sound()), **wish}
            )
        assert refused.value.param == param
    assert await files_of(owner) == []
    assert worker.jobs == []


# -- the manual ----------------------------------------------------------------------------------------------------


async def test_the_program_in_the_manual_works_as_printed(app, client, owner, worker):
    text = (await client.get("/docs/openai.md")).text
    (program,) = re.findall(r"^```py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(20):
            while not server.started:
                await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        told = {"API_BASE": f"http://127.0.0.1:{port}", "API_KEY": owner.key, "NO_PROXY": "*"}
        done = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program,
            env=told,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(done.communicate(), 60)
    finally:
        server.should_exit = True
        await serving
    assert done.returncode == 0, err.decode()
    assert out.decode().startswith("http://farebox.test/api/v1/files/file_")
    assert await owner.tokens() == 900
