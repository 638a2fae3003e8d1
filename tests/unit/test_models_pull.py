"""`farebox models pull` as an operator runs it: HF_ENDPOINT leads to the hub, and what went wrong says what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deployments.models import registry
from sandbox.model_hub import Hub, Repository, create_hub, create_store
from sandbox.testing import running

CODE = "from deployments.cli import main; main()"
PATIENCE_S = 60
"""Never reached: a command that hangs would otherwise hold up the tests."""
LARGE = "vae/weights.safetensors"
FILES = {"model_index.json": b"{}", LARGE: b"\x01" * 64}


@dataclass
class Operator:
    """Who pulls, from which hub and onto which machine."""

    url: str
    hub: Hub
    repository: Repository
    data_dir: Path

    @property
    def models_dir(self) -> Path:
        return self.data_dir / "models"

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        place = {"FAREBOX_DATA_DIR": str(self.data_dir), "FAREBOX_PROFILE": "gpu"}
        hub = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.data_dir / "hf")}
        return subprocess.Popen(
            [sys.executable, "-c", CODE, "models", *arguments],
            env=known | place | hub | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Run a command; returns its status and what it said."""
        with self.start(*arguments, **variables) as command:
            said, problem = command.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in problem
        return command.returncode, said, problem

    def refused(self, *arguments: str, **variables: str) -> str:
        """Run a command that cannot do it; returns what it said of that in its one line."""
        status, _, problem = self.run(*arguments, **variables)
        assert status == 1
        assert problem.startswith("farebox: ")
        assert len(problem.splitlines()) == 1
        assert registry.resolve("image", "gpu", self.models_dir).directory is None
        return problem


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    hub = Hub()
    with running(create_hub(hub)) as url, running(create_store(hub)) as hub.store_url:
        repository = hub.repository("Qwen/Qwen-Image")
        repository.push(FILES)
        yield Operator(url, hub, repository, tmp_path)
        hub.released.set()


def test_pulled_weights_are_told_of_verified_and_a_changed_byte_is_found(operator: Operator) -> None:
    status, said, _ = operator.run("pull", "image", "--revision", "main")
    commit = operator.repository.branches["main"]
    assert status == 0
    assert said.splitlines() == [
        "Qwen-Image: Apache-2.0 (https://huggingface.co/Qwen/Qwen-Image)",
        f"{operator.models_dir / 'gpu' / 'image'} at commit {commit}",
    ]
    assert operator.run("verify", "image")[0] == 0
    (operator.models_dir / "gpu" / "image" / LARGE).write_bytes(b"\x02" * 64)
    status, said, _ = operator.run("verify", "image")
    assert (status, said) == (1, f"image: {LARGE}: changed\n")


def test_a_gated_model_says_where_its_licence_is_and_how_to_show_who_asks(operator: Operator) -> None:
    operator.repository.gated = True
    operator.hub.tokens.add("hf_somebody")
    stranger = operator.refused("pull", "image")
    assert "accept its licence at https://huggingface.co/Qwen/Qwen-Image" in stranger
    assert "set HF_TOKEN" in stranger
    known = operator.refused("pull", "image", HF_TOKEN="hf_somebody")
    assert "the account of HF_TOKEN has no access" in known
    assert "https://huggingface.co/Qwen/Qwen-Image" in known
    assert "HF_TOKEN: make a new one" in operator.refused("pull", "image", HF_TOKEN="hf_expired")
    operator.repository.admitted.add("hf_somebody")
    assert operator.run("pull", "image", HF_TOKEN="hf_somebody")[0] == 0


def test_an_unknown_revision_is_named(operator: Operator) -> None:
    problem = operator.refused("pull", "image", "--revision", "v9")
    assert "has no revision 'v9'" in problem
    assert "name a commit, tag or branch" in problem


def test_a_model_that_the_hub_does_not_have_is_named_with_and_without_a_token(operator: Operator) -> None:
    operator.hub.repositories.clear()
    operator.hub.tokens.add("hf_somebody")
    for variables in ({}, {"HF_TOKEN": "hf_somebody"}):
        problem = operator.refused("pull", "image", **variables)
        assert "the hub has no Qwen/Qwen-Image" in problem
        assert "HF_ENDPOINT" in problem


def test_an_application_that_is_none_is_refused_with_those_there_are(operator: Operator) -> None:
    assert "there are: image, " in operator.refused("pull", "images")


def test_a_hub_that_is_away_answers_nothing_of_use_or_must_not_be_asked(operator: Operator) -> None:
    assert "check the network" in operator.refused("pull", "image", HF_ENDPOINT="http://127.0.0.1:9")
    assert "HF_HUB_OFFLINE is set: unset it" in operator.refused("pull", "image", HF_HUB_OFFLINE="1")
    operator.hub.down = True
    assert "the hub answers 503: wait" in operator.refused("pull", "image")


def test_other_bytes_than_listed_are_told_and_nothing_is_taken_for_whole(operator: Operator) -> None:
    operator.hub.spoiled.add(LARGE)
    assert f"arrived damaged ({LARGE}): pull again" in operator.refused("pull", "image")
    assert "not on this machine" in operator.run("verify", "image")[1]
    operator.hub.spoiled.clear()
    assert operator.run("pull", "image")[0] == 0
    assert operator.run("verify", "image")[0] == 0


def test_an_interrupted_pull_ends_at_once_and_leaves_nothing_behind_the_next(operator: Operator) -> None:
    operator.repository.push({LARGE: FILES[LARGE]})
    operator.hub.stalls[LARGE] = 32
    with operator.start("pull", "image") as command:
        assert operator.hub.stalled.wait(PATIENCE_S)
        command.send_signal(signal.SIGINT)
        _, problem = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == -signal.SIGINT
    assert "Traceback" not in problem
    place = operator.models_dir / "gpu"
    [unfinished] = place.glob(".image.partial/.cache/**/*.incomplete")
    assert operator.run("verify", "image")[0] == 1
    assert operator.run("pull", "image")[0] == 0
    assert not unfinished.exists()
    assert [path.name for path in place.iterdir() if path.is_dir()] == ["image"]
    assert operator.run("verify", "image")[0] == 0
