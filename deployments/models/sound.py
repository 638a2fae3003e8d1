"""Sounds as files that every browser plays, and callers' sounds as samples. The files say inside how they were made.

The prompt never goes into a file: sounds are passed on, prompts are the caller's own.

Shapes: samples are (channels, length), float32 in -1..1.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from deployments.models.contract import InputFile, Media, ModelFailed, ModelRefused

if TYPE_CHECKING:
    import numpy as np

CONTENT_TYPES: Final = {
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "opus": "audio/ogg",
}
_CONTAINERS: Final = {"mp3": "mp3", "wav": "wav", "flac": "flac", "opus": "ogg"}
_CODECS: Final = {"mp3": "libmp3lame", "wav": "pcm_s16le", "flac": "flac", "opus": "libopus"}
_SAMPLE_FORMATS: Final = {"mp3": "s16p", "wav": "s16", "flac": "s16", "opus": "s16"}
MAX_STREAMS: Final = 16
"""A film with several languages has fewer; a made-up file can have thousands, each with a decoder of its own."""
LEAST_RATE: Final = 4_000
"""Half of a telephone's. One frame of a file that names a few samples a second becomes gigabytes at a model's rate."""
_LAYOUTS: Final = {1: "mono", 2: "stereo"}
_MP3_BITS_PER_S: Final = 192_000
"""From there on few people tell it from the original."""
_OPUS_BITS_PER_S: Final = 128_000
"""What the codec's own page calls transparent for stereo music. Source: Xiph, "Opus Recommended Settings"."""
_BITS_PER_S: Final = {"mp3": _MP3_BITS_PER_S, "opus": _OPUS_BITS_PER_S}
OPUS_RATE: Final = 48_000
"""What every Opus decoder plays at, whatever went in. Source: RFC 7845."""


def finished(samples: np.ndarray[Any, Any], rate: int, output_format: str, facts: Mapping[str, Any]) -> Media:
    """Return a model's samples as a file that says how it was made.

    Raises: ModelFailed if they are no sound.
    """
    import numpy as np

    if samples.size == 0 or not np.isfinite(samples).all():
        raise ModelFailed("The model's sound was empty.")
    channels, length = samples.shape
    facts = {
        **facts,
        "durationSeconds": round(length / rate, 3),
        "sampleRate": OPUS_RATE if output_format == "opus" else rate,
        "channels": channels,
    }
    return Media(CONTENT_TYPES[output_format], encode(samples, rate, output_format, facts), facts)


def fitted(samples: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    """Return a sound of exactly a length: cut, or with silence at its end. A model's is some latents off."""
    import numpy as np

    return np.pad(samples[:, :length], ((0, 0), (0, max(0, length - samples.shape[1]))))


def encode(samples: np.ndarray[Any, Any], rate: int, output_format: str, facts: Mapping[str, Any]) -> bytes:
    """Return samples as a file of a format; `facts` lie in its comment."""
    import av

    file = io.BytesIO()
    # Exact: an Ogg file would otherwise get a random number, and the same seed shall give the same file.
    options = {"fflags": "bitexact"}
    with av.open(file, "w", format=_CONTAINERS[output_format], options=options) as container:
        container.metadata.update(tags(facts))
        stream: Any = container.add_stream(
            _CODECS[output_format],
            rate=OPUS_RATE if output_format == "opus" else rate,
            layout=_LAYOUTS[len(samples)],
            format=_SAMPLE_FORMATS[output_format],
        )
        if output_format in _BITS_PER_S:
            stream.bit_rate = _BITS_PER_S[output_format]
        write(container, stream, samples, rate)
    return file.getvalue()


def write(container: Any, stream: Any, samples: np.ndarray[Any, Any], rate: int) -> None:
    """Write samples to a stream of a container and end it."""
    import av
    import numpy as np

    whole = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(samples.clip(-1, 1), dtype="float32"),
        format="fltp",
        layout=_LAYOUTS[len(samples)],
    )
    whole.sample_rate = rate
    whole.pts = 0
    codec = stream.codec_context
    # The codec takes frames of its own size in its own sample format.
    resampler = av.AudioResampler(codec.format, codec.layout, codec.rate, codec.frame_size or None)
    for frame in (*resampler.resample(whole), *resampler.resample(None)):
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a sound or film: the comment, which every player shows, says how it was made."""
    return {"comment": json.dumps({"software": "Farebox", **facts}, ensure_ascii=False)}


def audible(frames: Iterator[Any]) -> Iterator[Any]:
    """Yield frames that may be brought to another rate. Raises: ValueError for one that would grow without measure."""
    for frame in frames:
        if frame.sample_rate < LEAST_RATE:
            raise ValueError(f"has fewer than {LEAST_RATE} samples a second")
        yield frame


def decode(file: InputFile, field: str, rate: int, max_s: float) -> np.ndarray[Any, Any]:
    """Return a caller's sound, or a film's sound track, as mono samples at a rate.

    Shapes: (length,), float32 in -1..1.

    Raises: ModelRefused for what has no sound, or more than `max_s` seconds of it.
    """
    import av
    import numpy as np

    parts: list[Any] = []
    length = 0
    try:
        with av.open(io.BytesIO(file.data), "r") as container:
            if len(container.streams) > MAX_STREAMS:
                raise ModelRefused(field, f"has more than {MAX_STREAMS} streams in it")
            if not container.streams.audio:
                raise ModelRefused(field, "has no sound in it")
            resampler = av.AudioResampler("fltp", None, rate)
            frames = audible(container.decode(container.streams.audio[0]))
            for made in chain.from_iterable(resampler.resample(frame) for frame in chain(frames, [None])):
                # The mean, and not the library's mix, which can be louder than full.
                parts.append(made.to_ndarray().mean(axis=0))
                length += made.samples
                if length > max_s * rate:
                    raise ModelRefused(field, f"is longer than {max_s:g} seconds")
    except (av.FFmpegError, ValueError) as error:
        raise ModelRefused(field, "is damaged, or of a kind that is not read") from error
    samples: np.ndarray[Any, Any] = np.concatenate(parts or [np.zeros(0, "float32")])
    if not len(samples):
        raise ModelRefused(field, "has no sound in it")
    return samples
