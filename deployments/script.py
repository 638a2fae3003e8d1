"""The script of a dub: which lines are spoken when, from whose sound their voice is taken, and at which pace they fit.

Units: milliseconds from the film's beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from deployments.models.subtitles import one_line
from deployments.soundtrack import Span

JOINED_GAP_MS: Final = 300
"""A shorter pause lies within a sentence: what is around it is translated and spoken as one."""
JOINED_MS: Final = 10_000
"""But no line becomes longer: a subtitle of ten seconds is as much as one reads at once."""
SENTENCE_ENDS: Final = tuple(".?!…。？！")
SLOWEST: Final = 0.9
"""Speech slower than that sounds drunk."""
BRISK: Final = 1.2
"""Up to here nobody notices the hurry."""
FASTEST: Final = 1.5
"""From here on one does not follow: what does not fit even so is cut off."""
GOOD_REFERENCE_MS: Final = 3_000
"""What the voice model's card asks for."""
LEAST_REFERENCE_MS: Final = 1_200
"""The model takes no less than a second."""
MOST_REFERENCE_MS: Final = 12_000
"""More adds nothing to the likeness."""


@dataclass(frozen=True, slots=True)
class Line:
    """Some words that are spoken in one go."""

    start_ms: int
    end_ms: int
    text: str

    @property
    def span(self) -> Span:
        """When it is spoken in the original."""
        return Span(self.start_ms, self.end_ms)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a line's new speech lies, and what had to be done to fit it there."""

    start_ms: int
    end_ms: int
    tempo: float
    is_cut: bool


def lines_of(segments: Sequence[Any], length_ms: int) -> list[Line]:
    """Return a transcript's segments as lines within the film, in order and without an overlap."""
    lines: list[Line] = []
    for segment in segments:
        start_ms, end_ms = (min(length_ms, round(segment[edge] * 1000)) for edge in ("start", "end"))
        start_ms = max(start_ms, lines[-1].end_ms if lines else 0)
        text = one_line(segment["text"])
        if end_ms <= start_ms or not text:
            continue
        if lines and _goes_on(lines[-1], start_ms, end_ms):
            last = lines.pop()
            lines.append(Line(last.start_ms, end_ms, f"{last.text} {text}"))
        else:
            lines.append(Line(start_ms, end_ms, text))
    return lines


def _goes_on(last: Line, start_ms: int, end_ms: int) -> bool:
    return (
        start_ms - last.end_ms < JOINED_GAP_MS
        and end_ms - last.start_ms <= JOINED_MS
        and not last.text.endswith(SENTENCE_ENDS)
    )


def slots_ms(lines: Sequence[Line], length_ms: int) -> list[int]:
    """Return how long each line may take: until the next one begins, the last until the film ends."""
    ends = [*(line.start_ms for line in lines), length_ms][1:]
    return [end - line.start_ms for line, end in zip(lines, ends, strict=True)]


def reference(lines: Sequence[Line], place: int) -> list[Span]:
    """Return the sound that a line's voice is cloned from: its own, and its nearest neighbours' if it is short.

    A film with too little speech for the model gives what it has more than once.
    """
    near = sorted(range(len(lines)), key=lambda other: abs(other - place))
    spans: list[Span] = []
    had_ms = 0
    for other in near:
        if had_ms >= GOOD_REFERENCE_MS:
            break
        span = lines[other].span
        kept_ms = min(span.end_ms - span.start_ms, MOST_REFERENCE_MS - had_ms)
        spans.append(Span(span.start_ms, span.start_ms + kept_ms))
        had_ms += kept_ms
    spans.sort(key=lambda span: span.start_ms)
    return spans * -(-LEAST_REFERENCE_MS // had_ms)


def pace(speech_ms: int, window_ms: int, slot_ms: int) -> float:
    """Return the tempo at which a line's speech fits: near its original's length, and if it can, before the next line.

    `window_ms` is how long the original speaks, `slot_ms` how long it is until the next line.
    """
    gentle = min(max(speech_ms / window_ms, SLOWEST), BRISK)
    if speech_ms / gentle <= slot_ms:
        return gentle
    return min(speech_ms / slot_ms, FASTEST)
