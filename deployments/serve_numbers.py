"""Which of a model's numbers in `serve_config.yaml` hold, and what they mean before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Numbers = Mapping[str, Any]


def numbers_of(profiles: Mapping[str, Numbers], profile: str, scale: str) -> Numbers:
    """Return the options under which a model's application runs: a scale's own go before the profile's."""
    return profiles.get(scale or profile) or profiles.get(profile, {})


def runs_idle(numbers: Numbers) -> bool:
    """Tell whether a replica runs also while nobody asks for it."""
    scaling = numbers.get("autoscaling_config")
    least: int = scaling.get("min_replicas", 1) if scaling else numbers.get("num_replicas", 1)
    return least > 0
