"""A transcript as files: JSON with the times of segments and words, and subtitles in both formats that players read.

Source: WebVTT (W3C); SubRip has no standard, its times have commas.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from deployments.models.contract import Media


@dataclass(frozen=True, slots=True)
class Word:
    """One word and when it is said, to a hundredth of a second. `probability` is the model's own, 0 to 1.

    Units: milliseconds from the beginning.
    """

    start_ms: int
    end_ms: int
    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """Some words and when they are said. Units: milliseconds from the beginning."""

    start_ms: int
    end_ms: int
    text: str
    words: tuple[Word, ...] = ()

    def later(self, by_ms: int) -> Segment:
        """Return the segment as it is said so much later."""
        words = tuple(replace(w, start_ms=w.start_ms + by_ms, end_ms=w.end_ms + by_ms) for w in self.words)
        return Segment(self.start_ms + by_ms, self.end_ms + by_ms, self.text, words)


def one_line(text: str) -> str:
    """Return words without what would end a subtitle's block or look like its times."""
    printed = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printed.replace("\ufffd", "").replace("-->", "→").split())


def rising(segments: Sequence[Segment]) -> list[Segment]:
    """Return segments that last and do not overlap: a model may err, players of subtitles do not forgive it.

    The words of one that would not last go to the one before. Words lie within their segment, in their order.
    """
    risen: list[Segment] = []
    for segment in segments:
        start_ms = max(risen[-1].end_ms if risen else 0, segment.start_ms)
        if segment.end_ms > start_ms:
            risen.append(replace(segment, start_ms=start_ms))
        elif risen:
            last = risen[-1]
            risen[-1] = replace(last, text=f"{last.text} {segment.text}", words=last.words + segment.words)
    return [replace(segment, words=_within(segment)) for segment in risen]


def _within(segment: Segment) -> tuple[Word, ...]:
    words: list[Word] = []
    at_ms = segment.start_ms
    for word in segment.words:
        start_ms = min(max(at_ms, word.start_ms), segment.end_ms)
        at_ms = min(max(start_ms, word.end_ms), segment.end_ms)
        words.append(replace(word, start_ms=start_ms, end_ms=at_ms))
    return tuple(words)


def files(segments: Sequence[Segment], facts: dict[str, Any]) -> list[Media]:
    """Return the transcript as JSON, SubRip and WebVTT."""
    text = " ".join(segment.text for segment in segments)
    whole = {**facts, "text": text, "segments": [_shown(segment) for segment in segments]}
    srt = "".join(
        f"{number}\n{_clock(s.start_ms, ',')} --> {_clock(s.end_ms, ',')}\n{s.text}\n\n"
        for number, s in enumerate(segments, 1)
    )
    notice = f"NOTE {facts['notice']}\n\n" if "notice" in facts else ""
    vtt = f"WEBVTT\n\n{notice}" + "".join(
        f"{_clock(s.start_ms, '.')} --> {_clock(s.end_ms, '.')}\n{_escaped(s.text)}\n\n" for s in segments
    )
    return [
        Media("application/json", json.dumps(whole, ensure_ascii=False).encode(), {**facts, "text": text}),
        Media("application/x-subrip", srt.encode(), facts),
        Media("text/vtt", vtt.encode(), facts),
    ]


def _shown(segment: Segment) -> dict[str, Any]:
    return {
        "start": segment.start_ms / 1000,
        "end": segment.end_ms / 1000,
        "text": segment.text,
        "words": [
            {
                "start": word.start_ms / 1000,
                "end": word.end_ms / 1000,
                "word": word.text,
                "probability": round(word.probability, 3),
            }
            for word in segment.words
        ],
    }


def _clock(at_ms: int, point: str) -> str:
    """Write a time as subtitles do: hours, minutes, seconds, milliseconds."""
    seconds, milli = divmod(at_ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{milli:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
