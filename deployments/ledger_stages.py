"""The stages of jobs, as a runner that works on them writes and finds them. Part of the Ledger deployment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from gateway import stage_parts
from gateway.stage_parts import StagePart
from gateway.stages import Stage


class LedgerStages:
    """The use cases of `LedgerServer` for jobs in stages."""

    _run: Callable[..., Awaitable[Any]]

    async def keep_part(self, part: StagePart, stages: list[Stage], percent: int) -> None:
        """Write what a part of a stage made, unless the lease is lost."""
        await self._run("keep_part", stage_parts.keep, part, stages, percent)

    async def kept_parts(self, job_id: str, fence: int) -> list[StagePart]:
        """Return what was made of a job before this lease."""
        parts: list[StagePart] = await self._run("kept_parts", stage_parts.kept, job_id, fence)
        return parts

    async def left_over_parts(self, limit: int) -> list[str]:
        """Return the storage keys of what ended jobs left behind."""
        keys: list[str] = await self._run("left_over_parts", stage_parts.left_over, limit)
        return keys

    async def forget_parts(self, storage_keys: list[str]) -> None:
        """Forget parts whose bytes are deleted."""
        await self._run("forget_parts", stage_parts.forget, storage_keys)
