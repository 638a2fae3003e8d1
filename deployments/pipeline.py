"""A job in stages: what a finished part made is kept, so that whoever takes the job over goes on where it stopped.

A part's bytes are stored first, its row is written under the lease then: a runner that lost the job writes nothing
that counts. Within one attempt the bytes also lie in a directory, where the next stages find them.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from deployments.handles import Call
from deployments.models.contract import Metrics
from gateway.leases import ClaimedJob, LeaseLost
from gateway.stage_parts import StagePart
from gateway.stages import Stage
from kit.errors import AppError
from kit.storage import ObjectStore

T = TypeVar("T")
log = structlog.get_logger(__name__)

LEFT_OVER_AT_ONCE: Final = 100
"""Parts of ended jobs deleted in one sweep."""

Tell = Callable[[float], None]
"""Says how far a part is, from 0 to 1."""
Report = Callable[[int, tuple[Stage, ...], Metrics], None]
"""Takes the job's percent, its stages and what they took whenever they have changed."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a part of a stage made, and what that took. `facts` are JSON, for later stages."""

    data: bytes
    facts: dict[str, Any]
    metrics: Metrics


Make = Callable[[Tell], Awaitable[Made]]


class Pipeline:
    """One attempt at a job in stages. `shares` names them in order, each with its percent of the usual work."""

    def __init__(  # noqa: PLR0913, PLR0917  # its collaborators, each used
        self,
        job: ClaimedJob,
        shares: Mapping[str, int],
        ledger: Call,
        objects: ObjectStore,
        directory: Path,
        report: Report,
    ) -> None:
        assert sum(shares.values()) == 100, "percents"  # noqa: PLR2004
        self._job = job
        self._shares = shares
        self._ledger = ledger
        self._objects = objects
        self._directory = directory
        self._report = report
        self._kept: dict[tuple[str, int], StagePart] = {}
        self._fractions: dict[str, list[float]] = {}
        self._at_work = ""

    async def resume(self) -> None:
        """Take over what earlier attempts finished. Raises: LeaseLost."""
        parts: list[StagePart] = await self._ledger("kept_parts", self._job.id, self._job.fence)
        self._kept = {(part.stage, part.part): part for part in parts}
        if parts:
            log.info("job resumed", job_id=self._job.id, parts=len(parts))

    async def stage(self, name: str, makes: Sequence[Make], at_once: int = 1) -> list[StagePart]:
        """Return the parts of a stage; those that are not kept yet are made, a few at once, the first ones first.

        Raises: LeaseLost; what a part's making raises, once no other part is being made.
        """
        places = range(len(makes))
        self._fractions[name] = [float((name, place) in self._kept) for place in places]
        self._at_work = name
        self._tell()
        gate = asyncio.Semaphore(at_once)

        async def one(place: int) -> None:
            async with gate:
                await self._make(name, place, makes[place])

        await _all([one(place) for place in places if (name, place) not in self._kept])
        return [self._kept[name, place] for place in places]

    def finished(self, name: str) -> list[StagePart]:
        """Return the finished parts of a stage, in order."""
        return [part for (stage, _), part in sorted(self._kept.items()) if stage == name]

    async def file(self, part: StagePart) -> Path:
        """Return a file with a part's bytes."""
        path = self._directory / f"{part.stage}-{part.part}"
        if not path.exists():
            await asyncio.to_thread(path.write_bytes, await self._objects.get(part.storage_key))
        return path

    def metrics(self) -> Metrics:
        """Return what all finished parts took together, also those of earlier attempts that were not measured."""
        parts = [part for part in self._kept.values() if not part.is_measured]
        return Metrics(
            sum(part.run_ms for part in parts),
            sum(part.gpu_ms for part in parts) / 1000,
            max((part.peak_memory_bytes for part in parts), default=0),
            sum(part.run_ms for part in parts) / 1000,
        )

    async def _make(self, name: str, place: int, make: Make) -> None:
        def tell(fraction: float) -> None:
            self._fractions[name][place] = min(0.99, fraction)  # a part is done when it is kept
            self._tell()

        made = await make(tell)
        job = self._job
        # Under a name of this attempt: a late writer of an older one overwrites nothing.
        key = f"stages/{job.id}/{job.fence}-{name}-{place}"
        await self._objects.put(key, made.data, "application/octet-stream")
        await asyncio.to_thread((self._directory / f"{name}-{place}").write_bytes, made.data)
        took = made.metrics
        part = StagePart(
            job.id,
            name,
            place,
            job.fence,
            key,
            made.facts,
            took.run_ms,
            round(took.gpu_seconds * 1000),
            took.peak_memory_bytes,
        )
        self._fractions[name][place] = 1.0
        try:
            await self._ledger("keep_part", part, list(self._stages()), self._percent())
        except LeaseLost:
            await self._objects.delete(key)
            raise
        self._kept[name, place] = part
        self._tell()

    def _stages(self) -> tuple[Stage, ...]:
        return tuple(self._stage(name) for name in self._shares)

    def _stage(self, name: str) -> Stage:
        fraction = self._fraction(name)
        if name in self._fractions and fraction >= 1:
            return Stage(name, "done", 1.0)
        return Stage(name, "running" if name == self._at_work else "waiting", round(fraction, 3))

    def _fraction(self, name: str) -> float:
        fractions = self._fractions.get(name)
        if fractions is None:
            return 0.0
        return sum(fractions) / len(fractions) if fractions else 1.0

    def _percent(self) -> int:
        return int(sum(share * self._fraction(name) for name, share in self._shares.items()))

    def _tell(self) -> None:
        self._report(self._percent(), self._stages(), self.metrics())


def seed_of(job_id: str) -> int:
    """Return a seed that another attempt at the job draws too."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4])


async def in_thread(work: Callable[[Callable[[], bool]], T]) -> T:
    """Run blocking work in a thread; cancelled, it is asked to stop, and has left the thread before this returns."""
    stopped = threading.Event()
    running = asyncio.get_running_loop().run_in_executor(None, work, stopped.is_set)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stopped.set()
        await asyncio.wait([running])
        running.exception()  # looked at: nobody else will
        raise


async def clear_left_over(ledger: Call, objects: ObjectStore) -> None:
    """Delete what the stages of ended jobs left behind: bytes first, so that no row forgets any."""
    keys: list[str] = await ledger("left_over_parts", LEFT_OVER_AT_ONCE)
    gone = []
    for key in keys:
        try:
            await objects.delete(key)
        except AppError as error:  # its turn comes again
            log.warning("part not deleted", key=key, problem=str(error))
        else:
            gone.append(key)
    if gone:
        await ledger("forget_parts", gone)


async def _all(works: Sequence[Awaitable[None]]) -> None:
    """Await all; the first failure ends the others before it is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.exception()  # looked at: the first was raised
