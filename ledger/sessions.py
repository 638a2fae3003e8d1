"""Sessions: what a signed-in browser presents instead of a key.

A session is a row of `api_keys` of its own kind. Every statement that resolves a key then resolves a session, in the
same transaction and under the same locks: revocation, suspension, expiry, holds, jobs and spends work for both, and
there is no second place in which to forget one of them. A session has no prefix, so that lists of keys and a
revocation by prefix never meet it, and no limit: its end does not make it a limited key. See
docs/decisions/0010-a-session-is-a-key.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.ids import new_id
from ledger.tables import api_keys
from ledger.users import require_user

LIFETIME: Final = timedelta(days=30)
"""A month without typing a code; each sign-in starts a new one."""
LABEL: Final = "browser session"


@dataclass(frozen=True, slots=True)
class Session:
    """A session as its user may see it."""

    id: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


async def open_session(conn: AsyncConnection, user_id: str, token_hash: bytes) -> Session:
    """Let a token speak for a user for LIFETIME. Raises: NotFound for a deleted user."""
    await require_user(conn, user_id)
    row = (
        await conn.execute(
            insert(api_keys)
            .values(
                id=new_id("ses"),
                user_id=user_id,
                kind="session",
                label=LABEL,
                secret_hash=token_hash,
                expires_at=func.now() + LIFETIME,
            )
            .returning(api_keys.c.id, api_keys.c.created_at, api_keys.c.expires_at, api_keys.c.revoked_at)
        )
    ).one()
    return Session(*row)


async def list_sessions(conn: AsyncConnection, user_id: str) -> list[Session]:
    """Return a user's sessions, newest first, ended ones too."""
    rows = await conn.execute(
        select(api_keys.c.id, api_keys.c.created_at, api_keys.c.expires_at, api_keys.c.revoked_at)
        .where(api_keys.c.user_id == user_id, api_keys.c.kind == "session")
        .order_by(api_keys.c.id.desc())
    )
    return [Session(*row) for row in rows]


async def close_session(conn: AsyncConnection, token_hash: bytes) -> None:
    """End one session, from the next statement on; one that is over, or that never was, stays as it is."""
    await conn.execute(
        update(api_keys)
        .where(
            api_keys.c.secret_hash == token_hash,
            api_keys.c.kind == "session",
            api_keys.c.revoked_at.is_(None),
        )
        .values(revoked_at=func.now())
    )


async def close_all(conn: AsyncConnection, user_id: str) -> int:
    """End every session of a user, from the next statement on; returns how many were open."""
    closed = await conn.execute(
        update(api_keys)
        .where(
            api_keys.c.user_id == user_id,
            api_keys.c.kind == "session",
            api_keys.c.revoked_at.is_(None),
            api_keys.c.expires_at > func.now(),
        )
        .values(revoked_at=func.now())
    )
    return closed.rowcount


async def revoke_everything(conn: AsyncConnection, user_id: str) -> None:
    """End every key and session of a user, forget their labels and addresses; the caller holds the account's lock."""
    await conn.execute(
        update(api_keys)
        .where(api_keys.c.user_id == user_id)
        .values(
            revoked_at=func.coalesce(api_keys.c.revoked_at, func.now()),
            label="deleted",
            allowed_ips=None,
            parent_id=None,  # a child may not lose its addresses before its parent; dead keys have no family
        )
    )
