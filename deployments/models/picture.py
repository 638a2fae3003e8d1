"""Pictures as files that say inside how they were made; those that mean nothing say so on their face.

The prompt never goes into a file: pictures are passed on, prompts are the caller's own.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import quoteattr

from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from deployments.models import fields
from deployments.models.contract import InputFile, Media, ModelFailed, ModelRefused

if TYPE_CHECKING:
    import numpy as np

CONTENT_TYPES: Final = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
LOSSY: Final = ("webp", "jpeg")

SYNTHETIC: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The press agencies' word for 'made by a model', which social networks and search engines read.

Source: IPTC NewsCodes, digital source type.
"""

FACTS_NAMESPACE: Final = "urn:farebox:facts:1"

QUALITY: Final = 90
"""Above it a WebP or JPEG grows towards the PNG's size without a difference that is seen."""

MAX_SOURCE_PIXELS: Final = 50_000_000
"""The largest cameras in use make as many; a small file can claim to be far larger than memory."""

CAPTION_PX: Final = 12
"""The smallest size of Pillow's own font that reads well; tiny pictures are 144 pixels wide and more."""


def asked(given: Mapping[str, Any]) -> tuple[str, int | None]:
    """Return the format that a picture shall have and its quality. Raises: ModelRefused, naming the field."""
    output_format = fields.choice(given, "outputFormat", tuple(CONTENT_TYPES), "png")
    if given.get("outputQuality") is None:
        return output_format, None
    if output_format not in LOSSY:
        raise ModelRefused("outputQuality", f"has no effect on {output_format}; leave it out")
    return output_format, fields.integer(given, "outputQuality", 1, 100, QUALITY)


def decode(file: InputFile, field: str) -> Image.Image:
    """Return a caller's picture as people see it: turned as its camera says, on white where it is transparent.

    Raises: ModelRefused for what is no picture, or too large a one.
    """
    if not file.content_type.startswith("image/"):
        raise ModelRefused(field, f"must be a picture; this is {file.content_type}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is ours
            source = Image.open(io.BytesIO(file.data))
            if source.width * source.height > MAX_SOURCE_PIXELS:
                raise ModelRefused(field, f"has more than {MAX_SOURCE_PIXELS // 10**6} megapixels")
            layered = ImageOps.exif_transpose(source).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ModelRefused(field, "is a damaged picture, or of a kind that is not read") from error
    ground = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(ground, layered).convert("RGB")


def finished(
    pixels: np.ndarray[Any, Any], output_format: str, facts: Mapping[str, Any], quality: int | None = None
) -> Media:
    """Return a model's pixels as a file that says how it was made, and on its face if that means nothing.

    `quality`, 1 to 100, is for the formats that lose some of a picture; None: the usual one.

    Shapes: (height, width, 3), in 0..1.

    Raises: ModelFailed if they are no picture.
    """
    import numpy as np

    if not np.isfinite(pixels).all():
        raise ModelFailed("The model's picture was empty.")
    image = Image.fromarray((pixels * 255).round().astype("uint8"))
    facts = {**facts, "width": image.width, "height": image.height}
    if "notice" in facts:
        image = draw_notice(image, facts["notice"])
    return Media(CONTENT_TYPES[output_format], encode(image, output_format, facts, quality), facts)


def draw_notice(image: Image.Image, notice: str) -> Image.Image:
    """Return the picture, in its own size, with the notice readable on a dark band along its bottom."""
    marked = image.convert("RGB")
    draw = ImageDraw.Draw(marked)
    font = ImageFont.load_default(size=CAPTION_PX)
    margin = CAPTION_PX // 2
    lines = [""]
    for word in notice.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= marked.width - 2 * margin:
            lines[-1] = longer
        else:
            lines.append(word)
    text = "\n".join(line for line in lines if line)
    _, _, _, text_height = draw.multiline_textbbox((0, 0), text, font=font)
    top = marked.height - text_height - 2 * margin
    draw.rectangle((0, top, marked.width, marked.height), fill="black")
    draw.multiline_text((margin, top + margin), text, font=font, fill="white")
    return marked


def encode(
    image: Image.Image, output_format: str, facts: Mapping[str, Any], quality: int | None = None
) -> bytes:
    """Return the picture as a PNG, WebP or JPEG file that carries `facts`.

    All formats get one XMP packet with the facts and the mark of synthetic media; a PNG also gets each fact
    as a text chunk, which plain tools print.
    """
    facts = {"software": "Farebox", **facts}
    file = io.BytesIO()
    packet = _xmp(facts)
    if output_format == "png":
        chunks = PngImagePlugin.PngInfo()
        for name, value in facts.items():
            chunks.add_itxt(name, str(value))
        chunks.add_itxt("XML:com.adobe.xmp", packet)
        image.save(file, "PNG", pnginfo=chunks)
    else:
        # A JPEG that grows sharper as it arrives is also the smaller one; other formats ignore the word.
        image.save(file, output_format, quality=quality or QUALITY, xmp=packet.encode(), progressive=True)
    return file.getvalue()


def _xmp(facts: Mapping[str, Any]) -> str:
    """Return the facts as an XMP packet.

    Source: ISO 16684-1 (XMP), IPTC Photo Metadata 2023 for the digital source type.
    """
    attributes = "\n".join(f"   farebox:{name}={quoteattr(str(value))}" for name, value in facts.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        ' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
        '  <rdf:Description rdf:about=""\n'
        f'   xmlns:farebox="{FACTS_NAMESPACE}"\n'
        '   xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"\n'
        f'   Iptc4xmpExt:DigitalSourceType="{SYNTHETIC}"\n'
        f"{attributes}/>\n"
        " </rdf:RDF>\n"
        "</x:xmpmeta>\n"
        '<?xpacket end="r"?>'
    )
