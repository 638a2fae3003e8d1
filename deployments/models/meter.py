"""What generations took: time, GPU time and peak memory, measured the same way for every family."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

from deployments.models.contract import Metrics

_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
"""Linux counts the resident peak in KiB, macOS in bytes."""


class Meter:
    """Starts with a job and reads out what it took; made for each job, in the thread that computes."""

    def __init__(self, device: Literal["cpu", "cuda"]) -> None:
        self._device = device
        self._started = time.perf_counter()
        if _has_gpu(device):  # not run on hardware yet
            import torch

            torch.cuda.reset_peak_memory_stats()

    def read(self) -> Metrics:
        """Return the figures so far. The GPU counts as held from the start of the job to this call."""
        if _has_gpu(self._device):  # not run on hardware yet
            import torch

            torch.cuda.synchronize()
        peak_bytes = _peak_bytes(self._device)
        run_s = time.perf_counter() - self._started
        return Metrics(round(run_s * 1000), round(run_s, 3) if self._device == "cuda" else 0.0, peak_bytes)


class SharedMeter:
    """Divides the time of a batch between those who are in it: the shares of all add up to the time that passed.

    Used in the thread that computes alone. Jobs are told apart by identity.
    """

    def __init__(
        self, device: Literal["cpu", "cuda"], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._device = device
        self._clock = clock
        self._last = clock()
        self._began: dict[int, float] = {}
        self._ended: dict[int, float] = {}
        self._busy: dict[int, float] = {}
        self._working: set[int] = set()
        if _has_gpu(device):  # not run on hardware yet
            import torch

            torch.cuda.reset_peak_memory_stats()

    def work_for(self, jobs: Iterable[Any]) -> None:
        """From now on the model works for these."""
        self._divide()
        self._working = {id(job) for job in jobs}
        for job in self._working:
            self._began.setdefault(job, self._last)
            self._busy.setdefault(job, 0.0)

    def leave(self, job: Any) -> None:
        """From now on the time is the others'."""
        self._divide()
        if id(job) in self._working:
            self._working.remove(id(job))
            self._ended[id(job)] = self._last

    def figures(self, job: Any, batch_size: int) -> Metrics:
        """Return what a job took so far."""
        self._divide()
        busy_s = round(self._busy[id(job)], 6)
        run_s = self._ended.get(id(job), self._last) - self._began[id(job)]
        return Metrics(
            run_ms=round(run_s * 1000),
            gpu_seconds=busy_s if self._device == "cuda" else 0.0,
            peak_memory_bytes=_peak_bytes(self._device),
            busy_seconds=busy_s,
            batch_size=batch_size,
        )

    def _divide(self) -> None:
        now = self._clock()
        for job in self._working:
            self._busy[job] += (now - self._last) / len(self._working)
        self._last = now


class SharedTime:
    """Divides time between those who share it at each moment: all their parts add up to the time that one was there.

    Used on one event loop or in one thread. `sharing`: how many are there.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last = clock()
        self._part_s = 0.0
        self.sharing = 0

    def join(self) -> float:
        """Share from now on; returns the mark by which `part_s` is asked."""
        self._divide()
        self.sharing += 1
        return self._part_s

    def leave(self) -> None:
        """From now on the time is the others'."""
        self._divide()
        self.sharing -= 1

    def part_s(self, mark: float) -> float:
        """Return the part so far of one that is there."""
        self._divide()
        return self._part_s - mark

    def _divide(self) -> None:
        now = self._clock()
        if self.sharing:
            self._part_s += (now - self._last) / self.sharing  # the part of one who has been there all along
        self._last = now


def _has_gpu(device: Literal["cpu", "cuda"]) -> bool:
    """Tell whether there is a GPU to ask: a cluster may be told of GPUs that are not there, to try its scaling."""
    if device != "cuda":
        return False
    import torch

    return torch.cuda.is_available()


def _peak_bytes(device: Literal["cpu", "cuda"]) -> int:
    if _has_gpu(device):  # not run on hardware yet
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES
