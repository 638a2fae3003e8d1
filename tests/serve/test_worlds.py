"""The test world beside real models, on a real Ray Serve: its jobs run on the tiny application beside the real one."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
import yaml
from sqlalchemy import text

from deployments.books import in_books
from deployments.launcher import SERVE_CONFIG, Launcher

pytestmark = pytest.mark.timeout(400)

WAIT_S = 120.0
"""A tiny model loads in 15 s and draws in one; other tests may share the cores."""


def commented_entry() -> dict[str, Any]:
    """The entry that an operator takes the `#` away from."""
    lines = SERVE_CONFIG.read_text().splitlines()
    entry = [line.removeprefix("  # ") for line in lines[lines.index("  # - name: image-tiny") :]]
    return yaml.safe_load("\n".join(entry))[0]


@pytest.fixture(scope="module")
def platform(start_platform) -> Launcher:
    def with_a_tiny_model_beside(config):
        config["applications"].append(commented_entry())
        surface = next(each for each in config["applications"] if each["name"] == "farebox")
        surface["args"]["places"]["image-tiny"] = 2

    return start_platform(with_a_tiny_model_beside, profile="small")


def test_each_worlds_job_is_done_by_its_own_application(platform, fund):
    live = fund(platform, 1_000)
    with httpx.Client(base_url=platform.settings.base_url, timeout=60, trust_env=False) as http:
        made = http.post(
            "/api/v1/keys", headers={"x-api-key": live}, json={"label": "CI", "mode": "test"}
        ).json()
        for key in (live, made["apiKey"]):
            done = picture(http, key)
            assert done["status"] == "succeeded", done
            assert http.get(done["output"][0]["url"]).content.startswith(b"\x89PNG")

    async def charged(conn):
        rows = await conn.execute(
            text(
                "SELECT a.world, j.application, j.charged FROM jobs j JOIN accounts a ON a.id = j.account_id"
            )
        )
        return {tuple(row) for row in rows}

    jobs = in_books(platform.settings.database_url, charged)
    assert jobs == {("live", "image", 100), ("test", "image-tiny", 100)}


def picture(http: httpx.Client, key: str) -> dict[str, Any]:
    """Submit a job, again while its model is not there yet, and wait for its end."""
    deadline = time.monotonic() + WAIT_S
    wanted = {"task": "image.generate", "input": {"prompt": "fox", "steps": 2}}
    while (
        sent := http.post("/api/v1/media/jobs", headers={"x-api-key": key}, json=wanted)
    ).status_code != 202:
        assert sent.status_code == 503, sent.text
        assert time.monotonic() < deadline, sent.text
        time.sleep(0.5)
    while (job := http.get(sent.json()["urls"]["get"], headers={"x-api-key": key}).json())[
        "finishedAt"
    ] is None:
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    return job
