"""Whose turn it is: accounts that wait for an application take turns, whatever the number of their jobs.

Start-time fair queuing (Goyal, Vin and Cheng, 1996): a job begins, in virtual time, when its account's last one
ended, and not before the clock, which is where the last claimed job began; what begins first is claimed first. An
account that comes new begins at once; one with a thousand jobs gets its next turn after everyone else who waits. A
weight of two makes turns half as long. Within an account the higher priority goes first, then the older job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.queries import load_queries

queries: Final = load_queries(Path(__file__).with_name("turns.sql"))

TURN: Final = 1_000_000
"""A turn in virtual time at weight 1: divides by any weight without a loss that anyone could notice."""


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many jobs of one account, and of one key, run at most, over all applications. None: no bound.

    An account's own number in `account_shares` goes before.
    """

    per_account: int | None = None
    per_key: int | None = None


UNBOUNDED: Final = Concurrency()


async def claim_in_turn(  # noqa: PLR0913, PLR0917  # what a claim is made of
    conn: AsyncConnection,
    runner: str,
    application: str,
    limit: int,
    lease: timedelta,
    concurrency: Concurrency,
) -> Sequence[Row[Any]]:
    """Take up to `limit` queued jobs of an application in turn, and move the turns on; returns their rows.

    Claims go one after the other: each sees the turns that the last one left, and what runs at the other applications.
    """
    await conn.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("turns", 0))))
    rows = await conn.execute(
        queries["claim_in_turn"],
        {
            "runner": runner,
            "application": application,
            "limit": limit,
            "lease": lease,
            "turn": TURN,
            "account_limit": concurrency.per_account,
            "key_limit": concurrency.per_key,
        },
    )
    return rows.all()


async def places_in_line(conn: AsyncConnection, job_ids: Sequence[str]) -> dict[str, int]:
    """Return the place of each queued job, 1 being next, if nobody else submits and all jobs take as long."""
    if not job_ids:
        return {}
    rows = await conn.execute(queries["places_in_line"], {"ids": list(job_ids), "turn": TURN})
    return {row.id: row.place for row in rows}


async def forget_turns(conn: AsyncConnection) -> None:
    """Delete turns that the clock has passed: their accounts would begin at the clock anyway."""
    await conn.execute(queries["forget_turns"])
