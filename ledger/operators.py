"""Operators: who may look after the books over HTTP. Their keys are no customer's keys, and none can be made by HTTP.

A key is `<brand>_op_<secret>`, made on the machine (`farebox operator add`), shown once and kept as a hash; a
revocation holds from the next statement on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import AuthRequired, NotFound
from kit.ids import new_id
from ledger.actions import Action, Actor, record
from ledger.errors import OperatorExists
from ledger.keys import hash_key, new_secret
from ledger.tables import operators

USE_NOTED_EVERY: Final = timedelta(minutes=1)
"""`last_used_at` tells a forgotten key from a used one; to the minute is enough and spares most requests a write."""


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator as it may be shown at any time."""

    id: str
    name: str
    created_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewOperator:
    """An operator with the key, for the one time that it is shown."""

    operator: Operator
    secret: str


async def add(conn: AsyncConnection, actor: Actor, name: str, *, brand: str) -> NewOperator:
    """Make an operator and a key. Raises: OperatorExists while a live one has the name."""
    secret = f"{brand}_op_{new_secret()}"
    row = (
        await conn.execute(
            insert(operators)
            .values(id=new_id("op"), name=name, secret_hash=hash_key(secret))
            .on_conflict_do_nothing(
                index_elements=[operators.c.name], index_where=operators.c.revoked_at.is_(None)
            )
            .returning(operators)
        )
    ).one_or_none()
    if row is None:
        raise OperatorExists(name)
    await record(conn, actor, Action("operator.add", row.id, after={"name": name}))
    return NewOperator(_operator(row), secret)


async def list_operators(conn: AsyncConnection) -> list[Operator]:
    """Return every operator there ever was, newest first."""
    return [_operator(row) for row in await conn.execute(select(operators).order_by(operators.c.id.desc()))]


async def revoke(conn: AsyncConnection, actor: Actor, name: str) -> Operator:
    """Revoke the live operator of that name, from the next request on. Raises: NotFound."""
    row = (
        await conn.execute(
            update(operators)
            .where(operators.c.name == name, operators.c.revoked_at.is_(None))
            .values(revoked_at=func.clock_timestamp())
            .returning(operators)
        )
    ).one_or_none()
    if row is None:
        raise NotFound("live operator")
    await record(conn, actor, Action("operator.revoke", row.id, before={"name": row.name}))
    return _operator(row)


async def actor_of(conn: AsyncConnection, key_hash: bytes, request_id: str | None) -> Actor:
    """Return the operator behind a key, and note the use. Raises: AuthRequired."""
    row = (
        await conn.execute(
            select(operators.c.id, operators.c.name).where(
                operators.c.secret_hash == key_hash, operators.c.revoked_at.is_(None)
            )
        )
    ).one_or_none()
    if row is None:
        raise AuthRequired
    unnoted = or_(operators.c.last_used_at.is_(None), operators.c.last_used_at < func.now() - USE_NOTED_EVERY)
    await conn.execute(
        update(operators).where(operators.c.id == row.id, unnoted).values(last_used_at=func.now())
    )
    return Actor(row.id, row.name, request_id)


def _operator(row: object) -> Operator:
    return Operator(**{name: getattr(row, name) for name in Operator.__slots__})
