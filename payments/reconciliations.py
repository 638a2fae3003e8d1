"""The books' side of a reconciliation: what they have of payments, and what came of each comparison.

Each function is one step of one transaction. One scheduled reconciliation is under way at a time; one whose process
died is taken as over after an hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, func, insert, or_, select, text, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import NotFound
from kit.ids import new_id
from payments.currencies import USDC, amount_text
from payments.reconcile import Booked, Difference
from payments.returns import Return
from payments.tables import payment_returns, purchases, reconciliations, x402_payments
from payments.x402_payments import PROVIDER as X402

ABANDONED: Final = timedelta(hours=1)
"""A large shop's month is read in minutes; what has not ended in an hour never will."""
SETTLING: Final = timedelta(hours=1)
"""A wallet's payment is usually known within a minute, and asked about once an hour after that."""
SHOWN_MOST: Final = 1000
"""Differences in one report: with more than that something larger is wrong, and the count says so."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, the end not in it."""

    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class Begun:
    """A reconciliation under way."""

    id: str
    span: Span


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a reconciliation. `payments`: how many were compared; `repaired`: differences that are no more.

    `differences`: what is left. `silent`: who could not be asked, and why. `notes`: what cannot be compared.
    """

    payments: int
    repaired: int
    differences: tuple[Difference, ...]
    silent: dict[str, str]
    notes: dict[str, str]


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """A reconciliation; `ended_at` None: under way, or its process died, and the result is empty.

    `left`: how many differences were; `result` holds the first `SHOWN_MOST` of them.
    """

    id: str
    span: Span
    scheduled: bool
    repairs: bool
    began_at: datetime
    ended_at: datetime | None
    left: int
    result: Result


async def booked_since(
    conn: AsyncConnection, provider: str, span: Span, after: str, limit: int
) -> list[Booked]:
    """Return a page of a provider's purchases that were begun, granted or taken back in a span, by their ids."""
    within = [
        and_(moment >= span.since, moment < span.until)
        for moment in (purchases.c.created_at, purchases.c.fulfilled_at)
    ]
    seen = select(payment_returns.c.purchase_id).where(
        payment_returns.c.provider == provider,
        payment_returns.c.seen_at >= span.since,
        payment_returns.c.seen_at < span.until,
    )
    return await _booked(
        conn,
        purchases.c.provider == provider,
        or_(*within, purchases.c.id.in_(seen)),
        purchases.c.id > after,
        limit=limit,
    )


async def booked_as(conn: AsyncConnection, provider: str, purchase_ids: Sequence[str]) -> list[Booked]:
    """Return those of these purchases that the books have of a provider."""
    return await _booked(conn, purchases.c.provider == provider, purchases.c.id.in_(purchase_ids))


async def _booked(
    conn: AsyncConnection, *terms: ColumnElement[bool], limit: int | None = None
) -> list[Booked]:
    rows = (await conn.execute(select(purchases).where(*terms).order_by(purchases.c.id).limit(limit))).all()
    kept: dict[str, list[Return]] = {row.id: [] for row in rows}
    returns = await conn.execute(select(payment_returns).where(payment_returns.c.purchase_id.in_(list(kept))))
    for each in returns:
        kept[each.purchase_id].append(
            Return(each.return_id, each.kind, each.amount_minor, each.status, each.phase, each.stands)
        )
    return [
        Booked(
            purchase_id=row.id,
            session_id=row.session_id,
            payment_id=row.payment_id,
            amount_minor=row.amount_minor,
            currency=row.currency,
            world=row.world,
            granted=row.fulfilled_at is not None,
            paid_minor=row.paid_minor,
            received_minor=row.received_minor,
            returns=tuple(kept[row.id]),
            warned=row.warned_at is not None,
        )
        for row in rows
    ]


async def unsettled_wallets(conn: AsyncConnection, span: Span) -> list[Difference]:
    """Return wallets' payments of a span whose outcome nobody knows: a facilitator keeps no record to compare with."""
    since, until = x402_payments.c.created_at >= span.since, x402_payments.c.created_at < span.until
    waiting = and_(x402_payments.c.state == "settling", x402_payments.c.created_at < func.now() - SETTLING)
    rows = await conn.execute(
        select(x402_payments)
        .where(since, until, or_(x402_payments.c.state == "unclear", waiting))
        .order_by(x402_payments.c.id)
    )
    return [
        Difference(
            "unsettled",
            X402,
            row.purchase_id,
            row.id,
            row.problem or "no answer yet",
            f"{row.state}, {amount_text(row.amount_minor, USDC)} USDC from {row.payer}",
            None,
        )
        for row in rows
    ]


async def begin(conn: AsyncConnection, span: Span, *, repairs: bool, scheduled: bool = False) -> Begun:
    """Write down that a reconciliation begins."""
    begun = Begun(new_id("rec"), span)
    await conn.execute(
        insert(reconciliations).values(
            id=begun.id, scheduled=scheduled, repairs=repairs, since=span.since, until=span.until
        )
    )
    return begun


async def begin_if_due(
    conn: AsyncConnection, every: timedelta, back: timedelta, *, repairs: bool
) -> Begun | None:
    """Begin the scheduled reconciliation, to one caller, if the last one is that long ago; sooner if not all answered.

    It reaches back to where the last one that everyone answered ended, and at least as far as `back`.
    """
    await conn.execute(text("SELECT pg_advisory_xact_lock(hashtext('reconciliations'))"))
    mine, began_at = reconciliations.c.scheduled, reconciliations.c.began_at
    has_ended = reconciliations.c.ended_at.is_not(None)
    pause = case((_answered(), every), else_=min(every, ABANDONED))
    recent = or_(
        and_(~has_ended, began_at > func.now() - ABANDONED), and_(has_ended, began_at > func.now() - pause)
    )
    if await conn.scalar(select(reconciliations.c.id).where(mine, recent).limit(1)):
        return None
    now: datetime = (await conn.execute(select(func.now()))).scalar_one()
    last = await conn.scalar(select(func.max(reconciliations.c.until)).where(mine, _answered()))
    return await begin(conn, Span(min(now - back, last or now - back), now), repairs=repairs, scheduled=True)


def _answered() -> ColumnElement[bool]:
    """Match reconciliations in which every provider could be asked."""
    silent: ColumnElement[str] = reconciliations.c.report["silent"].astext
    return silent == "{}"


async def finish(conn: AsyncConnection, reconciliation_id: str, result: Result) -> None:
    """Keep what came of a reconciliation."""
    await conn.execute(
        update(reconciliations)
        .where(reconciliations.c.id == reconciliation_id)
        .values(
            ended_at=func.clock_timestamp(),
            payments=result.payments,
            differences=len(result.differences),
            repaired=result.repaired,
            report={
                "differences": [asdict(each) for each in result.differences[:SHOWN_MOST]],
                "silent": result.silent,
                "notes": result.notes,
            },
        )
    )


async def last(conn: AsyncConnection) -> Reconciliation:
    """Return the reconciliation that ended last. Raises: NotFound before the first."""
    row = (
        await conn.execute(
            select(reconciliations)
            .where(reconciliations.c.ended_at.is_not(None))
            .order_by(reconciliations.c.ended_at.desc())
            .limit(1)
        )
    ).one_or_none()
    if row is None:
        raise NotFound("reconciliation")
    return _reconciliation(row)


async def by_id(conn: AsyncConnection, reconciliation_id: str) -> Reconciliation:
    """Return a reconciliation, ended or not. Raises: NotFound."""
    found = await conn.execute(select(reconciliations).where(reconciliations.c.id == reconciliation_id))
    row = found.one_or_none()
    if row is None:
        raise NotFound("reconciliation")
    return _reconciliation(row)


async def listed(conn: AsyncConnection, limit: int, before: str | None) -> list[Reconciliation]:
    """Return a page of reconciliations, ended or not, newest first."""
    page = select(reconciliations).order_by(reconciliations.c.id.desc()).limit(limit)
    if before is not None:
        page = page.where(reconciliations.c.id < before)
    return [_reconciliation(row) for row in await conn.execute(page)]


def _reconciliation(row: Row[Any]) -> Reconciliation:
    report: dict[str, Any] = row.report or {"differences": [], "silent": {}, "notes": {}}
    return Reconciliation(
        id=row.id,
        span=Span(row.since, row.until),
        scheduled=row.scheduled,
        repairs=row.repairs,
        began_at=row.began_at,
        ended_at=row.ended_at,
        left=row.differences,
        result=Result(
            payments=row.payments,
            repaired=row.repaired,
            differences=tuple(Difference(**each) for each in report["differences"]),
            silent=report["silent"],
            notes=report["notes"],
        ),
    )
