"""The real Qwen-Image-Edit pipeline on tiny weights: a source picture in, a picture of the asked size out."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.models import picture, registry, weights
from deployments.models.contract import (
    TINY_NOTICE,
    GenerateRequest,
    InputFile,
    Media,
    ModelCanceled,
    ModelRefused,
    Placement,
    Progress,
    Weights,
)
from deployments.models.qwen_image import TINY_SIZES
from deployments.models.qwen_image_edit import QwenImageEdit

CPU = Placement("cpu", cpu_threads=1, cpu_offload=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    models_dir = tmp_path_factory.mktemp("models")
    weights.ensure_tiny(registry.entry_for("image-edit"), models_dir)
    return registry.resolve("image-edit", "tiny", models_dir)


@pytest.fixture(scope="module")
def model(tiny: Weights) -> QwenImageEdit:
    return QwenImageEdit.load(tiny, CPU)


def source(width: int = 96, height: int = 64, seed: int = 0, kind: str = "WEBP") -> InputFile:
    """Return a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype="uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return InputFile(f"image/{kind.lower()}", file.getvalue())


def edit(
    model: QwenImageEdit,
    image: InputFile | None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_canceled: Callable[[], bool] = lambda: False,
    **fields: Any,
) -> Media:
    fields = {
        "prompt": "turn this scene into a dramatic noir poster",
        "sourceImageUrl": "https://cdn.example.com/input/source.webp",
        "steps": 2,
        "seed": 7,
        **fields,
    }
    media = {} if image is None else {"sourceImage": image}
    request = GenerateRequest("job_1", "image.edit", fields, 1000, media)
    [made] = model.generate(request, on_progress, is_canceled).media
    return made


def opened(media: Media) -> Image.Image:
    return Image.open(io.BytesIO(media.data))


def test_the_picture_has_the_asked_size_and_says_that_it_is_no_result(model: QwenImageEdit) -> None:
    media = edit(model, source(), aspectRatio="9:16")
    assert opened(media).size == TINY_SIZES["9:16"]
    assert (media.content_type, media.facts["width"], media.facts["height"]) == ("image/png", 144, 256)
    assert media.facts["notice"] == TINY_NOTICE
    assert TINY_NOTICE.encode() in media.data


def test_the_same_seed_and_source_give_the_same_file_and_another_source_another(model: QwenImageEdit) -> None:
    first, again, other = (edit(model, source(seed=seed)).data for seed in (0, 0, 1))
    assert first == again
    assert first != other, "the source decides too"


@pytest.mark.parametrize(
    ("width", "height", "ratio"),
    [(1920, 1080, "16:9"), (90, 160, "9:16"), (100, 99, "1:1"), (400, 10, "16:9")],
)
def test_without_a_ratio_the_nearest_to_the_source_is_taken(width: int, height: int, ratio: str) -> None:
    from deployments.models.qwen_image_edit import _nearest_ratio

    assert _nearest_ratio(Image.new("RGB", (width, height))) == ratio


def test_a_cancellation_stops_at_the_next_step(model: QwenImageEdit) -> None:
    seen: list[int] = []
    with pytest.raises(ModelCanceled):
        edit(model, source(), lambda at: seen.append(at.step), lambda: 1 in seen, steps=50)
    assert seen == [0, 1]


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (None, "give sourceImageUrl or sourceImageFileId"),
        (InputFile("audio/wav", b"RIFF"), "must be a picture"),
        (InputFile("image/png", b"\x89PNG\r\n\x1a\n" + b"?" * 50), "damaged"),
    ],
)
def test_a_source_that_is_no_picture_is_refused_before_any_computing(
    model: QwenImageEdit, image: InputFile | None, problem: str
) -> None:
    seen: list[Progress] = []
    with pytest.raises(ModelRefused, match=problem):
        edit(model, image, seen.append)
    assert seen == []


def test_a_source_is_seen_as_people_see_it() -> None:
    turned = Image.new("RGB", (40, 20), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright
    file = io.BytesIO()
    turned.save(file, "JPEG", exif=exif)
    assert picture.decode(InputFile("image/jpeg", file.getvalue()), "x").size == (20, 40)
    file = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(file, "PNG")
    clear = picture.decode(InputFile("image/png", file.getvalue()), "x")
    assert clear.getpixel((0, 0)) == (255, 255, 255), "what is transparent is white, not black"


def test_a_source_that_claims_to_be_huge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MAX_SOURCE_PIXELS", 100)
    with pytest.raises(ModelRefused, match="megapixels"):
        picture.decode(source(), "sourceImageUrl")
