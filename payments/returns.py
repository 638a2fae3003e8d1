"""Money that went back: refunds and disputes of a payment, and what they take of the credits that it bought.

A provider tells of them in any order, often, and sometimes late. So what is applied is never a difference: each refund
and dispute is kept as far as it has come, what stands of them is summed, and the credits clawed back are made to be
the same share of the credits bought. Whatever order the news came in, the books end where the provider is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import NotFound
from kit.ids import new_id
from ledger.accounts import freeze
from ledger.debts import clawback
from ledger.reinstatements import reinstate
from ledger.tables import grants
from payments.tables import payment_returns, purchases


@dataclass(frozen=True, slots=True)
class Return:
    """A refund or a dispute as the provider has it. Units: minor units.

    `stands`: the money is gone or going. `phase` grows as it goes on; news of an earlier phase is old news.
    """

    id: str
    kind: Literal["refund", "dispute"]
    amount_minor: int
    status: str
    phase: int
    stands: bool


async def settle_returns(
    conn: AsyncConnection, purchase: Row[Any], account_id: int, returns: Sequence[Return]
) -> int:
    """Make the credits clawed back those of the money that went back; returns that money. The purchase is locked.

    Units: minor units.
    """
    changed = [each for each in returns if await _keep(conn, purchase, each)]
    standing = await conn.scalar(
        select(func.coalesce(func.sum(payment_returns.c.amount_minor), 0)).where(
            payment_returns.c.purchase_id == purchase.id, payment_returns.c.stands
        )
    )
    # A refund and a dispute may both be about the same money: no more than was paid can go back.
    returned_minor: int = min(int(standing or 0), purchase.paid_minor)
    if returned_minor == purchase.returned_minor:
        return returned_minor
    await conn.execute(
        update(purchases).where(purchases.c.id == purchase.id).values(returned_minor=returned_minor)
    )
    clawed_tokens = await conn.scalar(
        select(grants.c.clawed).where(grants.c.account_id == account_id, grants.c.purchase_id == purchase.id)
    )
    if clawed_tokens is None:
        raise NotFound("grant of this payment")
    missing_tokens = share(purchase.credits_tokens, returned_minor, purchase.paid_minor) - clawed_tokens
    facts: dict[str, Any] = {
        "purchase_id": purchase.id,
        "amount_tokens": abs(missing_tokens),
        "reference": new_id("ret"),
        "event_at": datetime.now(UTC),
        "reason": ", ".join(f"{each.kind} {each.id}: {each.status}" for each in changed)[:500] or None,
    }
    if missing_tokens > 0:
        await clawback(conn, account_id, **facts)
    elif missing_tokens < 0:
        await reinstate(conn, account_id, **facts)
    return returned_minor


def share(credits_tokens: int, returned_minor: int, paid_minor: int) -> int:
    """Return the credits that a part of the money bought, rounded down: a whole return takes all, a part never more."""
    return credits_tokens * returned_minor // paid_minor


async def stop_if_warned(conn: AsyncConnection, purchase: Row[Any], account_id: int) -> None:
    """Freeze the account of a payment that a card network calls fraudulent, once: an operator may undo it."""
    warned = await conn.execute(
        update(purchases)
        .where(purchases.c.id == purchase.id, purchases.c.warned_at.is_(None))
        .values(warned_at=func.now())
    )
    if warned.rowcount:
        await freeze(conn, account_id)


async def _keep(conn: AsyncConnection, purchase: Row[Any], each: Return) -> bool:
    """Keep a return as far as it has come; returns whether that is news."""
    values = {
        "amount_minor": each.amount_minor,
        "status": each.status,
        "phase": each.phase,
        "stands": each.stands,
    }
    statement = insert(payment_returns).values(
        provider=purchase.provider,
        return_id=each.id,
        purchase_id=purchase.id,
        kind=each.kind,
        **values,
    )
    kept = await conn.execute(
        statement.on_conflict_do_update(
            index_elements=[payment_returns.c.provider, payment_returns.c.return_id],
            set_=values | {"seen_at": func.now()},
            where=(payment_returns.c.purchase_id == purchase.id)
            & (payment_returns.c.phase <= each.phase)
            & or_(*(payment_returns.c[name] != value for name, value in values.items())),
        )
    )
    return bool(kept.rowcount)
