"""API keys: only a hash is stored, the secret is shown once, a revocation holds from the next statement on.

A key may be limited: in what it is used for (`ledger.scopes`), from where, for how long, and in what it spends
(`ledger.payers`). `authenticate` is the one door: address and scope are checked with the key itself.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, func, insert, or_, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import AuthRequired, Forbidden, NotFound
from kit.ids import new_id
from ledger import scopes
from ledger.accounts import World, lock_by_user, queries
from ledger.errors import AmbiguousPrefix
from ledger.tables import api_keys
from ledger.users import require_user

SECRET_BYTES: Final = 32
"""256 random bits: out of reach of guessing, so that a plain SHA-256 is enough to store."""
PREFIX_CHARS: Final = 10
"""Shown in lists and logs: 59 bits tell keys apart, and over 190 unknown bits remain."""
LISTED_MOST: Final = 1_000
"""In one answer: whoever pays by wallet has a key for each job, and nobody reads further."""
_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


Per = Literal["day", "month", "total"]
"""The window of a cap: a UTC day, a UTC month, or for ever."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What a caller presents with each call: the SHA-256 of their key or session token, and the address they come from.

    Without an address a key that is bound to addresses is refused. `world` is what the key's own text says: its hash
    covers that, so a valid key is of no other.
    """

    hash: bytes
    ip: str | None = None
    world: World = "live"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a valid key speaks for.

    `limited`: the key has a limit of any kind, and so makes only children. `capped`: it or an ancestor may have a cap.
    """

    user_id: str
    account_id: int
    key_id: str
    email: str
    scopes: tuple[str, ...] | None = None
    limited: bool = False
    capped: bool = False
    world: World = "live"

    @property
    def within(self) -> str | None:
        """The key whose descendants are all that this caller may see of the account's keys; None: all of them."""
        return self.key_id if self.limited else None

    @property
    def only(self) -> World | None:
        """The world whose keys are all that this caller may see; None: both. A test key is no way to live ones."""
        return None if self.world == "live" else self.world

    def may(self, need: str) -> bool:
        """Tell whether the key's scopes cover a use."""
        return scopes.allow(self.scopes, need)

    def require(self, need: str) -> None:
        """Raises: Forbidden, naming the scope that the key lacks."""
        if not self.may(need):
            raise out_of_scope(need)

    def require_live(self) -> None:
        """Raises: Forbidden for a test key: play money is no way to live credits."""
        if self.world == "test":
            raise Forbidden("Test keys may not do this; use a live key.")

    def require_full(self) -> None:
        """Raises: Forbidden for a test key or one with a limit: what is the person's is no business of its own."""
        if self.limited or self.world == "test":
            raise Forbidden("This key is limited, or a test key; use a full live key, or sign in.")


@dataclass(frozen=True, slots=True)
class SpendLimit:
    """The most that a key and its descendants may spend in a window, and what they have spent of it.

    Units: tokens. `started`: the first day of the window.
    """

    limit_tokens: int
    per: Per
    used_tokens: int
    started: date


@dataclass(frozen=True, slots=True)
class Limits:
    """What narrows a key. None: not at all, or as its parent. Units: `cap_tokens` tokens per `cap_per`."""

    scopes: tuple[str, ...] | None = None
    allowed_ips: tuple[str, ...] | None = None
    cap_tokens: int | None = None
    cap_per: Per | None = None
    expires_at: datetime | None = None


UNLIMITED: Final = Limits()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it may be shown at any time."""

    id: str
    label: str
    prefix: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    parent_id: str | None
    scopes: tuple[str, ...] | None
    allowed_ips: tuple[str, ...] | None
    spend_limit: SpendLimit | None
    world: World


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


def out_of_place() -> Forbidden:
    """Return the refusal of an address that the key is not bound to."""
    return Forbidden("This key may not be used from this address; see its `allowedIps`.")


def out_of_scope(need: str) -> Forbidden:
    """Return the refusal of a use that the key's scopes do not cover."""
    return Forbidden(f"This key lacks the scope {scopes.named(need)}.")


async def authenticate(
    conn: AsyncConnection, credentials: Iterable[Credential]
) -> dict[Credential, Caller | Forbidden]:
    """Resolve keys to callers, and note their use. What is missing from the answer is unknown, expired or revoked.

    Scopes are left to whoever knows the use.
    """
    wanted = list(set(credentials))
    rows = (await conn.execute(queries["authenticate"], pairs(wanted))).all()
    await note_use(conn, rows)
    return {wanted[row.place - 1]: _speaks_for(row) for row in rows}


def pairs(credentials: Iterable[Credential]) -> dict[str, list[bytes] | list[str | None]]:
    """Return credentials as parameters: `hashes` and `ips`."""
    listed = list(credentials)
    return {"hashes": [c.hash for c in listed], "ips": [c.ip for c in listed]}


async def note_use(conn: AsyncConnection, rows: Iterable[Row[Any]]) -> None:
    """Write the last use of keys for which that is a minute old, unless their account is busy: then the next use will.

    It never waits for an account. Within a transaction it keeps the account's lock, which could meet another's
    order: Postgres then ends one of the two and `Database.run` repeats it.
    """
    unused = [row for row in rows if row.unused and row.admitted and not row.suspended]
    if unused:
        await conn.execute(
            queries["note_use"],
            {"key_ids": [row.key_id for row in unused], "account_ids": [row.account_id for row in unused]},
        )


def _speaks_for(row: Row[Any]) -> Caller | Forbidden:
    if row.suspended:
        return suspended()
    if not row.admitted:
        return out_of_place()
    granted = None if row.scopes is None else tuple(row.scopes)
    return Caller(
        row.user_id, row.account_id, row.key_id, row.email, granted, row.limited, row.capped, row.world
    )


async def caller_of(conn: AsyncConnection, credential: Credential, need: str) -> Caller:
    """Resolve one key for a use that needs a scope (`ledger.scopes`). Raises: AuthRequired, Forbidden."""
    caller = (await authenticate(conn, [credential])).get(credential)
    if caller is None:
        raise AuthRequired
    if isinstance(caller, Forbidden):
        raise caller
    caller.require(need)
    return caller


async def mint(  # noqa: PLR0913  # the key's facts
    conn: AsyncConnection,
    user_id: str,
    label: str,
    *,
    brand: str,
    world: World = "live",
    limits: Limits = UNLIMITED,
    parent_id: str | None = None,
    derive_from: bytes | None = None,
) -> NewApiKey:
    """Make a key to a user's account in a world and store its hash. The secret exists in the answer alone.

    With a parent, its limits must be narrower already (`families.narrowed`); the database refuses wider ones.
    `derive_from` makes the secret a function of it and of the key's id: a replayed creation can then show it
    again although only its hash is stored.
    Raises: NotFound for a deleted user.
    """
    await require_user(conn, user_id)
    key_id = new_id("key")
    body = derive_secret(derive_from, key_id) if derive_from else new_secret()
    secret = spelled(brand, world, body)
    row = (
        await conn.execute(
            insert(api_keys)
            .values(
                id=key_id,
                user_id=user_id,
                label=label,
                prefix=body[:PREFIX_CHARS],
                secret_hash=hash_key(secret),
                parent_id=parent_id,
                world=world,
                **asdict(limits),
            )
            .returning(api_keys)
        )
    ).one()
    return NewApiKey(shown(row), secret, replayed=False)


def spelled(brand: str, world: World, body: str) -> str:
    """Return a key as its holder sends it: what it is and of which world stands in front of its secret."""
    return f"{brand}_{world}_{body}"


def new_secret() -> str:
    """Return 256 random bits in letters and digits."""
    return _base62(secrets.token_bytes(SECRET_BYTES))


def derive_secret(root: bytes, key_id: str) -> str:
    """Return the secret part of a key that was made under an idempotency key."""
    return _base62(hmac.digest(root, key_id.encode(), "sha256"))


async def find(conn: AsyncConnection, key_id: str) -> ApiKey:
    """Return a key by its id. Raises: NotFound."""
    row = (await conn.execute(select(api_keys).where(api_keys.c.id == key_id))).one_or_none()
    if row is None:
        raise NotFound("key")
    return shown(row)


async def list_keys(
    conn: AsyncConnection, user_id: str, within: str | None = None, only: World | None = None
) -> list[ApiKey]:
    """Return a user's keys, newest first, revoked ones too; of very many, those that work rather than those that ended.

    `within`: that key and its descendants alone; `only`: those of one world.
    """
    ended = or_(
        api_keys.c.revoked_at.is_not(None),
        func.coalesce(api_keys.c.expires_at <= func.now(), False),  # SQL's false
    )
    rows = await conn.execute(
        select(api_keys)
        .where(*_theirs(user_id, within, only))
        .order_by(ended, api_keys.c.id.desc())
        .limit(LISTED_MOST)
    )
    return sorted((shown(row) for row in rows), key=lambda key: key.id, reverse=True)


async def revoke(
    conn: AsyncConnection, user_id: str, prefix: str, within: str | None = None, only: World | None = None
) -> ApiKey:
    """Revoke the user's one key that begins so, with its descendants; a revoked key stays as it is.

    The accounts' locks order this among their spends: none that begins after the commit is accepted.
    Raises: NotFound; AmbiguousPrefix, with nothing revoked.
    """
    await lock_by_user(conn, user_id)
    key = await match(conn, user_id, prefix, within, only)
    row = (
        await conn.execute(
            update(api_keys)
            .where(api_keys.c.id == key.id)
            .values(revoked_at=func.coalesce(api_keys.c.revoked_at, func.now()))
            .returning(api_keys)
        )
    ).one()
    return shown(row)


async def match(
    conn: AsyncConnection, user_id: str, prefix: str, within: str | None, only: World | None = None
) -> Row[Any]:
    """Return the row of the user's one key that begins so. Raises: NotFound, AmbiguousPrefix."""
    begins = func.left(api_keys.c.prefix, len(prefix)) == prefix
    rows = (
        await conn.execute(
            select(api_keys)
            .where(*_theirs(user_id, within, only), begins)
            .order_by(api_keys.c.id)
            .with_for_update(of=api_keys)
        )
    ).all()
    # Revoked keys count only while no live one matches: rotating keys must not make a prefix ambiguous for ever.
    matches = [row for row in rows if row.revoked_at is None] or list(rows)
    if not matches:
        raise NotFound("key")
    if len(matches) > 1:
        raise AmbiguousPrefix([row.prefix for row in matches])
    return matches[0]


def _theirs(user_id: str, within: str | None, only: World | None) -> list[ColumnElement[bool]]:
    terms = [api_keys.c.user_id == user_id, api_keys.c.kind == "key"]
    if only is not None:
        terms.append(api_keys.c.world == only)
    if within is not None:
        family = select(api_keys.c.id).where(api_keys.c.id == within).cte("family", recursive=True)
        child = api_keys.alias()
        family = family.union(select(child.c.id).join(family, child.c.parent_id == family.c.id))
        terms.append(api_keys.c.id.in_(select(family.c.id)))
    return terms


def shown(row: Row[Any]) -> ApiKey:
    """Return a key of its row, with the use of its cap as it stands today."""
    limit = None
    if row.cap_per is not None:
        started = _window(row.cap_per, datetime.now(UTC).date())
        used = row.cap_used if row.cap_window == started else 0
        limit = SpendLimit(row.cap_tokens, row.cap_per, used, started)
    return ApiKey(
        row.id, row.label, row.prefix, row.created_at, row.expires_at, row.revoked_at, row.last_used_at, row.parent_id,
        None if row.scopes is None else tuple(row.scopes),
        None if row.allowed_ips is None else tuple(map(str, row.allowed_ips)),
        limit,
        row.world,
    )  # fmt: skip


def _window(per: Per, today: date) -> date:
    """Return the first day of today's window, as the database's `cap_window` does."""
    return {"day": today, "month": today.replace(day=1), "total": date(1970, 1, 1)}[per]


def _base62(value: bytes) -> str:
    """Write bytes with letters and digits alone: a double click selects all of it."""
    number = int.from_bytes(value)
    digits = []
    for _ in range(43):  # 43 digits of base 62 hold 256 bits
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(digits)
