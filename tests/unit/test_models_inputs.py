"""Callers' media as a model gets it: turned, in sRGB, whole; what would fill the memory is refused before."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from deployments import soundtrack
from deployments.models import picture, sound
from deployments.models.contract import InputFile, ModelRefused
from gateway.downloads import media_type


def file_of(image: Image.Image, kind: str, **options: object) -> InputFile:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return InputFile(f"image/{kind.lower()}", data.getvalue())


def pixel(file: InputFile, at: tuple[int, int] = (2, 2)) -> tuple[int, ...]:
    decoded = picture.decode(file, "sourceImageUrl")
    assert decoded.mode == "RGB"
    return decoded.getpixel(at)  # type: ignore[return-value]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_as_its_camera_says(orientation: int) -> None:
    upright = Image.new("RGB", (60, 40), "blue")
    upright.paste("red", (0, 0, 20, 20))  # the corner where one begins to read
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = picture.decode(file_of(stored, "PNG", exif=exif), "sourceImageUrl")
    assert decoded.size == (60, 40)
    assert decoded.getpixel((5, 5)) == (255, 0, 0)
    assert decoded.getpixel((50, 30)) == (0, 0, 255)


def test_a_picture_of_todays_browsers_is_read() -> None:
    file = file_of(Image.new("RGB", (64, 48), "red"), "AVIF")
    assert file.content_type == media_type(file.data[:32])
    red, green, blue = pixel(file)
    assert (red > 245, green < 10, blue < 10) == (True, True, True)


def test_inks_palettes_and_transparency_become_plain_colours() -> None:
    red = Image.new("RGB", (8, 8), "red")
    ink = pixel(file_of(red.convert("CMYK"), "JPEG", quality=95))
    assert all(abs(one - other) < 12 for one, other in zip(ink, (255, 0, 0), strict=True))
    assert pixel(file_of(red.convert("P"), "GIF")) == (255, 0, 0)
    assert pixel(file_of(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG")) == (255, 255, 255)
    assert pixel(file_of(Image.new("LA", (8, 8), (0, 128)), "PNG"))[0] in range(126, 129)
    assert pixel(file_of(Image.new("1", (8, 8), 1), "PNG")) == (255, 255, 255)


def test_sixteen_bits_keep_their_shades() -> None:
    shades = np.linspace(0, 65_535, 64, dtype="uint16").repeat(8).reshape(64, 8)
    decoded = np.asarray(picture.decode(file_of(Image.fromarray(shades), "PNG"), "sourceImageUrl"))
    assert decoded[0, 0, 0] == 0
    assert decoded[32, 0, 0] == pytest.approx(130, abs=3)
    assert decoded[63, 0, 0] == 255


def test_a_profile_is_followed_and_a_broken_one_is_not_needed() -> None:
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert pixel(file_of(Image.new("RGB", (8, 8), (10, 200, 30)), "PNG", icc_profile=plain))[1] == 200
    swapped = bytearray(plain)
    red, green = swapped.index(b"rXYZ"), swapped.index(b"gXYZ")
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    turned = pixel(file_of(Image.new("RGB", (8, 8), (255, 0, 0)), "PNG", icc_profile=bytes(swapped)))
    assert (turned[0] < 80, turned[1] > 200) == (True, True), "red means green in this profile"
    broken = file_of(Image.new("RGBA", (8, 8), (255, 0, 0, 255)), "PNG", icc_profile=b"no profile")
    assert pixel(broken) == (255, 0, 0)


def test_a_moving_picture_is_its_first_frame() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for kind in ("GIF", "WEBP", "PNG"):
        moving = file_of(first, kind, save_all=True, append_images=[second], lossless=True)
        assert pixel(moving) == (255, 0, 0), kind


def test_a_bomb_is_refused_by_its_head_alone() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    with pytest.raises(ModelRefused, match="50 megapixels"):
        picture.decode(InputFile("image/png", bomb), "sourceImageUrl")


@pytest.mark.parametrize("cut", [1, 8, 30, 200])
def test_a_cut_off_picture_is_refused_by_name(cut: int) -> None:
    whole = file_of(Image.effect_noise((64, 64), 60), "PNG").data
    with pytest.raises(ModelRefused, match="damaged"):
        picture.decode(InputFile("image/png", whole[:cut]), "sourceImageUrl")


def test_a_file_of_very_many_streams_is_refused() -> None:
    data = io.BytesIO()
    with av.open(data, "w", format="matroska") as container:
        for _ in range(sound.MAX_STREAMS + 1):
            container.add_stream("pcm_s16le", rate=8_000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), "int16"), format="s16", layout="mono")
        silence.sample_rate = 8_000
        container.mux(container.streams[0].encode(silence))  # type: ignore[union-attr]
    with pytest.raises(ModelRefused, match="more than 16 streams"):
        sound.decode(InputFile("video/webm", data.getvalue()), "audioUrl", 16_000, 60)


def test_a_small_sound_that_would_become_gigabytes_is_refused(tmp_path: Path) -> None:
    made = io.BytesIO()
    with av.open(made, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=3, layout="mono", options={"frame_size": "65535"})
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 65_535), "int16"), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 3, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert len(made.getvalue()) < 10_000
    with pytest.raises(ModelRefused, match="kind that is not read"):
        sound.decode(InputFile("audio/flac", made.getvalue()), "audioUrl", 16_000, 60)
    path = tmp_path / "sound.flac"
    path.write_bytes(made.getvalue())
    with pytest.raises(ValueError, match="samples a second"):
        next(soundtrack.pieces(path, soundtrack.SPEECH_RATE, 0.0, lambda: False))
