"""Chat on a real Ray Serve: from no replica to words, through a caller that leaves and an engine that dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from deployments.launcher import Launcher
from deployments.models import environments
from deployments.models.environments import EnvironmentMissing
from deployments.ray_session import HeadRecord, living_members

pytestmark = pytest.mark.timeout(400)

WAIT_S = 180.0
"""Many times what each wait takes on an idle machine: other tests may share the cores."""
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
TURN_TOKENS = 5
FUNDS = 1_000


@pytest.fixture(scope="module")
def platform(start_platform: Callable[..., Launcher]) -> Launcher:
    try:
        environments.python_of("chat")
    except EnvironmentMissing:
        pytest.skip("'make chat' was not run, or could not be")

    def chat_alone(config: dict[str, Any]) -> None:
        config["applications"] = [
            each for each in config["applications"] if each["name"] in ("farebox", "chat")
        ]

    return start_platform(chat_alone)


@pytest.fixture
def key(platform: Launcher, fund: Callable[[Launcher, int], str]) -> str:
    return fund(platform, FUNDS)


@pytest.fixture
def client(platform: Launcher, key: str) -> Iterator[openai.OpenAI]:
    base = f"{platform.settings.base_url}/v1"
    with openai.OpenAI(base_url=base, api_key=key, max_retries=0, timeout=WAIT_S) as made:
        yield made


@pytest.fixture
def free(platform: Launcher, key: str) -> Callable[[], tuple[int, int]]:
    """Returns what is free and what is held. Units: tokens."""

    def ask() -> tuple[int, int]:
        answer = httpx.get(
            f"{platform.settings.base_url}/api/v1/credits/balance",
            headers={"x-api-key": key},
            trust_env=False,
            timeout=WAIT_S,
        ).json()
        return answer["tokens"], answer["held"]["tokens"]

    return ask


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def engines(platform: Launcher) -> list[int]:
    """Return the engines that run in this platform's own session of processes."""
    record = HeadRecord.read(platform.head.paths.record)
    assert record is not None
    members = living_members(record.session_id)
    return [pid for pid, name in members.items() if name.startswith("VLLM::Engine")]


def test_a_turn_without_a_replica_is_answered_once_it_started_and_charged_once(client, free):
    answer = client.chat.completions.create(model="chat.complete", messages=QUESTION, max_tokens=12, seed=1)
    assert answer.usage.completion_tokens == 12
    assert answer.usage.cost == {"credits": 0.05, "tokens": TURN_TOKENS}
    assert answer.model_extra["notice"].startswith("tiny")
    assert free() == (FUNDS - TURN_TOKENS, 0)


def test_a_stream_says_piece_by_piece_what_the_whole_answer_is(client, free):
    asked = {"model": "chat.complete", "messages": QUESTION, "max_tokens": 200, "seed": 2}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == whole.choices[0].message.content
    assert sum(bool(piece) for piece in said) > 1
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert free() == (FUNDS - 2 * TURN_TOKENS, 0)


def test_who_leaves_a_stream_pays_once_and_the_engine_stops_working_for_it(client, free, platform):
    asked = {"model": "chat.complete", "messages": QUESTION, "max_tokens": 3_900, "seed": 3}
    with client.chat.completions.create(**asked, stream=True) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                break
    until(lambda: free() == (FUNDS - TURN_TOKENS, 0))
    [engine] = engines(platform)
    until(lambda: is_idle(engine))


def test_an_engine_that_dies_in_the_middle_costs_nothing_and_another_answers(client, free, platform):
    asked = {"model": "chat.complete", "messages": QUESTION, "max_tokens": 3_900, "seed": 4}
    [dead] = engines(platform)

    def hear_it_die() -> None:
        for chunk in client.chat.completions.create(**asked, stream=True):
            if chunk.choices and chunk.choices[0].delta.content and dead in engines(platform):
                os.kill(dead, signal.SIGKILL)

    with pytest.raises(openai.APIError) as broke:
        hear_it_die()
    assert "nothing was charged" in str(broke.value)
    until(lambda: free() == (FUNDS, 0))

    def answered() -> bool:
        try:
            client.chat.completions.create(model="chat.complete", messages=QUESTION, max_tokens=4)
        except openai.APIError:  # until Serve has put another in its place
            return False
        return True

    until(answered)
    assert free() == (FUNDS - TURN_TOKENS, 0)
    assert dead not in engines(platform)


def is_idle(pid: int) -> bool:
    """Tell whether a process computed nothing between two looks."""
    before = worked(pid)
    time.sleep(0.5)
    return worked(pid) - before <= 1


def worked(pid: int) -> int:
    """Return the processor time of a process. Units: the kernel's ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])
