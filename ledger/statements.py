"""What became of an account's money: its balance at any time, its statement, its usage, the cost of one reference.

Reads alone, without locks, all along indexes that the writing needs anyway. An account's entries are numbered
without a gap in the order of their commits, and every writer stamps a transfer (`created_at`, the database's
`clock_timestamp()`) under the account's lock: stamps never fall while versions rise, within a batch and across
batches. A time therefore stands for a version, found by halving; no index by time is paid for by every spend.

Where that order does not hold, an answer is still a balance that the account had:
- A database clock that was set back shows some times twice; the answer is that of one of the two.
- Transfers written by 0.1.0 bear the start of their transaction, off by as long as it waited for the account's lock.
- A time within the last moments may still gain an entry: stamped before, committed after the read.

Units: tokens, and thousandths of a tool's unit (`units_milli`). Times are those of writing, unless they say `happened`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, Final

from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import InvalidRequest, NotFound
from kit.queries import load_queries
from ledger.transfers import Kind

queries: Final = load_queries(Path(__file__).with_name("statements.sql"))

LINES_A_PAGE: Final = 500
"""Some 100 kB of JSON: what a client reads in one go."""
DAYS_OF_USAGE: Final = 366
"""A year, a leap year too: what one table or chart shows, and a bound on what one question reads."""


@dataclass(frozen=True, slots=True)
class Line:
    """One entry of an account with its transfer. Units: tokens.

    `version` numbers the account's entries from 1. `reverses_id`: the transfer that this one gives back or undoes;
    `hold_id`: the hold that it resolved. `happened_at` is the caller's or provider's time, `written_at` the books'.
    """

    version: int
    transfer_id: int
    kind: Kind
    tool: str
    reference: str
    reason: str | None
    key_id: str | None
    units_milli: int | None
    price_version: int | None
    amount_tokens: int
    balance_after_tokens: int
    happened_at: datetime
    written_at: datetime
    reverses_id: int | None
    hold_id: str | None


@dataclass(frozen=True, slots=True)
class Statement:
    """A page of lines, newest first. `next_before` asks for the page after it; None: this is the last."""

    lines: list[Line]
    next_before: int | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What one key used of one tool on one UTC day. Units: tokens; thousandths of the tool's unit.

    `units_milli` counts the charges that say their units (spends; a job's says none). `refunded_tokens` was
    given back on that day, whenever it was charged.
    """

    day: date
    tool: str
    key_id: str | None
    charges: int
    units_milli: int
    charged_tokens: int
    refunded_tokens: int

    @property
    def net_tokens(self) -> int:
        """What the day cost; negative when more was given back than charged."""
        return self.charged_tokens - self.refunded_tokens


@dataclass(frozen=True, slots=True)
class Cost:
    """What one reference cost so far. Units: tokens. `held_tokens` is set aside for it and not charged yet."""

    charged_tokens: int
    refunded_tokens: int
    held_tokens: int
    lines: list[Line]
    """The charges and what was given back of them, oldest first."""

    @property
    def net_tokens(self) -> int:
        """What was charged and not given back."""
        return self.charged_tokens - self.refunded_tokens


async def balance_at(conn: AsyncConnection, account_id: int, at: datetime) -> int:
    """Return the balance after the last entry written at or before a time; 0 before the first.

    Of entries with the same stamp the later one counts. Raises: NotFound.
    """
    return int((await _written_by(conn, account_id, [(at, True)]))[0].balance)


async def statement(  # noqa: PLR0913  # a page's bounds
    conn: AsyncConnection,
    account_id: int,
    *,
    limit: int,
    before: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Statement:
    """Return a page of an account's entries, newest first: those with a version below `before`.

    Pages joined are the whole as it was when the first was read, whatever is written between them. `since` (included)
    and `until` (not included) bound the time of writing. Raises: NotFound; InvalidRequest for a limit out of bounds.
    """
    if not 1 <= limit <= LINES_A_PAGE:
        raise InvalidRequest("limit", f"must be between 1 and {LINES_A_PAGE}")
    after, up_to = await _versions(conn, account_id, since, until, included=False)
    if before is not None:
        up_to = max(min(up_to, before - 1), 0)
    # Versions have no gap: where the page ends, and whether another follows it, is known beforehand.
    last = max(after, up_to - limit) + 1
    rows = await conn.execute(queries["lines"], {"account_id": account_id, "after": last - 1, "up_to": up_to})
    return Statement([_line(row) for row in rows], last if after + 1 < last <= up_to else None)


async def usage(conn: AsyncConnection, account_id: int, since: date, until: date) -> list[Usage]:
    """Return what was charged and given back on each UTC day of a period, both ends included, by tool and key.

    A charge counts on the day it was written, a refund or a reversal of one on its own day: a day that is over does
    not change, and the net of all days is what charges and their refunds took from the balance.
    Reads the period's entries alone. Raises: NotFound; InvalidRequest for no days or too many.
    """
    if until < since:
        raise InvalidRequest("until", "must not be before the first day")
    if (until - since).days >= DAYS_OF_USAGE:
        raise InvalidRequest("until", f"the period may have at most {DAYS_OF_USAGE} days")
    after, up_to = await _versions(
        conn,
        account_id,
        datetime.combine(since, time.min, UTC),
        datetime.combine(until, time.max, UTC),  # to the last microsecond, the finest that a stamp knows
        included=True,
    )
    rows = await conn.execute(
        queries["usage"], {"account_id": account_id, "after": after, "up_to": max(after, up_to)}
    )
    return [Usage(**row) for row in rows.mappings()]


async def cost_of(conn: AsyncConnection, account_id: int, reference: str, tool: str | None = None) -> Cost:
    """Return what was charged, given back and is held under a reference (a job's is its id), one tool's or any's.

    Raises: NotFound when nothing was charged or held under it.
    """
    rows = (
        await conn.execute(queries["cost"], {"account_id": account_id, "reference": reference, "tool": tool})
    ).all()
    moved = [row for row in rows if row.version is not None]
    if not moved and not rows[0].holds:
        raise NotFound("reference")
    return Cost(
        charged_tokens=-sum(row.amount_tokens for row in moved if not row.back),
        refunded_tokens=sum(row.amount_tokens for row in moved if row.back),
        held_tokens=rows[0].held,
        lines=[_line(row) for row in moved],
    )


async def _versions(
    conn: AsyncConnection,
    account_id: int,
    since: datetime | None,
    until: datetime | None,
    *,
    included: bool,
) -> tuple[int, int]:
    """Return the last version before a period and the last one in it; `included`: the period's last instant is."""
    instants = [(until, included)] if since is None else [(until, included), (since, False)]
    found = await _written_by(conn, account_id, instants)
    return (found[1].version if since is not None else 0), found[0].version


async def _written_by(
    conn: AsyncConnection, account_id: int, instants: Sequence[tuple[datetime | None, bool]]
) -> Sequence[Row[Any]]:
    rows = (
        await conn.execute(
            queries["written_by"],
            {
                "account_id": account_id,
                "instants": [instant for instant, _ in instants],
                "included": [included for _, included in instants],
            },
        )
    ).all()
    if not rows:
        raise NotFound("account")
    return rows


def _line(row: Row[Any]) -> Line:
    return Line(**{name: getattr(row, name) for name in Line.__slots__})
