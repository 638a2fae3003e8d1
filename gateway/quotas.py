"""Counters of requests: exact for all replicas together, because one row in Postgres decides.

A window opens with an identity's first request and lasts its length; within it the first `limit` requests are
allowed, in the order of their counting, and no other. The next request after its end opens a new one.

The counters are unlogged: counting waits for no disk. A crash of Postgres may forget them, which allows some
requests more; money never depends on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

import orjson
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.errors import RateLimited
from kit.errors import AppError
from kit.queries import load_queries
from ledger.keys import Credential

queries: Final = load_queries(Path(__file__).with_suffix(".sql"))

KEPT: Final = timedelta(minutes=5)
"""A caller who is back within minutes finds the row there; one who is not leaves no trace."""
FORGOTTEN_A_SWEEP: Final = 10_000
"""A flood of unknown keys makes a row each; a sweep stays short all the same."""


@dataclass(frozen=True, slots=True)
class Take:
    """A request to be counted in a bucket, against whoever stands behind its credential.

    `per`: the key itself, or its user with all keys together. `stranger`: whom to count where no valid key does.
    Units: `limit` requests in `window_s` seconds.
    """

    bucket: str
    per: Literal["key", "user"]
    credential: Credential | None
    stranger: str
    limit: int
    window_s: int


@dataclass(frozen=True, slots=True)
class Quota:
    """What an identity has left in its window. Units: requests; seconds."""

    bucket: str
    limit: int
    window_s: int
    remaining: int
    reset_s: int


@dataclass(frozen=True, slots=True)
class Counted:
    """The outcome of a call that carried a take, with what is left. `outcome` may be the call's own error."""

    quota: Quota
    outcome: object


def used_up(refusal: RateLimited) -> Quota:
    """Return the quota of a refused request."""
    return Quota(refusal.bucket, refusal.limit, refusal.window_s, 0, refusal.wait_s)


async def take_many(conn: AsyncConnection, takes: Sequence[Take]) -> list[Quota | AppError]:
    """Count each request, in the order given. Outcomes: Quota, or RateLimited past the limit."""
    asked = [
        {
            "at": at,
            "bucket": take.bucket,
            "per": take.per,
            "hash": take.credential.hash.hex() if take.credential else None,
            "stranger": take.stranger,
            "window_s": take.window_s,
        }
        for at, take in enumerate(takes)
    ]
    rows = await conn.execute(queries["take_many"], {"asked": orjson.dumps(asked).decode()})
    found = {row.at: row for row in rows}
    return [_outcome(take, found[at].place, found[at].reset_s) for at, take in enumerate(takes)]


def _outcome(take: Take, place: int, reset_s: int) -> Quota | AppError:
    """Decide a request by its place among those of its window."""
    if place > take.limit:
        return RateLimited(take.bucket, take.limit, take.window_s, reset_s)
    return Quota(take.bucket, take.limit, take.window_s, take.limit - place, reset_s)


async def forget_old(conn: AsyncConnection) -> int:
    """Delete counters whose window ended long ago; no one waits for it."""
    return (
        await conn.execute(queries["forget_counters"], {"kept": KEPT, "limit": FORGOTTEN_A_SWEEP})
    ).rowcount
