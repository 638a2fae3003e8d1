"""Reading a job's input field by field: each reader returns a checked value, or the default for none or null.

Every reader raises `ModelRefused`, which names the field and says what it takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from deployments.models.contract import GenerateRequest, InputFile, ModelRefused

MAX_SEED: Final = 2**32 - 1
"""Every client's JSON numbers hold it exactly."""


def refuse_unknown(given: Mapping[str, Any], task: str, known: frozenset[str]) -> None:
    """Refuse a field that the task does not have: a misspelt setting must not be ignored in silence."""
    if unknown := sorted(given.keys() - known):
        raise ModelRefused(unknown[0], f"is not a field of {task}; it takes {', '.join(sorted(known))}")


def text(given: Mapping[str, Any], field: str, default: str, max_chars: int) -> str:
    """Return a string of at most `max_chars` that can be encoded."""
    value = given.get(field)
    if value is None:
        return default
    if not isinstance(value, str):
        raise ModelRefused(field, "must be a string")
    if len(value) > max_chars:
        raise ModelRefused(field, f"is longer than {max_chars} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ModelRefused(field, "contains half of a surrogate pair") from None
    return value


def choice(given: Mapping[str, Any], field: str, choices: Sequence[str], default: str) -> str:
    """Return one of the choices."""
    value = given.get(field)
    if value is None:
        return default
    if not isinstance(value, str) or value not in choices:
        raise ModelRefused(field, f"must be one of {', '.join(choices)}")
    return value


def integer(given: Mapping[str, Any], field: str, low: int, high: int, default: int) -> int:
    """Return a whole number from `low` to `high`; true and false are not numbers."""
    value = given.get(field)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ModelRefused(field, f"must be a whole number from {low} to {high}")
    return value


def number(given: Mapping[str, Any], field: str, low: float, high: float, default: float) -> float:
    """Return a number from `low` to `high`, which NaN is not."""
    value = given.get(field)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ModelRefused(field, f"must be a number from {low:g} to {high:g}")
    return float(value)


def seed(request: GenerateRequest) -> int:
    """Return the job's seed; without one, it is derived from the job's id.

    Jobs then differ from each other, and a second attempt at one job makes what the first would have made.
    """
    drawn = int.from_bytes(hashlib.sha256(request.job_id.encode()).digest()[:4])
    return integer(request.input, "seed", 0, MAX_SEED, drawn)


def file(request: GenerateRequest, name: str) -> InputFile:
    """Return a media input that the task cannot do without."""
    found = request.media.get(name)
    if found is None:
        raise ModelRefused(f"{name}Url", f"give {name}Url or {name}FileId")
    return found


def truth(given: Mapping[str, Any], field: str, *, default: bool) -> bool:
    """Return true or false."""
    value = given.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ModelRefused(field, "must be true or false")
    return value


def paid_seconds(request: GenerateRequest, most: int, default: int) -> int:
    """Return how long a work of a length in whole seconds shall be: not longer than was paid for."""
    seconds = integer(request.input, "durationSeconds", 1, most, default)
    if seconds * 1000 > request.units_milli:
        raise ModelRefused("durationSeconds", "is longer than what was paid for")
    return seconds
