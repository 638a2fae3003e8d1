"""Webhooks on their way to customers: each is a row written with its cause in one transaction, so both or neither.

A courier takes what is due, posts it with no transaction open, and notes the outcome. A delivery arrives at least
once: whoever dies between posting and noting has it posted again, under the same id. What is not taken is tried with
growing pauses, then given up; its owner sees all of it and may have it sent anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, delete, func, insert, null, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.errors import EndpointDisabled
from gateway.files import outputs_of
from gateway.responses import amount, dump
from gateway.tables import jobs, webhook_deliveries, webhook_endpoints
from gateway.webhook_ports import Delivery, DueDelivery, Event, Outcome
from kit.errors import NotFound
from kit.ids import new_id
from kit.queries import load_queries
from kit.webhook_signing import derive_key

queries: Final = load_queries(Path(__file__).with_name("webhooks.sql"))
PAUSES: Final = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
"""After each attempt but the last: a deployment is bridged, then a night, then a weekend; three days in all.

Source: the schedule that the Standard Webhooks specification recommends.
"""
HELD: Final = timedelta(seconds=60)
"""How long a courier has for a delivery before another takes it: several times what a post may take."""
EACH: Final = 4
"""Deliveries of one endpoint that are taken at once: a slow one leaves room for the others."""
LOOKED_AT: Final = 1_000
"""Due deliveries among which turns are taken."""
GONE: Final = 410
"""The receiver says that nobody will ever want this again."""
KEPT: Final = timedelta(days=30)
"""What was told, and when, answers a customer's question for a month."""
PROBLEM_CHARS: Final = 500


async def announce_end(conn: AsyncConnection, job_id: str) -> None:
    """Write what tells of a job that has just ended, to its own URL and to its account's endpoints."""
    told = (await conn.execute(queries["told_of_job"], {"job_id": job_id})).all()
    if not told:
        return
    job = (await conn.execute(select(jobs).where(jobs.c.id == job_id))).one()
    outputs = await outputs_of(conn, [job_id])
    data = {
        "jobId": job.id,
        "task": job.task,
        "status": job.status,
        "quoted": amount(job.quoted),
        "charged": amount(job.charged),
        "output": [
            {
                **file.facts,
                "id": file.id,
                "contentType": file.content_type,
                "sizeBytes": file.size_bytes,
                "sha256": file.sha256,
            }
            for file in outputs.get(job_id, [])
        ],
        "error": {"code": job.error_code, "message": job.error_message or ""} if job.error_code else None,
        "createdAt": job.created_at,
        "startedAt": job.started_at,
        "finishedAt": job.finished_at,
    }
    await _write(conn, told, job.account_id, told[0].event, job.finished_at, data, job_id)


async def announce_low_balance(
    conn: AsyncConnection, account_id: int, named_url: str | None, data: Mapping[str, Any]
) -> None:
    """Write what tells of a low balance, to the alert's own URL and to the account's endpoints."""
    told = (
        await conn.execute(queries["told_of_balance"], {"account_id": account_id, "named_url": named_url})
    ).all()
    await _write(conn, told, account_id, "balance.low", datetime.now(UTC), data, None)


async def take_due(
    conn: AsyncConnection, limit: int, busy: Sequence[str], server_secret: bytes
) -> list[DueDelivery]:
    """Take up to `limit` deliveries that are due, few of each endpoint and none of the busy ones.

    Nobody else gets them before `HELD` is over.
    """
    rows = await conn.execute(
        queries["take_due"],
        {"limit": limit, "busy": list(busy), "each": EACH, "looked_at": LOOKED_AT, "held": HELD},
    )
    return [
        DueDelivery(
            id=row.id,
            endpoint_id=row.endpoint_id,
            url=row.url,
            body=row.body,
            attempt=row.attempt,
            keys=tuple(derive_key(server_secret, salt) for salt in (row.salt, row.old_salt) if salt),
        )
        for row in rows
    ]


async def finish(conn: AsyncConnection, outcome: Outcome) -> None:
    """Note what became of an attempt: delivered, to be tried again, or given up. A late note changes nothing.

    410 gives up at once, and disables the endpoint with all that waits for it.
    """
    gone = outcome.answered == GONE
    if gone and await _disable(conn, outcome.endpoint_id):
        await conn.execute(
            update(webhook_deliveries)
            .where(
                _waiting(),
                webhook_deliveries.c.endpoint_id == outcome.endpoint_id,
                webhook_deliveries.c.id != outcome.delivery_id,
            )
            .values(given_up_at=func.now(), problem="the endpoint was disabled by its answer 410")
        )
    noted: dict[str, Any] = {
        "status_code": outcome.answered,
        "problem": None if outcome.problem is None else outcome.problem[:PROBLEM_CHARS],
    }
    if outcome.problem is None:
        noted["delivered_at"] = func.now()
    elif gone or outcome.attempt > len(PAUSES):
        noted["given_up_at"] = func.now()
    else:
        noted["retry_at"] = func.now() + PAUSES[outcome.attempt - 1]
    await conn.execute(
        update(webhook_deliveries)
        .where(
            _waiting(),
            webhook_deliveries.c.id == outcome.delivery_id,
            webhook_deliveries.c.attempts == outcome.attempt,
        )
        .values(**noted)
    )


async def deliveries(
    conn: AsyncConnection, account_id: int, limit: int, before: str | None, job_id: str | None
) -> list[Delivery]:
    """Return a page of an account's deliveries, newest first."""
    query = select(webhook_deliveries).where(webhook_deliveries.c.account_id == account_id)
    if before is not None:
        query = query.where(webhook_deliveries.c.id < before)
    if job_id is not None:
        query = query.where(webhook_deliveries.c.job_id == job_id)
    rows = await conn.execute(query.order_by(webhook_deliveries.c.id.desc()).limit(limit))
    return [_delivery(row) for row in rows]


async def replay(conn: AsyncConnection, account_id: int, delivery_id: str) -> Delivery:
    """Have a delivery sent anew, as if for the first time but under its own id. Raises: NotFound, EndpointDisabled."""
    mine = (webhook_deliveries.c.id == delivery_id) & (webhook_deliveries.c.account_id == account_id)
    disabled = (
        await conn.execute(
            select(webhook_endpoints.c.disabled_at.is_not(None))
            .join(webhook_deliveries, webhook_deliveries.c.endpoint_id == webhook_endpoints.c.id)
            .where(mine)
        )
    ).scalar_one_or_none()
    if disabled is None:
        raise NotFound("webhook delivery")
    if disabled:
        raise EndpointDisabled
    row = (
        await conn.execute(
            update(webhook_deliveries)
            .where(mine)
            .values(
                attempts=0,
                retry_at=func.now(),
                delivered_at=null(),
                given_up_at=null(),
                status_code=null(),
                problem=null(),
            )
            .returning(webhook_deliveries)
        )
    ).one_or_none()
    if row is None:
        raise NotFound("webhook delivery")
    return _delivery(row)


async def forget_old(conn: AsyncConnection) -> int:
    """Delete deliveries that ended long ago; returns how many."""
    result = await conn.execute(
        delete(webhook_deliveries).where(~_waiting(), webhook_deliveries.c.created_at < func.now() - KEPT)
    )
    return result.rowcount


async def _write(  # noqa: PLR0913, PLR0917  # what an event is made of
    conn: AsyncConnection,
    told: Sequence[Row[Any]],
    account_id: int,
    event: Event,
    at: datetime,
    data: Mapping[str, Any],
    job_id: str | None,
) -> None:
    if not told:
        return
    body = dump({"type": event, "timestamp": at, "data": data}).decode()
    rows = [
        {
            "id": new_id("msg"),
            "account_id": account_id,
            "endpoint_id": each.endpoint_id,
            "url": each.url,
            "event": event,
            "job_id": job_id,
            "body": body,
        }
        for each in told
    ]
    await conn.execute(insert(webhook_deliveries), rows)


async def _disable(conn: AsyncConnection, endpoint_id: str) -> bool:
    """Disable an endpoint; the one that signs for others' URLs is not the receiver's to end. Returns whether it is."""
    disabled = await conn.execute(
        update(webhook_endpoints)
        .where(webhook_endpoints.c.id == endpoint_id, webhook_endpoints.c.url.is_not(None))
        .values(disabled_at=func.coalesce(webhook_endpoints.c.disabled_at, func.now()))
    )
    return bool(disabled.rowcount)


def _waiting() -> ColumnElement[bool]:
    return webhook_deliveries.c.delivered_at.is_(None) & webhook_deliveries.c.given_up_at.is_(None)


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        id=row.id,
        endpoint_id=row.endpoint_id,
        url=row.url,
        event=row.event,
        job_id=row.job_id,
        body=row.body,
        created_at=row.created_at,
        attempts=row.attempts,
        retry_at=row.retry_at,
        delivered_at=row.delivered_at,
        given_up_at=row.given_up_at,
        answered=row.status_code,
        problem=row.problem,
    )
