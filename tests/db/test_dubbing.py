"""Dubbing on the real books, the models stood in for: the film is whole, each part is made once, one charge or none."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from collections import Counter
from contextlib import asynccontextmanager

import av
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from sqlalchemy import text

from deployments import soundtrack
from deployments.dubbing import STAGES
from deployments.footage import COLOURS
from deployments.handles import ModelAway
from deployments.ledger import LedgerServer
from deployments.models import sound
from deployments.models.contract import Media, Metrics, ModelFailed, ModelRefused, Output, Progress
from deployments.pipeline import clear_left_over
from deployments.runner import Runner
from gateway.leases import LeaseLost
from gateway.ports import NewFile, SubmitJob
from gateway.stage_parts import StagePart
from kit.errors import Unavailable
from kit.ids import new_id
from kit.settings import Settings
from kit.storage import ObjectStore
from ledger.balances import balance

RATE = soundtrack.FILM_RATE
VOICE_HZ, ORIGINAL_HZ = 1000, 300
SEGMENTS = [
    {"start": 0.5, "end": 1.5, "text": " Good evening."},
    {"start": 2.0, "end": 3.0, "text": "It is late."},
]
SPOKEN_S = {"translated: Good evening.": 1.0, "translated: It is late.": 9.0}
"""The second is spoken far too slowly for the second and a half that is left of the film."""


def tone(hz, seconds, rate=RATE):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype("float32")


def film(codec="libx264", *, with_sound=True, seconds=3.5, rate=20, kind="mp4", colours=()):
    """A film of a moving bar with a low tone, as bytes."""
    made = io.BytesIO()
    with av.open(made, "w", format=kind) as container:
        pictures = container.add_stream(codec, rate=rate)
        pictures.width, pictures.height, pictures.pix_fmt = 96, 64, "yuv420p"
        for meant, value in zip(COLOURS, colours, strict=False):
            setattr(pictures.codec_context, meant, value)
        track = container.add_stream("aac", rate=44_100, layout="mono") if with_sound else None
        for number in range(int(seconds * rate)):
            image = np.zeros((64, 96, 3), "uint8")
            image[:, number : number + 8] = 200  # a moving bar
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(pictures.encode(None))
        if track is not None:
            sound.write(container, track, tone(ORIGINAL_HZ, seconds, 44_100)[None], 44_100)
    return made.getvalue()


FILM = film()


class Models:
    """The three applications, stood in for. `trouble` may raise, or wait, before a task's n-th call."""

    def __init__(self, segments=SEGMENTS):
        self.segments = segments
        self.calls = Counter()
        self.requests = []
        self.trouble = {}

    async def generate(self, application, request):
        self.calls[request.task] += 1
        self.requests.append((application, request))
        yield Progress(0.5, 1, 2)
        if trouble := self.trouble.get(request.task):
            await trouble(self.calls[request.task])
        yield getattr(self, request.task.partition(".")[2])(request)

    def transcribe(self, request):
        with av.open(io.BytesIO(request.media["audio"].data)) as heard:
            assert heard.streams.audio[0].rate == soundtrack.SPEECH_RATE
        whole = json.dumps({"segments": self.segments}).encode()
        return Output([Media("application/json", whole, {})], Metrics(100, 1.0, 10), "Whisper", 59)

    def translate(self, request):
        said = f"translated: {request.input['text']}"
        return Output([Media("text/plain", said.encode(), {"text": said})], Metrics(10, 0.5, 30), "Qwen3")

    def clone(self, request):
        facts = {"notice": "not a real result"}
        samples = tone(VOICE_HZ, SPOKEN_S[request.input["text"]], soundtrack.SPEECH_RATE)
        media = sound.finished(samples[None], soundtrack.SPEECH_RATE, "wav", facts)
        return Output([media], Metrics(1000, 2.0, 20), "Qwen3-TTS", 1_000)


class Books:
    """The books behind a call."""

    def __init__(self, server):
        self.server = server

    async def __call__(self, method, *args):
        return await getattr(self.server, method)(*args)


class House:
    def __init__(self, settings, server, db, owner, objects):
        self.settings, self.server, self.db, self.owner, self.objects = settings, server, db, owner, objects

    async def submit(self, data=FILM, minutes=2, **job_input):
        file_id = new_id("file")
        await self.objects.put(f"uploads/{file_id}", data, "video/mp4")
        await self.server.add_file(
            NewFile(
                self.owner.credential,
                file_id,
                "a.mp4",
                f"uploads/{file_id}",
                "video/mp4",
                len(data),
                "0" * 64,
            )
        )
        asked = {"videoFileId": file_id, "targetLanguage": "French", "keepBackground": True, **job_input}
        command = SubmitJob(
            self.owner.credential, new_id("job"), "video.dub", "dub", "dub", asked, minutes * 1000, minutes * 200,
            1, None, "f",
        )  # fmt: skip
        return (await self.server.submit_job_many([command]))[0].job_id

    @asynccontextmanager
    async def runner(self, models, books=None):
        runner = Runner(self.settings, books or Books(self.server), models, self.objects, [], {"dub": 1})
        task = asyncio.create_task(runner.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def job(self, job_id):
        return (await self.server.job_many([(self.owner.credential, job_id)]))[0]

    async def ended(self, job_id):
        async with asyncio.timeout(60):
            while (job := await self.job(job_id)).finished_at is None:
                await asyncio.sleep(0.02)
        return job

    async def dubbed(self, models=None, **order):
        job_id = await self.submit(**order)
        async with self.runner(models or Models()):
            return await self.ended(job_id)

    async def output(self, job, place=0):
        return await self.objects.get(job.output[place].storage_key)

    async def free(self):
        async with self.db.transaction() as conn:
            return (await balance(conn, self.owner.account_id)).available_tokens

    async def kept(self):
        async with self.db.transaction() as conn:
            return (await conn.execute(text("SELECT count(*) FROM job_stages"))).scalar_one()


@pytest_asyncio.fixture
async def house(db, fresh_url, tmp_path, customers, assert_sound, monkeypatch):  # noqa: PLR0917
    monkeypatch.setattr("deployments.runner.AWAY_S", 0.05)
    monkeypatch.setattr("deployments.runner.BEAT_S", 0.1)
    monkeypatch.setattr("deployments.runner.SWEEP_S", 0.1)
    settings = Settings(database_url=fresh_url, data_dir=tmp_path, secret="s", job_attempts=12)
    server = LedgerServer(settings)
    async with db.transaction() as conn:
        owner = await customers(conn, 1_000)
    yield House(settings, server, db, owner, ObjectStore("memory://"))
    await assert_sound(db)
    await server.close()


def packets(data):
    with av.open(io.BytesIO(data)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.dts is not None]


def loudness(data, hz, start_s, end_s):
    """How loud a tone is in a stretch of a film's sound; an independent decoder of it, and a Fourier sum."""
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    samples = np.concatenate(frames, axis=1)[0][int(start_s * RATE) : int(end_s * RATE)]
    return 2 * abs(np.mean(samples * np.exp(-2j * np.pi * hz * np.arange(len(samples)) / RATE)))


async def test_a_film_keeps_its_pictures_and_gets_a_voice_over_its_lowered_sound(house):
    models = Models()
    job = await house.dubbed(models, sourceLanguage="English", seed=7)
    assert (job.status, job.charged_tokens) == (
        "succeeded",
        12,
    )  # 3.5 s of a minute at 200, begun thousandths paid
    assert await house.free() == 988
    data = await house.output(job)
    with av.open(io.BytesIO(data)) as container:
        pictures, track = container.streams
        assert (pictures.codec_context.name, track.codec_context.name) == ("h264", "aac")
        assert (track.rate, track.channels) == (RATE, 2)
        assert container.duration == pytest.approx(3.5 * av.time_base, abs=0.03 * av.time_base)
    assert data.index(b"moov") < data.index(b"mdat")
    assert packets(data) == packets(FILM)
    assert loudness(data, ORIGINAL_HZ, 0.05, 0.3) == pytest.approx(0.5, rel=0.1)
    assert loudness(data, ORIGINAL_HZ, 0.7, 1.3) == pytest.approx(0.5 * soundtrack.DUCKED, rel=0.1)
    assert loudness(data, VOICE_HZ, 0.05, 0.45) < 0.02
    assert loudness(data, VOICE_HZ, 0.55, 1.4) == pytest.approx(0.5, rel=0.1)
    facts = job.output[0].facts
    assert facts["model"] == "Whisper + Qwen3 + Qwen3-TTS"
    assert facts["notice"] == "not a real result"
    assert (facts["width"], facts["height"], facts["pictures"]) == (96, 64, "copied")
    assert (facts["lines"], facts["linesCut"], facts["seed"]) == (2, 1, 7)


async def test_the_models_get_what_the_caller_asked_for(house):
    models = Models()
    await house.dubbed(models, sourceLanguage="English", seed=7)
    asked = [(request.task, application, request.input) for application, request in models.requests]
    english_to_french = {"targetLanguage": "French", "sourceLanguage": "English"}
    spoken = {"language": "French", "seed": 7, "outputFormat": "wav"}
    # The parts of a stage run side by side, so whose request arrives first is open.
    assert sorted(asked, key=str) == sorted(
        [
            ("audio.transcribe", "transcription", {"language": "en"}),
            ("text.translate", "translation", {"text": "Good evening.", **english_to_french}),
            ("text.translate", "translation", {"text": "It is late.", **english_to_french}),
            ("voice.clone", "voice", {"text": "translated: Good evening.", **spoken}),
            ("voice.clone", "voice", {"text": "translated: It is late.", **spoken}),
        ],
        key=str,
    )
    voices = [
        request.media["referenceAudio"] for _, request in models.requests if "referenceAudio" in request.media
    ]
    assert [len(soundtrack.read_speech(voice.data)) for voice in voices] == [2 * soundtrack.SPEECH_RATE] * 2


async def test_the_script_and_the_subtitles_say_what_was_done(house):
    job = await house.dubbed()
    assert [output.content_type for output in job.output] == [
        "video/mp4",
        "application/json",
        "application/x-subrip",
        "text/vtt",
    ]
    script = json.loads(await house.output(job, 1))
    first, second = script["lines"]
    assert (first["start"], first["tempo"], first["cut"]) == (0.5, 1.0, False)
    assert (second["tempo"], second["cut"], second["spokenUntil"]) == (1.5, True, 3.5)
    assert "00:00:02,000 --> 00:00:03,500\ntranslated: It is late." in (await house.output(job, 2)).decode()
    assert (await house.output(job, 3)).startswith(b"WEBVTT\n\nNOTE not a real result\n\n")


async def test_a_film_that_no_browser_plays_is_encoded_and_without_background_only_the_voice_is_heard(house):
    job = await house.dubbed(data=film("mpeg4"), keepBackground=False)
    data = await house.output(job)
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert sum(1 for _ in container.decode(video=0)) == 70
    assert loudness(data, ORIGINAL_HZ, 0.05, 0.45) < 0.001
    assert job.output[0].facts["pictures"] == "encoded"


async def test_a_film_that_is_encoded_keeps_what_its_colours_mean(house):
    bright = (9, 18, 9, 1)  # BT.2020 primaries and matrix, HLG, limited range: what a telephone takes
    job = await house.dubbed(data=film("libx265", colours=bright))
    assert job.output[0].facts["pictures"] == "encoded"
    with av.open(io.BytesIO(await house.output(job))) as container:
        frame = next(container.decode(video=0))
    assert tuple(int(getattr(frame, meant)) for meant in COLOURS) == bright


async def test_a_film_from_a_container_without_decoding_times_keeps_all_its_pictures(house):
    data = film(kind="matroska")
    with av.open(io.BytesIO(data)) as container:
        assert sum(packet.dts is None and packet.size > 0 for packet in container.demux(video=0)) > 0
        container.seek(0)
        wanted = [frame.to_ndarray() for frame in container.decode(video=0)]
    job = await house.dubbed(data=data)
    assert job.output[0].facts["pictures"] == "copied"
    with av.open(io.BytesIO(await house.output(job))) as container:
        frames = list(container.decode(video=0))
    assert [frame.time for frame in frames] == pytest.approx([number / 20 for number in range(70)], abs=0.002)
    assert all((frame.to_ndarray() == other).all() for frame, other in zip(frames, wanted, strict=True))


def on_its_side(data):
    """Return a film that is shown turned by 90 degrees, as a telephone held upright writes it."""
    turned = bytearray(data)
    # In the first track's header, after its 4 bytes of version and flags, 20 of times and 16 more: a matrix.
    at = turned.index(b"tkhd") + 44
    turned[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    return bytes(turned)


async def test_a_film_of_a_telephone_held_upright_is_shown_upright_and_so_is_its_poster(house):
    job = await house.dubbed(data=on_its_side(film()))
    facts = job.output[0].facts
    assert (facts["pictures"], facts["width"], facts["height"]) == ("copied", 64, 96)
    with av.open(io.BytesIO(await house.output(job))) as container:
        assert next(container.decode(video=0)).rotation == -90
    poster = Image.open(io.BytesIO(await house.objects.get(job.output[0].preview_key)))
    assert poster.size == (64, 96)
    # The bar that stands at the left edge of what the camera saw lies along the upper one.
    top, bottom = (poster.convert("L").getpixel((32, y)) for y in (3, 90))
    assert (top > 150, bottom < 50) == (True, True)


def with_broken_pictures(data):
    broken = bytearray(data)
    with av.open(io.BytesIO(data)) as container:
        found = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.dts is not None]
    for at, length in found[5:]:
        broken[at : at + length] = b"\xff" * length
    return bytes(broken)


async def test_a_film_whose_pictures_are_damaged_is_refused_as_that_and_costs_nothing(house):
    job = await house.dubbed(data=with_broken_pictures(film("libvpx-vp9")))
    assert (job.status, job.error_code, job.charged_tokens, job.attempts) == ("failed", "input_refused", 0, 1)
    assert "damaged pictures" in job.error_message
    assert await house.free() == 1_000


async def test_runners_that_die_after_every_part_repeat_none_and_charge_once(house, monkeypatch):
    monkeypatch.setattr("deployments.dubbing.AT_ONCE", 1)
    job_id = await house.submit()
    models, kept = Models(), []

    class Mortal(Books):
        """Ends with the first part that it keeps: whatever it still says is heard by nobody."""

        dead = False

        async def __call__(self, method, *args):
            if self.dead:
                raise Unavailable("The ledger", 1)
            answer = await super().__call__(method, *args)
            if method == "keep_part":
                self.dead = True
                kept.append((args[0].stage, args[0].part))
                died.set()
                await asyncio.Event().wait()
            return answer

    parts = [("split", 0), ("split", 1), ("transcribe", 0), ("translate", 0), ("translate", 1), ("speak", 0)]
    parts += [("speak", 1), ("fit", 0), ("mix", 0), ("mux", 0)]
    for _ in parts:
        died = asyncio.Event()
        async with house.runner(models, Mortal(house.server)), asyncio.timeout(30):
            await died.wait()
        async with house.db.transaction() as conn:  # its lease runs out
            await conn.execute(text("UPDATE jobs SET lease_until = now() WHERE status = 'running'"))
    async with house.runner(models):
        job = await house.ended(job_id)
    assert kept == parts
    assert (job.status, job.charged_tokens, job.attempts) == ("succeeded", 12, len(parts) + 1)
    assert models.calls == {"audio.transcribe": 1, "text.translate": 2, "voice.clone": 2}
    assert await house.free() == 988
    assert job.metrics["gpuSeconds"] == 6.0
    assert job.metrics["runMs"] >= 2_120
    assert packets(await house.output(job)) == packets(FILM)


async def test_a_late_writers_part_is_refused(house):
    job_id = await house.submit()
    [claimed] = await house.server.claim_jobs("run_old", {"dub": 1}, 0)
    part = StagePart(job_id, "split", 0, claimed.fence, "stages/a", {}, 1, 0, 1)
    await house.server.keep_part(part, [], 4)
    await house.server.keep_part(part, [], 4)  # its answer was lost
    await house.server.give_back_job(job_id, claimed.fence)
    [again] = await house.server.claim_jobs("run_new", {"dub": 1}, 0)
    with pytest.raises(LeaseLost):
        await house.server.keep_part(StagePart(job_id, "split", 1, claimed.fence, "b", {}, 1, 0, 1), [], 9)
    with pytest.raises(LeaseLost):
        await house.server.kept_parts(job_id, claimed.fence)
    assert await house.server.kept_parts(job_id, again.fence) == [part]
    assert await house.server.left_over_parts(10) == []


async def test_a_lost_lease_stops_the_work_and_stores_nothing_more(house):
    job_id = await house.submit()
    models, asked = Models(), asyncio.Event()

    async def taken_over(_):
        async with house.db.transaction() as conn:
            await conn.execute(
                text("UPDATE jobs SET fence = fence + 1, runner = 'run_other', lease_until = now()")
            )
        asked.set()

    models.trouble["text.translate"] = taken_over
    async with house.runner(models):
        await asked.wait()
        async with asyncio.timeout(20):
            while (await house.job(job_id)).attempts < 2:  # the other's lease runs out
                models.trouble.clear()
                await asyncio.sleep(0.02)
        job = await house.ended(job_id)
    assert (job.status, job.charged_tokens) == ("succeeded", 12)
    assert models.calls["audio.transcribe"] == 1


async def test_a_job_waits_for_models_that_are_away_and_loses_neither_an_attempt_nor_its_work(
    house, monkeypatch
):
    monkeypatch.setattr("deployments.dubbing.AT_ONCE", 1)
    models = Models()

    async def away(call):
        if call <= 2:
            raise ModelAway("starting")

    models.trouble = dict.fromkeys(("audio.transcribe", "text.translate", "voice.clone"), away)
    job = await house.dubbed(models)
    assert (job.status, job.attempts, job.charged_tokens) == ("succeeded", 1, 12)
    assert models.calls == {"audio.transcribe": 3, "text.translate": 4, "voice.clone": 4}


async def test_a_canceled_job_stops_in_its_stage_and_costs_nothing(house):
    stages = {"audio.transcribe": "transcribe", "text.translate": "translate", "voice.clone": "speak"}
    for task, stage in stages.items():
        job_id = await house.submit()
        models, asked, left = Models(), asyncio.Event(), asyncio.Event()

        async def hang(_, asked=asked, left=left):
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.set()

        models.trouble[task] = hang
        async with house.runner(models):
            await asked.wait()
            await house.server.cancel_job(house.owner.credential, job_id)
            job = await house.ended(job_id)
            await left.wait()
        assert (job.status, job.charged_tokens) == ("canceled", 0)
        assert [each.name for each in job.stages if each.state == "stopped"] == [stage]
    assert await house.free() == 1_000


async def test_a_model_that_fails_in_the_middle_is_tried_again_from_there_and_each_attempt_measured(
    house, monkeypatch
):
    monkeypatch.setattr("deployments.dubbing.AT_ONCE", 1)
    models = Models()

    async def fail_once(call):
        if call == 1:
            raise ModelFailed("It broke.")

    models.trouble["voice.clone"] = fail_once
    job = await house.dubbed(models)
    assert (job.status, job.attempts) == ("succeeded", 2)
    assert (models.calls["audio.transcribe"], models.calls["text.translate"]) == (1, 2)
    async with house.db.transaction() as conn:
        rows = await conn.execute(text("SELECT outcome, on_gpu, busy_us FROM job_attempts ORDER BY fence"))
        assert [tuple(row) for row in rows] == [("failed", True, 2_000_000), ("succeeded", True, 4_000_000)]
    assert job.metrics["gpuSeconds"] == 4.0


async def test_a_refusal_names_its_stage_and_is_not_tried_again(house):
    models = Models()

    async def refuse(_):
        raise ModelRefused("text", "is too strange")

    models.trouble["text.translate"] = refuse
    job = await house.dubbed(models)
    assert (job.status, job.error_code, job.attempts) == ("failed", "stage_refused", 1)
    assert job.error_message == "The stage translate could not be done: is too strange"
    assert [stage.state for stage in job.stages][:2] == ["done", "done"]


@pytest.mark.parametrize(("data", "segments"), [(FILM, []), (film(with_sound=False), SEGMENTS)])
async def test_a_film_in_which_nobody_speaks_fails_and_costs_nothing(house, data, segments):
    job = await house.dubbed(Models(segments), data=data)
    assert (job.status, job.error_code, job.charged_tokens, job.attempts) == (
        "failed",
        "nothing_to_dub",
        0,
        1,
    )
    assert await house.free() == 1_000


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0\0\0\x18ftypmp42" + b"\0" * 500, "damaged"),
        (FILM[: len(FILM) // 3], "damaged"),
        (b"<html>" * 50, "must be video"),
    ],
)
async def test_what_is_no_film_fails_at_once_and_costs_nothing(house, data, said):
    job = await house.dubbed(data=data)
    assert (job.status, job.error_code, job.charged_tokens, job.attempts) == ("failed", "input_refused", 0, 1)
    assert said in job.error_message


async def test_a_film_longer_than_what_is_held_is_refused(house):
    job = await house.dubbed(data=film(seconds=61, rate=1), minutes=1)
    assert (job.error_code, job.charged_tokens) == ("input_refused", 0)
    assert "longer than maxMinutes" in job.error_message


async def test_the_stages_stand_in_the_job_in_their_order_and_rise(house):
    job_id = await house.submit()
    models, seen = Models(), []

    async def look(_):
        async with asyncio.timeout(20):
            while not (job := await house.job(job_id)).stages or job.stages[3].state != "running":
                await asyncio.sleep(0.02)
        seen.append(job)

    models.trouble["voice.clone"] = look
    async with house.runner(models):
        job = await house.ended(job_id)
        async with asyncio.timeout(20):
            while await house.kept():  # what the stages made goes with the job's end
                await asyncio.sleep(0.02)
    assert [stage.name for stage in job.stages] == list(STAGES)
    assert {(stage.state, stage.fraction) for stage in job.stages} == {("done", 1.0)}
    assert [stage.state for stage in seen[0].stages] == ["done"] * 3 + ["running"] + ["waiting"] * 3
    assert 34 <= seen[0].progress_percent < 90


async def test_bytes_that_cannot_be_deleted_are_tried_again(house, monkeypatch):
    job_id = await house.submit()
    [claimed] = await house.server.claim_jobs("run_a", {"dub": 1}, 0)
    await house.objects.put("stages/x", b"x", "application/octet-stream")
    await house.server.keep_part(StagePart(job_id, "split", 0, claimed.fence, "stages/x", {}, 1, 0, 1), [], 4)
    await house.server.cancel_job(house.owner.credential, job_id)
    await house.server.give_back_job(job_id, claimed.fence)
    delete = house.objects.delete

    async def away(_):
        raise Unavailable("The object store", 5)

    monkeypatch.setattr(house.objects, "delete", away)
    await clear_left_over(Books(house.server), house.objects)
    assert await house.kept() == 1
    monkeypatch.setattr(house.objects, "delete", delete)
    await clear_left_over(Books(house.server), house.objects)
    assert (await house.kept(), await house.objects.exists("stages/x")) == (0, False)
