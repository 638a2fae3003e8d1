"""The server of a model: order, progress, cancellation and errors, with families that obey the test.

The families wait for the test at every step, so that each interleaving here is chosen and none is raced for.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import Self

import pytest

from deployments.models.contract import (
    GenerateRequest,
    IsCanceled,
    Metrics,
    ModelBroken,
    ModelCanceled,
    ModelFailed,
    ModelRefused,
    OnProgress,
    Output,
    Placement,
    Progress,
    Weights,
)
from deployments.models.server import ModelServer

STEPS = 3
LIMIT_S = 10
"""Far above any step here: reached only by a server that forgot its job."""


class ObedientFamily:
    """Takes a step when told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.may_step = threading.Semaphore(0)
        self.start = threading.Semaphore(0)
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.finished: list[str] = []

    @classmethod
    def load(cls, weights: Weights, placement: Placement) -> Self:
        raise NotImplementedError

    @staticmethod
    def build_tiny(directory: Path, seed: int) -> None:
        raise NotImplementedError

    def generate(self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled) -> Output:
        self.started.append(request.job_id)
        self.start.release()
        for step in range(STEPS + 1):
            if is_canceled():
                self.stopped.append(request.job_id)
                raise ModelCanceled
            on_progress(Progress(step / STEPS, step, STEPS))
            if step < STEPS:
                assert self.may_step.acquire(timeout=LIMIT_S)
        self.finished.append(request.job_id)
        return Output([], Metrics(1, 0.0, 1), "Obedient")

    def run_freely(self) -> None:
        self.may_step.release(1000)

    async def wait_for_a_start(self) -> None:
        assert await asyncio.to_thread(self.start.acquire, timeout=LIMIT_S)


class FailingFamily(ObedientFamily):
    """Raises what the test gives it, once for each job."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)
        self.run_freely()

    def generate(self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled) -> Output:
        if self.errors:
            raise self.errors.pop(0)
        return super().generate(request, on_progress, is_canceled)


def serve(family: ObedientFamily) -> ModelServer:
    return ModelServer("image", "tiny", "/nowhere", family=family)


def request(job_id: str) -> GenerateRequest:
    return GenerateRequest(job_id, "image.generate", {"prompt": "a fox"})


async def collect(server: ModelServer, job_id: str) -> list[Progress | Output]:
    return [event async for event in server.generate(request(job_id))]


async def test_progress_comes_in_order_and_the_output_once_at_the_end() -> None:
    family = ObedientFamily()
    family.run_freely()
    events = await collect(serve(family), "job_1")
    assert [event.step for event in events[:-1] if isinstance(event, Progress)] == [0, 1, 2, 3]
    assert isinstance(events[-1], Output)
    assert len(events) == STEPS + 2


async def test_progress_arrives_while_the_model_still_works() -> None:
    family = ObedientFamily()
    stream = serve(family).generate(request("job_1"))
    for step in range(STEPS):
        assert await anext(stream) == Progress(step / STEPS, step, STEPS)
        assert family.finished == []
        family.may_step.release()
    last, output = [event async for event in stream]
    assert last == Progress(1.0, STEPS, STEPS)
    assert isinstance(output, Output)
    assert output.model == "Obedient"


async def test_the_server_answers_while_the_model_computes() -> None:
    family = ObedientFamily()
    server = serve(family)
    stream = server.generate(request("job_1"))
    await anext(stream)
    async with asyncio.timeout(LIMIT_S):
        await server.check_health()
        assert (await server.describe())["jobs"] == 1
    family.run_freely()
    await stream.aclose()
    assert (await server.describe())["jobs"] == 0


async def test_a_consumer_that_goes_away_stops_its_job_at_the_next_step() -> None:
    family = ObedientFamily()
    stream = serve(family).generate(request("job_1"))
    await anext(stream)
    closing = asyncio.ensure_future(stream.aclose())
    await asyncio.sleep(0)
    assert not closing.done(), "the stream must not end before its thread has left the job"
    family.may_step.release()
    async with asyncio.timeout(LIMIT_S):
        await closing
    assert family.stopped == ["job_1"]
    assert family.finished == []


async def test_a_canceled_call_stops_its_job_at_the_next_step() -> None:
    family = ObedientFamily()
    call = asyncio.ensure_future(collect(serve(family), "job_1"))
    await family.wait_for_a_start()
    call.cancel()
    await asyncio.sleep(0)
    family.may_step.release()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert family.stopped == ["job_1"]


async def test_a_job_canceled_while_it_waits_is_never_run() -> None:
    family = ObedientFamily()
    server = serve(family)
    first = asyncio.ensure_future(collect(server, "job_1"))
    await family.wait_for_a_start()
    second = asyncio.ensure_future(collect(server, "job_2"))
    third = asyncio.ensure_future(collect(server, "job_3"))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    family.run_freely()
    await asyncio.gather(first, third)
    assert family.started == family.finished == ["job_1", "job_3"]


async def test_jobs_run_one_at_a_time_in_the_order_of_arrival() -> None:
    family = ObedientFamily()
    server = serve(family)
    calls = []
    for number in range(5):
        calls.append(asyncio.ensure_future(collect(server, f"job_{number}")))
        await asyncio.sleep(0)
    await family.wait_for_a_start()
    assert family.started == ["job_0"], "the next job starts when the one before it is finished"
    family.run_freely()
    await asyncio.gather(*calls)
    assert family.started == family.finished == [f"job_{number}" for number in range(5)]


async def test_an_unexpected_error_leaves_without_its_internal_text() -> None:
    server = serve(FailingFamily(RuntimeError("password in /etc/model")))
    with pytest.raises(ModelFailed) as failure:
        await collect(server, "job_1")
    assert failure.value.retryable
    assert "password" not in "".join(traceback.format_exception(failure.value))
    assert pickle.loads(pickle.dumps(failure.value)) == failure.value


@pytest.mark.parametrize("error", [ModelRefused("prompt", "is empty"), ModelFailed("The picture was empty.")])
async def test_an_expected_error_leaves_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        await collect(serve(FailingFamily(error)), "job_1")
    assert raised.value == error


async def test_a_failure_harms_neither_the_next_job_nor_the_health() -> None:
    server = serve(FailingFamily(RuntimeError("once")))
    with pytest.raises(ModelFailed):
        await collect(server, "job_1")
    await server.check_health()
    assert isinstance((await collect(server, "job_2"))[-1], Output)


async def test_a_broken_process_asks_to_be_replaced() -> None:
    server = serve(FailingFamily(ModelBroken("The GPU failed.")))
    with pytest.raises(ModelBroken):
        await collect(server, "job_1")
    with pytest.raises(ModelBroken):
        await server.check_health()


def test_a_family_named_by_its_path_is_loaded_with_the_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded: list[tuple[Weights, Placement]] = []

    class NamedFamily(ObedientFamily):
        @classmethod
        def load(cls, weights: Weights, placement: Placement) -> Self:
            loaded.append((weights, placement))
            return cls()

    module = types.ModuleType("families_of_a_test")
    module.NamedFamily = NamedFamily  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    server = ModelServer(
        "image", "gpu", str(tmp_path), family="families_of_a_test:NamedFamily", revision="a" * 40
    )
    [(weights, placement)] = loaded
    assert (weights.source, weights.revision) == ("Qwen/Qwen-Image", "a" * 40)
    assert (placement.device, placement.cpu_offload) == ("cuda", False)
    assert list(tmp_path.iterdir()) == [], "no weights are built for a family that is not the registry's"
    assert asyncio.run(server.describe()) == {
        "application": "image",
        "model": "Qwen-Image",
        "profile": "gpu",
        "weights": "Qwen/Qwen-Image",
        "revision": "a" * 40,
        "device": "cuda",
        "jobs": 0,
    }
