"""Previews: small, of the thing itself, and never a reason for a job to fail."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from deployments.models import film, picture
from deployments.models.contract import Media
from deployments.previews import POSTER_PX, THUMBNAIL_PX, preview


@pytest.mark.parametrize("output_format", picture.CONTENT_TYPES)
@pytest.mark.parametrize(("size", "small"), [((1664, 928), (320, 178)), ((64, 48), (64, 48))])
def test_a_picture_has_a_small_one_in_its_own_shape(
    output_format: str, size: tuple[int, int], small: tuple[int, int]
) -> None:
    image = Image.new("RGB", size, (200, 30, 30))
    made = preview(Media(picture.CONTENT_TYPES[output_format], picture.encode(image, output_format, {}), {}))
    assert made is not None
    opened = Image.open(io.BytesIO(made))
    assert (opened.format, opened.size) == ("WEBP", small)
    assert max(opened.size) <= THUMBNAIL_PX
    red, green, _ = opened.convert("RGB").getpixel((10, 10))  # type: ignore[misc]
    assert (red > 150, green < 80) == (True, True)


def test_a_films_poster_is_its_first_frame() -> None:
    frames = np.zeros((24, 96, 960, 3))
    frames[0, :, :, 1] = 1.0
    made = preview(film.finished(frames, 24, None, 0, {}))
    assert made is not None
    opened = Image.open(io.BytesIO(made))
    assert opened.size == (POSTER_PX, 64)
    red, green, _ = opened.convert("RGB").getpixel((100, 30))  # type: ignore[misc]
    assert (green > 200, red < 60) == (True, True)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("image/png", b"\x89PNG\r\n\x1a\n broken"),
        ("video/mp4", b"nothing"),
        ("audio/mpeg", b"ID3"),
        ("text/plain", b"x"),
    ],
)
def test_what_has_no_picture_has_no_preview(kind: str, data: bytes) -> None:
    assert preview(Media(kind, data, {})) is None
