"""What an account used in a period of days: charges and what was given back of them, by day, tool, task and key.

Read from the books alone, along their indexes; the task is that of the job whose hold was captured.

Units: tokens, and thousandths of a tool's unit (`units_milli`).
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Final, Literal

from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import InvalidRequest
from kit.queries import load_queries
from ledger.statements import versions_in

queries: Final = load_queries(Path(__file__).with_name("usage.sql"))

Dimension = Literal["day", "tool", "task", "key"]
DIMENSIONS: Final[tuple[Dimension, ...]] = ("day", "tool", "task", "key")
"""What usage can be split by, in the order in which its rows are sorted."""
EVERY_DIMENSION: Final[frozenset[Dimension]] = frozenset(DIMENSIONS)
DAYS_OF_USAGE: Final = 366
"""A year, a leap year too: what one table or chart shows, and a bound on what one question reads."""
ROWS_OF_USAGE: Final = 10_000
"""Some 2 MB of JSON. A year by day has 366 rows; only many keys a day come near."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used on one UTC day, of one tool, for one task, with one key; None for what was not asked apart.

    `task` is also None for a charge without a job, `key_id` for one without a key. `units_milli` counts a spend's
    units and a charged job's quoted ones. `refunded_tokens` was given back on that day, whenever it was charged.
    Units: tokens; thousandths of the tool's unit.
    """

    day: date | None
    tool: str | None
    task: str | None
    key_id: str | None
    key_prefix: str | None
    charges: int
    units_milli: int
    charged_tokens: int
    refunded_tokens: int

    @property
    def net_tokens(self) -> int:
        """What it cost; negative when more was given back than charged."""
        return self.charged_tokens - self.refunded_tokens


async def usage(
    conn: AsyncConnection,
    account_id: int,
    since: date,
    until: date,
    by: AbstractSet[Dimension] = EVERY_DIMENSION,
) -> list[Usage]:
    """Return what was charged and given back on the UTC days of a period, both ends included.

    A charge counts on the day it was written, a refund or a reversal of one on its own day: a day that is over does
    not change, and the net of all days is what charges and their refunds took from the balance.
    Reads the period's entries alone. Raises: NotFound; InvalidRequest for no days, too many, or too many rows.
    """
    if until < since:
        raise InvalidRequest("until", "must not be before the first day")
    if (until - since).days >= DAYS_OF_USAGE:
        raise InvalidRequest("until", f"the period may have at most {DAYS_OF_USAGE} days")
    after, up_to = await versions_in(
        conn,
        account_id,
        datetime.combine(since, time.min, UTC),
        datetime.combine(until, time.max, UTC),  # to the last microsecond, the finest that a stamp knows
        included=True,
    )
    found = await conn.execute(
        queries["usage"],
        {
            "account_id": account_id,
            "after": after,
            "up_to": max(after, up_to),
            "limit": ROWS_OF_USAGE + 1,
            **{f"by_{dimension}": dimension in by for dimension in DIMENSIONS},
        },
    )
    rows = [Usage(**row) for row in found.mappings()]
    if len(rows) > ROWS_OF_USAGE:
        raise InvalidRequest(
            "groupBy", f"gives more than {ROWS_OF_USAGE} rows; ask for fewer days or group by less"
        )
    return rows
