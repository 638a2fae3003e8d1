"""The real LTX-2 pipelines on tiny weights: films of exactly the asked length and size, opened by a decoder."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from deployments.models import registry, weights
from deployments.models.contract import (
    TINY_NOTICE,
    GenerateRequest,
    InputFile,
    Media,
    ModelCanceled,
    ModelFailed,
    ModelRefused,
    Placement,
    Progress,
    Weights,
)
from deployments.models.film import finished
from deployments.models.ltx2 import LTX2, SIZES, TINY_SIZES

CPU = Placement("cpu", cpu_threads=1, cpu_offload=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    models_dir = tmp_path_factory.mktemp("models")
    weights.ensure_tiny(registry.entry_for("video"), models_dir)
    return registry.resolve("video", "tiny", models_dir)


@pytest.fixture(scope="module")
def model(tiny: Weights) -> LTX2:
    return LTX2.load(tiny, CPU)


def picture_file() -> InputFile:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype="uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP")
    return InputFile("image/webp", file.getvalue())


def shoot(
    model: LTX2,
    source: InputFile | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_canceled: Callable[[], bool] = lambda: False,
    paid_s: int = 20,
    **fields: Any,
) -> Media:
    fields = {"prompt": "slow cinematic push-in", "durationSeconds": 1, "seed": 7, **fields}
    media = {} if source is None else {"sourceImage": source}
    request = GenerateRequest("job_1", "video.generate", fields, paid_s * 1000, media)
    [made] = model.generate(request, on_progress, is_canceled).media
    return made


@dataclass
class Opened:
    frames: list[np.ndarray[Any, Any]]
    samples: np.ndarray[Any, Any] | None
    rate: int
    codecs: dict[str, str]
    seconds: dict[str, float]
    comment: dict[str, Any]


def opened(media: Media) -> Opened:
    """Decode a whole film."""
    with av.open(io.BytesIO(media.data)) as container:
        codecs = {stream.type: stream.codec_context.name for stream in container.streams}
        seconds = {s.type: float(s.duration * s.time_base) for s in container.streams}
        comment = json.loads(container.metadata["comment"])
        frames, samples, rate = [], [], 0
        for frame in container.decode():
            if isinstance(frame, av.VideoFrame):
                frames.append(frame.to_ndarray(format="rgb24"))
            else:
                samples.append(frame.to_ndarray())
                rate = frame.sample_rate
    return Opened(
        frames, np.concatenate(samples, axis=1) if samples else None, rate, codecs, seconds, comment
    )


@pytest.mark.parametrize("ratio", TINY_SIZES)
def test_every_ratio_gives_a_film_of_its_size(model: LTX2, ratio: str) -> None:
    media = shoot(model, aspectRatio=ratio)
    film = opened(media)
    width, height = TINY_SIZES[ratio]
    assert {frame.shape for frame in film.frames} == {(height, width, 3)}
    assert (media.facts["width"], media.facts["height"]) == (width, height)


@pytest.mark.parametrize("sizes", [SIZES, TINY_SIZES])
def test_sizes_are_exact_and_even(sizes: dict[str, tuple[int, int]]) -> None:
    for ratio, (width, height) in sizes.items():
        across, down = map(int, ratio.split(":"))
        assert width * down == height * across
        assert width % 2 == height % 2 == 0, "H.264 halves the colours in both directions"
    assert all(side % 32 == 0 for size in SIZES.values() for side in size), "production cuts nothing off"


@pytest.mark.parametrize("seconds", [1, 3])
def test_a_film_lasts_exactly_as_long_as_was_asked_in_pictures_and_sound(model: LTX2, seconds: int) -> None:
    media = shoot(model, durationSeconds=seconds)
    film = opened(media)
    assert len(film.frames) == seconds * 24
    assert film.seconds["video"] == seconds
    assert film.seconds["audio"] == pytest.approx(seconds, abs=1024 / film.rate), (
        "AAC counts in frames of 1,024"
    )
    assert film.codecs == {"video": "h264", "audio": "aac"}
    assert film.samples is not None
    assert film.samples.shape[0] == 2
    assert np.abs(film.samples).max() > 0, "the track is not silence"
    assert media.facts["durationSeconds"] == seconds
    assert media.content_type == "video/mp4"


def test_a_film_can_be_silent(model: LTX2) -> None:
    media = shoot(model, sound=False)
    assert opened(media).codecs == {"video": "h264"}
    assert "sampleRate" not in media.facts


def test_a_browser_can_begin_before_the_film_is_loaded(model: LTX2) -> None:
    data = shoot(model).data
    assert data.index(b"moov") < data.index(b"mdat")


def test_a_film_from_a_picture_begins_with_it(model: LTX2) -> None:
    from_text, from_picture = shoot(model), shoot(model, picture_file())
    assert from_picture.facts["fromImage"] is True
    assert from_text.data != from_picture.data
    assert len(opened(from_picture).frames) == 24


def test_the_same_seed_gives_the_same_file_and_another_another(model: LTX2) -> None:
    assert shoot(model).data == shoot(model).data
    assert shoot(model).data != shoot(model, seed=8).data


def test_a_tiny_film_says_so_on_each_frame_and_inside(model: LTX2) -> None:
    media = shoot(model)
    film = opened(media)
    assert film.comment["notice"] == media.facts["notice"] == TINY_NOTICE
    assert "slow" not in json.dumps(film.comment), "the prompt stays out of the file"
    for frame in film.frames:
        band = frame[-16:].mean(axis=2)
        assert np.percentile(band, 25) < 60, "the caption's ground is dark"
        assert band.max() > 190, "its letters are light"


def test_a_cancellation_stops_at_the_next_step(model: LTX2) -> None:
    seen: list[int] = []
    with pytest.raises(ModelCanceled):
        shoot(model, None, lambda at: seen.append(at.step), lambda: 1 in seen, steps=50)
    assert seen == [0, 1]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"durationSeconds": 21}, "durationSeconds"),
        ({"durationSeconds": 3, "paid_s": 2}, "paid for"),
        ({"aspectRatio": "5:4"}, "aspectRatio"),
        ({"sound": "yes"}, "true or false"),
        ({"prompt": " "}, "prompt"),
        ({"fps": 30}, "fps"),
    ],
)
def test_a_refusal_comes_before_any_computing(model: LTX2, fields: dict[str, Any], problem: str) -> None:
    seen: list[Progress] = []
    with pytest.raises(ModelRefused, match=problem):
        shoot(model, None, seen.append, **fields)
    assert seen == []


def test_a_film_of_nothing_is_a_failure_and_not_a_result() -> None:
    frames = np.zeros((2, 16, 16, 3))
    with pytest.raises(ModelFailed, match="empty"):
        finished(frames * np.nan, 24, None, 0, {})
    with pytest.raises(ModelFailed, match="sound"):
        finished(frames, 24, np.full((2, 10), np.nan), 16_000, {})
