"""Small pictures of what was made: of a picture itself, of a film its first frame. For lists and players; never billed.

Made on the Runner, outside of the model's time. A preview that cannot be made is left out: the output is whole without.
"""

from __future__ import annotations

import io
from typing import Any, Final

import structlog

from deployments.footage import first_picture
from deployments.models.contract import Media

log = structlog.get_logger(__name__)

THUMBNAIL_PX: Final = 320
"""The longer side: sharp in a list on screens that show two pixels for one."""
POSTER_PX: Final = 640
"""A player shows it in the film's own place until it starts."""
QUALITY: Final = 80
"""Some ten kilobytes."""


def preview(media: Media) -> bytes | None:
    """Return a WebP of a picture or film, never larger than it is; None for anything else."""
    if not media.content_type.startswith(("image/", "video/")):
        return None
    from PIL import Image

    try:
        image: Any
        if media.content_type.startswith("video/"):
            image, most_px = first_picture(io.BytesIO(media.data)), POSTER_PX
        else:
            image, most_px = Image.open(io.BytesIO(media.data)).convert("RGB"), THUMBNAIL_PX
        image.thumbnail((most_px, most_px))
        file = io.BytesIO()
        image.save(file, "WEBP", quality=QUALITY)
    except Exception as error:  # noqa: BLE001  # decoders raise from many trees, and nobody shall lose a job to it
        log.warning("no preview", content_type=media.content_type, problem=type(error).__name__)
        return None
    return file.getvalue()
