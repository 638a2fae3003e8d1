"""The log of what operators did: one line for each change, written in the change's own transaction, never altered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.ids import new_id
from ledger.tables import operator_actions


@dataclass(frozen=True, slots=True)
class Actor:
    """Whose hand it is. `operator_id` is None at the command line, where `name` is the system's user."""

    operator_id: str | None
    name: str
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Action:
    """What was done to what, and how that stood before and after. Both are JSON; money in them is in tokens.

    `target` is the id of the thing; `user_id` is whom it concerned, where it concerned one.
    """

    what: str
    target: str
    user_id: str | None = None
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LoggedAction:
    """A line of the log."""

    id: str
    at: datetime
    operator_id: str | None
    name: str
    action: str
    target: str
    user_id: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reason: str | None
    request_id: str | None


async def record(conn: AsyncConnection, actor: Actor, action: Action) -> None:
    """Write a line: it commits with the action that it tells of, or not at all."""
    await conn.execute(
        insert(operator_actions).values(
            id=new_id("act"),
            operator_id=actor.operator_id,
            name=actor.name,
            action=action.what,
            target=action.target,
            user_id=action.user_id,
            before=action.before,
            after=action.after,
            reason=action.reason,
            request_id=actor.request_id,
        )
    )


async def list_actions(
    conn: AsyncConnection, limit: int, before: str | None = None, user_id: str | None = None
) -> list[LoggedAction]:
    """Return a page of the log, newest first: all of it, or what concerned one user."""
    lines = select(operator_actions).order_by(operator_actions.c.id.desc()).limit(limit)
    if before is not None:
        lines = lines.where(operator_actions.c.id < before)
    if user_id is not None:
        lines = lines.where(operator_actions.c.user_id == user_id)
    rows = await conn.execute(lines)
    return [LoggedAction(**{name: getattr(row, name) for name in LoggedAction.__slots__}) for row in rows]
