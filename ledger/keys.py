"""API keys: only a hash is stored, the secret is shown once, a revocation holds from the next statement on."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import func, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import AuthRequired, Forbidden, NotFound
from kit.ids import new_id
from ledger.accounts import lock_by_user, queries
from ledger.errors import AmbiguousPrefix
from ledger.tables import api_keys

SECRET_BYTES: Final = 32
"""256 random bits: out of reach of guessing, so that a plain SHA-256 is enough to store."""
PREFIX_CHARS: Final = 10
"""Shown in lists and logs: 59 bits tell keys apart, and over 190 unknown bits remain."""
_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a valid key speaks for."""

    user_id: str
    account_id: int
    key_id: str
    email: str


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it may be shown at any time."""

    id: str
    label: str
    prefix: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key with its secret, for the one answer that shows it."""

    key: ApiKey
    secret: str
    replayed: bool


def hash_key(presented: str) -> bytes:
    """Return what is stored of a key."""
    return hashlib.sha256(presented.encode()).digest()


def suspended() -> Forbidden:
    """Return the refusal that a suspended user meets."""
    return Forbidden("This account is suspended; write to support.")


async def authenticate(conn: AsyncConnection, hashes: Iterable[bytes]) -> dict[bytes, Caller | Forbidden]:
    """Resolve keys to callers. A hash that is missing from the answer is unknown, expired or revoked."""
    rows = await conn.execute(queries["authenticate"], {"hashes": list(set(hashes))})
    return {bytes(row.secret_hash): speaks_for(row) for row in rows}


def speaks_for(row: Row[Any]) -> Caller | Forbidden:
    """Return the caller of an `authenticate` row, or the refusal of a suspended one."""
    if row.suspended:
        return suspended()
    return Caller(row.user_id, row.account_id, row.key_id, row.email)


async def caller_of(conn: AsyncConnection, key_hash: bytes) -> Caller:
    """Resolve one key. Raises: AuthRequired, Forbidden."""
    caller = (await authenticate(conn, [key_hash])).get(key_hash)
    if caller is None:
        raise AuthRequired
    if isinstance(caller, Forbidden):
        raise caller
    return caller


async def mint(  # noqa: PLR0913  # the key's facts
    conn: AsyncConnection,
    user_id: str,
    label: str,
    *,
    brand: str,
    expires_at: datetime | None = None,
    derive_from: bytes | None = None,
) -> NewApiKey:
    """Make a key for a user and store its hash. The secret exists in the answer alone.

    `derive_from` makes the secret a function of it and of the key's id: a replayed creation can then show it
    again although only its hash is stored.
    """
    key_id = new_id("key")
    body = derive_secret(derive_from, key_id) if derive_from else new_secret()
    secret = f"{brand}_live_{body}"
    row = (
        await conn.execute(
            insert(api_keys)
            .values(
                id=key_id,
                user_id=user_id,
                label=label,
                prefix=body[:PREFIX_CHARS],
                secret_hash=hash_key(secret),
                expires_at=expires_at,
            )
            .returning(api_keys)
        )
    ).one()
    return NewApiKey(_api_key(row), secret, replayed=False)


def new_secret() -> str:
    """Return the secret part of a new key, from the system's random source."""
    return _base62(secrets.token_bytes(SECRET_BYTES))


def derive_secret(root: bytes, key_id: str) -> str:
    """Return the secret part of a key that was made under an idempotency key."""
    return _base62(hmac.digest(root, key_id.encode(), "sha256"))


async def find(conn: AsyncConnection, key_id: str) -> ApiKey:
    """Return a key by its id. Raises: NotFound."""
    row = (await conn.execute(select(api_keys).where(api_keys.c.id == key_id))).one_or_none()
    if row is None:
        raise NotFound("key")
    return _api_key(row)


async def list_keys(conn: AsyncConnection, user_id: str) -> list[ApiKey]:
    """Return a user's keys, newest first, revoked ones too."""
    rows = await conn.execute(
        select(api_keys).where(api_keys.c.user_id == user_id).order_by(api_keys.c.id.desc())
    )
    return [_api_key(row) for row in rows]


async def revoke(conn: AsyncConnection, user_id: str, prefix: str) -> ApiKey:
    """Revoke the user's one key that begins so; a key that is revoked already stays as it is.

    The account's lock orders this among its spends: none that begins after the commit is accepted.
    Raises: NotFound; AmbiguousPrefix, with nothing revoked.
    """
    await lock_by_user(conn, user_id)
    begins = func.left(api_keys.c.prefix, len(prefix)) == prefix
    rows = (
        await conn.execute(
            select(api_keys)
            .where(api_keys.c.user_id == user_id, begins)
            .order_by(api_keys.c.id)
            .with_for_update()
        )
    ).all()
    # Revoked keys count only while no live one matches: rotating keys must not make a prefix ambiguous for ever.
    matches = [row for row in rows if row.revoked_at is None] or list(rows)
    if not matches:
        raise NotFound("key")
    if len(matches) > 1:
        raise AmbiguousPrefix([row.prefix for row in matches])
    row = (
        await conn.execute(
            update(api_keys)
            .where(api_keys.c.id == matches[0].id)
            .values(revoked_at=func.coalesce(api_keys.c.revoked_at, func.now()))
            .returning(api_keys)
        )
    ).one()
    return _api_key(row)


def _api_key(row: object) -> ApiKey:
    return ApiKey(**{name: getattr(row, name) for name in ApiKey.__slots__})


def _base62(value: bytes) -> str:
    """Write bytes with letters and digits alone: a double click selects all of it."""
    number = int.from_bytes(value)
    digits = []
    for _ in range(43):  # 43 digits of base 62 hold 256 bits
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(digits)
