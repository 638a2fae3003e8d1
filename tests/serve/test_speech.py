"""Speech on a real Ray Serve: a model in an environment of its own, and one whose environment does not work."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import soundfile
import yaml

from deployments.books import in_books
from deployments.launcher import ROOT, SERVE_CONFIG, Launcher
from deployments.models import environments
from deployments.models.environments import EnvironmentMissing
from kit.settings import load_settings
from ledger import keys
from ledger.credits import credit
from ledger.users import account_of_email

pytestmark = pytest.mark.timeout(400)

HERE = Path(__file__).parent
WAIT_S = 180.0
"""Many times what each wait takes on an idle machine: other tests may share the cores."""
JOBS = "/api/v1/media/jobs"


class Quiet:
    def step(self, what: str) -> None: ...
    def done(self, what: str) -> None: ...
    def warn(self, what: str) -> None:
        print(what)


@pytest.fixture(scope="module")
def platform(scratch: Path, front_port: int, tiny_models: Path) -> Iterator[Launcher]:
    try:
        environments.python_of("speech")
    except EnvironmentMissing:
        pytest.skip("'make speech' was not run, or could not be")
    place = scratch / "speech"
    place.mkdir(mode=0o711)
    config = yaml.safe_load(SERVE_CONFIG.read_text())
    kept = {
        each["name"]: each
        for each in config["applications"]
        if each["name"] in ("farebox", "speech", "voice")
    }
    kept["voice"]["args"] |= {"family": "broken_model:Broken", "profiles": {"tiny": {"num_replicas": 1}}}
    config["applications"] = list(kept.values())
    (place / "serve.yaml").write_text(yaml.safe_dump(config))
    settings = load_settings(
        data_dir=place / "data",
        models_dir=tiny_models,
        port=front_port,
        profile="tiny",
        database_url="",
        public_url="",
    )
    with Launcher(settings, Quiet(), place / "serve.yaml", [HERE, ROOT]) as running:
        yield running


@pytest.fixture
def http(platform: Launcher) -> Iterator[httpx.Client]:
    async def fund(conn):
        owner = await account_of_email(conn, f"{time.monotonic_ns()}@example.com")
        await credit(
            conn,
            owner.account_id,
            kind="grant",
            house="promotion:test",
            amount_tokens=100,
            reference="start",
        )
        return (await keys.mint(conn, owner.user_id, "test", brand="amai")).secret

    key = in_books(platform.settings.database_url, fund)
    with httpx.Client(
        base_url=platform.settings.base_url, headers={"x-api-key": key}, timeout=60, trust_env=False
    ) as client:
        yield client


def test_the_published_request_is_spoken_by_a_replica_in_its_own_environment(http):
    ask = {
        "text": "Welcome to the API gateway.",
        "voiceDescription": "Warm, energetic narrator with clear pacing.",
        "language": "English",
    }
    accepted = http.post(JOBS, json={"task": "audio.speak", "input": ask})
    assert accepted.status_code == 202, accepted.text
    deadline = time.monotonic() + WAIT_S
    while (job := http.get(accepted.json()["urls"]["get"]).json())["finishedAt"] is None:
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    assert job["status"] == "succeeded", job
    [output] = job["output"]
    samples, rate = soundfile.read(io.BytesIO(http.get(output["url"]).content))
    assert (rate, output["sampleRate"]) == (24_000, 24_000)
    assert samples.std() > 0
    begun_s = math.ceil(len(samples) / rate)
    assert (job["cost"]["quotedTokens"], job["cost"]["chargedTokens"]) == (8, begun_s)
    assert http.get("/api/v1/credits/balance").json()["tokens"] == 100 - begun_s


def test_a_broken_environment_answers_503_with_the_reason_and_nothing_else(http):
    ask = {"text": "Good evening.", "referenceAudioUrl": "https://cdn.example.com/me.mp3"}
    deadline = time.monotonic() + WAIT_S
    while (refused := http.post(JOBS, json={"task": "voice.clone", "input": ask})).status_code == 202:
        assert time.monotonic() < deadline
        http.post(refused.json()["urls"]["cancel"])
        time.sleep(0.5)
    assert refused.status_code == 503
    assert refused.json()["message"] == (
        "voice.clone is not available: The speech environment does not work (ImportError);"
        " the operator makes it with 'make speech'."
    )
    assert "traceback" not in refused.text.lower()
    assert http.get("/api/v1/health").status_code == 200
    assert http.get("/api/v1/credits/balance").json()["held"]["tokens"] == 0
