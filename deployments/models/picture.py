"""Pictures as files that say inside how they were made; those that mean nothing say so on their face.

The prompt never goes into a file: pictures are passed on, prompts are the caller's own.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final
from xml.sax.saxutils import quoteattr

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

CONTENT_TYPES: Final = {"png": "image/png", "webp": "image/webp"}

SYNTHETIC: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The press agencies' word for 'made by a model', which social networks and search engines read.

Source: IPTC NewsCodes, digital source type.
"""

FACTS_NAMESPACE: Final = "urn:farebox:facts:1"

WEBP_QUALITY: Final = 90
"""Above it a WebP grows towards the PNG's size without a difference that is seen."""

CAPTION_PX: Final = 12
"""The smallest size of Pillow's own font that reads well; tiny pictures are 144 pixels wide and more."""


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


def encode(image: Image.Image, output_format: str, facts: Mapping[str, Any]) -> bytes:
    """Return the picture as a PNG or WebP file that carries `facts`.

    Both formats get one XMP packet with the facts and the mark of synthetic media; a PNG also gets each fact
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
        image.save(file, "WEBP", quality=WEBP_QUALITY, xmp=packet.encode())
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
