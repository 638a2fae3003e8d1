"""A transcript as files: JSON with the times of segments and words, and subtitles in both formats that players read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from deployments.models.contract import Media
from deployments.models.subtitles import Subtitle, one_line, srt, vtt

SENTENCE_ENDS: Final = tuple(".?!…。？！।؟")
CLAUSE_ENDS: Final = (*SENTENCE_ENDS, *",;:，；：、،")
TITLE: Final = re.compile(r"[^\W\d_a-z][^\W\d_]{0,2}\.")
"""'Mr.', 'St.', 'J.': a point that ends no sentence, unless a pause says so."""
PAUSE_MS: Final = 1_000
"""Who is silent for so long has ended what was being said; a subtitle that stays would be read again."""
BREATH_MS: Final = 200
"""A shorter pause is within a word as often as between two."""
LONGEST_MS: Final = 7_000
"""What stays on a screen for longer is read twice. Source: Netflix, "Timed Text Style Guide: General Requirements"."""


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


def segments(words: Sequence[Word]) -> list[Segment]:
    """Return words as segments: sentences, parted at pauses too, and none of several words longer than one reads.

    A word's text begins with the space before it, where its language has spaces.
    """
    sentences: list[list[Word]] = []
    for word in words:
        if not sentences or _ends(sentences[-1][-1], word):
            sentences.append([])
        sentences[-1].append(word)
    return [_segment(part) for sentence in sentences for part in _short(sentence) if _line(part)]


def _ends(word: Word, following: Word) -> bool:
    pause_ms = following.start_ms - word.end_ms
    if pause_ms >= PAUSE_MS:
        return True
    said = word.text.strip()
    return said.endswith(SENTENCE_ENDS) and not (pause_ms < BREATH_MS and TITLE.fullmatch(said))


def _short(words: list[Word]) -> list[list[Word]]:
    """Part a long sentence near its middle, where there is a clause's end or a breath if anywhere."""
    begin_ms, end_ms = words[0].start_ms, words[-1].end_ms
    if len(words) == 1 or end_ms - begin_ms <= LONGEST_MS:
        return [words]

    def fitness(place: int) -> tuple[bool, int]:
        before, after = words[place - 1], words[place]
        parts = before.text.rstrip().endswith(CLAUSE_ENDS) or after.start_ms - before.end_ms >= BREATH_MS
        return parts, -abs(begin_ms + end_ms - before.end_ms - after.start_ms)

    middle = max(range(1, len(words)), key=fitness)
    return [*_short(words[:middle]), *_short(words[middle:])]


def _segment(words: Sequence[Word]) -> Segment:
    shown = tuple(replace(word, text=text) for word in words if (text := one_line(word.text)))
    return Segment(words[0].start_ms, words[-1].end_ms, _line(words), shown)


def _line(words: Sequence[Word]) -> str:
    return one_line("".join(word.text for word in words))


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
    shown = [Subtitle(each.start_ms, each.end_ms, each.text) for each in segments]
    return [
        Media("application/json", json.dumps(whole, ensure_ascii=False).encode(), {**facts, "text": text}),
        Media("application/x-subrip", srt(shown), facts),
        Media("text/vtt", vtt(shown, facts.get("notice", "")), facts),
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
