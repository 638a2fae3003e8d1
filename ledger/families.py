"""Families of keys: a limited key makes children narrower than itself, and a rotated key lives on in its successor.

Whoever carries a limit of any kind can only make children, so that no limit is shed by making another key. Their
spending counts against every ancestor's cap (`spend_many`, `ledger.payers`), they end with any ancestor, and they are
of its world. A test key makes test keys alone.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final

from sqlalchemy import func, select, text, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import AuthRequired, Forbidden, NotFound
from ledger import accounts, keys, scopes
from ledger.accounts import World
from ledger.keys import Caller, Limits, NewApiKey
from ledger.tables import api_keys

DEPTH: Final = 5
"""Generations under a full key: a team, a service, an agent, its helper, and one to spare. A spend walks them all."""


async def make(  # noqa: PLR0913  # the key's facts
    conn: AsyncConnection,
    caller: Caller,
    label: str,
    limits: Limits,
    *,
    brand: str,
    world: World | None = None,
    derive_from: bytes | None = None,
) -> NewApiKey:
    """Mint a key for a caller: a sibling of a full key, a child of a limited one. Its account is locked.

    Without a `world` it is of the caller's own. A user's first test key opens their test account.
    Raises: Forbidden for more than the caller's own key may; AuthRequired if that ended meanwhile.
    """
    parent_id = None
    world = world or caller.world
    if world != caller.world:
        if caller.world == "test":
            raise Forbidden("mode: a test key makes test keys alone.")
        if caller.limited:
            raise Forbidden("mode: a key with a limit makes keys of its own mode alone.")
        await accounts.open_account(conn, caller.user_id, world)
    if caller.limited:
        parent = await _live(conn, caller.key_id)
        limits = narrowed(parent, limits)
        line = text("SELECT count(*) FROM key_line(:key_id) WHERE parent_id IS NOT NULL")
        if (await conn.execute(line, {"key_id": parent.id})).scalar_one() >= DEPTH:
            raise Forbidden(f"Keys can be handed on {DEPTH} times; this one can make no more.")
        parent_id = parent.id
    return await keys.mint(
        conn, caller.user_id, label, brand=brand, world=world, limits=limits, parent_id=parent_id,
        derive_from=derive_from,
    )  # fmt: skip


def narrowed(parent: Row[Any], wanted: Limits) -> Limits:
    """Return what a child of this key gets: what is wanted, and the parent's own where nothing is.

    Raises: Forbidden for more than the parent has, naming the field.
    """
    if parent.scopes is not None:
        for scope in wanted.scopes or ():
            if not scopes.covers(parent.scopes, scope):
                raise Forbidden(f"scopes: this key lacks `{scope}` and cannot hand it on.")
        wanted = replace(wanted, scopes=wanted.scopes or tuple(parent.scopes))
    if parent.allowed_ips is not None:
        for address in wanted.allowed_ips or ():
            if not any(_within(ip_network(address), around) for around in parent.allowed_ips):
                raise Forbidden(f"allowedIps: {address} is not among this key's own addresses.")
        own = tuple(map(str, parent.allowed_ips))
        wanted = replace(wanted, allowed_ips=wanted.allowed_ips or own)
    if parent.expires_at is not None:
        if wanted.expires_at is not None and wanted.expires_at > parent.expires_at:
            raise Forbidden("expiresAt: this key ends before that, and its children with it.")
        wanted = replace(wanted, expires_at=wanted.expires_at or parent.expires_at)
    return wanted


async def rotate(  # noqa: PLR0913  # the rotation's facts
    conn: AsyncConnection,
    caller: Caller,
    prefix: str,
    overlap: timedelta,
    *,
    brand: str,
    derive_from: bytes | None = None,
) -> NewApiKey:
    """Replace the one key that begins so by a new secret with the same settings. Its account is locked.

    The new key takes over the old one's place, children and spending. The old one becomes its child until the
    overlap ends: together they spend no more than the one could. Raises: NotFound, AmbiguousPrefix.
    """
    old = await keys.match(conn, caller.user_id, prefix, caller.within, caller.only)
    now = datetime.now(UTC)
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise NotFound("key that works")
    allowed_ips = None if old.allowed_ips is None else tuple(map(str, old.allowed_ips))
    limits = Limits(old.scopes, allowed_ips, old.cap_tokens, old.cap_per, old.expires_at)
    new = await keys.mint(
        conn, old.user_id, old.label, brand=brand, world=old.world, limits=limits, parent_id=old.parent_id,
        derive_from=derive_from,
    )  # fmt: skip
    spent = {"cap_used": old.cap_used, "cap_window": old.cap_window}
    row = (
        await conn.execute(
            update(api_keys).where(api_keys.c.id == new.key.id).values(**spent).returning(api_keys)
        )
    ).one()
    await conn.execute(update(api_keys).where(api_keys.c.parent_id == old.id).values(parent_id=new.key.id))
    ends = func.least(api_keys.c.expires_at, func.now() + overlap)
    await conn.execute(
        update(api_keys).where(api_keys.c.id == old.id).values(parent_id=new.key.id, expires_at=ends)
    )
    return NewApiKey(keys.shown(row), new.secret, replayed=False)


async def _live(conn: AsyncConnection, key_id: str) -> Row[Any]:
    """Return the row of a key that still works, now that its account is locked. Raises: AuthRequired."""
    row = (
        await conn.execute(
            select(api_keys).where(
                api_keys.c.id == key_id,
                api_keys.c.revoked_at.is_(None),
                func.coalesce(api_keys.c.expires_at > func.clock_timestamp(), True),  # SQL's true
            )
        )
    ).one_or_none()
    if row is None:
        raise AuthRequired
    return row


def _within(inner: IPv4Network | IPv6Network, outer: IPv4Network | IPv6Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]  # the same version
