"""An environment of its own that is missing: one model is off, and nothing else."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from deployments import app
from deployments.models import environments, registry, weights
from deployments.models.environments import EnvironmentMissing


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make this process one of an installation that has no neighbours."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    return tmp_path


def test_an_environment_is_the_neighbour_of_the_platforms(without: Path) -> None:
    python = without / ".venv-speech" / "bin" / "python"
    with pytest.raises(EnvironmentMissing) as missing:
        environments.python_of("speech")
    assert missing.value.message == (
        "The speech environment is not installed; the operator makes it with 'make speech'."
    )
    assert str(without) not in missing.value.message, "callers read it"
    python.parent.mkdir(parents=True)
    python.touch()
    assert environments.python_of("speech") == python
    assert not environments.is_here("speech")
    sys.prefix = str(without / ".venv-speech")
    assert environments.is_here("speech")
    assert environments.python_of("speech") == python, "seen from itself it is the same place"


def test_the_other_models_weights_are_built_without_it(
    without: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entries = tuple(registry.entry_for(name) for name in ("speech", "image"))
    built = {}
    monkeypatch.setattr(
        registry, "load_family", lambda _: type("Family", (), {"build_tiny": lambda *_: None})
    )
    weights.build_all("tiny", tmp_path / "models", built.__setitem__, entries)
    assert built == {"speech": "skipped", "image": "built"}


def test_a_broken_environment_stops_no_other_weights(
    without: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = without / ".venv-speech" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 'no module named torch' >&2\nexit 1\n")
    python.chmod(0o755)
    entries = tuple(registry.entry_for(name) for name in ("speech", "image"))
    built = {}
    monkeypatch.setattr(
        registry, "load_family", lambda _: type("Family", (), {"build_tiny": lambda *_: None})
    )
    weights.build_all("tiny", tmp_path / "models", built.__setitem__, entries)
    assert built == {"speech": "skipped", "image": "built"}
    with pytest.raises(EnvironmentMissing, match="does not work"):
        environments.build("speech", "x:Y", "tiny", str(tmp_path), "1")


def test_the_application_of_its_model_alone_cannot_be_built(
    without: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAREBOX_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(EnvironmentMissing):
        app.model(app.ModelArgs(application="speech"))
    assert app.model(app.ModelArgs(application="image"))


def test_its_replicas_start_in_it(without: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAREBOX_DATA_DIR", str(tmp_path / "data"))
    python = without / ".venv-speech" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    built = app.model(
        app.ModelArgs(application="speech", profiles={"tiny": {"ray_actor_options": {"num_cpus": 0.1}}})
    )
    options = built._bound_deployment.ray_actor_options
    assert options["runtime_env"]["py_executable"] == str(python)
    assert options["num_cpus"] == 0.1


def test_every_environment_has_its_pins() -> None:
    for entry in registry.ENTRIES:
        if entry.environment:
            assert environments.pins(entry.environment)


def test_the_refusal_crosses_a_handle() -> None:
    error = EnvironmentMissing("speech", "is not installed")
    assert pickle.loads(pickle.dumps(error)) == error
