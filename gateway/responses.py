"""Answers as bytes: made once by the route, with money in two places and times in UTC.

Routes return these ready-made responses; their models are there for the OpenAPI document, and tests hold the
two together. Serializing through a model costs more than most of our handlers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from starlette.responses import Response

from gateway.catalog import TOKENS_PER_CREDIT
from gateway.quantities import MILLI

_OPTIONS: Final = orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC
_NOT_STORED: Final = {"cache-control": "no-store"}
"""Balances, keys and signed URLs belong in no cache: an answer may be kept only where its route says so."""

REPLAY: Final = {"idempotent-replayed": "true"}
"""The header of a first answer that is sent again."""


def dump(body: Any) -> bytes:
    """Serialize an answer. `Fragment`s go in as they are."""
    return orjson.dumps(body, option=_OPTIONS)


def json_response(
    body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an answer that no cache keeps, unless `headers` say otherwise."""
    return Response(
        dump(body),
        status,
        {**_NOT_STORED, **headers} if headers else _NOT_STORED,
        media_type="application/json",
    )


def in_credits(tokens: int) -> orjson.Fragment:
    """Write tokens as a JSON number of credits with two places, without a float on the way."""
    return orjson.Fragment(credits_text(tokens))


def in_units(units_milli: int) -> orjson.Fragment:
    """Write thousandths of a unit as a JSON number of units, without a float on the way."""
    return orjson.Fragment(units_text(units_milli))


def amount(tokens: int) -> dict[str, Any]:
    """Write an amount of money in both its units."""
    return {"credits": in_credits(tokens), "tokens": tokens}


def credits_text(tokens: int) -> str:
    """Return tokens as credits with two places: 150 is `1.50`."""
    whole, rest = divmod(abs(tokens), TOKENS_PER_CREDIT)
    return f"{'-' if tokens < 0 else ''}{whole}.{rest:02d}"


def units_text(units_milli: int) -> str:
    """Return thousandths as units with the places that they need: 1500 is `1.5`, 2000 is `2`. Never negative."""
    whole, rest = divmod(units_milli, MILLI)
    return f"{whole}.{rest:03d}".rstrip("0") if rest else str(whole)
