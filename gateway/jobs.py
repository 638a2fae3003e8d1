"""Jobs as their owner meets them: submit, look, list, cancel. The job and its hold are written together.

Locks are taken in one order everywhere: account, hold, job.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from sqlalchemy import ColumnElement, func, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import idempotency
from gateway.deliveries import announce_end
from gateway.errors import JobNotFinished
from gateway.files import outputs_of
from gateway.ports import FinishedJob, Job, JobReceipt, JobStatus, StoredFile, SubmitJob
from gateway.stages import as_seen
from gateway.tables import jobs
from gateway.turns import places_in_line
from gateway.webhooks import ensure_signer
from kit.errors import AppError, AuthRequired, Forbidden, NotFound
from kit.ids import new_id
from ledger import accounts, holds, scopes, tables
from ledger.payers import Payer, authorise

ROUTE: Final = "media.jobs"


async def submit_many(
    conn: AsyncConnection, commands: Sequence[SubmitJob], queue_ttl: timedelta
) -> list[JobReceipt | AppError]:
    """Decide each submit on its own, in order, and write the accepted ones with their holds.

    Keys, idempotency and balances are read under the accounts' locks; a refusal leaves no trace and touches no
    neighbour. Two with one idempotency key in the same batch are one job.
    """
    uses = [(command.credential, scopes.task(command.task)) for command in commands]
    payers = await authorise(conn, uses)
    known = [payers.get(use) for use in uses]
    answered = await idempotency.find(
        conn,
        ROUTE,
        [
            (k.purse.account_id, c.idempotency_key)
            for c, k in zip(commands, known, strict=True)
            if isinstance(k, Payer) and c.idempotency_key
        ],
    )
    outcomes: list[JobReceipt | AppError | None] = [None] * len(commands)
    fresh: list[tuple[int, SubmitJob, Payer]] = []
    first_use: dict[tuple[int, str], int] = {}
    repeats: list[tuple[int, int]] = []
    for place, (command, payer) in enumerate(zip(commands, known, strict=True)):
        if not isinstance(payer, Payer):
            outcomes[place] = payer or AuthRequired()
            continue
        if payer.caller and payer.caller.world != command.world:
            outcomes[place] = Forbidden(f"This work is not on offer to {payer.caller.world} keys.")
            continue
        key = (payer.purse.account_id, command.idempotency_key or "")
        if command.idempotency_key and key in answered:
            outcomes[place] = _replay(answered[key], command)
        elif command.idempotency_key and key in first_use:
            repeats.append((place, first_use[key]))
        elif command.refusal is not None:
            outcomes[place] = command.refusal
        else:
            first_use[key] = place
            fresh.append((place, command, payer))
    for place, outcome in await _write(conn, fresh, queue_ttl):
        outcomes[place] = outcome
    for place, first in repeats:
        outcomes[place] = _repeat(commands[place], commands[first], outcomes[first])
    return cast("list[JobReceipt | AppError]", outcomes)


async def _write(
    conn: AsyncConnection,
    fresh: Sequence[tuple[int, SubmitJob, Payer]],
    queue_ttl: timedelta,
) -> list[tuple[int, JobReceipt | AppError]]:
    now = datetime.now(UTC)
    requests = [
        holds.HoldRequest(
            new_id("hold"), payer, command.tool, command.job_id, command.cost_tokens, command.price_version,
            expires_at=None,
        )
        for _, command, payer in fresh
    ]  # fmt: skip
    decided = await holds.place(conn, requests)
    outcomes: list[tuple[int, JobReceipt | AppError]] = []
    rows: list[dict[str, Any]] = []
    answers: list[tuple[int, str, str, dict[str, Any]]] = []
    for (place, command, payer), request, free in zip(fresh, requests, decided, strict=True):
        if isinstance(free, AppError):
            outcomes.append((place, free))
            continue
        assert payer.caller is not None, "a job is submitted with a key"
        receipt = JobReceipt(command.job_id, command.task, command.cost_tokens, free, now, replayed=False)
        outcomes.append((place, receipt))
        rows.append(
            {
                "id": command.job_id,
                "account_id": payer.caller.account_id,
                "key_id": payer.caller.key_id,
                "task": command.task,
                "tool": command.tool,
                "application": command.application,
                "input": command.input,
                "quoted": command.cost_tokens,
                "units_milli": command.units_milli,
                "hold_id": request.id,
                "created_at": now,
                "expires_at": min(now + queue_ttl, command.deadline or now + queue_ttl),
                "deadline": command.deadline,
                "priority": command.priority,
                "webhook_url": command.webhook_url,
                "webhook_events": command.webhook_events and list(command.webhook_events),
            }
        )
        if command.idempotency_key:
            answers.append(
                (payer.caller.account_id, command.idempotency_key, command.fingerprint, _answer(receipt))
            )
    if rows:
        await ensure_signer(conn, {row["account_id"] for row in rows if row["webhook_url"] is not None})
        await conn.execute(insert(jobs), rows)
    await idempotency.remember(conn, ROUTE, answers)
    return outcomes


def _answer(receipt: JobReceipt) -> dict[str, Any]:
    return {
        "job_id": receipt.job_id,
        "task": receipt.task,
        "cost_tokens": receipt.cost_tokens,
        "balance_after_tokens": receipt.balance_after_tokens,
        "created_at": receipt.created_at.isoformat(),
    }


def _replay(answered: idempotency.Answered, command: SubmitJob) -> JobReceipt | AppError:
    try:
        answer = answered.replay(command.idempotency_key or "", command.fingerprint)
    except AppError as refusal:
        return refusal
    return JobReceipt(**{**answer, "created_at": datetime.fromisoformat(answer["created_at"])}, replayed=True)


def _repeat(
    command: SubmitJob, first: SubmitJob, outcome: JobReceipt | AppError | None
) -> JobReceipt | AppError:
    """Answer the second use of a key within a batch from the first use's outcome."""
    assert outcome is not None, "the first use was decided before"
    if isinstance(outcome, AppError):
        return outcome
    return _replay(idempotency.Answered(first.fingerprint, _answer(outcome)), command)


async def job(conn: AsyncConnection, account_id: int, job_id: str) -> Job:
    """Return one of the account's jobs. Raises: NotFound."""
    found = await _jobs(conn, jobs.c.account_id == account_id, jobs.c.id == job_id)
    if not found:
        raise NotFound("job")
    return found[0]


async def finished_job(conn: AsyncConnection, account_id: int, job_id: str) -> FinishedJob:
    """Return what the receipt of one of the account's jobs states. Raises: NotFound, JobNotFinished.

    An ended job never changes, and its charge was written with its end: several reads see one state.
    """
    row = (
        await conn.execute(
            select(jobs, tables.holds.c.price_version, tables.transfers.c.id.label("transfer_id"))
            .join(tables.holds, tables.holds.c.id == jobs.c.hold_id)
            .outerjoin(tables.transfers, tables.transfers.c.hold_id == jobs.c.hold_id)
            .where(jobs.c.account_id == account_id, jobs.c.id == job_id)
        )
    ).one_or_none()
    if row is None:
        raise NotFound("job")
    if row.finished_at is None:
        raise JobNotFinished(row.status)
    outputs = await outputs_of(conn, [job_id], deleted=True) if row.status == "succeeded" else {}
    return FinishedJob(
        id=row.id,
        task=row.task,
        tool=row.tool,
        status=row.status,
        units_milli=row.units_milli,
        price_version=row.price_version,
        quoted_tokens=row.quoted,
        charged_tokens=row.charged,
        transfer_id=row.transfer_id,
        outputs=outputs.get(job_id, []),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


async def list_jobs(
    conn: AsyncConnection, account_id: int, limit: int, before: str | None, status: JobStatus | None
) -> list[Job]:
    """Return a page of the account's jobs, newest first."""
    terms = [jobs.c.account_id == account_id]
    if before is not None:
        terms.append(jobs.c.id < before)
    if status is not None:
        terms.append(jobs.c.status == status)
    return await _jobs(conn, *terms, limit=limit)


async def cancel(conn: AsyncConnection, account_id: int, job_id: str) -> Job:
    """End a queued job and free its hold; ask a running one to stop; leave an ended one as it is.

    Raises: NotFound.
    """
    await accounts.lock(conn, [account_id])
    row = (
        await conn.execute(
            select(jobs.c.status, jobs.c.hold_id)
            .where(jobs.c.id == job_id, jobs.c.account_id == account_id)
            .with_for_update()
        )
    ).one_or_none()
    if row is None:
        raise NotFound("job")
    if row.status == "queued":
        await holds.release(conn, row.hold_id, "voided")
        values = {"status": "canceled", "finished_at": func.now(), "charged": 0}
        await conn.execute(update(jobs).where(jobs.c.id == job_id).values(**values))
        await announce_end(conn, job_id)
    elif row.status == "running":
        asked = func.coalesce(jobs.c.cancel_requested_at, func.now())
        await conn.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested_at=asked))
    return await job(conn, account_id, job_id)


async def cancel_queued(conn: AsyncConnection, account_id: int) -> None:
    """End every queued job of an account whose lock is held."""
    queued = await conn.scalars(
        select(jobs.c.id)
        .where(jobs.c.account_id == account_id, jobs.c.status == "queued")
        .order_by(jobs.c.hold_id)
    )
    for job_id in queued.all():
        await cancel(conn, account_id, job_id)


async def forget_inputs(conn: AsyncConnection, account_id: int) -> None:
    """Empty the inputs of an account's jobs; what they cost stays in the books."""
    await conn.execute(
        update(jobs)
        .where(jobs.c.account_id == account_id)
        .values(input={}, error_message=None, webhook_url=None, webhook_events=None)
    )


async def _jobs(conn: AsyncConnection, *terms: ColumnElement[bool], limit: int = 1) -> list[Job]:
    rows = (await conn.execute(select(jobs).where(*terms).order_by(jobs.c.id.desc()).limit(limit))).all()
    outputs = await outputs_of(conn, [row.id for row in rows if row.status == "succeeded"], deleted=True)
    places = await places_in_line(conn, [row.id for row in rows if row.status == "queued"])
    return [_job(row, outputs.get(row.id, []), places.get(row.id)) for row in rows]


def _job(row: Row[Any], output: list[StoredFile], place: int | None) -> Job:
    return Job(
        id=row.id,
        task=row.task,
        tool=row.tool,
        status=row.status,
        input=row.input,
        quoted_tokens=row.quoted,
        charged_tokens=row.charged,
        progress_percent=100 if row.status == "succeeded" else row.progress_percent,
        queue_position=place,
        cancel_requested=row.cancel_requested_at is not None,
        output=output,
        error_code=row.error_code,
        error_message=row.error_message,
        metrics=row.metrics or {},
        attempts=row.attempts,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        stages=as_seen(row.stages, row.status),
    )
