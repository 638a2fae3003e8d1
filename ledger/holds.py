"""Money set aside before the work: held, then captured, voided or expired - once.

A hold lowers what is free to spend and moves nothing. A capture takes the actual cost and frees the rest in the
same statement; a void or an expiry frees all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import AppError, NotFound
from ledger import debts
from ledger.accounts import Purse, lock_one, queries
from ledger.errors import HoldResolved
from ledger.payers import Payer, save_caps
from ledger.tables import holds
from ledger.transfers import Posting, post


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """What to set aside. `reference` is unique for the account and tool, for ever."""

    id: str
    payer: Payer
    tool: str
    reference: str
    amount_tokens: int
    price_version: int
    expires_at: datetime | None
    """None: it lives as long as the job that it belongs to."""


async def place(conn: AsyncConnection, requests: Sequence[HoldRequest]) -> list[int | AppError]:
    """Hold each amount that its payer may spend, in the order given; returns what is then free, or the refusal.

    The payers' purses are locked and brought up to date, so that a later request of the same batch is decided on
    what the earlier ones left. One refusal touches no other request.
    """
    outcomes: list[int | AppError] = []
    accepted: list[HoldRequest] = []
    for request in requests:
        refusal = request.payer.refusal(request.amount_tokens)
        if refusal:
            outcomes.append(refusal)
            continue
        request.payer.hold(request.amount_tokens)
        accepted.append(request)
        outcomes.append(request.payer.purse.free)
    if accepted:
        await conn.execute(
            queries["place_holds"],
            {
                "ids": [r.id for r in accepted],
                "account_ids": [r.payer.purse.account_id for r in accepted],
                "tools": [r.tool for r in accepted],
                "references": [r.reference for r in accepted],
                "amounts": [r.amount_tokens for r in accepted],
                "price_versions": [r.price_version for r in accepted],
                "expires_ats": [r.expires_at for r in accepted],
                "key_ids": [r.payer.caller.key_id if r.payer.caller else None for r in accepted],
                "cap_windows": [r.payer.capped_on for r in accepted],
            },
        )
        await save_caps(conn, [r.payer for r in accepted])
    return outcomes


@dataclass(frozen=True, slots=True)
class Use:
    """The spend that a hold is captured for: booked under its own reference, and answered alike when repeated."""

    reference: str
    units_milli: int


async def capture(
    conn: AsyncConnection, hold_id: str, amount_tokens: int, event_at: datetime, use: Use | None = None
) -> int:
    """Charge the actual cost of a pending hold and free the rest; returns the transfer's id.

    Without a `use` the charge is booked under the hold's reference.
    Raises: HoldResolved when it was resolved before; ValueError for more than was held, or nothing (void it).
    """
    hold = await _lock_pending(conn, hold_id)
    if not 0 < amount_tokens <= hold.amount:
        raise ValueError(f"a capture of {amount_tokens} does not fit a hold of {hold.amount} tokens")
    await conn.execute(
        queries["resolve_hold"], {"id": hold_id, "state": "captured", "captured": amount_tokens}
    )
    rest = hold.amount - amount_tokens
    posting = Posting(
        kind="capture",
        account_id=hold.purse.account_id,
        house=f"revenue:{hold.tool}",
        amount_tokens=-amount_tokens,
        tool=hold.tool,
        reference=use.reference if use else hold.reference,
        event_at=event_at,
        hold_id=hold_id,
        released_tokens=hold.amount,
        price_version=hold.price_version,
        key_id=hold.key_id,
        units_milli=use.units_milli if use else None,
        # An open debt is paid first out of what comes free.
        free_after_tokens=hold.purse.free + max(0, rest - hold.purse.debt) if use else None,
    )
    posted = (await post(conn, [posting]))[0]
    await _give_back_cap(conn, hold, rest)
    hold.purse.balance -= amount_tokens
    hold.purse.held -= hold.amount
    hold.purse.version = posted.version
    await debts.collect(conn, hold.purse, rest, event_at)
    return posted.transfer_id


async def release(conn: AsyncConnection, hold_id: str, state: Literal["voided", "expired"]) -> int:
    """Free all of a pending hold; nothing is charged. Returns the tokens set free.

    Raises: HoldResolved when it was resolved before.
    """
    hold = await _lock_pending(conn, hold_id)
    await conn.execute(queries["resolve_hold"], {"id": hold_id, "state": state, "captured": 0})
    await conn.execute(queries["release_held"], {"id": hold.purse.account_id, "amount": hold.amount})
    await _give_back_cap(conn, hold, hold.amount)
    hold.purse.held -= hold.amount
    await debts.collect(conn, hold.purse, hold.amount, datetime.now(UTC))
    return hold.amount


async def expire_due(conn: AsyncConnection, limit: int) -> int:
    """Expire up to `limit` pending holds whose time is over; returns how many."""
    due = (
        await conn.scalars(
            select(holds.c.id)
            .where(holds.c.state == "pending", holds.c.expires_at <= func.now())
            .order_by(holds.c.account_id, holds.c.id)
            .limit(limit)
        )
    ).all()
    expired = 0
    for hold_id in due:
        try:
            await release(conn, hold_id, "expired")
        except HoldResolved:
            continue  # captured or voided between the look and the lock
        expired += 1
    return expired


@dataclass(frozen=True, slots=True)
class _Hold:
    purse: Purse
    tool: str
    reference: str
    amount: int
    price_version: int
    key_id: str | None
    capped_on: date | None


async def _give_back_cap(conn: AsyncConnection, hold: _Hold, amount_tokens: int) -> None:
    """Let the caps of the key and its ancestors count only what the hold cost."""
    if hold.capped_on and amount_tokens:
        await conn.execute(
            queries["give_back_cap"],
            {"key_id": hold.key_id, "capped_on": hold.capped_on, "amount": amount_tokens},
        )


async def _lock_pending(conn: AsyncConnection, hold_id: str) -> _Hold:
    """Lock the hold's account, then the hold: the order that every writer keeps."""
    account_id = (
        await conn.execute(select(holds.c.account_id).where(holds.c.id == hold_id))
    ).scalar_one_or_none()
    if account_id is None:
        raise NotFound("hold")
    purse = await lock_one(conn, account_id)
    row = (await conn.execute(queries["lock_hold"], {"id": hold_id})).one()
    if row.state != "pending":
        raise HoldResolved(row.state)
    return _Hold(purse, row.tool, row.reference, row.amount, row.price_version, row.key_id, row.cap_window)
