"""The commands of the README as a person types them: started, ended, killed, started again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from deployments.launcher import ROOT
from deployments.ray_head import reap
from deployments.ray_ports import is_free
from deployments.ray_session import HeadRecord, living_members
from kit.postgres import EmbeddedPostgres

pytestmark = pytest.mark.timeout(600)

FAREBOX = Path(sys.executable).with_name("farebox")
READY_S = 200.0
"""A start takes 25 s on two idle cores; others may share them, and two start at the same time here."""
END_S = 30.0
"""What was promised for Ctrl-C and SIGTERM."""


class Up:
    """A `farebox up` with a data directory and a port of its own."""

    def __init__(self, place: Path, port: int, models: Path) -> None:
        self.place, self.port, self.models = place, port, models
        self.log = place / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        mine = {"FAREBOX_PORT": str(self.port), "FAREBOX_DATA_DIR": str(self.place / "data")}
        mine["FAREBOX_MODELS_DIR"] = str(self.models)
        ours = ("FAREBOX_", "STRIPE_", "DATABASE_URL")
        return {k: v for k, v in os.environ.items() if not k.startswith(ours)} | mine

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [FAREBOX, "up"], env=self.environment, stdout=log, stderr=log, cwd=ROOT
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while f"Farebox is ready at http://127.0.0.1:{self.port}" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def end(self, how: signal.Signals) -> tuple[int, float]:
        began = time.monotonic()
        self.process.send_signal(how)
        return self.process.wait(60), time.monotonic() - began

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [FAREBOX, *arguments], env=self.environment, capture_output=True, text=True, cwd=ROOT, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, path: str, key: str = "") -> httpx.Response:
        headers = {"x-api-key": key} if key else {}
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", headers=headers, trust_env=False, timeout=30)

    def postmaster(self) -> int | None:
        try:
            return int((self.place / "data" / "postgres" / "postmaster.pid").read_text().split()[0])
        except (OSError, IndexError):
            return None

    def session(self) -> int:
        record = HeadRecord.read(self.place / "data" / "ray_head.json")
        assert record
        return record.session_id

    def left_over(self) -> list[str]:
        """Every process that names the data directory or works in it."""
        found = []
        for path in Path("/proc").iterdir():
            if not path.name.isdigit():
                continue
            try:
                where = (
                    f"{(path / 'cwd').readlink()} {(path / 'cmdline').read_bytes().decode(errors='replace')}"
                )
            except OSError:
                continue
            if str(self.place) in where:
                found.append(where)
        return found


@pytest.fixture
def ups(scratch: Path, tiny_models: Path) -> Iterator[list[Up]]:
    made = []
    for number in range(2):
        place = scratch / f"up{number}"
        place.mkdir(mode=0o711)
        made.append(
            Up(
                place,
                next(p for p in range(9300 + 200 * number, 9500 + 200 * number, 2) if is_free(p)),
                tiny_models,
            )
        )
    yield made
    for up in made:
        if up.process and up.process.poll() is None:
            up.end(signal.SIGTERM)
        reap(up.place / "data")  # what a test that failed half-way left
        EmbeddedPostgres(up.place / "data").remove()


def test_two_platforms_live_side_by_side_end_whole_and_come_back_with_their_data(ups):
    first, second = ups
    first.start()
    first.wait_until_ready()
    second.start()
    key = first.run("keys", "create", "dev@company.com").strip()
    assert re.fullmatch(r"amai_live_[0-9A-Za-z]{43}", key)
    assert "has 5.00 credits" in first.run("grant", "dev@company.com", "5", "--reference", "gift")
    assert "has 5.00 credits" in first.run("grant", "dev@company.com", "5", "--reference", "gift"), "once"
    assert first.get("/api/v1/credits/balance", key).json()["tokens"] == 500
    assert json.loads(first.run("audit", "--json"))["ok"]
    assert json.loads(first.run("audit", "--chain", "--json"))["ok"]
    asked = json.loads(first.run("reconcile", "--since", "2026-01-01", "--json"))
    assert asked["silent"] == {}, "the sandbox that it runs is asked"
    second.wait_until_ready()
    assert second.get("/api/v1/credits/balance", key).status_code == 401, "the books are its own"
    instances = {up.get("/api/v1/health").json()["instance"] for up in ups}
    assert len(instances) == 2

    killed = first.postmaster()
    os.kill(killed, signal.SIGKILL)  # the platform starts it again by itself
    deadline = time.monotonic() + READY_S
    while True:
        answer = first.get("/api/v1/credits/balance", key)
        if answer.status_code == 200 and first.postmaster() not in (killed, None):
            break
        assert answer.status_code in (200, 503), answer.text
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert answer.json()["tokens"] == 500

    session = first.session()
    code, took = first.end(signal.SIGTERM)
    assert (code, first.left_over(), dict(living_members(session))) == (0, [], {}), first.log.read_text()
    assert took < END_S
    assert second.get("/api/v1/health").status_code == 200, "nothing of the other was ended"

    second_key = second.run("keys", "create", "dev@company.com").strip()
    second.process.kill()  # its parts live on as orphans, with the port
    second.process.wait()
    assert second.left_over()
    second.start()
    second.wait_until_ready()
    assert second.get("/api/v1/health").json()["instance"] not in instances
    assert second.get("/api/v1/credits/balance", second_key).json()["tokens"] == 0
    code, took = second.end(signal.SIGINT)
    assert (code, second.left_over()) == (0, []), second.log.read_text()
    assert took < END_S

    assert "amai_live_" not in first.run("keys", "list", "dev@company.com"), (
        "works without a running platform"
    )


def test_the_demo_plays_a_customer_and_keeps_the_picture(tmp_path):
    kept = tmp_path / "picture.png"
    done = subprocess.run(
        [FAREBOX, "demo", "--keep", str(kept)], capture_output=True, text=True, cwd=ROOT, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for step in (
        "What is on sale",
        "Open a checkout",
        "Pay in the sandbox",
        "Claim the first API key",
        "Send the coins in the sandbox",
        "Download",
    ):
        assert step in done.stdout
    assert '"totalTokens":0' in done.stdout
    assert "Trial balance" in done.stdout
    assert "│ NO" not in done.stdout
    with Image.open(kept) as picture:
        assert picture.size == (256, 256)


def test_help_teaches(tmp_path):
    done = subprocess.run([FAREBOX, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    for command in ("up", "demo", "migrate", "audit", "grant", "keys", "models"):
        assert command in done.stdout
    assert "FAREBOX_PORT" in done.stdout


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"FAREBOX_PORT": "ninety"}, "FAREBOX_PORT"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL"),
        (
            {"STRIPE_SECRET_KEY": "sk_live_1", "STRIPE_WEBHOOK_SECRET": "whsec_1", "FAREBOX_SANDBOX": "1"},
            "live Stripe keys and the payment sandbox",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, environment, says):
    done = subprocess.run(
        [FAREBOX, "up"],
        env={**os.environ, "FAREBOX_DATA_DIR": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
