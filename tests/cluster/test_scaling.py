"""Backlog starts nodes and idleness ends them; a node that dies costs a job an attempt and its owner nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx
import pytest

from deployments.books import in_books
from gateway.audit import JOB_CHECKS
from ledger.audit import LEDGER_CHECKS, run_checks
from payments.audit import PAYMENT_CHECKS

pytestmark = pytest.mark.timeout(300)

T = TypeVar("T")
WAIT_S = 120.0
"""Many times what each wait takes on an idle machine: other tests may share the cores."""
LOOK_S = 0.1
JOBS = "/api/v1/media/jobs"
SFX = {"task": "sfx.generate", "input": {"prompt": "a hammer hits wood", "durationSeconds": 1}}


@pytest.fixture
def http(cluster, fund) -> Iterator[httpx.Client]:
    """A new customer with 1,000 tokens."""
    key = fund(cluster.platform, 1_000)
    url = cluster.platform.settings.base_url
    with httpx.Client(base_url=url, headers={"x-api-key": key}, timeout=60, trust_env=False) as client:
        yield client


def until(look: Callable[[], T], what: str) -> T:
    deadline = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < deadline, what
        time.sleep(LOOK_S)
    return found


def submit(http: httpx.Client, gate: str) -> str:
    answer = http.post(JOBS, json={"task": "image.generate", "input": {"prompt": gate}})
    assert answer.status_code == 202, answer.text
    return answer.json()["jobId"]


def ended(http: httpx.Client, job_id: str) -> dict:
    return until(
        lambda: (job := http.get(f"{JOBS}/{job_id}").json())["finishedAt"] and job, f"{job_id} did not end"
    )


def balance(http: httpx.Client) -> tuple[int, int]:
    body = http.get("/api/v1/credits/balance").json()
    return body["tokens"], body["held"]["tokens"]


def assert_sound(cluster) -> None:
    checks = (*LEDGER_CHECKS, *PAYMENT_CHECKS, *JOB_CHECKS)
    findings = in_books(cluster.platform.settings.database_url, run_checks, checks)
    assert [(f.name, f.offending) for f in findings if not f.ok] == []


def test_backlog_brings_nodes_and_idleness_takes_them_away(cluster, http):
    until(lambda: not cluster.nodes(), "nodes are there without work")
    job_ids = [submit(http, "scale") for _ in range(8)]

    def spread() -> bool:
        return len(set().union(*cluster.places_of(job_ids).values())) == 3

    until(spread, "the backlog did not reach three nodes")
    assert len(cluster.nodes()) == 3
    (cluster.gates / "scale").touch()
    jobs = [ended(http, job_id) for job_id in job_ids]
    assert {(job["status"], job["cost"]["chargedTokens"]) for job in jobs} == {("succeeded", 100)}
    assert balance(http) == (200, 0)
    assert_sound(cluster)
    until(lambda: not cluster.nodes(), "idle nodes stay")


def test_a_node_killed_in_the_middle_of_a_job_costs_one_charge(cluster, http):
    job_id = submit(http, "kill")
    [node] = until(lambda: cluster.places_of([job_id])[job_id], "the job did not begin")
    os.kill(cluster.nodes()[node], signal.SIGKILL)
    until(lambda: len(cluster.places_of([job_id])[job_id]) == 2, "no other node took the job over")
    (cluster.gates / "kill").touch()
    job = ended(http, job_id)
    assert (job["status"], job["cost"]["chargedTokens"], job["attempts"]) == ("succeeded", 100, 2)
    assert balance(http) == (900, 0)
    assert_sound(cluster)


def test_a_model_that_cannot_start_says_why_and_the_rest_serves(cluster, http):
    def refused() -> httpx.Response | None:
        answer = http.post(JOBS, json=SFX)
        if answer.status_code == 202:  # Serve has not given up yet
            http.post(answer.json()["urls"]["cancel"])
            return None
        return answer

    answer = until(refused, "the broken model takes jobs")
    assert answer.status_code == 503
    assert "does not work (ImportError)" in answer.json()["message"]
    assert answer.headers["retry-after"]
    (cluster.gates / "beside").touch()
    assert ended(http, submit(http, "beside"))["status"] == "succeeded"
    assert balance(http) == (900, 0)
