"""The server of one model: a plain class that `deployments.app` makes a Serve deployment of.

Invariants:
- The pipeline runs in one thread, one job at a time, in the order of arrival; the event loop stays free for
  health checks, progress and cancellation.
- A caller that cancels or goes away stops its job at the next step, or before it starts if it still waits.
- Nothing but an `AppError` leaves `generate`, and no internal text with it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import structlog

from deployments.models import registry
from deployments.models.contract import (
    GenerateRequest,
    ModelBroken,
    ModelCanceled,
    ModelFailed,
    ModelFamily,
    OnProgress,
    Output,
    Placement,
    Progress,
)
from deployments.models.weights import ensure_tiny
from kit.errors import AppError
from kit.settings import Profile
from kit.telemetry import errors_total

log = structlog.get_logger(__name__)

CPU_THREADS: Final = 1
"""Tiny tensors gain a fifth from a second thread on idle cores and lose five-fold on busy ones, where each of
the hundreds of small barriers waits for the scheduler."""


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
        self._family: ModelFamily = family
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"model-{application}")
        self._jobs = 0
        self._broken = ""
        log.info("model_loaded", **self._facts())

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Progress | Output, None]:
        """Yield the job's progress as it comes, then its output, once.

        A caller over a streaming handle must call the response's `cancel()` when it stops reading: a response
        that is only dropped leaves its job running.

        Raises: ModelRefused, ModelCanceled, ModelFailed or ModelBroken.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Progress | None] = asyncio.Queue()  # a job has at most a few dozen steps
        canceled = threading.Event()

        def on_progress(progress: Progress) -> None:
            loop.call_soon_threadsafe(events.put_nowait, progress)

        work = self._thread.submit(self._run, request, on_progress, canceled)
        finished = asyncio.wrap_future(work)
        finished.add_done_callback(_seen)
        finished.add_done_callback(lambda _: events.put_nowait(None))
        self._jobs += 1
        try:
            while (progress := await events.get()) is not None:
                yield progress
            yield finished.result()
        finally:
            self._jobs -= 1
            await _stop(work, finished, canceled)

    async def check_health(self) -> None:
        """Return at once, also while the model computes.

        Raises: ModelBroken if only a new process can help; Serve then replaces this replica.
        """
        if self._broken:
            raise ModelBroken(self._broken)

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

    def _run(self, request: GenerateRequest, on_progress: OnProgress, canceled: threading.Event) -> Output:
        """Run one job in the model's thread, and let nothing but an AppError out."""
        if canceled.is_set():
            raise ModelCanceled
        try:
            return self._family.generate(request, on_progress, canceled.is_set)
        except ModelBroken as error:
            self._broken = error.reason
            log.exception("model_broken", job_id=request.job_id, application=self._application)
            raise
        except AppError:
            raise
        except Exception:
            errors_total.labels("model").inc()
            log.exception("model_failed", job_id=request.job_id, application=self._application)
            # Without its cause: Ray sends the text of a chain along with the error.
            raise ModelFailed("The model failed while working on this job.") from None


async def _stop(work: Future[Output], finished: asyncio.Future[Output], canceled: threading.Event) -> None:
    """Take a job out of the queue, or wait until its thread has left it at the next step."""
    canceled.set()
    if not work.cancel():
        await asyncio.wait([finished])


def _seen(finished: asyncio.Future[Output]) -> None:
    """Look at an abandoned job's error, so that the loop does not report it as forgotten."""
    if not finished.cancelled():
        finished.exception()
