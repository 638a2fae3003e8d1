"""Picture files: what they carry inside, and the caption of those that mean nothing."""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from PIL import Image, ImageChops

from deployments.models import picture
from deployments.models.contract import TINY_NOTICE

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
FACTS: dict[str, Any] = {"model": 'A "quoted" <model> & more, ü', "seed": 7, "size": "64x48"}


def xmp_of(image: Image.Image) -> dict[str, str]:
    """Parse the packet and strip the namespaces of its attributes."""
    packet = image.info["xmp"]
    text = packet.decode() if isinstance(packet, bytes) else packet
    packet = text[text.index("<x:xmpmeta") : text.index("<?xpacket end")]
    description = ET.fromstring(packet).find(f".//{RDF}Description")
    assert description is not None
    return {name.rpartition("}")[2]: value for name, value in description.attrib.items()}


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_a_file_carries_its_facts_and_the_mark_of_synthetic_media(output_format: str) -> None:
    data = picture.encode(Image.new("RGB", (64, 48), "teal"), output_format, FACTS)
    image = Image.open(io.BytesIO(data))
    assert image.get_format_mimetype() == picture.CONTENT_TYPES[output_format]
    assert image.size == (64, 48)
    inside = xmp_of(image)
    assert inside["model"] == FACTS["model"]
    assert (inside["seed"], inside["size"], inside["software"]) == ("7", "64x48", "Farebox")
    assert inside["DigitalSourceType"] == picture.SYNTHETIC


@pytest.mark.parametrize("output_format", picture.LOSSY)
def test_a_lower_quality_is_a_smaller_file_of_the_same_picture(output_format: str) -> None:
    noise = Image.effect_noise((128, 128), 60).convert("RGB")
    sizes = [len(picture.encode(noise, output_format, FACTS, quality)) for quality in (20, None, 100)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
    small = Image.open(io.BytesIO(picture.encode(noise, output_format, FACTS, 20)))
    assert (small.size, small.mode, xmp_of(small)["seed"]) == ((128, 128), "RGB", "7")


def test_a_png_also_has_each_fact_as_text() -> None:
    data = picture.encode(Image.new("RGB", (64, 48)), "png", FACTS)
    text = Image.open(io.BytesIO(data)).text  # type: ignore[attr-defined]
    assert {name: text[name] for name in FACTS} == {name: str(value) for name, value in FACTS.items()}


@pytest.mark.parametrize("size", [(144, 256), (256, 144), (256, 256), (1664, 928)])
def test_a_notice_is_drawn_inside_the_picture_and_leaves_the_rest_alone(size: tuple[int, int]) -> None:
    before = Image.effect_noise(size, 60).convert("RGB")
    after = picture.draw_notice(before, TINY_NOTICE)
    assert after.size == size
    box = ImageChops.difference(before, after).getbbox()
    assert box is not None
    _, top, _, bottom = box
    assert bottom == size[1]
    assert top > size[1] * 0.7, "the picture itself stays visible"


@pytest.mark.parametrize("width", [144, 192, 288])
def test_no_letter_of_a_notice_is_cut_off(width: int) -> None:
    band = picture.draw_notice(Image.new("RGB", (width, 192), "black"), TINY_NOTICE)
    box = band.getbbox()  # only the letters are not black
    assert box is not None
    left, _, right, bottom = box
    assert left > 0
    assert right < width
    assert bottom < 192
