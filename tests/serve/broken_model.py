"""A model whose environment does not work."""

from __future__ import annotations

from typing import Self

from deployments.models.contract import Placement, Weights
from deployments.models.environments import EnvironmentMissing


class Broken:
    @classmethod
    def load(cls, weights: Weights, placement: Placement) -> Self:
        raise EnvironmentMissing("speech", "does not work (ImportError)")
