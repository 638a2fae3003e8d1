"""Chat on its real engine, in its own environment: tiny weights for the ways, small real ones for an answer.

Each engine starts once and plays all its scenes in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deployments.models import environments, registry, weights
from deployments.models.contract import TINY_NOTICE, WeightsMissing
from deployments.models.environments import EnvironmentMissing
from kit.settings import environment as variables

SCENES = Path(__file__).with_name("chat_engine.py")
CHAT = registry.entry_for("chat")

try:
    PYTHON = environments.python_of("chat")
except EnvironmentMissing as missing:
    pytest.skip(missing.message, allow_module_level=True)


def played(profile: str, models_dir: Path) -> dict[str, Any]:
    known = variables() | dict(CHAT.variables) | {"PYTHONPATH": os.pathsep.join(map(str, _code()))}
    told = subprocess.run(
        [str(PYTHON), str(SCENES), str(models_dir), profile],
        env=known,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert told.returncode == 0, told.stderr[-3000:]
    return json.loads(told.stdout.strip().splitlines()[-1])


def _code() -> list[Path]:
    return [Path(registry.__file__).parents[2]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return played("tiny", tmp_path_factory.mktemp("models"))


def test_a_turn_is_streamed_and_counted(seen: dict[str, Any]) -> None:
    finish, prompt_tokens, completion_tokens = seen["one"]["ended"]
    assert prompt_tokens > 0
    assert completion_tokens == 24 or finish == "stop"
    assert seen["one"]["pieces"] > 0


def test_a_seed_says_the_same_again_also_among_others(seen: dict[str, Any]) -> None:
    assert seen["again"]["text"] == seen["one"]["text"]
    assert {turn["text"] for turn in seen["many"]} == {seen["one"]["text"]}


def test_words_that_were_said_come_again_or_not_as_the_caller_asks(seen: dict[str, Any]) -> None:
    kinds = {name: len(set(seen[name]["text"])) for name in ("repeating", "varied")}
    assert kinds["varied"] > 2 * kinds["repeating"], {name: seen[name]["text"] for name in kinds}


def test_who_leaves_takes_the_turn_out_of_the_engine(seen: dict[str, Any]) -> None:
    assert seen["after_leaving"] == 0


def test_turns_that_speak_at_once_divide_the_time_between_them(seen: dict[str, Any]) -> None:
    parts_s = [turn["busy_s"] for turn in seen["many"]]
    assert all(told == sorted(told) for told in parts_s), "a turn's part never shrinks"
    whole_s = sum(told[-1] for told in parts_s)
    assert whole_s <= seen["many_s"]
    assert whole_s > seen["many_s"] / 2, "the engine was busy with them for most of that time"


def test_who_leaves_has_heard_what_the_turn_took(seen: dict[str, Any]) -> None:
    busy_s, prompt_tokens, completion_tokens = seen["left"]
    assert busy_s > 0
    assert prompt_tokens == seen["one"]["ended"][1]
    assert completion_tokens > 0


def test_what_the_model_cannot_do_is_refused_by_field(seen: dict[str, Any]) -> None:
    assert (seen["long_question"], seen["long_answer"]) == ("messages", "maxTokens")
    assert seen["tools"] == "tools", "the tiny model's form has none"


def test_a_job_of_tiny_weights_says_what_it_is(seen: dict[str, Any]) -> None:
    job = seen["job"]
    assert job["notice"] == TINY_NOTICE
    assert job["message"]["role"] == "assistant"
    assert job["usage"]["totalTokens"] == job["usage"]["promptTokens"] + job["usage"]["completionTokens"]


def test_a_job_tells_what_it_took_on_its_way_and_at_its_end(seen: dict[str, Any]) -> None:
    took = seen["job_took"]
    assert 0 < took["busy_seconds"] <= (took["run_ms"] + 1) / 1000
    assert took["gpu_seconds"] == 0.0, "it ran on a CPU"
    assert seen["job_told"][0], "what a job that failed later is measured by"


def test_a_dead_engine_breaks_its_turn_and_makes_the_replica_unwell(seen: dict[str, Any]) -> None:
    assert seen["died"]
    assert seen["unwell"]


def test_the_small_weights_know_the_capital_of_france(tmp_path: Path) -> None:
    try:
        weights.ensure_small(CHAT, tmp_path)
    except WeightsMissing as missing:
        pytest.skip(missing.message)
    assert "Paris" in played("small", tmp_path)["one"]["text"]
