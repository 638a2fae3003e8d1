"""The pictures of a film: what they are, and how they get a new sound. Copied where browsers play them as they are.

Everything here blocks and runs in a worker thread; `stopped` is looked at between packets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deployments.soundtrack import IsStopped, Stopped

if TYPE_CHECKING:
    import av
    from PIL import Image

PLAYABLE: Final = {("h264", "yuv420p"), ("h264", "yuvj420p")}
"""Codec and pixels that every browser plays in MP4. Source: MDN, 'Web video codec guide'."""
MAX_PIXELS: Final = 4096 * 2304
"""A frame of 4K: a larger one is nothing that browsers play, and hundreds of megabytes to decode."""
CRF: Final = "18"
"""x264's quality from which few people see a difference to the source."""
PRESET: Final = "fast"
COLOURS: Final = ("color_primaries", "color_trc", "colorspace", "color_range")
"""What the numbers of pictures mean: a telephone's bright film is dull, and its hues are off, where nobody says so."""
THREADS: Final = 2
"""Fixed: the same film gives the same file on every machine."""


class NoFilm(ValueError):  # says what it is not
    """The file is not a film; the text says why, for the caller."""


@dataclass(frozen=True, slots=True)
class Film:
    """A film's measures. `zero_s` is the time stamp that its first picture has.

    `duration_ms` is the end of its last picture, by the packets and not by the header.
    """

    width: int
    height: int
    duration_ms: int
    zero_s: float
    has_sound: bool
    is_playable: bool


def survey(path: Path, most_ms: int, stopped: IsStopped) -> Film | None:
    """Measure a film without decoding it; None as soon as it is longer than `most_ms`.

    Raises: NoFilm for what has no pictures, or too large ones; av.FFmpegError for a damaged file; Stopped.
    """
    import av

    with av.open(str(path)) as container:
        pictures = _pictures(container)
        width, height = pictures.codec_context.width, pictures.codec_context.height
        if not 0 < width * height <= MAX_PIXELS:
            raise NoFilm("has pictures larger than 4096 × 2304")
        zero, end = None, 0.0
        for packet in container.demux(pictures):
            if stopped():
                raise Stopped
            if packet.pts is None or packet.time_base is None:
                continue
            at_s = float(packet.pts * packet.time_base)
            zero = at_s if zero is None else min(zero, at_s)
            end = max(end, at_s + float((packet.duration or 0) * packet.time_base))
            if (end - zero) * 1000 > most_ms:
                return None
        if zero is None or end <= zero:
            raise NoFilm("has no pictures in it")
        codec = pictures.codec_context
        return Film(
            width=width,
            height=height,
            duration_ms=round((end - zero) * 1000),
            zero_s=zero,
            has_sound=bool(container.streams.audio),
            is_playable=(codec.name, codec.pix_fmt) in PLAYABLE,
        )


def join(  # noqa: PLR0913, PLR0917  # two tracks, where they go, and how
    film: Film, source: Path, sound: Path, path: Path, tags: Mapping[str, str], stopped: IsStopped
) -> tuple[int, int]:
    """Write the film's pictures with another sound as MP4 whose index comes first, so that players begin at once.

    Playable pictures are copied bit by bit; others become H.264. Returns the width and height of the written ones.
    """
    import av

    with (
        av.open(str(source)) as pictures_from,
        av.open(str(sound)) as sound_from,
        av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        container.metadata.update(tags)
        pictures = _pictures(pictures_from)
        heard = sound_from.streams.audio[0]
        if film.is_playable:
            shown: Any = container.add_stream_from_template(pictures)
            packets = _copied(pictures_from, pictures, shown, film.zero_s)
        else:
            shown = container.add_stream("libx264", options={"crf": CRF, "preset": PRESET})
            packets = _encoded(pictures_from, pictures, shown, film)
        beside = _copied(sound_from, heard, container.add_stream_from_template(heard), 0.0)
        # In the order of time: the muxer keeps in memory what waits for the other track.
        for packet in _merged(packets, beside):
            if stopped():
                raise Stopped
            container.mux(packet)
        if not film.is_playable:
            return shown.codec_context.width, shown.codec_context.height
    try:
        # Copied pictures lie as they were taken, and are turned when shown.
        return first_picture(str(path)).size
    except (av.FFmpegError, ValueError):
        return film.width, film.height  # a player may still show what comes later


def first_picture(film: Any) -> Image.Image:
    """Return a film's first picture, turned as its file says. Raises: av.FFmpegError; NoFilm for one without any."""
    import av

    with av.open(film, "r") as container:
        frame: Any = next(container.decode(video=0), None)
        if frame is None:
            raise NoFilm("has no pictures in it")
        picture: Image.Image = frame.to_image()
        return picture.rotate(frame.rotation if frame.rotation % 90 == 0 else 0, expand=True)


def _pictures(container: av.container.InputContainer) -> Any:
    for stream in container.streams.video:
        if not stream.disposition & stream.disposition.attached_pic:
            return stream
    raise NoFilm("has no pictures in it")


def _copied(container: Any, stream: Any, to: Any, zero_s: float) -> Iterator[Any]:
    zero = round(zero_s / stream.time_base)
    for packet in _decodable(container.demux(stream)):
        packet.pts, packet.dts = packet.pts - zero, packet.dts - zero
        packet.stream = to
        yield packet


def _decodable(packets: Iterator[Any]) -> Iterator[Any]:
    """Yield packets, each with a decoding time.

    Matroska has none, and of a film whose pictures refer to later ones the first are known only after some packets:
    these lie before the first that is known, a picture's duration apart. The key frame is among them.
    """
    early: list[Any] = []
    is_known = False
    for packet in packets:
        if packet.dts is None:
            if packet.size and not is_known:  # an empty one is the end
                early.append(packet)
            continue
        if not is_known:
            is_known, step = True, packet.duration or 1
            for place, each in enumerate(early):
                each.dts = packet.dts - step * (len(early) - place)
                yield each
        yield packet


def _encoded(container: Any, stream: Any, to: Any, film: Film) -> Iterator[Any]:
    """Encode pictures anew, upright, at their own times and in their own colours."""
    codec = to.codec_context
    codec.thread_count, codec.pix_fmt = THREADS, "yuv420p"
    codec.time_base = stream.time_base
    codec.framerate = stream.average_rate or stream.guessed_rate
    zero = round(film.zero_s / stream.time_base)
    upright: Any = None
    for frame in container.decode(stream):
        if upright is None:
            upright = _upright(frame)
        upright.push(frame)
        made = upright.pull()
        if not codec.is_open:
            codec.width, codec.height = made.width, made.height
            for meant in COLOURS:
                setattr(codec, meant, getattr(made, meant))
        made.pts, made.time_base = frame.pts - zero, stream.time_base
        made.pict_type = 0  # the encoder's own choice, not the source's
        yield from to.encode(made)
    yield from to.encode(None)


def _upright(frame: Any) -> Any:
    """Return a filter that turns pictures as their file says, and makes their sides even as the codec needs them."""
    import av

    turns = {
        90: ["transpose=cclock"],
        -90: ["transpose=clock"],
        180: ["hflip", "vflip"],
        -180: ["hflip", "vflip"],
    }
    graph = av.filter.Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    steps = [*turns.get(round(frame.rotation), []), "crop=trunc(iw/2)*2:trunc(ih/2)*2", "format=yuv420p"]
    for step in steps:
        name, _, settings = step.partition("=")
        after = graph.add(name, settings or None)
        last.link_to(after)
        last = after
    last.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def _merged(first: Iterator[Any], second: Iterator[Any]) -> Iterator[Any]:
    waiting = [(each, packets) for packets in (first, second) if (each := next(packets, None)) is not None]
    while waiting:
        place = min(range(len(waiting)), key=lambda at: waiting[at][0].dts * waiting[at][0].time_base)
        packet, packets = waiting[place]
        yield packet
        after = next(packets, None)
        if after is None:
            del waiting[place]
        else:
            waiting[place] = (after, packets)
