"""Music and sound effects by the real pipelines on tiny weights, opened by a decoder that did not make them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from deployments.models import registry, sound, weights
from deployments.models.ace_step import AceStep
from deployments.models.contract import (
    TINY_NOTICE,
    GenerateRequest,
    InputFile,
    Media,
    ModelCanceled,
    ModelFailed,
    ModelFamily,
    ModelRefused,
    Placement,
)
from deployments.models.stable_audio import StableAudio

CPU = Placement("cpu", cpu_threads=1, cpu_offload=False)
FAMILIES = {"music": AceStep, "sfx": StableAudio}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFamily:
    models_dir = tmp_path_factory.mktemp("models")
    weights.ensure_tiny(registry.entry_for(request.param), models_dir)
    family: type[ModelFamily] = FAMILIES[request.param]
    return family.load(registry.resolve(request.param, "tiny", models_dir), CPU)


def make(model: ModelFamily, paid_s: int = 60, is_canceled=lambda: False, seen=None, **fields: Any) -> Media:
    fields = {
        "prompt": "rain on a tin roof",
        "durationSeconds": 2,
        "seed": 7,
        "outputFormat": "wav",
        **fields,
    }
    request = GenerateRequest("job_1", "sfx.generate", fields, paid_s * 1000)
    report = (lambda _: None) if seen is None else (lambda at: seen.append(at.step))
    [made] = model.generate(request, report, is_canceled).media
    return made


@pytest.mark.parametrize("output_format", sound.CONTENT_TYPES)
@pytest.mark.parametrize("seconds", [1, 3])
def test_a_sound_lasts_exactly_as_long_as_was_asked(
    model: ModelFamily, seconds: int, output_format: str
) -> None:
    media = make(model, durationSeconds=seconds, outputFormat=output_format)
    samples, rate = soundfile.read(io.BytesIO(media.data))
    of_file = sound.OPUS_RATE if output_format == "opus" else 16_000
    frame = 1152 if output_format == "mp3" else 0  # MP3 counts in frames
    assert len(samples) == pytest.approx(seconds * rate, abs=2 * frame)
    assert (rate, samples.shape[1]) == (of_file, 2)
    assert samples.std() > 0, "it is not silence"
    assert media.content_type == sound.CONTENT_TYPES[output_format]
    assert media.facts["durationSeconds"] == seconds
    assert (media.facts["sampleRate"], media.facts["channels"]) == (of_file, 2)


def test_the_same_seed_gives_the_same_file_and_every_setting_another(model: ModelFamily) -> None:
    first = make(model).data
    assert make(model).data == first
    assert make(model, seed=8).data != first
    assert make(model, prompt="a hammer").data != first


@pytest.mark.parametrize("output_format", sound.CONTENT_TYPES)
def test_a_tiny_sound_says_so_inside_and_keeps_the_prompt_to_itself(
    model: ModelFamily, output_format: str
) -> None:
    media = make(model, outputFormat=output_format)
    assert media.facts["notice"] == TINY_NOTICE
    assert TINY_NOTICE.encode() in media.data
    assert b"tin roof" not in media.data


def test_a_cancellation_stops_at_the_next_step(model: ModelFamily) -> None:
    seen: list[int] = []
    with pytest.raises(ModelCanceled):
        make(model, is_canceled=lambda: 1 in seen, seen=seen)
    assert seen == [0, 1]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"prompt": " "}, "prompt"),
        ({"durationSeconds": 0}, "durationSeconds"),
        ({"durationSeconds": 3, "paid_s": 2}, "paid for"),
        ({"outputFormat": "aac"}, "outputFormat"),
        ({"bpm": 120}, "bpm"),
    ],
)
def test_a_refusal_comes_before_any_computing(
    model: ModelFamily, fields: dict[str, Any], problem: str
) -> None:
    seen: list[int] = []
    with pytest.raises(ModelRefused, match=problem):
        make(model, seen=seen, **fields)
    assert seen == []


def test_a_longer_sound_is_made_at_the_models_most(tmp_path: Path) -> None:
    weights.ensure_tiny(registry.entry_for("sfx"), tmp_path)
    model = StableAudio.load(registry.resolve("sfx", "tiny", tmp_path), CPU)
    samples, rate = soundfile.read(io.BytesIO(make(model, durationSeconds=47).data))
    assert len(samples) == 47 * rate
    assert np.abs(samples[46 * rate :]).max() > 0, "its last second is not filled up with silence"


def test_a_sound_of_nothing_is_a_failure_and_not_a_result() -> None:
    for samples in (np.zeros((2, 0), "float32"), np.full((2, 10), np.nan, "float32")):
        with pytest.raises(ModelFailed, match="empty"):
            sound.finished(samples, 16_000, "wav", {})


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
@pytest.mark.parametrize("output_format", sound.CONTENT_TYPES)
def test_a_file_of_every_rate_is_whole_and_the_same_each_time(output_format: str, rate: int) -> None:
    wave = (0.5 * np.sin(2 * np.pi * 440 * np.arange(rate * 2) / rate)).astype("float32")
    media = sound.finished(wave[None], rate, output_format, {"seed": 3})
    read, at = soundfile.read(io.BytesIO(media.data))
    assert (at, len(read) / at) == (media.facts["sampleRate"], pytest.approx(2, abs=0.05))
    assert b'"seed": 3' in media.data
    assert sound.finished(wave[None], rate, output_format, {"seed": 3}).data == media.data


@pytest.mark.parametrize("output_format", sound.CONTENT_TYPES)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_written_is_what_is_read(output_format: str, channels: int) -> None:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)
    data = sound.encode(np.stack([wave] * channels).astype("float32"), 24_000, output_format, {})
    kind = sound.CONTENT_TYPES[output_format]
    read = sound.decode(InputFile(kind, data), "audioUrl", 24_000, 2)
    pitch = np.abs(np.fft.rfft(read[:24_000])).argmax()
    assert pitch == pytest.approx(440, abs=2)
    assert np.abs(read).max() == pytest.approx(0.5, abs=0.05)


def test_a_callers_sound_is_read_at_the_rate_of_the_model_and_no_further_than_paid() -> None:
    file = InputFile("audio/wav", sound.encode(np.zeros((2, 48_000 * 3), "float32"), 48_000, "wav", {}))
    assert len(sound.decode(file, "audioUrl", 16_000, 3)) == pytest.approx(48_000, abs=50)
    with pytest.raises(ModelRefused, match="longer than 2 seconds"):
        sound.decode(file, "audioUrl", 16_000, 2)


@pytest.mark.parametrize("data", [b"", b"RIFF????WAVE", b"ID3" + b"\0" * 200, b"OggS" + b"x" * 500])
def test_a_damaged_sound_is_refused(data: bytes) -> None:
    with pytest.raises(ModelRefused, match=r"damaged|no sound"):
        sound.decode(InputFile("audio/wav", data), "audioUrl", 16_000, 60)
