"""Batches of jobs: who shares a call, who leaves it, what splits it, who bears its time. The test takes each step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Self

import pytest

from deployments.models.batching import is_out_of_memory
from deployments.models.contract import (
    GenerateRequest,
    IsCanceled,
    Member,
    Metrics,
    ModelBroken,
    ModelBusy,
    ModelCanceled,
    ModelFailed,
    ModelRefused,
    OnProgress,
    Output,
    Placement,
    Progress,
    TooLarge,
    Weights,
    all_canceled,
    alone,
    progress_of_all,
)
from deployments.models.meter import SharedMeter
from deployments.models.server import ModelServer
from kit.errors import AppError

LIMIT_S = 10
STEPS = 2


class BatchFamily:
    """Batches by the input's `size`, takes a step when told to, and fails as the test says."""

    def __init__(self, fails: Callable[[Sequence[str]], Exception | None] = lambda _: None) -> None:
        self.fails = fails
        self.calls: list[list[str]] = []
        self.may_step = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.outcomes: dict[str, AppError] = {}

    @classmethod
    def load(cls, weights: Weights, placement: Placement) -> Self:
        raise NotImplementedError

    @staticmethod
    def build_tiny(directory: Path, seed: int) -> None:
        raise NotImplementedError

    def generate(self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled) -> Output:
        return alone(self, Member(request, on_progress, is_canceled))

    def batch_key(self, request: GenerateRequest) -> Hashable:
        if request.input.get("bad"):
            raise ModelRefused("bad", "cannot be served")
        return request.input.get("size", 1)

    def generate_many(self, members: Sequence[Member]) -> list[Output | AppError]:
        jobs = [member.request.job_id for member in members]
        self.calls.append(jobs)
        self.begun.release()
        tell, gone = progress_of_all(members), all_canceled(members)
        for step in range(STEPS + 1):
            if gone():
                raise ModelCanceled
            tell(Progress(step / STEPS, step, STEPS))
            if step == 1 and (error := self.fails(jobs)):
                raise error
            if step < STEPS:
                assert self.may_step.acquire(timeout=LIMIT_S)
        return [self.outcomes.get(job) or Output([], Metrics(1, 0.0, 1), job) for job in jobs]

    def run_freely(self) -> None:
        self.may_step.release(1000)

    async def wait_for_a_call(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=LIMIT_S)


def serve(family: BatchFamily, max_batch: int = 4, max_waiting: int = 16) -> ModelServer:
    return ModelServer(
        "image", "tiny", "/nowhere", family=family, max_batch=max_batch, max_waiting=max_waiting
    )


def call(server: ModelServer, job_id: str, **fields: object) -> asyncio.Future[Output]:
    async def last() -> Output:
        async with asyncio.timeout(LIMIT_S):
            request = GenerateRequest(job_id, "image.generate", dict(fields))
            events = [event async for event in server.generate(request)]
        assert isinstance(events[-1], Output)
        return events[-1]

    return asyncio.ensure_future(last())


async def arrived() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def behind_a_first_call(
    server: ModelServer, family: BatchFamily, *others: tuple[str, dict[str, object]]
) -> list[asyncio.Future[Output]]:
    """Let one job begin alone and the others wait behind it."""
    calls = [call(server, "first")]
    await family.wait_for_a_call()
    for job_id, fields in others:
        calls.append(call(server, job_id, **fields))
        await arrived()
    return calls


async def test_a_lone_job_goes_at_once_and_what_waited_goes_together() -> None:
    family = BatchFamily()
    calls = await behind_a_first_call(serve(family), family, ("a", {}), ("b", {}), ("c", {}))
    assert family.calls == [["first"]]
    family.run_freely()
    outputs = await asyncio.gather(*calls)
    assert family.calls == [["first"], ["a", "b", "c"]]
    assert [output.model for output in outputs] == ["first", "a", "b", "c"], "each gets its own output"
    assert [output.metrics.batch_size for output in outputs] == [1, 3, 3, 3]


async def test_only_jobs_that_fit_together_share_a_call_and_the_oldest_goes_first() -> None:
    family = BatchFamily()
    calls = await behind_a_first_call(
        serve(family), family, ("a", {"size": 1}), ("b", {"size": 2}), ("c", {"size": 1}), ("d", {"size": 2})
    )
    family.run_freely()
    await asyncio.gather(*calls)
    assert family.calls == [["first"], ["a", "c"], ["b", "d"]]


async def test_a_batch_has_a_greatest_size() -> None:
    family = BatchFamily()
    calls = await behind_a_first_call(serve(family, max_batch=2), family, *((name, {}) for name in "abc"))
    family.run_freely()
    await asyncio.gather(*calls)
    assert family.calls == [["first"], ["a", "b"], ["c"]]


async def test_a_bad_member_is_refused_alone_and_at_once() -> None:
    family = BatchFamily()
    server = serve(family)
    calls = await behind_a_first_call(server, family, ("a", {}), ("bad", {"bad": True}), ("b", {}))
    with pytest.raises(ModelRefused):
        await calls[2]
    assert family.calls == [["first"]], "it was answered before any other work"
    family.run_freely()
    await asyncio.gather(calls[0], calls[1], calls[3])
    assert family.calls == [["first"], ["a", "b"]]


async def test_a_member_that_is_canceled_leaves_at_the_next_step_and_the_others_finish() -> None:
    family = BatchFamily()
    calls = await behind_a_first_call(serve(family), family, ("a", {}), ("b", {}))
    family.may_step.release(STEPS)
    await calls[0]
    await family.wait_for_a_call()
    calls[1].cancel()
    await arrived()
    assert not calls[1].done(), "its place is taken until the next step"
    family.may_step.release()
    with pytest.raises(asyncio.CancelledError):
        await calls[1]
    assert not calls[2].done()
    family.run_freely()
    assert (await calls[2]).model == "b"
    assert family.calls == [["first"], ["a", "b"]], "nothing was begun anew"


async def test_a_batch_stops_when_all_its_members_are_canceled() -> None:
    family = BatchFamily()
    server = serve(family)
    calls = await behind_a_first_call(server, family, ("a", {}), ("b", {}))
    family.may_step.release(STEPS)
    await calls[0]
    await family.wait_for_a_call()
    for each in calls[1:]:
        each.cancel()
    await arrived()
    family.may_step.release()
    assert await asyncio.gather(*calls[1:], return_exceptions=True) != []
    family.may_step.release(STEPS)
    assert (await call(server, "next")).model == "next"
    assert not family.may_step.acquire(blocking=False), "the stopped batch took one step and no more"


async def test_a_job_that_is_canceled_while_it_waits_is_in_no_batch() -> None:
    family = BatchFamily()
    calls = await behind_a_first_call(serve(family), family, ("a", {}), ("b", {}))
    calls[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await calls[1]
    family.run_freely()
    await calls[2]
    assert family.calls == [["first"], ["b"]]


@pytest.mark.parametrize(
    "error", [MemoryError, lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
async def test_a_batch_without_memory_is_halved_until_it_fits_and_its_size_is_remembered(error) -> None:
    family = BatchFamily(lambda jobs: error() if len(jobs) > 1 else None)
    server = serve(family)
    calls = await behind_a_first_call(server, family, *((name, {}) for name in "abcd"))
    family.run_freely()
    outputs = await asyncio.gather(*calls)
    assert family.calls[1:] == [["a", "b", "c", "d"], ["a", "b"], ["a"], ["b"], ["c", "d"], ["c"], ["d"]]
    assert [output.model for output in outputs[1:]] == ["a", "b", "c", "d"]
    family.calls.clear()
    more = [call(server, name) for name in "ef"]
    await asyncio.gather(*more)
    assert family.calls == [["e"], ["f"]], "what did not fit is not tried again"


async def test_a_batch_of_three_that_does_not_fit_says_nothing_of_two() -> None:
    family = BatchFamily(lambda jobs: MemoryError() if len(jobs) > 2 else None)
    server = serve(family)
    calls = await behind_a_first_call(server, family, *((name, {}) for name in "abc"))
    family.run_freely()
    await asyncio.gather(*calls)
    family.calls.clear()
    await asyncio.gather(*(call(server, name) for name in "defg"))
    assert family.calls == [["d", "e"], ["f", "g"]]


async def test_what_does_not_fit_alone_is_told_so_and_harms_nobody() -> None:
    family = BatchFamily(lambda jobs: MemoryError() if "huge" in jobs else None)
    calls = await behind_a_first_call(serve(family), family, ("a", {}), ("huge", {}))
    family.run_freely()
    with pytest.raises(TooLarge) as refusal:
        await calls[2]
    assert not refusal.value.retryable
    assert (await calls[1]).model == "a"


async def test_a_member_that_breaks_the_call_fails_alone() -> None:
    family = BatchFamily(lambda jobs: RuntimeError("secret") if "c" in jobs else None)
    server = serve(family)
    calls = await behind_a_first_call(server, family, *((name, {}) for name in "abcd"))
    family.run_freely()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in done] == [Output, Output, Output, ModelFailed, Output]
    assert "secret" not in str(done[3])
    more = [call(server, name) for name in "ef"]
    await asyncio.gather(*more)
    assert family.calls[-1] == ["e", "f"], "a failure that is not of memory limits no later batch"


async def test_a_members_own_error_is_its_own() -> None:
    family = BatchFamily()
    family.outcomes["a"] = ModelFailed("The picture was empty.")
    calls = await behind_a_first_call(serve(family), family, ("a", {}), ("b", {}))
    family.run_freely()
    done = await asyncio.gather(*calls[1:], return_exceptions=True)
    assert done[0] == ModelFailed("The picture was empty.")
    assert isinstance(done[1], Output)


class EarlyFamily(BatchFamily):
    """Tells the job `early` its outcome at the first step."""

    def generate_many(self, members: Sequence[Member]) -> list[Output | AppError]:
        for member in members:
            if member.request.job_id == "early":
                member.on_outcome(Output([], Metrics(1, 0.0, 1), "early"))
        return super().generate_many(members)


async def test_a_member_that_is_done_early_does_not_wait_for_the_others() -> None:
    family = EarlyFamily()
    calls = await behind_a_first_call(serve(family), family, ("early", {}), ("b", {}))
    family.may_step.release(STEPS)
    done = await calls[1]
    assert (done.model, done.metrics.batch_size) == ("early", 2)
    assert not calls[2].done()
    family.run_freely()
    assert (await calls[2]).model == "b"
    assert family.calls == [["first"], ["early", "b"]]


async def test_a_batch_that_fails_is_begun_anew_without_those_who_are_done() -> None:
    family = EarlyFamily(lambda jobs: MemoryError() if len(jobs) > 1 else None)
    calls = await behind_a_first_call(
        serve(family), family, *((name, {}) for name in ("a", "early", "c", "d"))
    )
    family.run_freely()
    assert [output.model for output in await asyncio.gather(*calls)] == ["first", "a", "early", "c", "d"]
    assert family.calls[1:] == [["a", "early", "c", "d"], ["a"], ["c", "d"], ["c"], ["d"]]


async def test_a_family_that_forgets_an_outcome_fails_its_job_and_the_next_one_is_served() -> None:
    family = BatchFamily()
    family.run_freely()
    server = serve(family)
    whole, family.generate_many = family.generate_many, lambda members: []  # type: ignore[method-assign]
    with pytest.raises(ModelFailed):
        await call(server, "a")
    family.generate_many = whole  # type: ignore[method-assign]
    assert isinstance(await call(server, "b"), Output)


async def test_a_broken_process_is_not_tried_again() -> None:
    family = BatchFamily(lambda jobs: ModelBroken("The GPU failed.") if len(jobs) > 1 else None)
    server = serve(family)
    calls = await behind_a_first_call(server, family, ("a", {}), ("b", {}))
    family.run_freely()
    done = await asyncio.gather(*calls[1:], return_exceptions=True)
    assert [type(each) for each in done] == [ModelBroken, ModelBroken]
    assert len(family.calls) == 2
    with pytest.raises(ModelBroken):
        await server.check_health()


async def test_who_finds_too_many_waiting_is_refused_before_any_work() -> None:
    family = BatchFamily()
    server = serve(family, max_waiting=2)
    calls = await behind_a_first_call(server, family, ("a", {}), ("b", {}))
    with pytest.raises(ModelBusy) as refusal:
        await call(server, "c")
    assert (refusal.value.status, refusal.value.retryable, refusal.value.retry_after_s) == (429, True, 5)
    family.run_freely()
    await asyncio.gather(*calls)
    assert (await call(server, "d")).model == "d"


async def test_progress_never_falls_when_a_batch_begins_again() -> None:
    family = BatchFamily(lambda jobs: MemoryError() if len(jobs) > 1 else None)
    server = serve(family)
    first = call(server, "first")
    await family.wait_for_a_call()
    seen: list[float] = []

    async def watch() -> None:
        events = server.generate(GenerateRequest("a", "image.generate", {}))
        seen.extend([event.fraction async for event in events if isinstance(event, Progress)])

    watched, other = asyncio.ensure_future(watch()), call(server, "b")
    await arrived()
    family.run_freely()
    await asyncio.gather(first, watched, other)
    assert family.calls[1] == ["a", "b"]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


async def test_a_failed_job_is_metered_too() -> None:
    server = serve(family := BatchFamily(lambda _: RuntimeError("no")))
    family.run_freely()
    told: list[Progress | Output] = []

    async def watch() -> None:
        async for event in server.generate(GenerateRequest("a", "image.generate", {})):
            told.append(event)  # noqa: PERF401  # what came before the error counts

    with pytest.raises(ModelFailed):
        await watch()
    assert isinstance(told[-1], Progress)
    assert told[-1].metrics is not None
    assert told[-1].metrics.busy_seconds > 0


def test_the_shares_of_a_batch_add_up_to_its_time() -> None:
    now = 0.0
    meter = SharedMeter("cpu", lambda: now)
    a, b, c = object(), object(), object()
    meter.work_for([a, b, c])
    now = 3.0
    meter.leave(a)
    now = 7.0
    meter.work_for([b])  # the batch was split
    now = 8.0
    meter.leave(b)
    meter.work_for([c])
    now = 10.0
    figures = [meter.figures(job, 3) for job in (a, b, c)]
    assert [each.busy_seconds for each in figures] == [1.0, 4.0, 5.0]
    assert [each.run_ms for each in figures] == [3000, 8000, 10000]
    assert [each.gpu_seconds for each in figures] == [0.0] * 3


def test_running_out_of_memory_is_told_from_other_failures() -> None:
    torch = pytest.importorskip("torch")
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA failed with error out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
