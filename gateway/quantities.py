"""How much of its unit a job takes, counted from its input: what a quote multiplies with the price.

Where the work itself decides, as the length of speech does, the quantity is the most that it may come to: that much
is held, no more is made, and what was made is charged. Such quantities are whole units, so that a part of a quote is
a part of its price to the token.

Units: thousandths of the tool's unit, rounded up once.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

MILLI: Final = 1000
"""Units are counted in thousandths: no unit on sale is measured finer, and integers stay exact."""

PAUSES_S: Final = 3
"""Breath before, between and after: the shortest of texts needs it too."""
SLOW_MS: Final = {"wide": 500, "number": 900, "other": 150}
"""A character of slow speech in milliseconds, at half the usual pace: Chinese and Japanese take about four characters a
second, European languages fourteen letters, and a digit is a word."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """How jobs of a task are counted: the tool's unit, and the count from a checked input."""

    unit: str
    units_milli: Callable[[Mapping[str, Any]], int]


def speech_bound_s(text: str) -> int:
    """Return the most seconds that speaking a text may take."""
    kinds = (_kind(char) for char in text)
    return PAUSES_S + -(-sum(SLOW_MS[kind] for kind in kinds) // MILLI)


def _kind(char: str) -> str:
    if unicodedata.east_asian_width(char) in "WF":
        return "wide"
    return "number" if unicodedata.category(char).startswith("N") else "other"


def _asked_seconds(job: Mapping[str, Any]) -> int:
    return int(job["durationSeconds"]) * MILLI


def _speech(job: Mapping[str, Any]) -> int:
    return speech_bound_s(job["text"]) * MILLI


ONE_PICTURE: Final = Quantity("image", lambda _: MILLI)
ASKED_SECONDS: Final = Quantity("second", _asked_seconds)
SPEECH: Final = Quantity("second", _speech)

QUANTITIES: Final[Mapping[str, Quantity]] = {
    "image.generate": ONE_PICTURE,
    "image.edit": ONE_PICTURE,
    "video.generate": ASKED_SECONDS,
    "audio.speak": SPEECH,
    "voice.clone": SPEECH,
    "music.generate": ASKED_SECONDS,
    "sfx.generate": ASKED_SECONDS,
    "audio.transcribe": Quantity("minute", lambda job: int(job["maxMinutes"]) * MILLI),
    "chat.complete": Quantity("turn", lambda _: MILLI),
    "video.dub": Quantity("minute", lambda job: int(job["maxMinutes"]) * MILLI),
    "text.translate": Quantity("character", lambda job: len(job["text"]) * MILLI),
}
"""The count of each task that this code knows."""
