"""The alert of a low balance: told once when what is free falls below a threshold, by mail and webhook.

Decided by a sweep, apart from every spend. An alert that was told rests until credits have come in and lifted the
balance to the threshold again: a hold that comes free is no top-up. A fall that a top-up undoes before the sweep looks
is not told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sqlalchemy import case, delete, func, null, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.deliveries import announce_low_balance
from gateway.responses import amount, credits_text
from gateway.tables import balance_alerts
from gateway.webhook_ports import LowBalance
from gateway.webhooks import ensure_signer
from kit import outbox
from kit.queries import load_queries
from ledger.balances import balance

queries: Final = load_queries(Path(__file__).with_name("alerts.sql"))


async def set_alert(
    conn: AsyncConnection, account_id: int, threshold_tokens: int, webhook_url: str | None
) -> LowBalance:
    """Set an account's alert. A balance that is below already is told at its next fall; the same threshold again
    leaves what was decided.
    """
    if webhook_url is not None:
        await ensure_signer(conn, {account_id})
    free = (await balance(conn, account_id)).available_tokens
    given = upsert(balance_alerts).values(
        account_id=account_id,
        threshold=threshold_tokens,
        webhook_url=webhook_url,
        armed=free >= threshold_tokens,
    )
    same = balance_alerts.c.threshold == given.excluded.threshold
    row = (
        await conn.execute(
            given.on_conflict_do_update(
                index_elements=["account_id"],
                set_={
                    "threshold": given.excluded.threshold,
                    "webhook_url": given.excluded.webhook_url,
                    "armed": case((same, balance_alerts.c.armed), else_=given.excluded.armed),
                    "alerted_version": case((same, balance_alerts.c.alerted_version), else_=null()),
                },
            ).returning(balance_alerts)
        )
    ).one()
    return _alert(row)


async def alert(conn: AsyncConnection, account_id: int) -> LowBalance | None:
    """Return an account's alert, if it has one."""
    query = select(balance_alerts).where(balance_alerts.c.account_id == account_id)
    row = (await conn.execute(query)).one_or_none()
    return None if row is None else _alert(row)


async def drop(conn: AsyncConnection, account_id: int) -> None:
    """Take an account's alert away."""
    await conn.execute(delete(balance_alerts).where(balance_alerts.c.account_id == account_id))


async def accounts_moved(conn: AsyncConnection, after: int, limit: int) -> tuple[list[int], int]:
    """Return the accounts that crossed their threshold, among the next `limit` with an alert; and where to go on."""
    row = (await conn.execute(queries["moved"], {"after": after, "limit": limit})).one()
    return list(row.moved), row.up_to or 0


async def decide(conn: AsyncConnection, account_id: int, base_url: str) -> bool:
    """Tell of a fall below the threshold, or arm the alert again; returns whether it was told.

    Under the alert's lock, so that of two sweeps one tells.
    """
    await conn.execute(queries["lock_alert"], {"account_id": account_id})
    now = (await conn.execute(queries["as_it_stands"], {"account_id": account_id})).one_or_none()
    if now is None:
        return False  # taken away since the look
    if now.armed and now.free < now.threshold:
        await _tell(conn, account_id, now, base_url)
        await _note(
            conn, account_id, armed=False, alerted_version=now.version, alerted_at=func.clock_timestamp()
        )
        return True
    if not now.armed and now.free >= now.threshold:
        if now.alerted_version is None or await _credited(conn, account_id, now):
            await _note(conn, account_id, armed=True, alerted_version=None)
        else:  # what was looked through need not be again
            await _note(conn, account_id, alerted_version=now.version)
    return False


async def _tell(conn: AsyncConnection, account_id: int, now: Row[Any], base_url: str) -> None:
    """Write the mail and the deliveries; a suspended person is told nothing."""
    if now.away:
        return
    free, threshold = credits_text(now.free), credits_text(now.threshold)
    test, top_up = "", f"Top up at {base_url}/credits"
    if now.world == "test":
        test, top_up = "test ", f"Fill them up: POST {base_url}/api/v1/test/refill"
    await outbox.enqueue(
        conn,
        now.email,
        f"Your {test}balance is low: {free} credits",
        f"{free} {test}credits are free to spend, less than the {threshold} that you asked to be told of.\n\n"
        f"{top_up}\n\nThis comes once, and again only after a top-up.\n",
    )
    data = {"free": amount(now.free), "threshold": amount(now.threshold)}
    await announce_low_balance(conn, account_id, now.webhook_url, data)


async def _credited(conn: AsyncConnection, account_id: int, now: Row[Any]) -> bool:
    """Tell whether credits came in since the alert was told."""
    found = await conn.execute(
        queries["credited_since"],
        {"account_id": account_id, "version": now.alerted_version, "up_to": now.version},
    )
    return bool(found.scalar_one())


async def _note(conn: AsyncConnection, account_id: int, **values: Any) -> None:
    await conn.execute(
        update(balance_alerts).where(balance_alerts.c.account_id == account_id).values(**values)
    )


def _alert(row: Row[Any]) -> LowBalance:
    return LowBalance(row.threshold, row.webhook_url, row.armed, row.alerted_at)
