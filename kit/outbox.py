"""Mails to be sent: each is a row written with its cause in one transaction, so that both happen or neither.

A sweep takes what is due, sends it with no transaction open, and notes the outcome. A mail leaves at least once: a
sender that dies between sending and noting sends it again. What can't be delivered is tried with growing pauses, then
given up. The text is deleted in the end, whichever it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.tables import outbox

MAX_ATTEMPTS: Final = 8
"""With doubling pauses from half a minute: two hours of outage are bridged, a wrong address is not asked for ever."""
FIRST_PAUSE: Final = timedelta(seconds=30)
"""Also the time that a sender has for one mail before another takes it over."""
KEPT: Final = timedelta(days=30)
"""That a mail was sent, and when, answers a customer's question for a month."""
PROBLEM_CHARS: Final = 500
LISTED: Final = 100
"""An operator looks at the newest problems; older ones have the same cause."""


NOBODYS: Final = "@invalid"
"""How the addresses of deleted people and of wallets end (RFC 2606): mail to them goes nowhere, and none is written."""


def has_mailbox(address: str) -> bool:
    """Tell whether somebody may read what is sent to an address."""
    return not address.endswith(NOBODYS)


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail to be sent now. `id` is stable: a repeat carries the same Message-ID."""

    id: int
    recipient: str
    subject: str
    body: str
    html: str | None


async def enqueue(  # noqa: PLR0913  # a mail's parts
    conn: AsyncConnection,
    recipient: str,
    subject: str,
    body: str,
    html: str | None = None,
    *,
    expires_at: datetime | None = None,
) -> int | None:
    """Write a mail in the caller's transaction; it is sent once that commits, unless `expires_at` comes first.

    None to an address that is nobody's.
    """
    if not has_mailbox(recipient):
        return None
    result = await conn.execute(
        insert(outbox)
        .values(recipient=recipient, subject=subject, body=body, html=html, expires_at=expires_at)
        .returning(outbox.c.id)
    )
    return int(result.scalar_one())


async def take_due(conn: AsyncConnection, limit: int) -> list[Mail]:
    """Take up to `limit` mails that are due, oldest first; nobody else gets them before their next pause is over.

    What has expired or was tried too often is given up here.
    """
    waiting = outbox.c.sent_at.is_(None) & outbox.c.dead_at.is_(None)
    over = or_(outbox.c.expires_at <= func.now(), outbox.c.attempts >= MAX_ATTEMPTS)
    due = (
        select(outbox.c.id)
        .where(waiting, outbox.c.retry_at <= func.now())
        .order_by(outbox.c.retry_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = (await conn.scalars(due)).all()
    await conn.execute(
        update(outbox)
        .where(outbox.c.id.in_(ids), over)
        .values(
            dead_at=func.now(), body=None, html=None, problem=func.coalesce(outbox.c.problem, "out of time")
        )
    )
    rows = await conn.execute(
        update(outbox)
        .where(outbox.c.id.in_(ids), waiting)
        .values(
            attempts=outbox.c.attempts + 1,
            retry_at=func.now() + FIRST_PAUSE * func.power(2, outbox.c.attempts),
        )
        .returning(outbox.c.id, outbox.c.recipient, outbox.c.subject, outbox.c.body, outbox.c.html)
    )
    return sorted((Mail(*row) for row in rows), key=lambda mail: mail.id)


async def finish(conn: AsyncConnection, mail_id: int, problem: str | None) -> None:
    """Note that a mail was sent, and forget its text; or what kept it, for the next try."""
    waiting = (outbox.c.id == mail_id) & outbox.c.sent_at.is_(None) & outbox.c.dead_at.is_(None)
    if problem is None:
        done = {"sent_at": func.now(), "body": None, "html": None, "problem": None}
        await conn.execute(update(outbox).where(waiting).values(**done))
    else:
        await conn.execute(update(outbox).where(waiting).values(problem=problem[:PROBLEM_CHARS]))


async def problems(conn: AsyncConnection) -> list[Row[Any]]:
    """Return the mails that could not be sent, given up ones too, newest first."""
    rows = await conn.execute(
        select(outbox).where(outbox.c.problem.is_not(None)).order_by(outbox.c.id.desc()).limit(LISTED)
    )
    return list(rows.all())


async def forget_old(conn: AsyncConnection) -> int:
    """Delete mails that ended long ago."""
    ended = outbox.c.sent_at.is_not(None) | outbox.c.dead_at.is_not(None)
    result = await conn.execute(delete(outbox).where(ended, outbox.c.created_at < func.now() - KEPT))
    return result.rowcount


async def forget_recipient(conn: AsyncConnection, recipient: str) -> None:
    """Delete every mail to an address, sent or not."""
    await conn.execute(delete(outbox).where(outbox.c.recipient == recipient))
