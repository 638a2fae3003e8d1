"""What the stages of a job made: kept under the job's lease, so that the next runner goes on where the last stopped.

A part is written once, by a runner whose fence is the job's; a late writer's is refused. The bytes lie in the object
store and are there before the row. Once the job has ended, rows and bytes go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.leases import LeaseLost
from gateway.stages import Stage, as_json
from gateway.tables import job_attempts, job_stages, jobs


@dataclass(frozen=True, slots=True)
class StagePart:
    """One finished part of a stage. `facts` are the pipeline's own; `fence` is the lease's that made it.

    `is_measured`: an earlier attempt's row in `job_attempts` counts it. Units: `gpu_ms` is the time that it held a GPU.
    """

    job_id: str
    stage: str
    part: int
    fence: int
    storage_key: str
    facts: dict[str, Any]
    run_ms: int
    gpu_ms: int
    peak_memory_bytes: int
    is_measured: bool = False


async def keep(conn: AsyncConnection, part: StagePart, stages: Sequence[Stage], percent: int) -> None:
    """Write a finished part and how far the job is by it; the same part again changes nothing.

    Raises: LeaseLost, with nothing written.
    """
    await _hold_lease(conn, part.job_id, part.fence)
    await conn.execute(
        insert(job_stages)
        .values(
            job_id=part.job_id,
            stage=part.stage,
            part=part.part,
            fence=part.fence,
            storage_key=part.storage_key,
            facts=part.facts,
            run_ms=part.run_ms,
            gpu_ms=part.gpu_ms,
            peak_memory_bytes=part.peak_memory_bytes,
        )
        .on_conflict_do_nothing(constraint="job_stages_pkey")  # its answer was lost
    )
    await conn.execute(
        update(jobs)
        .where(jobs.c.id == part.job_id)
        .values(stages=as_json(stages), progress_percent=func.greatest(jobs.c.progress_percent, percent))
    )


async def kept(conn: AsyncConnection, job_id: str, fence: int) -> list[StagePart]:
    """Return what was made of a job before. Raises: LeaseLost."""
    await _hold_lease(conn, job_id, fence)
    # An attempt that ended counted what it made, and what those before it made that were given back or died.
    measured = exists().where(
        job_attempts.c.job_id == job_stages.c.job_id, job_attempts.c.fence >= job_stages.c.fence
    )
    query = select(job_stages, measured.label("is_measured")).where(job_stages.c.job_id == job_id)
    rows = await conn.execute(query.order_by(job_stages.c.stage, job_stages.c.part))
    return [
        StagePart(
            row.job_id,
            row.stage,
            row.part,
            row.fence,
            row.storage_key,
            row.facts,
            row.run_ms,
            row.gpu_ms,
            row.peak_memory_bytes,
            row.is_measured,
        )
        for row in rows
    ]


async def left_over(conn: AsyncConnection, limit: int) -> list[str]:
    """Return the storage keys of parts whose job has ended."""
    query = select(job_stages.c.storage_key).join(jobs, jobs.c.id == job_stages.c.job_id)
    return list((await conn.scalars(query.where(jobs.c.finished_at.is_not(None)).limit(limit))).all())


async def forget(conn: AsyncConnection, storage_keys: Sequence[str]) -> None:
    """Delete parts whose bytes are gone."""
    await conn.execute(delete(job_stages).where(job_stages.c.storage_key.in_(storage_keys)))


async def _hold_lease(conn: AsyncConnection, job_id: str, fence: int) -> None:
    """Lock a job against another claim until the end of the transaction. Raises: LeaseLost."""
    query = select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.status == "running")
    if (await conn.execute(query.with_for_update(key_share=True))).one_or_none() is None:
        raise LeaseLost(job_id)
