"""Endpoints of webhooks: where an account is told of events, and the secret that signs what goes there.

Only a salt is stored; the secret is made from it and the server's own, and shown once.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import delete, func, insert, null, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.errors import EndpointExists, TooManyEndpoints
from gateway.tables import webhook_endpoints
from gateway.webhook_ports import Endpoint, Event, NewSecret
from kit.errors import NotFound
from kit.ids import new_id
from kit.webhook_signing import derive_key, new_salt, spelled
from ledger import accounts

MAX_ENDPOINTS: Final = 20
"""Of one account: each event is written once for each of them."""


async def add(
    conn: AsyncConnection,
    server_secret: bytes,
    account_id: int,
    url: str | None,
    events: tuple[Event, ...] | None,
) -> NewSecret:
    """Add an endpoint; an account has one for a URL, and one without. Raises: EndpointExists, TooManyEndpoints."""
    await accounts.lock(conn, [account_id])
    found = (await conn.scalars(select(webhook_endpoints.c.url).where(_of(account_id)))).all()
    if url in found:
        raise EndpointExists(url or "")
    if len(found) >= MAX_ENDPOINTS:
        raise TooManyEndpoints(MAX_ENDPOINTS)
    row = (
        await conn.execute(
            insert(webhook_endpoints)
            .values(
                id=new_id("hook"), account_id=account_id, url=url, events=_listed(events), salt=new_salt()
            )
            .returning(webhook_endpoints)
        )
    ).one()
    return _with_secret(row, server_secret)


async def ensure_signer(conn: AsyncConnection, account_ids: set[int]) -> None:
    """Make sure that accounts have an endpoint without a URL: what they name in jobs and alerts can be signed."""
    if account_ids:
        rows = [
            {"id": new_id("hook"), "account_id": account_id, "salt": new_salt()}
            for account_id in sorted(account_ids)
        ]
        await conn.execute(
            upsert(webhook_endpoints).on_conflict_do_nothing(index_elements=["account_id", "url"]), rows
        )


async def endpoints(conn: AsyncConnection, account_id: int) -> list[Endpoint]:
    """Return an account's endpoints, newest first."""
    rows = await conn.execute(
        select(webhook_endpoints).where(_of(account_id)).order_by(webhook_endpoints.c.id.desc())
    )
    return [_endpoint(row) for row in rows]


async def rotate(
    conn: AsyncConnection, server_secret: bytes, account_id: int, endpoint_id: str, overlap: timedelta
) -> NewSecret:
    """Give an endpoint a new secret; the one before signs beside it until the overlap ends, an older one no more.

    Raises: NotFound.
    """
    if overlap:
        before = {"old_salt": webhook_endpoints.c.salt, "old_until": func.now() + overlap}
    else:
        before = {"old_salt": null(), "old_until": null()}
    row = (
        await conn.execute(
            update(webhook_endpoints)
            .where(_of(account_id), webhook_endpoints.c.id == endpoint_id)
            .values(salt=new_salt(), **before)
            .returning(webhook_endpoints)
        )
    ).one_or_none()
    if row is None:
        raise NotFound("webhook endpoint")
    return _with_secret(row, server_secret)


async def drop(conn: AsyncConnection, account_id: int, endpoint_id: str) -> None:
    """Delete an endpoint with its deliveries. Raises: NotFound."""
    gone = await conn.execute(
        delete(webhook_endpoints).where(_of(account_id), webhook_endpoints.c.id == endpoint_id)
    )
    if not gone.rowcount:
        raise NotFound("webhook endpoint")


async def forget_account(conn: AsyncConnection, account_id: int) -> None:
    """Delete every endpoint of an account, with what was told to them."""
    await conn.execute(delete(webhook_endpoints).where(_of(account_id)))


def _of(account_id: int) -> Any:
    return webhook_endpoints.c.account_id == account_id


def _listed(events: tuple[Event, ...] | None) -> Any:
    return null() if events is None else list(events)


def _with_secret(row: Row[Any], server_secret: bytes) -> NewSecret:
    return NewSecret(_endpoint(row), spelled(derive_key(server_secret, row.salt)))


def _endpoint(row: Row[Any]) -> Endpoint:
    return Endpoint(
        id=row.id,
        url=row.url,
        events=None if row.events is None else tuple(row.events),
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        old_until=row.old_until,
    )
