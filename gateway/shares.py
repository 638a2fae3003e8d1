"""What an operator gives an account beyond the common share of the models: heavier turns, a bound of its own."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import lookups
from gateway.operator_ports import Share
from gateway.tables import account_shares
from ledger import accounts
from ledger.actions import Action, Actor, record

MAX_WEIGHT = 100
"""A hundred customers' turns for one: beyond that, it should have models of its own."""
MAX_RUNNING = 10_000
"""Far above the places of any cluster."""


COMMON = Share()


async def share_of(conn: AsyncConnection, user_id: str) -> Share:
    """Return the share of a user's live account. Raises: NotFound."""
    return await _share(conn, (await lookups.user(conn, user_id)).account_id)


async def set_share(conn: AsyncConnection, actor: Actor, user_id: str, share: Share, reason: str) -> Share:
    """Set the share of a user's live account, from the next claim on. Raises: NotFound."""
    account_id = (await lookups.user(conn, user_id)).account_id
    await accounts.lock_one(conn, account_id)
    before = await _share(conn, account_id)
    if share == before:
        return share
    if share == COMMON:
        await conn.execute(delete(account_shares).where(account_shares.c.account_id == account_id))
    else:
        row = insert(account_shares).values(account_id=account_id, **asdict(share))
        await conn.execute(
            row.on_conflict_do_update(index_elements=[account_shares.c.account_id], set_=asdict(share))
        )
    action = Action("account.share", user_id, user_id, asdict(before), asdict(share), reason)
    await record(conn, actor, action)
    return share


async def _share(conn: AsyncConnection, account_id: int) -> Share:
    found = select(account_shares.c.weight, account_shares.c.max_running)
    row = (await conn.execute(found.where(account_shares.c.account_id == account_id))).one_or_none()
    return COMMON if row is None else Share(row.weight, row.max_running)
