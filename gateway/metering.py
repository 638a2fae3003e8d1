"""What the models take, attempt by attempt and turn by turn, and what they earn by it.

A job's own metrics are those of its last attempt and belong to its caller. Here every attempt that a runner ended has a
row, written with its end: what failed or was canceled cost the operator as much. A turn of a conversation has one row,
written with its charge or its release. An attempt whose runner died and a turn whose surface died are not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.conversations import MeteredTurn
from gateway.operator_ports import Signed
from gateway.tables import chat_turns, job_attempts
from kit.queries import load_queries
from ledger.tables import holds

queries: Final = load_queries(Path(__file__).with_name("metering.sql"))


@dataclass(frozen=True, slots=True)
class Revenue:
    """What a model took and earned in a period, on a GPU or on a CPU: attempts at jobs and turns of conversations.

    `model` is None while no job succeeded and no turn began.
    Units: `busy_s` seconds of the model's time, shared batches divided; `unpaid_s` the part of it that no customer paid
    for. `tokens` were charged for what was made, less what was given back of it since.
    """

    application: str
    model: str | None
    on_gpu: bool
    attempts: int
    succeeded: int
    busy_s: float
    unpaid_s: float
    tokens: int

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens for each GPU-second; on a CPU, where no GPU is held, for each second that the model worked."""
        return round(self.tokens / self.busy_s, 3) if self.busy_s else None


class Meters(Protocol):
    """What an operator may ask of the measures."""

    async def revenue(self, by: Signed, since: datetime, until: datetime) -> list[Revenue]:
        """Return what each model took and earned, of what ended in a period."""


async def note_attempt(
    conn: AsyncConnection,
    job_id: str,
    fence: int,
    outcome: Literal["succeeded", "failed", "canceled"],
    metrics: Mapping[str, Any],
) -> None:
    """Write down what an attempt took; one that never ran took nothing."""
    if "runMs" not in metrics:
        return
    gpu_s = metrics.get("gpuSeconds", 0.0)
    busy_s = gpu_s or metrics.get("busySeconds", metrics["runMs"] / 1000)
    await conn.execute(
        insert(job_attempts).values(
            job_id=job_id,
            fence=fence,
            outcome=outcome,
            queue_ms=max(0, metrics.get("queueMs", 0)),
            run_ms=metrics["runMs"],
            busy_us=round(busy_s * 1_000_000),
            on_gpu=gpu_s > 0,
            peak_memory_bytes=metrics.get("peakMemoryBytes"),
            batch_size=metrics.get("batchSize", 1),
        )
    )


async def note_turn(conn: AsyncConnection, hold_id: str, turn: MeteredTurn) -> None:
    """Write down what a turn took, once: the first that is said of it stays."""
    await conn.execute(insert(chat_turns).values(hold_id=hold_id, **asdict(turn)).on_conflict_do_nothing())


async def turn_of(conn: AsyncConnection, account_id: int, turn_id: str) -> MeteredTurn | None:
    """Return what one of an account's turns took; None for one that is not theirs or not measured."""
    measures = [chat_turns.c[each.name] for each in fields(MeteredTurn)]
    found = await conn.execute(
        select(*measures)
        .join(holds, holds.c.id == chat_turns.c.hold_id)
        .where(chat_turns.c.id == turn_id, holds.c.account_id == account_id)
    )
    row = found.mappings().one_or_none()
    return MeteredTurn(**row) if row else None


async def revenue(conn: AsyncConnection, since: datetime, until: datetime) -> list[Revenue]:
    """Return what each model took and earned for live customers, of what ended in a period."""
    rows = await conn.execute(queries["revenue"], {"since": since, "until": until})
    return [
        Revenue(
            application=row.application,
            model=row.model,
            on_gpu=row.on_gpu,
            attempts=row.attempts,
            succeeded=row.succeeded,
            busy_s=row.busy_us / 1_000_000,
            unpaid_s=row.unpaid_us / 1_000_000,
            tokens=row.tokens,
        )
        for row in rows
    ]
