"""A model whose jobs end when a test says so. Replicas import it by its name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Self

import ray

from deployments.models.contract import (
    GenerateRequest,
    IsCanceled,
    Media,
    Metrics,
    ModelCanceled,
    OnProgress,
    Output,
    Placement,
    Progress,
    Weights,
)
from kit.settings import load_settings

LOOK_S = 0.05


class Gated:
    """A job leaves a file that names it and its node, and goes on once the gate is open that its prompt names."""

    def __init__(self, gates: Path) -> None:
        self._gates = gates

    @classmethod
    def load(cls, weights: Weights, placement: Placement) -> Self:
        return cls(load_settings().data_dir / "gates")

    def generate(self, request: GenerateRequest, on_progress: OnProgress, is_canceled: IsCanceled) -> Output:
        node = ray.get_runtime_context().get_node_id()
        (self._gates / f"{request.job_id}@{node}").touch()
        while not (self._gates / request.input["prompt"]).exists():
            if is_canceled():
                raise ModelCanceled
            time.sleep(LOOK_S)
        on_progress(Progress(1.0, 1, 1))
        return Output([Media("image/png", b"\x89PNG gated", {})], Metrics(1, 0.0, 1), "Gated")
