"""The inbox of provider events: verified, stored once with the raw body, handled apart from the request.

An event is answered for as soon as it is stored. Whoever stored it handles it at once; if that process dies, or the
handling fails, the Runner's sweep takes it up again with growing pauses. What no retry can apply, and what used its
tries up, becomes a dead letter: kept, and due again when an operator replays it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import case, func, select, tuple_, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import NotFound
from kit.queries import load_queries
from payments.tables import provider_events

HANDLING_S: Final = 15.0
"""How long an event is left to whoever took it up. Some seconds are usual; two at once do no harm."""
BACKOFF_MOST_S: Final = 3_600.0
"""Backoff doubles from two seconds up to an hour: a provider's outage is never longer noticed than that."""
ATTEMPTS: Final = 84
"""Twelve tries in the first two hours, then one an hour: three days, as long as Stripe itself goes on trying."""
PROBLEM_MAX_LENGTH: Final = 1_000
KEPT_DAYS: Final = 30
"""As long as Stripe itself keeps its events."""
FORGOTTEN_AT_ONCE: Final = 500
"""A sweep every few seconds keeps up with far more events than a shop has."""

NAME: Final = re.compile(r"[A-Za-z0-9_.:-]{1,255}")
"""What an event's id and type look like, far beyond any that providers have."""

State = Literal["pending", "applied", "ignored", "dead"]
queries: Final = load_queries(Path(__file__).with_name("queries.sql"))


@dataclass(frozen=True, slots=True)
class ProviderEvent:
    """A verified event. `object_id` names what it is about (a session, a payment), `body` is as it was received.

    Without an `object_id` there is nothing to do: it is of a type that we do not handle, and kept all the same.
    """

    provider: str
    event_id: str
    type: str
    object_id: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """An event as the inbox has it. `problem` is why the last try failed."""

    event: ProviderEvent
    state: State
    received_at: datetime
    applied_at: datetime | None
    attempts: int
    retry_at: datetime | None
    problem: str | None


def name_of(found: object) -> str:
    """Return an event's id or type. Raises: ValueError for what is neither."""
    if not isinstance(found, str) or not NAME.fullmatch(found):
        raise ValueError("an event has an id and a type")
    return found


async def store(conn: AsyncConnection, event: ProviderEvent) -> bool:
    """Keep an event once; returns whether it is the caller's to handle now.

    False: it was applied before, or somebody is at it, or it waits for its next try.
    """
    stored = await conn.execute(
        queries["store"],
        {
            "provider": event.provider,
            "event_id": event.event_id,
            "type": event.type,
            "object_id": event.object_id,
            "body": event.body,
            "handling_s": HANDLING_S,
        },
    )
    return stored.one_or_none() is not None


async def finish(
    conn: AsyncConnection, provider: str, event_id: str, problem: str | None, final: bool = False
) -> None:
    """Mark an event applied; with a problem, set the time of the next try, or give it up when that is `final`."""
    await conn.execute(
        queries["finish"],
        {
            "provider": provider,
            "event_id": event_id,
            "problem": problem and problem.replace("\x00", "")[:PROBLEM_MAX_LENGTH],
            "final": final,
            "attempts": ATTEMPTS,
            "backoff_most_s": BACKOFF_MOST_S,
        },
    )


async def due(conn: AsyncConnection, limit: int) -> list[ProviderEvent]:
    """Take up events whose next try is due, oldest first; nobody else is given them for `HANDLING_S`."""
    await conn.execute(queries["give_up"], {"attempts": ATTEMPTS})
    rows = (await conn.execute(queries["due"], {"limit": limit, "handling_s": HANDLING_S})).all()
    return [_event(row) for row in sorted(rows, key=lambda row: row.received_at)]


async def newest(conn: AsyncConnection, provider: str) -> datetime | None:
    """Return when the last event of a provider came in."""
    found: datetime | None = (
        await conn.execute(
            select(func.max(provider_events.c.received_at)).where(provider_events.c.provider == provider)
        )
    ).scalar_one()
    return found


async def forget_old(conn: AsyncConnection) -> None:
    """Forget some events that were applied long ago; one that comes again after all changes nothing."""
    await conn.execute(queries["forget_old"], {"days": KEPT_DAYS, "limit": FORGOTTEN_AT_ONCE})


# -- for the operator ----------------------------------------------------------------------------------------

_state = case(
    (provider_events.c.dead_at.is_not(None), "dead"),
    (provider_events.c.applied_at.is_(None), "pending"),
    (provider_events.c.object_id.is_(None), "ignored"),
    else_="applied",
)


async def listed(conn: AsyncConnection, state: State | None, kind: str | None, limit: int) -> list[KeptEvent]:
    """Return the newest events, of one state and type if these are given."""
    query = select(provider_events, _state.label("state")).order_by(
        provider_events.c.received_at.desc(), provider_events.c.event_id
    )
    if state is not None:
        query = query.where(_state == state)
    if kind is not None:
        query = query.where(provider_events.c.type == kind)
    return [_kept(row) for row in await conn.execute(query.limit(limit))]


async def kept(conn: AsyncConnection, event_id: str) -> KeptEvent:
    """Return one event. Raises: NotFound."""
    rows = await conn.execute(
        select(provider_events, _state.label("state"))
        .where(provider_events.c.event_id == event_id)
        .order_by(provider_events.c.received_at.desc())
        .limit(1)
    )
    row = rows.one_or_none()
    if row is None:
        raise NotFound(f"event as {event_id}")
    return _kept(row)


async def replay(conn: AsyncConnection, event_ids: Sequence[str] | None) -> list[str]:
    """Make events due now, whatever became of them; None: every dead letter. Returns their ids, oldest first.

    Handling reads the provider's truth, so that a replay of what was applied changes nothing.
    Raises: NotFound for an id that is not there, with nothing changed.
    """
    wanted = (
        provider_events.c.dead_at.is_not(None)
        if event_ids is None
        else provider_events.c.event_id.in_(event_ids)
    )
    rows = (
        await conn.execute(
            select(provider_events.c.provider, provider_events.c.event_id)
            .where(wanted)
            .order_by(provider_events.c.received_at)
            .with_for_update()
        )
    ).all()
    if missing := set(event_ids or ()) - {row.event_id for row in rows}:
        raise NotFound(f"event as {min(missing)}")
    if rows:
        names = [(row.provider, row.event_id) for row in rows]
        await conn.execute(
            update(provider_events)
            .where(tuple_(provider_events.c.provider, provider_events.c.event_id).in_(names))
            .values(applied_at=None, dead_at=None, attempts=0, retry_at=func.now())
        )
    return [row.event_id for row in rows]


def _event(row: Row[Any]) -> ProviderEvent:
    return ProviderEvent(row.provider, row.event_id, row.type, row.object_id, bytes(row.body))


def _kept(row: Row[Any]) -> KeptEvent:
    return KeptEvent(
        event=_event(row),
        state=row.state,
        received_at=row.received_at,
        applied_at=row.applied_at,
        attempts=row.attempts,
        retry_at=row.retry_at if row.state == "pending" else None,
        problem=row.problem,
    )
