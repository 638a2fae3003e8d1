"""Times and days in a query: RFC 3339 times with their offset, and UTC days."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from kit.errors import InvalidRequest


def instant(field: str, sent: str) -> datetime:
    """Return an RFC 3339 time in UTC. Raises: InvalidRequest, naming the field."""
    try:
        return _instant(sent)
    except ValueError as error:
        raise InvalidRequest(field, str(error)) from error


def _instant(sent: object) -> datetime:
    try:
        # A `+` that was not escaped in an address arrives as a space.
        moment = datetime.fromisoformat(sent.replace(" ", "+")) if isinstance(sent, str) else None
        if moment is not None and moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError("must be a time with its offset, such as 2027-01-31T00:00:00Z")


def _day(sent: object) -> date:
    try:
        if isinstance(sent, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", sent, re.ASCII):  # no ISO weeks
            return date.fromisoformat(sent)
    except ValueError:
        pass
    raise ValueError("must be a day such as 2027-01-31")


Instant = Annotated[
    datetime, BeforeValidator(_instant), WithJsonSchema({"type": "string", "format": "date-time"})
]
Day = Annotated[date, BeforeValidator(_day), WithJsonSchema({"type": "string", "format": "date"})]
