"""The jobs of one model on their way through its one thread, those that fit together in one call of the pipeline.

Invariants:
- No timers: a lone job goes at once, and what waited while the last batch computed goes as the next one. The oldest
  that waits is always in the next batch, so nobody is overtaken for ever.
- What a member does harms no neighbour. A bad one is refused before the batch; a canceled one is let go at the next
  step while the others go on; a call that fails as a whole is split in halves, down to single jobs.
- A batch that does not fit into the memory is split likewise, and its size is not tried again here.
- The model's time is divided between those who are in a batch while they are in it: no second is counted twice.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

import structlog

from deployments.models.contract import (
    BatchingFamily,
    GenerateRequest,
    Member,
    ModelBroken,
    ModelBusy,
    ModelCanceled,
    ModelFailed,
    ModelFamily,
    Output,
    Placement,
    Progress,
    TooLarge,
)
from deployments.models.meter import SharedMeter
from kit.errors import AppError
from kit.telemetry import errors_total

log = structlog.get_logger(__name__)

BUSY_WAIT_S: Final = 5
"""What a refused caller is told to wait: about a batch of the quick models."""
NO_MEMORY: Final = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA failed with error out of memory",
    "mkl_malloc: failed to allocate memory",
    "failed to allocated memory",
)
"""How torch says it on a CPU, and CTranslate2 on a GPU and on a CPU, as plain RuntimeErrors."""


class Seat:
    """One job from its arrival to its outcome. Its stream reads `events` on the loop; the thread fills them."""

    def __init__(self, request: GenerateRequest, key: Hashable) -> None:
        self.request = request
        self.key = key
        self.events: asyncio.Queue[Progress | None] = asyncio.Queue()  # a job has at most a few dozen steps
        self.canceled = threading.Event()
        self.finished: asyncio.Future[Output] = asyncio.get_running_loop().create_future()
        self.finished.add_done_callback(self._seen)
        self.told = Progress(0.0, 0, 0)
        self.has_ended = False
        self._loop = asyncio.get_running_loop()

    def tell(self, progress: Progress) -> None:
        """Pass progress on from the thread, unless a batch that was split begins again below what was told."""
        if progress.fraction >= self.told.fraction:
            self.told = progress
            self._loop.call_soon_threadsafe(self.events.put_nowait, progress)

    def end(self, outcome: Output | AppError) -> None:
        """Give the job its outcome from the thread; the first one stands."""
        self.has_ended = True
        self._loop.call_soon_threadsafe(self.end_here, outcome)

    def end_here(self, outcome: Output | AppError) -> None:
        """Give the job its outcome on the loop."""
        if self.finished.done():
            return
        if isinstance(outcome, AppError):
            self.finished.set_exception(outcome)
        else:
            self.finished.set_result(outcome)

    def _seen(self, finished: asyncio.Future[Output]) -> None:
        """End the stream. An abandoned job's error is looked at, so that the loop does not report it as forgotten."""
        self.events.put_nowait(None)
        if not finished.cancelled():
            finished.exception()


class Batches:
    """Runs a family's jobs, at most `max_batch` in a call, and refuses those for whom there is no room to wait."""

    def __init__(
        self,
        family: ModelFamily,
        placement: Placement,
        *,
        application: str,
        max_batch: int,
        max_waiting: int,
    ) -> None:
        self.broken = ""
        self._family = family
        self._placement = placement
        self._application = application
        self._max_batch = max_batch if isinstance(family, BatchingFamily) else 1
        self._max_waiting = max_waiting
        self._fits: dict[Hashable, int] = {}
        self._waiting: deque[Seat] = deque()
        self._drain: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"model-{application}")

    def take(self, request: GenerateRequest) -> Seat:
        """Give a job its place in the line. Raises: ModelBusy, ModelRefused, ModelFailed; nothing has begun then."""
        if len(self._waiting) >= self._max_waiting:
            raise ModelBusy(self._application, BUSY_WAIT_S)
        seat = Seat(request, self._key(request))
        self._waiting.append(seat)
        if self._drain is None or self._drain.done():
            self._drain = asyncio.create_task(self._run_all())
        return seat

    async def leave(self, seat: Seat) -> None:
        """Take a job out of the line, or wait until the model has let go of it at its next step."""
        seat.canceled.set()
        if seat in self._waiting:
            self._waiting.remove(seat)
            seat.end_here(ModelCanceled())
        if not seat.finished.done():
            await asyncio.wait([seat.finished])

    def _key(self, request: GenerateRequest) -> Hashable:
        if not isinstance(self._family, BatchingFamily):
            return None
        try:
            return self._family.batch_key(request)
        except AppError:
            raise
        except Exception as error:  # noqa: BLE001  # logged there
            raise self._failed([request.job_id], error) from None

    async def _run_all(self) -> None:
        while self._waiting:
            batch = self._next()
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._run, batch)
            except Exception as error:  # noqa: BLE001  # logged there
                # Nobody waits for ever for an outcome that does not come.
                failed = self._failed(_ids(batch), error)
                for seat in batch:
                    seat.end_here(failed)

    def _next(self) -> list[Seat]:
        """Take the oldest that waits, and those after it that fit to it."""
        key = self._waiting[0].key
        fitting = [seat for seat in self._waiting if seat.key == key]
        batch = fitting[: min(self._max_batch, self._fits.get(key, self._max_batch))]
        for seat in batch:
            self._waiting.remove(seat)
        return batch

    # -- in the model's thread ---------------------------------------------------------------------------------

    def _run(self, batch: list[Seat]) -> None:
        """Bring every seat of a batch to its end."""
        meter = SharedMeter(self._placement.device)
        waiting: list[list[Seat]] = [batch]
        while waiting:
            group = self._still_wanted(waiting.pop(0))
            if group and not self._attempt(group, meter, len(batch)):
                middle = len(group) // 2
                waiting[:0] = [group[:middle], group[middle:]]

    def _still_wanted(self, group: list[Seat]) -> list[Seat]:
        for seat in group:
            if seat.canceled.is_set():
                seat.end(ModelCanceled())
        return [seat for seat in group if not seat.has_ended]

    def _attempt(self, group: list[Seat], meter: SharedMeter, batch_size: int) -> bool:
        """Run one call; return whether everybody got an outcome. False: the call failed for all and may be split."""
        meter.work_for(group)
        members = [self._member(seat, meter, batch_size, shared=len(group) > 1) for seat in group]
        outcomes: Sequence[Output | AppError] | None
        try:
            outcomes = self._call(members)
        except ModelCanceled as gone:
            outcomes = [gone] * len(group)
        except ModelBroken as broken:
            self.broken = broken.reason
            log.exception("model_broken", jobs=_ids(group), application=self._application)
            outcomes = [broken] * len(group)
        except Exception as error:
            if len(group) > 1:
                if is_out_of_memory(error):
                    self._remember(group)
                else:
                    log.warning(
                        "batch_failed", jobs=_ids(group), application=self._application, exc_info=True
                    )
                outcomes = None
            else:
                outcomes = [self._reason(error, group)]
        # Beyond the handler: the error's frames held the tensors of the call.
        if outcomes is None:
            self._free_memory()
            return False
        for seat, outcome in zip(group, outcomes, strict=True):
            self._end(seat, outcome, meter, batch_size)
        return True

    @staticmethod
    def _end(seat: Seat, outcome: Output | AppError, meter: SharedMeter, batch_size: int) -> None:
        """Give a job its outcome with what it took; from now on the time is the others'."""
        if seat.has_ended:
            return
        took = meter.figures(seat, batch_size)
        meter.leave(seat)
        if isinstance(outcome, AppError) and seat.told.steps:
            seat.tell(replace(seat.told, metrics=took))  # so that the time of a failure is known too
        seat.end(outcome if isinstance(outcome, AppError) else replace(outcome, metrics=took))

    def _call(self, members: list[Member]) -> Sequence[Output | AppError]:
        if isinstance(self._family, BatchingFamily):
            return self._family.generate_many(members)
        [member] = members
        return [self._family.generate(member.request, member.on_progress, member.is_canceled)]

    def _member(self, seat: Seat, meter: SharedMeter, batch_size: int, *, shared: bool) -> Member:
        def on_progress(progress: Progress) -> None:
            if not seat.canceled.is_set():
                seat.tell(replace(progress, metrics=meter.figures(seat, batch_size)))

        def is_canceled() -> bool:
            gone = seat.canceled.is_set()
            if gone and shared:  # a job alone is let go by its own call, which ends
                meter.leave(seat)
                seat.end(ModelCanceled())
            return gone

        def on_outcome(outcome: Output | AppError) -> None:
            self._end(seat, outcome, meter, batch_size)

        return Member(seat.request, on_progress, is_canceled, on_outcome)

    def _remember(self, group: list[Seat]) -> None:
        """Keep to what may fit from now on."""
        key = group[0].key
        half = -(-len(group) // 2)  # the larger one: the next call of its size tells whether it fits
        self._fits[key] = min(self._fits.get(key, self._max_batch), half)
        log.warning("batch_too_large", jobs=_ids(group), application=self._application, batch=self._fits[key])

    def _reason(self, error: Exception, group: list[Seat]) -> AppError:
        if isinstance(error, AppError):
            return error
        if is_out_of_memory(error):
            log.error("job_too_large", jobs=_ids(group), application=self._application, exc_info=error)
            return TooLarge("The work does not fit into the model's memory.")
        return self._failed(_ids(group), error)

    def _failed(self, jobs: list[str], error: Exception) -> ModelFailed:
        """Return what a caller is told of an unexpected error: not its text, nor its cause, which Ray would send."""
        errors_total.labels("model").inc()
        log.error("model_failed", jobs=jobs, application=self._application, exc_info=error)
        return ModelFailed("The model failed while working on this job.")

    def _free_memory(self) -> None:
        """Give what the failed call held back to the GPU. Not run on hardware."""
        torch: Any = sys.modules.get("torch")
        if torch is not None and self._placement.device == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on the GPU or on the machine; imports no tensor library."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, MemoryError) or any(said in str(error) for said in NO_MEMORY)


def _ids(group: Sequence[Seat]) -> list[str]:
    return [seat.request.job_id for seat in group]
