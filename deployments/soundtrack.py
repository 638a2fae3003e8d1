"""The sound of a film: read on the film's own time line, cut, stretched, mixed - in pieces, never whole in memory.

Everything here blocks and runs in a worker thread; `stopped` is looked at between pieces. Speech is kept as mono WAV
of 16 bits, which may be read from any place on.

Shapes: samples are (channels, length), float32 in -1..1.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deployments.models.sound import audible

if TYPE_CHECKING:
    import numpy as np

FILM_RATE: Final = 48_000
"""Samples a second of a film's sound: what cameras write and every player takes."""
SPEECH_RATE: Final = 24_000
"""What the voice model reads and writes; twice the band that speech is understood by."""
PIECE: Final = FILM_RATE
"""Samples mixed at a time: a second of stereo floats is 384 kB."""
GAP_S: Final = 0.1
"""A jump of the time stamps from there on is a silence; below it they are only rounded."""
DUCKED: Final = 0.125
"""The original's loudness under speech: 18 dB down, still heard as what lies under a voice-over."""
RAMP_S: Final = 0.15
"""How long the original takes to go down and up again: shorter clicks, longer swallows words."""
FADE: Final = SPEECH_RATE // 50
"""The end of a cut sentence fades in 20 ms: no click."""
AAC_BITS_PER_S: Final = 192_000

IsStopped = Callable[[], bool]
_SAMPLE_BYTES: Final = 2


class Stopped(Exception):  # like StopIteration: not a failure
    """Somebody asked the work to end."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time of a film. Units: milliseconds from its beginning."""

    start_ms: int
    end_ms: int


def pieces(path: Path, rate: int, zero_s: float, stopped: IsStopped) -> Iterator[np.ndarray[Any, Any]]:
    """Yield a file's first sound track at a rate, mono or stereo as it is, from the film's time zero on.

    Sound that begins late, or has holes, has silence there; what lies before zero is left out.

    Raises: av.FFmpegError or ValueError for what cannot be decoded; Stopped.
    """
    import av
    import numpy as np

    with av.open(str(path), "r") as container:
        track = container.streams.audio[0]
        layout = None if track.codec_context.channels <= 2 else "stereo"  # noqa: PLR2004
        resampler = av.AudioResampler("fltp", layout, rate)
        at = 0
        for frame in chain(audible(container.decode(track)), [None]):
            if stopped():
                raise Stopped
            missing = 0
            if frame is not None and frame.pts is not None and frame.time_base is not None:
                missing = round((float(frame.pts * frame.time_base) - zero_s) * rate) - at
            for made in resampler.resample(frame):
                samples = made.to_ndarray()
                if missing > GAP_S * rate or (missing > 0 and at == 0):
                    for length in _portions(missing, PIECE):
                        yield np.zeros((len(samples), length), "float32")
                    at += missing
                elif missing < 0 and at == 0:
                    samples = samples[:, -missing:]
                missing = 0
                at += samples.shape[1]
                if samples.shape[1]:
                    yield samples


def write_speech(
    path: Path, sound: Iterator[np.ndarray[Any, Any]], most: int, rate: int = SPEECH_RATE
) -> int | None:
    """Write a sound as mono speech; returns its length in samples, None as soon as it is longer than `most`."""
    length = 0
    with closing(wave.open(str(path), "wb")) as file:
        _describe(file, rate)
        for piece in sound:
            length += piece.shape[1]
            if length > most:
                return None
            # The mean, and not the library's mix, which can be louder than full.
            file.writeframes(_as_bytes(piece.mean(axis=0)))
    return length


def excerpt(path: Path, spans: Sequence[Span]) -> bytes:
    """Return some stretches of a speech file, one after the other, as a WAV file."""
    kept = io.BytesIO()
    with closing(wave.open(str(path), "rb")) as file, closing(wave.open(kept, "wb")) as made:
        _describe(made, file.getframerate())
        for span in spans:
            start, end = (_sample(edge, file.getframerate()) for edge in (span.start_ms, span.end_ms))
            start = min(start, file.getnframes())
            file.setpos(start)
            made.writeframes(file.readframes(end - start))
    return kept.getvalue()


def read_speech(data: bytes) -> np.ndarray[Any, Any]:
    """Return a model's speech as samples of one channel. Shapes: (length,)."""
    import av
    import numpy as np

    with av.open(io.BytesIO(data), "r") as container:
        resampler = av.AudioResampler("fltp", "mono", SPEECH_RATE)
        frames = chain(container.decode(container.streams.audio[0]), [None])
        parts = [made.to_ndarray()[0] for frame in frames for made in resampler.resample(frame)]
    return np.concatenate([*parts, np.zeros(0, "float32")])


def stretched(samples: np.ndarray[Any, Any], tempo: float) -> np.ndarray[Any, Any]:
    """Return speech at another tempo and the same pitch: at 1.25 it takes four fifths of its time.

    Source: FFmpeg's filter `atempo`, which overlaps and adds waveforms.
    """
    import av
    import numpy as np

    if not len(samples) or abs(tempo - 1) < 0.01:  # noqa: PLR2004  # a hundredth nobody hears
        return samples
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=SPEECH_RATE, format="fltp", layout="mono", time_base=None)
    tempo_change, sink = graph.add("atempo", f"{tempo:.4f}"), graph.add("abuffersink")
    source.link_to(tempo_change)
    tempo_change.link_to(sink)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = SPEECH_RATE, 0
    graph.push(frame)
    graph.push(None)
    made = [np.zeros(0, "float32")]
    while True:
        try:
            pulled: Any = graph.pull()
        except (BlockingIOError, EOFError):  # all of it was pulled
            return np.concatenate(made)
        made.append(pulled.to_ndarray()[0])


def cut(samples: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    """Return the first `length` samples, faded out."""
    import numpy as np

    kept = samples[:length].copy()
    fade = min(FADE, length)
    kept[length - fade :] *= np.linspace(1, 0, fade, dtype="float32")
    return kept


class SpeechWriter:
    """Writes pieces of speech to their places in a file of a fixed length; what is between them is silent."""

    def __init__(self, path: Path, length_ms: int) -> None:
        self._file = wave.open(str(path), "wb")  # noqa: SIM115  # closed by `close`
        self._length = _sample(length_ms, SPEECH_RATE)
        self._at = 0
        _describe(self._file, SPEECH_RATE)

    def put(self, start_ms: int, samples: np.ndarray[Any, Any]) -> None:
        """Write a piece at its time, not before the end of the last one."""
        self._silence(_sample(start_ms, SPEECH_RATE))
        samples = samples[: self._length - self._at]
        self._file.writeframes(_as_bytes(samples))
        self._at += len(samples)

    def close(self) -> None:
        """Fill the rest with silence."""
        self._silence(self._length)
        self._file.close()

    def _silence(self, until: int) -> None:
        for length in _portions(min(until, self._length) - self._at, PIECE):
            self._file.writeframes(bytes(length * _SAMPLE_BYTES))
            self._at += length


def mix(  # noqa: PLR0913, PLR0917  # two sounds, where they go, and how
    background: Iterator[np.ndarray[Any, Any]] | None,
    voice: Iterator[np.ndarray[Any, Any]],
    spoken: Sequence[Span],
    length_ms: int,
    path: Path,
    stopped: IsStopped,
) -> None:
    """Write the voice over the background as stereo AAC in an MP4 file; the background goes down where one speaks.

    Without a background there is silence between the words.
    """
    import av
    import numpy as np

    times, gains = _envelope(spoken)
    total = _sample(length_ms, FILM_RATE)
    under = _sized(background or iter(()), total)
    over = _sized(voice, total)
    with av.open(str(path), "w", format="mp4") as container:
        track: Any = container.add_stream("aac", rate=FILM_RATE, layout="stereo")
        track.bit_rate = AAC_BITS_PER_S
        codec = track.codec_context
        # The codec takes frames of its own size in its own sample format.
        resampler = av.AudioResampler(codec.format, codec.layout, codec.rate, codec.frame_size or None)
        at = 0
        for low, high in zip(under, over, strict=True):
            if stopped():
                raise Stopped
            length = low.shape[1]
            gain = np.interp((at + np.arange(length)) / FILM_RATE, times, gains)
            mixed = np.ascontiguousarray((low * gain + high).clip(-1, 1), "float32")
            frame = av.AudioFrame.from_ndarray(mixed, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = FILM_RATE, at
            at += length
            for made in resampler.resample(frame):
                container.mux(track.encode(made))
        for made in resampler.resample(None):
            container.mux(track.encode(made))
        container.mux(track.encode(None))


def _envelope(spoken: Sequence[Span]) -> tuple[list[float], list[float]]:
    """Return the background's gain over time, in seconds, as the corners of a line."""
    joined: list[Span] = []
    for span in sorted(spoken, key=lambda each: each.start_ms):
        if joined and span.start_ms - joined[-1].end_ms < 2 * RAMP_S * 1000:
            joined[-1] = Span(joined[-1].start_ms, max(joined[-1].end_ms, span.end_ms))
        else:
            joined.append(span)
    times, gains = [-2 * RAMP_S], [1.0]
    for span in joined:
        start_s, end_s = span.start_ms / 1000, span.end_ms / 1000
        times += [start_s - RAMP_S, start_s, end_s, end_s + RAMP_S]
        gains += [1.0, DUCKED, DUCKED, 1.0]
    assert all(a <= b for a, b in pairwise(times)), "corners in order"
    return times, gains


def _sized(sound: Iterator[np.ndarray[Any, Any]], total: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield a sound as stereo in pieces of PIECE samples, exactly `total` of them: cut, or with silence at its end."""
    import numpy as np

    waiting = np.zeros((2, 0), "float32")
    for length in _portions(total, PIECE):
        while waiting.shape[1] < length:
            piece = next(sound, None)
            if piece is None:
                piece = np.zeros((1, length - waiting.shape[1]), "float32")
            waiting = np.concatenate([waiting, np.broadcast_to(piece, (2, piece.shape[1]))], axis=1)
        yield waiting[:, :length]
        waiting = waiting[:, length:]


def _portions(total: int, most: int) -> Iterator[int]:
    while total > 0:
        yield min(total, most)
        total -= most


def _sample(at_ms: int, rate: int) -> int:
    return at_ms * rate // 1000


def _describe(file: wave.Wave_write, rate: int) -> None:
    file.setnchannels(1)
    file.setsampwidth(_SAMPLE_BYTES)
    file.setframerate(rate)


def _as_bytes(samples: np.ndarray[Any, Any]) -> bytes:
    data: bytes = (samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes()
    return data
