"""Numbers of JSON, which has one kind, as the two kinds that fields are made of. They are exact on both sides."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

MAX_WHOLE: Final = 2**53 - 1
"""The largest whole number that every client's JSON holds exactly (RFC 8259, section 6)."""


def whole_as_decimal(value: object) -> object:
    """Let a whole JSON number stand for its decimal."""
    return Decimal(value) if isinstance(value, int) and not isinstance(value, bool) else value


def decimal_as_whole(value: object) -> object:
    """Let `5.0` stand for 5: to JSON, and to clients that write it so, they are one number."""
    if isinstance(value, Decimal) and -MAX_WHOLE <= value <= MAX_WHOLE and value == value.to_integral_value():
        return int(value)
    return value
