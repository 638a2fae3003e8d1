"""The whole platform on a real Ray Serve: a paid picture, and what happens when its parts die."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from queue import Queue
from typing import ClassVar

import httpx
import psycopg
import pytest
import yaml
from PIL import Image
from sqlalchemy.engine import make_url
from standardwebhooks import Webhook

from deployments.books import in_books
from deployments.launcher import Launcher
from deployments.ray_session import HeadRecord, living_members
from gateway.audit import JOB_CHECKS
from ledger.audit import LEDGER_CHECKS, run_checks
from payments.audit import PAYMENT_CHECKS

pytestmark = pytest.mark.timeout(300)

WAIT_S = 90.0
"""Many times what each wait takes on an idle machine: other tests may share the cores."""


@pytest.fixture(scope="module")
def platform(start_platform) -> Launcher:
    def with_moods(config):
        image = next(each for each in config["applications"] if each["name"] == "image")
        image["args"]["family"] = "moody_model:Moody"

    return start_platform(with_moods, lease_s=3, private_webhooks=True)


@pytest.fixture
def http(platform: Launcher) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=platform.settings.base_url, timeout=60, trust_env=False) as client:
        yield client


def submit(http: httpx.Client, key: str, prompt: str) -> str:
    answer = http.post(
        "/api/v1/media/jobs",
        headers={"Authorization": f"Bearer {key}"},
        json={"task": "image.generate", "input": {"prompt": prompt}},
    )
    assert answer.status_code == 202, answer.text
    return answer.json()["jobId"]


def job(http: httpx.Client, key: str, job_id: str) -> dict:
    answer = http.get(f"/api/v1/media/jobs/{job_id}", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def wait_for(http: httpx.Client, key: str, job_id: str, wanted) -> dict:
    deadline = time.monotonic() + WAIT_S
    while not wanted(found := job(http, key, job_id)):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def ended(found: dict) -> bool:
    return found["finishedAt"] is not None


def tokens(http: httpx.Client, key: str) -> tuple[int, int]:
    body = http.get("/api/v1/credits/balance", headers={"x-api-key": key}).json()
    return body["tokens"], body["held"]["tokens"]


def assert_sound(platform: Launcher) -> None:
    findings = in_books(
        platform.settings.database_url, run_checks, (*LEDGER_CHECKS, *PAYMENT_CHECKS, *JOB_CHECKS)
    )
    assert [(f.name, f.offending) for f in findings if not f.ok] == []


def replica_pids(platform: Launcher, deployment: str) -> list[int]:
    record = HeadRecord.read(platform.head.paths.record)
    assert record
    title = f"ray::ServeReplica:{deployment}".encode()
    found = []
    for pid in living_members(record.session_id):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title):
                found.append(pid)
        except OSError:
            continue
    return found


def test_a_customer_pays_claims_and_downloads_a_picture(platform, http):
    started = http.post(
        "/api/v1/checkout/stripe", json={"email": "dev@company.com", "packageCode": "builder_600"}
    ).json()
    early = http.post(
        "/api/v1/claim/stripe", json={"sessionId": started["sessionId"], "keyLabel": "Primary key"}
    )
    assert (early.status_code, early.json()["error"]) == (409, "payment_pending")
    paid = httpx.post(
        started["checkoutUrl"],
        data={"outcome": "pay"},
        headers={"Accept": "application/json"},
        trust_env=False,
    )
    assert paid.json()["payment_status"] == "paid"
    page = httpx.get(paid.json()["redirect_url"], trust_env=False)
    assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
    claimed = http.post(
        "/api/v1/claim/stripe", json={"sessionId": started["sessionId"], "keyLabel": "Primary key"}
    )
    assert claimed.is_success, claimed.text
    key = claimed.json()["apiKey"]
    again = http.post(
        "/api/v1/claim/stripe", json={"sessionId": started["sessionId"], "keyLabel": "Primary key"}
    )
    assert (again.status_code, again.json()["error"]) == (409, "already_claimed")
    assert tokens(http, key) == (60_000, 0)

    job_id = submit(http, key, "cinematic fox astronaut")
    found = wait_for(http, key, job_id, ended)
    assert (found["status"], found["cost"]["chargedTokens"], found["progress"]) == ("succeeded", 100, 1.0)
    output = found["output"][0]
    picture = httpx.get(output["url"], trust_env=False)
    assert picture.headers["content-type"] == "image/png"
    with Image.open(BytesIO(picture.content)) as image:
        assert image.size == (output["width"], output["height"])
        assert "tiny profile" in " ".join(str(value) for value in image.info.values())
    assert tokens(http, key) == (59_900, 0)
    rows = {row["kind"]: row["tokens"] for row in http.get("/api/v1/ledger/trial-balance").json()["rows"]}
    assert sum(rows.values()) == 0
    assert_sound(platform)


def test_a_model_replica_killed_in_the_middle_of_a_job_costs_one_charge(platform, http, fund):
    key = fund(platform, 300)
    job_id = submit(http, key, "long-once fox")
    wait_for(http, key, job_id, lambda found: found["status"] == "running" and found["progress"] > 0)
    victims = replica_pids(platform, "image:Model")
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    found = wait_for(http, key, job_id, ended)
    assert (found["status"], found["cost"]["chargedTokens"], found["attempts"]) == ("succeeded", 100, 2)
    assert tokens(http, key) == (200, 0)
    assert_sound(platform)


def test_a_runner_killed_between_output_and_settlement_costs_one_charge(platform, http, fund):
    key = fund(platform, 300)
    url = (
        make_url(platform.settings.database_url)
        .set(drivername="postgresql")
        .render_as_string(hide_password=False)
    )
    made = platform.settings.data_dir / "objects" / "outputs"
    job_id = submit(http, key, "short-long fox")
    wait_for(http, key, job_id, lambda found: found["status"] == "running" and found["progress"] > 0)
    with psycopg.connect(url) as conn:  # whoever wants to settle waits for this lock
        conn.execute(
            "SELECT 1 FROM accounts WHERE id = (SELECT account_id FROM jobs WHERE id = %s) FOR UPDATE",
            [job_id],
        )
        deadline = time.monotonic() + WAIT_S
        while not list(made.glob(f"{job_id}/*")):
            assert time.monotonic() < deadline, "no output came"
            time.sleep(0.02)
        victims = replica_pids(platform, "farebox:Runner")
        assert victims
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        assert conn.execute("SELECT status FROM jobs WHERE id = %s", [job_id]).fetchone() == ("running",)
        conn.rollback()
    found = wait_for(http, key, job_id, ended)
    assert (found["status"], found["cost"]["chargedTokens"]) == ("succeeded", 100)
    assert len(found["output"]) == 1
    assert tokens(http, key) == (200, 0)
    assert_sound(platform)


def test_a_model_that_always_fails_leaves_the_balance_as_it_was(platform, http, fund):
    key = fund(platform, 300)
    job_id = submit(http, key, "fail fox")
    found = wait_for(http, key, job_id, ended)
    assert (found["status"], found["error"]["code"], found["cost"]["chargedTokens"]) == (
        "failed",
        "model_failed",
        0,
    )
    assert "bad mood" not in str(found)
    assert tokens(http, key) == (300, 0)
    assert_sound(platform)


class Receiver(BaseHTTPRequestHandler):
    """A customer's server: takes every webhook, and keeps it."""

    got: ClassVar[Queue] = Queue()

    def do_POST(self) -> None:
        """Answer 204."""
        body = self.rfile.read(int(self.headers["content-length"]))
        self.got.put((dict(self.headers.items()), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_the_end_of_a_job_is_told_to_an_endpoint_and_signed(platform, http, fund):
    key = {"Authorization": f"Bearer {fund(platform, 100)}"}
    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/hooks"
        secret = http.post("/api/v1/webhook-endpoints", headers=key, json={"url": url}).json()["secret"]
        submitted = {"task": "image.generate", "input": {"prompt": "a fox"}}
        job_id = http.post("/api/v1/media/jobs", headers=key, json=submitted).json()["jobId"]
        headers, body = Receiver.got.get(timeout=WAIT_S)
        server.shutdown()
    told = Webhook(secret).verify(body, headers)
    assert (told["type"], told["data"]["jobId"]) == ("job.succeeded", job_id)


def test_a_canceled_running_job_stops_the_model_and_costs_nothing(platform, http, fund):
    key = fund(platform, 300)
    job_id = submit(http, key, "long-once fox")
    wait_for(http, key, job_id, lambda found: found["status"] == "running" and found["progress"] > 0)
    http.post(f"/api/v1/media/jobs/{job_id}/cancel", headers={"x-api-key": key}).raise_for_status()
    found = wait_for(http, key, job_id, ended)
    assert (found["status"], found["cost"]["chargedTokens"]) == ("canceled", 0)
    stopped = platform.settings.data_dir / "moods" / f"{job_id}.stopped"
    deadline = time.monotonic() + WAIT_S
    while not stopped.exists():
        assert time.monotonic() < deadline, "the model computes on"
        time.sleep(0.05)
    assert tokens(http, key) == (300, 0)


def test_two_hundred_concurrent_submits_on_a_balance_for_a_hundred_accept_a_hundred(platform, http, fund):
    key = fund(platform, 100 * 100)

    async def flood() -> list[int]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(
            base_url=platform.settings.base_url, timeout=60, limits=limits, trust_env=False
        ) as client:
            body = {"task": "image.generate", "input": {"prompt": "quick fox"}}
            calls = [
                client.post("/api/v1/media/jobs", headers={"Authorization": f"Bearer {key}"}, json=body)
                for _ in range(200)
            ]
            return [answer.status_code for answer in await asyncio.gather(*calls)]

    statuses = asyncio.run(flood())
    assert (statuses.count(202), statuses.count(402)) == (100, 100)
    free, _ = tokens(http, key)
    assert free == 0
    deadline = time.monotonic() + WAIT_S
    while tokens(http, key) != (0, 0):
        assert time.monotonic() < deadline, "not all of the hundred were settled"
        time.sleep(0.2)
    listed = http.get("/api/v1/media/jobs?limit=100", headers={"x-api-key": key}).json()["data"]
    assert [each["status"] for each in listed] == ["succeeded"] * 100
    assert_sound(platform)


def test_requests_are_counted_through_the_front_door(platform, http, fund):
    key = fund(platform, 100)

    def left() -> int:
        answer = http.get("/api/v1/credits/balance", headers={"x-api-key": key})
        assert answer.headers["ratelimit-policy"] == f'"key";q={platform.settings.limit_key};w=60'
        return int(answer.headers["ratelimit"].split(";r=")[1].split(";")[0])

    assert [left() for _ in range(3)] == [platform.settings.limit_key - n for n in (1, 2, 3)]


def test_money_goes_on_while_the_model_is_gone(platform, http, fund):
    key = fund(platform, 300)
    config = yaml.safe_load((platform.settings.data_dir.parent / "serve.yaml").read_text())
    config["http_options"] |= {"host": platform.settings.host, "port": platform.settings.port}
    without = {**config, "applications": [a for a in config["applications"] if a["name"] == "farebox"]}
    platform.head.api.deploy(without)
    try:
        deadline = time.monotonic() + WAIT_S
        while http.get("/api/v1/health").json()["models"]["image"]["state"] != "unavailable":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert http.get("/api/v1/health").status_code == 200
        assert tokens(http, key) == (300, 0)
        made = http.post("/api/v1/keys", headers={"x-api-key": key}, json={"label": "while it is gone"})
        assert made.is_success
        job_id = submit(http, key, "quick fox")
        assert job(http, key, job_id)["status"] in ("queued", "running")
    finally:
        platform.head.api.deploy(config)
    found = wait_for(http, key, job_id, ended)
    assert (found["status"], found["attempts"]) == ("succeeded", 1)


def test_a_revoked_key_is_refused_from_the_next_request_on(platform, http, fund):
    key = fund(platform, 300)
    made = http.post("/api/v1/keys", headers={"x-api-key": key}, json={"label": "short"}).json()
    assert tokens(http, made["apiKey"]) == (300, 0)
    http.post(
        "/api/v1/keys/revoke", headers={"x-api-key": key}, json={"keyPrefix": made["keyPrefix"]}
    ).raise_for_status()
    refused = http.get("/api/v1/credits/balance", headers={"x-api-key": made["apiKey"]})
    assert (refused.status_code, refused.json()["error"]) == (401, "auth_required")


def test_logs_are_json_lines_with_the_request_id_and_without_secrets(platform, http, fund):
    key = fund(platform, 300)
    named = {"x-api-key": key, "x-request-id": "req_find_me_in_the_log"}
    asked = http.post("/api/v1/keys", headers=named, json={"label": "logged"})  # reads are logged at debug
    assert asked.headers["x-request-id"] == "req_find_me_in_the_log"
    job_id = submit(http, key, "quick fox")
    wait_for(http, key, job_id, ended)
    logs = platform.head.paths.home / "session_latest" / "logs"
    deadline = time.monotonic() + 30
    while True:
        text = "".join(path.read_text(errors="replace") for path in logs.glob("worker-*.err"))
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        requests = [line for line in lines if line.get("request_id") == "req_find_me_in_the_log"]
        attempts = [
            line for line in lines if line.get("job_id") == job_id and line["event"] == "attempt ended"
        ]
        if requests and [line for line in attempts if line["outcome"] == "succeeded"]:
            break
        assert time.monotonic() < deadline, text[-2000:]
        time.sleep(0.1)
    written = "".join(path.read_text(errors="replace") for path in logs.rglob("*") if path.is_file())
    settings = platform.settings
    secrets = [key, asked.json()["apiKey"]]
    secrets += [each.get_secret_value() for each in (settings.secret, settings.stripe_secret_key)]
    assert [secret for secret in secrets if secret in written] == []


def test_metrics_are_summed_over_the_processes(platform, http):
    text = http.get("/metrics").text
    assert "farebox_http_requests_total" in text
    assert "farebox_jobs_total" in text, "counted in the Runner's process, not in the ingress"
    assert "farebox_ledger_seconds_count" in text
    assert "amai_live_" not in text


def test_a_code_that_the_runner_mailed_signs_a_browser_in(platform: Launcher, http: httpx.Client):
    outbox = platform.settings.data_dir / "outbox"
    started = http.post("/api/v1/auth/email/start", json={"email": "ada@example.com"})
    assert started.status_code == 200, started.text
    deadline = time.monotonic() + WAIT_S
    while not (mails := [text for path in outbox.glob("*.eml") if "To: ada@" in (text := path.read_text())]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    code = re.findall(r"^ +(\d{4} \d{4})$", mails[0], re.MULTILINE)[0]
    signed_in = http.post("/api/v1/auth/email/verify", json={"email": "ada@example.com", "code": code})
    assert signed_in.status_code == 200, signed_in.text
    token = {"x-csrf-token": signed_in.json()["csrfToken"]}
    assert http.post("/api/v1/keys", json={"label": "from the page"}).status_code == 403
    assert http.post("/api/v1/keys", json={"label": "from the page"}, headers=token).status_code == 200
    assert http.post("/api/v1/auth/sign-out", headers=token).status_code == 200
    assert http.get("/api/v1/auth/session").status_code == 401
