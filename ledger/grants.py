"""Grants: credits by source, burned in the order priority, expiry, age.

A spend does not say which grant it takes from: the order is fixed, so that it can be worked out later, off the hot
path (`allocate`), as long as that is done before an expiry, a refund or a clawback is decided. A debit draws only on
grants that were opened before it. The account's lock is held throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from sqlalchemy import func, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.queries import load_queries
from ledger.accounts import Purse, lock_one
from ledger.tables import grants as grants_table
from ledger.transfers import Posting, post

Source = Literal["purchase", "grant", "referral", "adjustment"]
queries: Final = load_queries(Path(__file__).with_name("grants.sql"))

PRIORITY: Final[dict[Source, int]] = {"referral": 50, "grant": 50, "adjustment": 50, "purchase": 100}
"""What was given burns before what was paid for. Steps leave room for an operator's own."""
EXPIRED_HOUSE: Final = "revenue:expired"
ALLOCATED_AT_ONCE: Final = 5_000
"""Entries worked out in one go: some 20 ms under the account's lock."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How credits may be used: from when, until when, in which order, and the payment that they came from."""

    starts_at: datetime | None = None
    expires_at: datetime | None = None
    priority: int | None = None
    purchase_id: str | None = None


@dataclass(frozen=True, slots=True)
class NewGrant:
    """Credits to be given. Units: tokens. `reference` is unique for the account and source."""

    account_id: int
    source: Source
    house: str
    amount_tokens: int
    reference: str
    reason: str | None
    terms: Terms


@dataclass(slots=True)
class _Lot:
    """An open grant as the drawing sees it."""

    id: int
    remaining: int
    opened_version: int
    expired: bool


@dataclass(frozen=True, slots=True)
class Draw:
    """What the debits of a run of versions drew on one grant; negative: what a refund gave back to it."""

    grant_id: int
    from_version: int
    to_version: int
    amount: int


async def open_grant(conn: AsyncConnection, new: NewGrant, event_at: datetime) -> int:
    """Post the credits and open their grant; returns the transfer's id. The reference is known to be new."""
    posted = (await post(conn, [_posting(new, event_at)]))[0]
    values = _row(new, event_at) | {"transfer_id": posted.transfer_id, "opened_version": posted.version}
    await conn.execute(insert(grants_table).values(values))
    if new.terms.expires_at:
        await conn.execute(queries["due_by"], {"account_id": new.account_id, "at": new.terms.expires_at})
    return posted.transfer_id


async def schedule_grant(conn: AsyncConnection, new: NewGrant, starts_at: datetime) -> None:
    """Write down credits that start later: they are in nobody's balance until then."""
    await conn.execute(insert(grants_table).values(_row(new, starts_at)))
    await conn.execute(queries["due_by"], {"account_id": new.account_id, "at": starts_at})


def _posting(new: NewGrant, event_at: datetime) -> Posting:
    return Posting(
        kind=new.source,
        account_id=new.account_id,
        house=new.house,
        amount_tokens=new.amount_tokens,
        tool=new.source,
        reference=new.reference,
        event_at=event_at,
        reason=new.reason,
    )


def _row(new: NewGrant, starts_at: datetime) -> dict[str, object]:
    terms = new.terms
    return {
        "account_id": new.account_id,
        "source": new.source,
        "reference": new.reference,
        "house": new.house,
        "reason": new.reason,
        "purchase_id": terms.purchase_id,
        "amount": new.amount_tokens,
        "remaining": new.amount_tokens,
        "priority": PRIORITY[new.source] if terms.priority is None else terms.priority,
        "starts_at": starts_at,
        "expires_at": terms.expires_at,
    }


async def allocate(conn: AsyncConnection, purse: Purse, at_most: int | None = None) -> None:
    """Work out which grants the account's debits drew on, up to its last entry (or `at_most` entries further)."""
    up_to = purse.version if at_most is None else min(purse.version, purse.allocated_version + at_most)
    if up_to == purse.allocated_version:
        return
    debits = (
        await conn.execute(
            queries["undrawn_debits"],
            {"account_id": purse.account_id, "after": purse.allocated_version, "up_to": up_to},
        )
    ).all()
    if debits:
        lots = await _lots(conn, purse, await clock(conn))
        await write_draws(conn, purse, _burn(lots, [(row.version, row.amount) for row in debits]))
    await mark_allocated(conn, purse, up_to)


def _burn(lots: list[_Lot], debits: Sequence[tuple[int, int]]) -> list[Draw]:
    """Take each debit from the lots in their order; neighbours that drew on one lot alone make one run."""
    draws: list[Draw] = []
    run: Draw | None = None  # the last draw, while a further debit may still join it
    for version, amount in debits:
        needed = amount
        taken: list[Draw] = []
        for lot in lots:
            if lot.opened_version >= version or not lot.remaining:
                continue
            part = min(needed, lot.remaining)
            lot.remaining -= part
            needed -= part
            taken.append(Draw(lot.id, version, version, part))
            if not needed:
                break
        assert not needed, "the books spent more than was granted"
        lots[:] = [lot for lot in lots if lot.remaining]
        if run and len(taken) == 1 and taken[0].grant_id == run.grant_id:
            run = replace(run, to_version=version, amount=run.amount + amount)
            draws[-1] = run
        else:
            draws += taken
            run = taken[0] if len(taken) == 1 else None
    return draws


async def settle(conn: AsyncConnection, purse: Purse, now: datetime | None = None) -> None:
    """Open the grants whose start has come and take what is left of those that expired; brings the purse up to date.

    What holds have set aside stays, in burning order: work under way is paid with the credits it began with.
    """
    now = now or await clock(conn)
    starting = await conn.execute(queries["starting_grants"], {"account_id": purse.account_id, "now": now})
    for row in starting.all():
        await start(conn, purse, row, now)
    await _expire(conn, purse, now)
    await conn.execute(queries["set_due"], {"account_id": purse.account_id, "now": now})
    purse.due = False


async def start(conn: AsyncConnection, purse: Purse, grant: Row[tuple[object, ...]], now: datetime) -> None:
    """Open a grant that was scheduled: its credits enter the balance."""
    posting = Posting(
        grant.source, purse.account_id, grant.house, grant.amount, grant.source, grant.reference, now,
        reason=grant.reason,
    )  # fmt: skip
    posted = (await post(conn, [posting]))[0]
    await conn.execute(
        update(grants_table)
        .where(grants_table.c.id == grant.id)
        .values(transfer_id=posted.transfer_id, opened_version=posted.version)
    )
    purse.balance += grant.amount
    purse.version = posted.version


async def start_early(conn: AsyncConnection, purse: Purse) -> None:
    """Open every grant that was promised for later; brings the purse up to date."""
    now = await clock(conn)
    await conn.execute(
        update(grants_table)
        .where(
            grants_table.c.account_id == purse.account_id,
            grants_table.c.transfer_id.is_(None),
            grants_table.c.starts_at > now,
        )
        .values(starts_at=now)
    )
    await settle(conn, purse, now)


async def _expire(conn: AsyncConnection, purse: Purse, now: datetime) -> None:
    await allocate(conn, purse)
    reserved = purse.held
    for lot in await _lots(conn, purse, now):
        kept = min(reserved, lot.remaining)
        reserved -= kept
        amount = lot.remaining - kept
        if not lot.expired or not amount:
            continue
        posting = Posting(
            kind="expiry",
            account_id=purse.account_id,
            house=EXPIRED_HOUSE,
            amount_tokens=-amount,
            tool="expiry",
            reference=f"{lot.id}:{purse.version}",
            event_at=now,
        )
        await post_drawn(conn, purse, posting, {lot.id: amount})


async def post_drawn(conn: AsyncConnection, purse: Purse, posting: Posting, by_grant: dict[int, int]) -> int:
    """Post a movement that names its grants, and note what it drew on each (negative: gave back) at once.

    The account is worked out up to its last entry (`allocate`). Returns the transfer's id.
    """
    assert purse.allocated_version == purse.version, "worked out before it is decided"
    posted = (await post(conn, [posting]))[0]
    await write_draws(
        conn,
        purse,
        [Draw(grant_id, posted.version, posted.version, part) for grant_id, part in by_grant.items()],
    )
    purse.balance += posting.amount_tokens
    purse.version = posted.version
    await mark_allocated(conn, purse, posted.version)
    return posted.transfer_id


async def give_back(
    conn: AsyncConnection, account_id: int, transfer_id: int, amount_tokens: int
) -> dict[int, int]:
    """Say which grants get a part of a debit back, for `post_drawn`: what was drawn last comes first.

    The account is worked out up to its last entry (`allocate`).
    """
    drawn = await conn.execute(queries["drawn_by"], {"account_id": account_id, "transfer_id": transfer_id})
    left = amount_tokens
    by_grant: dict[int, int] = {}
    for row in drawn:
        part = min(row.amount, left)
        left -= part
        if part:
            by_grant[row.grant_id] = -part
    assert not left, "a debit was drawn whole"
    return by_grant


async def write_draws(conn: AsyncConnection, purse: Purse, draws: Sequence[Draw]) -> None:
    """Write draws and what then remains of their grants."""
    await conn.execute(
        queries["draw"],
        {
            "account_id": purse.account_id,
            "grant_ids": [d.grant_id for d in draws],
            "from_versions": [d.from_version for d in draws],
            "to_versions": [d.to_version for d in draws],
            "amounts": [d.amount for d in draws],
        },
    )


async def mark_allocated(conn: AsyncConnection, purse: Purse, version: int) -> None:
    """Note up to which entry the draws are worked out."""
    purse.allocated_version = version
    await conn.execute(queries["set_allocated"], {"account_id": purse.account_id, "version": version})


async def clock(conn: AsyncConnection) -> datetime:
    """Return the database's time: one clock decides over starts and expiries, whoever asks."""
    now: datetime = (await conn.execute(select(func.clock_timestamp()))).scalar_one()
    return now


async def settle_due(conn: AsyncConnection, account_id: int) -> None:
    """Settle one account that a sweep found due."""
    purse = await lock_one(conn, account_id)
    if purse.due:
        await settle(conn, purse)


async def allocate_behind(conn: AsyncConnection, account_id: int) -> None:
    """Work out a bounded part of what an account is behind."""
    await allocate(conn, await lock_one(conn, account_id), ALLOCATED_AT_ONCE)


async def accounts_due(conn: AsyncConnection, limit: int) -> list[int]:
    """Return accounts with a grant that starts or expires by now."""
    return list((await conn.scalars(queries["accounts_due"], {"limit": limit})).all())


async def accounts_behind(conn: AsyncConnection, after: int, limit: int) -> tuple[list[int], int]:
    """Look at `limit` accounts after an id; returns those behind and where to go on (0: from the start)."""
    rows = (await conn.execute(queries["accounts_behind"], {"after": after, "limit": limit})).all()
    return [row.id for row in rows if row.behind], rows[-1].id if len(rows) == limit else 0


async def _lots(conn: AsyncConnection, purse: Purse, now: datetime) -> list[_Lot]:
    rows = await conn.execute(queries["open_grants"], {"account_id": purse.account_id, "now": now})
    return [_Lot(row.id, row.remaining, row.opened_version, bool(row.expired)) for row in rows]
