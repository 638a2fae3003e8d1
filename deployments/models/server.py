"""The server of one model: a plain class that `deployments.app` makes a Serve deployment of.

Invariants:
- The pipeline runs in one thread, in the order of arrival, jobs that fit together in one call (`batching`); the event
  loop stays free for health checks, progress and cancellation.
- Whoever finds too many waiting is refused at once, before any work.
- A caller that cancels or goes away stops its job at the next step, or before it starts if it still waits.
- Nothing but an `AppError` leaves `generate`, and no internal text with it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import structlog

from deployments.models import registry
from deployments.models.batching import Batches
from deployments.models.contract import (
    GenerateRequest,
    ModelBroken,
    ModelFamily,
    Output,
    Placement,
    Progress,
)
from deployments.models.weights import ensure_tiny
from kit.settings import Profile

log = structlog.get_logger(__name__)

CPU_THREADS: Final = 1
"""Tiny tensors gain a fifth from a second thread on idle cores and lose five-fold on busy ones, where each of
the hundreds of small barriers waits for the scheduler."""

MAX_WAITING: Final = 16
"""Jobs that wait at a replica at most, unless serve_config.yaml says otherwise: two of the largest batches there."""


class ModelServer:
    """One loaded model. Building it loads the weights, and makes the tiny ones first where they are missing.

    `family` replaces the registry's family, as `module:Class` or as a ready object: the application and its
    handle stay the same and no weights are built, so that tests meet slow and failing models.
    """

    def __init__(  # noqa: PLR0913 - one argument for each thing that serve_config.yaml may set
        self,
        application: str,
        profile: Profile,
        models_dir: str,
        *,
        family: str | ModelFamily | None = None,
        revision: str | None = None,
        cpu_threads: int = CPU_THREADS,
        cpu_offload: bool = False,
        max_batch: int = 1,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        entry = registry.entry_for(application)
        self._application = application
        self._weights = registry.resolve(application, profile, Path(models_dir), revision)
        self._placement = Placement(
            device="cuda" if self._weights.profile == "gpu" else "cpu",
            cpu_threads=min(cpu_threads, os.cpu_count() or 1),
            cpu_offload=cpu_offload,
        )
        if family is None and self._weights.profile == "tiny":
            ensure_tiny(entry, Path(models_dir))
        if family is None or isinstance(family, str):
            family = registry.load_family(family or entry.family).load(self._weights, self._placement)
        self._batches = Batches(
            family, self._placement, application=application, max_batch=max_batch, max_waiting=max_waiting
        )
        self._jobs = 0
        log.info("model_loaded", **self._facts())

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Progress | Output, None]:
        """Yield the job's progress as it comes, then its output, once.

        A caller over a streaming handle must call the response's `cancel()` when it stops reading: a response
        that is only dropped leaves its job running.

        Raises: ModelBusy before any work; ModelRefused, ModelCanceled, ModelFailed, TooLarge or ModelBroken.
        """
        seat = self._batches.take(request)
        self._jobs += 1
        try:
            while (progress := await seat.events.get()) is not None:
                yield progress
            yield seat.finished.result()
        finally:
            self._jobs -= 1
            await self._batches.leave(seat)

    async def check_health(self) -> None:
        """Return at once, also while the model computes.

        Raises: ModelBroken if only a new process can help; Serve then replaces this replica.
        """
        if self._batches.broken:
            raise ModelBroken(self._batches.broken)

    async def describe(self) -> dict[str, Any]:
        """Return what is loaded here and how many jobs are running or waiting."""
        return {**self._facts(), "jobs": self._jobs}

    def _facts(self) -> dict[str, Any]:
        return {
            "application": self._application,
            "model": self._weights.model,
            "profile": self._weights.profile,
            "weights": self._weights.source,
            "revision": self._weights.revision,
            "device": self._placement.device,
        }
