"""The inbox of provider events: verified, stored once with the raw body, applied until it took.

Stripe's own retries, and the Runner's sweep, bring an event back until `applied_at` is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from payments.tables import provider_events

RETRY_CAP: Final = timedelta(hours=1)
"""Backoff doubles from two seconds up to an hour: a provider's outage is never longer noticed than that."""


@dataclass(frozen=True, slots=True)
class ProviderEvent:
    """A verified event. `object_id` names what it is about (a checkout session), `body` is as it was received."""

    provider: str
    event_id: str
    type: str
    object_id: str | None
    body: bytes


async def store(conn: AsyncConnection, event: ProviderEvent) -> bool:
    """Keep an event once; return False when it was kept before and has been applied."""
    await conn.execute(
        insert(provider_events)
        .values(
            provider=event.provider,
            event_id=event.event_id,
            type=event.type,
            object_id=event.object_id,
            body=event.body,
        )
        .on_conflict_do_nothing()
    )
    applied_at = (
        await conn.execute(
            select(provider_events.c.applied_at).where(
                provider_events.c.provider == event.provider, provider_events.c.event_id == event.event_id
            )
        )
    ).scalar_one()
    return applied_at is None


async def finish(conn: AsyncConnection, provider: str, event_id: str, problem: str | None) -> None:
    """Mark an event applied; with a problem, note it and set the time of the next try."""
    values = (
        {"applied_at": func.now(), "problem": None}
        if problem is None
        else {
            "problem": problem[:1000],
            "retry_at": func.now()
            + func.least(
                text("interval '1 second' * power(2, least(attempts + 1, 12))"),
                RETRY_CAP,
            ),
        }
    )
    await conn.execute(
        update(provider_events)
        .where(
            provider_events.c.provider == provider,
            provider_events.c.event_id == event_id,
            provider_events.c.applied_at.is_(None),
        )
        .values(attempts=provider_events.c.attempts + 1, **values)
    )


async def due(conn: AsyncConnection, limit: int) -> list[ProviderEvent]:
    """Return events whose next try is due, oldest first."""
    rows = await conn.execute(
        select(provider_events)
        .where(provider_events.c.applied_at.is_(None), provider_events.c.retry_at <= func.now())
        .order_by(provider_events.c.retry_at)
        .limit(limit)
    )
    return [ProviderEvent(r.provider, r.event_id, r.type, r.object_id, bytes(r.body)) for r in rows]
