"""What one generation took: time, GPU time and peak memory, measured the same way for every family."""

from __future__ import annotations

import resource
import sys
import time
from typing import Literal

from deployments.models.contract import Metrics

_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
"""Linux counts the resident peak in KiB, macOS in bytes."""


class Meter:
    """Starts with a job and reads out what it took; made for each job, in the thread that computes."""

    def __init__(self, device: Literal["cpu", "cuda"]) -> None:
        self._device = device
        self._started = time.perf_counter()
        if device == "cuda":  # not run on hardware yet
            import torch

            torch.cuda.reset_peak_memory_stats()

    def read(self) -> Metrics:
        """Return the figures so far. The GPU counts as held from the start of the job to this call."""
        if self._device == "cuda":  # not run on hardware yet
            import torch

            torch.cuda.synchronize()
            peak_bytes = torch.cuda.max_memory_allocated()
        else:
            peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES
        run_s = time.perf_counter() - self._started
        return Metrics(round(run_s * 1000), round(run_s, 3) if self._device == "cuda" else 0.0, peak_bytes)
