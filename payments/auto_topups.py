"""Automatic top-ups: what an account wishes, and what became of it. One wish an account, of the live world alone.

A wish is met by a charge (`payments.topup_charges`), one at a time and within the ceiling of the calendar month (UTC).
The package is kept as the customer agreed to it: credits, price and currency of that day, and nothing else is charged.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.queries import load_queries
from payments.packages import Package
from payments.tables import auto_topups

queries: Final = load_queries(Path(__file__).with_name("auto_topups.sql"))

State = Literal["on", "paused", "off"]
Reason = Literal["authentication_required", "card_declined", "no_card", "not_offered", "package_changed"]


@dataclass(frozen=True, slots=True)
class TopupWish:
    """What a customer switches on. Units: tokens, minor units of the package's currency."""

    provider: str
    customer_id: str
    threshold_tokens: int
    package: Package
    month_most_minor: int


@dataclass(frozen=True, slots=True)
class AutoTopup:
    """An account's automatic top-up as it stands. Units: tokens, minor units.

    `spent_minor`: charged in this calendar month, what is under way included. `rest_until`: nothing is charged before.
    """

    threshold_tokens: int
    package_code: str
    credits_tokens: int
    amount_minor: int
    currency: str
    month_most_minor: int
    spent_minor: int
    state: State
    reason: Reason | None
    rest_until: datetime | None
    set_at: datetime


async def switch_on(conn: AsyncConnection, account_id: int, wish: TopupWish) -> AutoTopup:
    """Set an account's wish. It starts afresh: what paused the last one, and its declines, are forgotten."""
    package = wish.package
    values: dict[str, Any] = {
        "provider": wish.provider,
        "customer_id": wish.customer_id,
        "threshold": wish.threshold_tokens,
        "package_code": package.code,
        "package_name": package.name,
        "price_version": package.price_version,
        "credits_tokens": package.credits_tokens,
        "amount_minor": package.price_minor,
        "currency": package.currency,
        "month_most_minor": wish.month_most_minor,
        "state": "on",
        "reason": None,
        "declines": 0,
        "rest_until": None,
        "set_at": func.now(),
    }
    await conn.execute(
        insert(auto_topups)
        .values(account_id=account_id, **values)
        .on_conflict_do_update(index_elements=[auto_topups.c.account_id], set_=values)
    )
    found = await auto_topup(conn, account_id)
    assert found is not None, "it was written in this transaction"
    return found


async def auto_topup(conn: AsyncConnection, account_id: int) -> AutoTopup | None:
    """Return an account's wish, if it has one."""
    row = (await conn.execute(queries["as_it_stands"], {"account_id": account_id})).one_or_none()
    return None if row is None else _auto_topup(row)


async def switch_off(conn: AsyncConnection, account_id: int) -> None:
    """Forget an account's wish. A charge that was asked for comes to its end; no other is."""
    await conn.execute(delete(auto_topups).where(auto_topups.c.account_id == account_id))


async def note_paid(conn: AsyncConnection, purchase_id: str) -> None:
    """Note that a purchase was paid and granted, if it is a charge of ours. The purchase is locked."""
    account_id = await conn.scalar(queries["note_paid"], {"id": purchase_id})
    if account_id is not None:
        await conn.execute(queries["forgive_declines"], {"account_id": account_id})


def _auto_topup(row: Row[Any]) -> AutoTopup:
    return AutoTopup(
        threshold_tokens=row.threshold,
        package_code=row.package_code,
        credits_tokens=row.credits_tokens,
        amount_minor=row.amount_minor,
        currency=row.currency,
        month_most_minor=row.month_most_minor,
        spent_minor=row.spent_minor,
        state=row.state,
        reason=row.reason,
        rest_until=row.rest_until,
        set_at=row.set_at,
    )
