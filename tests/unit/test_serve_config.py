"""The numbers of `serve_config.yaml`: each has its reason, they fit together, every model deploys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from deployments import app
from deployments.app import FareboxArgs, ModelArgs
from deployments.launcher import SERVE_CONFIG
from deployments.models.registry import ENTRIES, PIPELINES

CONFIG = yaml.safe_load(SERVE_CONFIG.read_text())
PLATFORM = FareboxArgs(**CONFIG["applications"][0]["args"])
MODELS = {each["name"]: ModelArgs(**each["args"]) for each in CONFIG["applications"][1:]}
SCALES = {"tiny": ("tiny", ""), "small": ("small", ""), "gpu": ("gpu", ""), "cluster": ("gpu", "cluster")}
NUMBER = re.compile(r"[\s{]([\w-]+): ([\d.]+)\b")


def unexplained(text: str) -> Iterator[str]:
    """Yield each line with a number that no comment stands beside, nor above it and its neighbours."""
    lines = text.splitlines()
    for place, line in enumerate(lines):
        if line.lstrip().startswith("#") or "#" in line or not NUMBER.search(line):
            continue
        depth = len(line) - len(line.lstrip())
        above = place - 1
        while (one := lines[above]) and len(one) - len(one.lstrip()) == depth and "#" not in one:
            above -= 1
        # The list of places has its reason above its name.
        if lines[above].strip() in ("places:", "cluster_places:"):
            above -= 1
        if not lines[above].lstrip().startswith("#"):
            yield f"{place + 1}: {line.strip()}"


def test_every_number_has_its_reason():
    assert list(unexplained(SERVE_CONFIG.read_text())) == []


def test_a_number_without_a_reason_is_found():
    assert list(unexplained("a:\n  # Why.\n  b: 1\n  c: 2\n\nd:\n  e: 3\n  f: 4  # why\n")) == ["7: e: 3"]


def test_ray_takes_the_file():
    ServeDeploySchema.model_validate(CONFIG)


def test_every_model_of_the_registry_is_deployed_and_has_places():
    assert [entry.application for entry in ENTRIES] == list(MODELS)
    assert PLATFORM.places.keys() == PLATFORM.cluster_places.keys() == MODELS.keys() | PIPELINES.keys()
    assert PLATFORM.starts_in_s.keys() == SCALES.keys()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", MODELS)
def test_each_model_deploys_at_each_scale(monkeypatch, tmp_path: Path, name: str, scale: str):
    profile, wide = SCALES[scale]
    monkeypatch.setenv("FAREBOX_PROFILE", profile)
    monkeypatch.setenv("FAREBOX_SCALE", wide)
    monkeypatch.setenv("FAREBOX_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(app, "python_of", lambda environment: Path("python"))
    bound = app.model(MODELS[name])._bound_deployment
    wanted = MODELS[name].profiles[scale]
    assert bound._deployment_config.max_ongoing_requests == wanted["max_ongoing_requests"]
    assert (bound.ray_actor_options.get("num_gpus", 0) > 0) == (profile == "gpu")
    assert bound.init_kwargs["cpu_offload"] is wanted.get("cpu_offload", False)
    threads = wanted.get("cpu_threads", 1)
    assert bound.init_kwargs["cpu_threads"] == threads
    if environment := bound.ray_actor_options.get("runtime_env"):
        assert environment["env_vars"]["OMP_NUM_THREADS"] == str(threads)


def replicas(numbers: dict[str, Any]) -> tuple[int, int]:
    """Return how many replicas there may be, and for how many calls each comes."""
    scaling = numbers.get("autoscaling_config")
    return (scaling["max_replicas"], scaling["target_ongoing_requests"]) if scaling else (1, 1)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", MODELS)
def test_the_backlog_that_the_runner_shows_can_bring_the_last_replica(name: str, scale: str):
    places = PLATFORM.cluster_places if scale == "cluster" else PLATFORM.places
    most, target = replicas(MODELS[name].profiles[scale])
    assert places[name] > (most - 1) * target


@pytest.mark.parametrize("name", MODELS)
def test_one_gpu_holds_any_model_beside_the_small_ones(name: str):
    shares = {each: args.profiles["gpu"]["ray_actor_options"]["num_gpus"] for each, args in MODELS.items()}
    assert all(MODELS[each].profiles["gpu"]["autoscaling_config"]["min_replicas"] == 0 for each in shares), (
        "one that stays would keep another out for ever"
    )
    least = min(shares.values())
    assert shares[name] + sum(s for each, s in shares.items() if s == least and each != name) <= 1
