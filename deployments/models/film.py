"""Films as MP4 files that every browser plays: H.264 with AAC sound, ready to start before they are loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deployments.models import picture, sound
from deployments.models.contract import Media, ModelFailed

if TYPE_CHECKING:
    import numpy as np

FORMATS: Final = ("mp4",)

CRF: Final = "18"
"""x264's quality from which few people see a difference to the source."""
PRESET: Final = "fast"
"""A tenth larger than the default, in half the time: the film is made once and a caller waits for it."""
THREADS: Final = 2
"""Fixed, because x264 divides a film differently for each number and the same seed shall give the same file."""
_AAC_BITS_PER_S: Final = 192_000


def finished(
    frames: np.ndarray[Any, Any],
    frames_per_s: int,
    samples: np.ndarray[Any, Any] | None,
    rate: int,
    facts: Mapping[str, Any],
) -> Media:
    """Return a model's frames and sound as a file that says how it was made, and on each frame if it means nothing.

    Shapes: frames are (count, height, width, 3) in 0..1, samples (channels, length) in -1..1.

    Raises: ModelFailed if they are no film.
    """
    import numpy as np

    if not len(frames) or not np.isfinite(frames).all():
        raise ModelFailed("The model's film was empty.")
    if samples is not None and not np.isfinite(samples).all():
        raise ModelFailed("The model's sound was empty.")
    count, height, width, _ = frames.shape
    facts = {
        **facts,
        "width": width,
        "height": height,
        "durationSeconds": round(count / frames_per_s, 3),
        "framesPerSecond": frames_per_s,
    }
    if samples is not None:
        facts |= {"sampleRate": rate, "channels": len(samples)}
    pixels = np.empty(frames.shape, "uint8")
    for place, frame in enumerate(frames):  # one by one: twenty seconds are gigabytes as floats
        pixels[place] = (frame * 255).round()
    if "notice" in facts:
        _draw_notice(pixels, facts["notice"])
    return Media("video/mp4", _encode(pixels, frames_per_s, samples, rate, facts), facts)


def _draw_notice(pixels: np.ndarray[Any, Any], notice: str) -> None:
    """Put the notice along the bottom of every frame. It is drawn once: it hides what is under it."""
    import numpy as np
    from PIL import Image

    plain = Image.new("RGB", (pixels.shape[2], pixels.shape[1]), (1, 2, 3))
    drawn = np.asarray(picture.draw_notice(plain, notice))
    changed = (drawn != np.asarray(plain)).any(axis=(1, 2))
    pixels[:, changed] = drawn[changed]


def _encode(
    pixels: np.ndarray[Any, Any],
    frames_per_s: int,
    samples: np.ndarray[Any, Any] | None,
    rate: int,
    facts: Mapping[str, Any],
) -> bytes:
    import av

    # A real file: moving the index to the front, so that a browser can begin at once, needs to seek in it.
    with tempfile.TemporaryDirectory(prefix="farebox-film-") as place:
        path = Path(place) / "film.mp4"
        with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
            container.metadata.update(sound.tags(facts))
            images: Any = container.add_stream(
                "libx264", rate=frames_per_s, options={"crf": CRF, "preset": PRESET}
            )
            images.width, images.height = pixels.shape[2], pixels.shape[1]
            images.pix_fmt = "yuv420p"  # what all browsers decode
            images.codec_context.thread_count = THREADS
            track: Any = None
            if samples is not None:
                track = container.add_stream("aac", rate=rate, layout="stereo")
                track.bit_rate = _AAC_BITS_PER_S
            for each in pixels:
                container.mux(images.encode(av.VideoFrame.from_ndarray(each, format="rgb24")))
            container.mux(images.encode(None))
            if samples is not None:
                sound.write(container, track, samples, rate)
        return path.read_bytes()
