"""The first answer of a write, kept with its effect: a repeat gets it again, another meaning is refused.

Scope: account and route. Only committed effects are kept, so a refused write leaves its key free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import delete, func, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.errors import IdempotencyKeyReused
from gateway.tables import idempotency

KEPT: Final = timedelta(days=7)
"""A client's retries end within a day; a week covers a weekend's outage."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What an earlier use of a key meant, and its answer."""

    fingerprint: str
    answer: dict[str, Any]

    def replay(self, key: str, fingerprint: str) -> dict[str, Any]:
        """Return the first answer. Raises: IdempotencyKeyReused for another meaning."""
        if fingerprint != self.fingerprint:
            raise IdempotencyKeyReused(key)
        return self.answer


async def find(
    conn: AsyncConnection, route: str, keys: Sequence[tuple[int, str]]
) -> dict[tuple[int, str], Answered]:
    """Return what is known of `(account_id, key)` pairs. The accounts are locked, so the answer stays true."""
    if not keys:
        return {}
    rows = await conn.execute(
        select(idempotency).where(
            idempotency.c.route == route,
            tuple_(idempotency.c.account_id, idempotency.c.key).in_(list(keys)),
        )
    )
    return {(row.account_id, row.key): Answered(row.fingerprint, row.answer) for row in rows}


async def remember(
    conn: AsyncConnection, route: str, answers: Sequence[tuple[int, str, str, dict[str, Any]]]
) -> None:
    """Keep `(account_id, key, fingerprint, answer)` in the transaction of the write itself."""
    if answers:
        await conn.execute(
            insert(idempotency),
            [
                {"account_id": account, "route": route, "key": key, "fingerprint": print_, "answer": answer}
                for account, key, print_, answer in answers
            ],
        )


async def forget_old(conn: AsyncConnection) -> int:
    """Delete answers that no client asks for any more."""
    return (
        await conn.execute(delete(idempotency).where(idempotency.c.created_at < func.now() - KEPT))
    ).rowcount


async def forget_account(conn: AsyncConnection, account_id: int) -> None:
    """Delete the answers of an account that nobody calls from any more."""
    await conn.execute(delete(idempotency).where(idempotency.c.account_id == account_id))
