"""Jobs as a runner meets them: claim under a lease, renew, settle. A fencing token keeps a late writer out.

A claim raises the job's `fence`. Every later write of that runner names the fence it was given; once the lease ran
out and the job went elsewhere, the numbers differ and the write is refused whole. Results and charges commit
together; a failure, a cancellation or an expiry frees the hold in the same transaction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import func, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.deliveries import announce_end
from gateway.files import FOREVER, Retention, add_outputs
from gateway.metering import note_attempt
from gateway.ports import StoredFile
from gateway.quantities import MILLI
from gateway.stages import Stage, as_json
from gateway.tables import job_stages, jobs
from gateway.turns import UNBOUNDED, Concurrency, claim_in_turn
from kit.errors import AppError
from kit.queries import load_queries
from ledger import accounts, holds

queries: Final = load_queries(Path(__file__).with_name("queries.sql"))
SWEEP_BATCH: Final = 100
"""Jobs that one sweep looks at: enough to keep up, short enough to hold no lock for long."""


@dataclass
class LeaseLost(AppError):
    """The job went to another runner, or ended; this runner's work is not wanted any more."""

    job_id: str
    code = "lease_lost"
    status = 409

    @property
    def message(self) -> str:
        return f"The lease on {self.job_id} is gone."


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job under this runner's lease. `fence` must come with every write about it.

    Units: `units_milli` thousandths of the tool's unit, what was quoted and may be made at most.
    """

    id: str
    account_id: int
    task: str
    application: str
    input: dict[str, Any]
    quoted_tokens: int
    units_milli: int
    fence: int
    attempts: int
    created_at: datetime
    started_at: datetime
    deadline: datetime | None

    def cost_tokens(self, made_milli: int | None) -> int:
        """Return the price of what was made, rounded up, and never more than was quoted; None: all of it.

        It is the quote's share, so that the price of the quote holds whatever the catalogue says by now.
        """
        if made_milli is None:
            return self.quoted_tokens
        return min(self.quoted_tokens, -(-self.quoted_tokens * max(made_milli, 0) // self.units_milli))


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A runner's word that it works on a job. `stages` as they are now, None: as they were. Units: percent."""

    job_id: str
    fence: int
    progress_percent: int
    stages: tuple[Stage, ...] | None = None


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a job made and what it costs."""

    job_id: str
    fence: int
    outputs: list[StoredFile]
    charged_tokens: int
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job did not work. A retryable one goes back to the queue while it has attempts left."""

    job_id: str
    fence: int
    code: str
    message: str
    retryable: bool
    metrics: dict[str, Any]


Ended = Literal["succeeded", "failed", "canceled", "queued", "expired"]


async def claim(  # noqa: PLR0913, PLR0917  # what a claim is made of
    conn: AsyncConnection,
    runner: str,
    application: str,
    limit: int,
    lease: timedelta,
    concurrency: Concurrency = UNBOUNDED,
) -> list[ClaimedJob]:
    """Take up to `limit` queued jobs of an application, in turn; two runners never take the same one."""
    rows = await claim_in_turn(conn, runner, application, limit, lease, concurrency)
    return [
        ClaimedJob(
            id=row.id,
            account_id=row.account_id,
            task=row.task,
            application=row.application,
            input=row.input,
            quoted_tokens=row.quoted,
            units_milli=row.units_milli or MILLI,  # a job from before they were kept was one picture
            fence=row.fence,
            attempts=row.attempts,
            created_at=row.created_at,
            started_at=row.started_at,
            deadline=row.deadline,
        )
        for row in rows
    ]


async def renew(conn: AsyncConnection, beats: Sequence[Heartbeat], lease: timedelta) -> dict[str, bool]:
    """Prolong leases and note progress; returns job id -> whether to stop. A job that is missing was lost."""
    rows = await conn.execute(
        queries["renew_leases"],
        {
            "ids": [beat.job_id for beat in beats],
            "fences": [beat.fence for beat in beats],
            "percents": [beat.progress_percent for beat in beats],
            "stages": [beat.stages and json.dumps(as_json(beat.stages)) for beat in beats],
            "lease": lease,
        },
    )
    return {row.id: row.cancel_requested for row in rows}


async def settle(conn: AsyncConnection, done: Settlement, retention: Retention = FOREVER) -> Ended:
    """Write the result and charge for it, or neither; a job that was asked to stop is not charged.

    Raises: LeaseLost, with nothing written.
    """
    row = await _lock_running(conn, done.job_id, done.fence)
    outcome: Literal["succeeded", "canceled"] = "canceled" if row.cancel_requested_at else "succeeded"
    await note_attempt(conn, row.id, row.fence, outcome, done.metrics)
    if row.cancel_requested_at is not None:
        return await _end_unpaid(conn, row, "canceled", metrics=done.metrics)
    await add_outputs(conn, row.account_id, row.id, done.outputs, retention)
    if done.charged_tokens:
        await holds.capture(conn, row.hold_id, done.charged_tokens, datetime.now(UTC))
    else:
        await holds.release(conn, row.hold_id, "voided")
    await conn.execute(
        update(jobs)
        .where(jobs.c.id == row.id)
        .values(
            status="succeeded",
            charged=done.charged_tokens,
            output=[output.id for output in done.outputs],
            progress_percent=100,
            metrics=done.metrics,
            lease_until=None,
            finished_at=func.now(),
        )
    )
    await announce_end(conn, row.id)
    return "succeeded"


async def fail(conn: AsyncConnection, failure: Failure, max_attempts: int) -> Ended:
    """Put a job back into the queue while it may be tried again; end it and free its hold otherwise.

    Raises: LeaseLost, with nothing written.
    """
    row = await _lock_running(conn, failure.job_id, failure.fence)
    outcome: Literal["failed", "canceled"] = "canceled" if row.cancel_requested_at else "failed"
    await note_attempt(conn, row.id, row.fence, outcome, failure.metrics)
    return await _after_failure(conn, row, failure, max_attempts)


async def give_back(conn: AsyncConnection, job_id: str, fence: int) -> Ended:
    """Return a job that was not worked on to the queue, its attempt uncounted (a runner that shuts down).

    Raises: LeaseLost.
    """
    row = await _lock_running(conn, job_id, fence)
    if row.cancel_requested_at is not None:
        return await _end_unpaid(conn, row, "canceled")
    return await _requeue(conn, row, attempts=max(row.attempts - 1, 0))


async def sweep(conn: AsyncConnection, max_attempts: int) -> dict[str, Ended]:
    """End jobs that waited too long and take back jobs whose runner died; returns what became of each."""
    outcome: dict[str, Ended] = {}
    due = (await conn.execute(queries["due_jobs"], {"limit": SWEEP_BATCH})).all()
    await accounts.lock(conn, [row.account_id for row in due])
    for seen in due:
        row = (await conn.execute(select(jobs).where(jobs.c.id == seen.id).with_for_update())).one()
        if row.status != seen.status or row.fence != seen.fence or row.lease_until != seen.lease_until:
            continue  # it moved on between the look and the lock
        if row.status == "queued":
            outcome[row.id] = await _end_unpaid(
                conn,
                row,
                "expired",
                code="expired",
                message="No model was free in time; nothing was charged.",
            )
        else:
            lost = Failure(
                job_id=row.id,
                fence=row.fence,
                code="interrupted",
                message="The work was interrupted too often.",
                retryable=True,
                metrics={},
            )
            outcome[row.id] = await _after_failure(conn, row, lost, max_attempts)
    return outcome


async def _lock_running(conn: AsyncConnection, job_id: str, fence: int) -> Row[Any]:
    """Lock account, then job, and make sure that the lease is still this runner's."""
    account_id = (
        await conn.execute(select(jobs.c.account_id).where(jobs.c.id == job_id))
    ).scalar_one_or_none()
    if account_id is None:
        raise LeaseLost(job_id)
    await accounts.lock(conn, [account_id])
    row = (await conn.execute(select(jobs).where(jobs.c.id == job_id).with_for_update())).one()
    if row.status != "running" or row.fence != fence:
        raise LeaseLost(job_id)
    return row


async def _after_failure(conn: AsyncConnection, row: Row[Any], failure: Failure, max_attempts: int) -> Ended:
    if row.cancel_requested_at is not None:
        return await _end_unpaid(conn, row, "canceled", metrics=failure.metrics)
    if failure.retryable and row.attempts < max_attempts:
        return await _requeue(conn, row, attempts=row.attempts)
    return await _end_unpaid(
        conn, row, "failed", code=failure.code, message=failure.message, metrics=failure.metrics
    )


async def _requeue(conn: AsyncConnection, row: Row[Any], attempts: int) -> Ended:
    """Queue a job again. Time in which it came further does not count as waiting; its deadline stays."""
    expires_at: Any = jobs.c.expires_at
    if await _came_further(conn, row):
        # Postgres takes the least of those that are not null.
        expires_at = func.least(jobs.c.expires_at + (func.now() - jobs.c.started_at), jobs.c.deadline)
    await conn.execute(
        update(jobs)
        .where(jobs.c.id == row.id)
        .values(
            status="queued",
            attempts=attempts,
            runner=None,
            lease_until=None,
            progress_percent=0,
            fence=jobs.c.fence + 1,
            expires_at=expires_at,
        )
    )
    return "queued"


async def _came_further(conn: AsyncConnection, row: Row[Any]) -> bool:
    """Tell whether an attempt did something: of a job in stages, whether it finished a part."""
    if row.stages is None:
        return bool(row.progress_percent)
    parts = select(job_stages.c.part).where(job_stages.c.job_id == row.id, job_stages.c.fence == row.fence)
    return (await conn.execute(parts.limit(1))).first() is not None


async def _end_unpaid(  # noqa: PLR0913  # what is written of the end
    conn: AsyncConnection,
    row: Row[Any],
    status: Literal["failed", "canceled", "expired"],
    *,
    code: str | None = None,
    message: str | None = None,
    metrics: dict[str, Any] | None = None,
) -> Ended:
    await holds.release(conn, row.hold_id, "expired" if status == "expired" else "voided")
    await conn.execute(
        update(jobs)
        .where(jobs.c.id == row.id)
        .values(
            status=status,
            charged=0,
            error_code=code,
            error_message=message,
            metrics=metrics,
            lease_until=None,
            finished_at=func.now(),
        )
    )
    await announce_end(conn, row.id)
    return status
