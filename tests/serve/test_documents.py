"""Both documents, played literally: their own curl commands against a platform that runs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.timeout(300)

PRINTED = Path(__file__).parent / "printed"
WAIT_S = 120.0
"""Many times what each job takes on an idle machine: other tests may share the cores."""


@dataclass
class Played:
    """What a printed command brought back."""

    status: int
    body: dict[str, Any]


def commands(name: str) -> dict[str, str]:
    """Read the printed commands of a document by their headings."""
    found = {}
    for block in (PRINTED / name).read_text().split("\n## ")[1:]:
        heading, _, command = block.partition("\n")
        found[heading] = command.strip()
    return found


FIRST = commands("first_document.sh")
SECOND = commands("second_document.sh")


@pytest.fixture(scope="module")
def platform(start_platform):
    return start_platform()


@pytest.fixture
def http(platform):
    with httpx.Client(base_url=platform.settings.base_url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def play(platform):
    """`play(command, key)` runs a printed command in a shell, the key where the document has it."""

    def play(command: str, key: str = "") -> Played:
        told = 'curl() { command curl --silent --show-error --write-out "\\n%{http_code}" "$@"; }\n' + command
        named = {"API_BASE": platform.settings.base_url, "API_KEY": key, "KEY": key, "no_proxy": "*"}
        done = subprocess.run(
            ["bash", "-c", told],
            env=os.environ | named,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        body, _, status = done.stdout.rpartition("\n")
        return Played(int(status), json.loads(body))

    return play


def pay(checkout_url: str) -> httpx.Response:
    """Pay at the page that the checkout names, as its button does."""
    return httpx.post(
        checkout_url, data={"outcome": "pay"}, headers={"accept": "application/json"}, trust_env=False
    ).raise_for_status()


def ended(http: httpx.Client, key: str, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_S
    while not (found := http.get(f"/api/v1/media/jobs/{job_id}", headers={"x-api-key": key}).json())[
        "finishedAt"
    ]:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def test_the_first_document_buys_claims_and_manages_keys(play, http):
    bought = play(FIRST["checkout"])
    assert bought.status == 200, bought
    assert pay(bought.body["checkoutUrl"]).is_success
    claim = FIRST["claim"].replace("cs_test_...", bought.body["sessionId"])
    claimed = play(claim)
    assert claimed.status in (200, 201), claimed
    key = claimed.body["apiKey"]
    assert key.startswith("amai_live_")
    assert play(claim).body["error"] == "already_claimed"

    made = play(FIRST["create a key"], key)
    assert made.status in (200, 201)
    worker = made.body["apiKey"]
    listed = play(FIRST["list keys"], key)
    labels = {each["label"]: each for each in listed.body["keys"]}
    assert {"Primary key", "Agent Worker A"} <= set(labels)
    assert worker not in json.dumps(listed.body)
    revoked = play(FIRST["revoke a key"].replace("abcde", made.body["keyPrefix"][:5]), key)
    assert revoked.status == 200, revoked
    assert play(FIRST["balance"], worker).body == {
        "ok": False,
        "error": "auth_required",
        "message": play(FIRST["balance"], worker).body["message"],
    }
    balance = play(FIRST["balance"], key)
    assert (balance.status, balance.body["credits"], balance.body["tokens"]) == (200, 600.0, 60_000)


def test_the_first_document_generates_and_a_retry_costs_nothing(platform, fund, play, http):
    key = fund(platform, 1_000)
    first = play(FIRST["image.generate"], key)
    assert (first.status, first.body["cost"]["quotedTokens"]) == (202, 100), first
    again = play(FIRST["image.generate again"], key)
    assert (again.status, again.body["jobId"]) == (202, first.body["jobId"])
    assert ended(http, key, first.body["jobId"])["status"] == "succeeded"
    assert play(FIRST["balance"], key).body["tokens"] == 900


@pytest.mark.parametrize("task", ["image.edit", "video.generate"])
def test_the_first_documents_inputs_are_accepted_and_one_out_of_reach_costs_nothing(
    platform, fund, play, http, task
):
    key = fund(platform, 1_000)
    sent = play(FIRST[task], key)
    assert (sent.status, sent.body["status"]) == (202, "queued"), sent
    found = ended(http, key, sent.body["jobId"])
    assert (found["status"], found["error"]["code"]) == ("failed", "input_unreachable")
    assert (found["error"]["message"].split(":")[0], found["cost"]["chargedTokens"]) == (
        "input.sourceImageUrl",
        0,
    )
    assert play(FIRST["balance"], key).body["tokens"] == 1_000


def test_the_first_document_sells_in_coins_as_by_card(play):
    bought = play(FIRST["checkout"].replace("/stripe", "/crypto").replace("dev@", "coins@"))
    assert bought.status == 200, bought
    assert pay(bought.body["checkoutUrl"]).is_success
    claim = FIRST["claim"].replace("/stripe", "/crypto").replace("cs_test_...", bought.body["sessionId"])
    claimed = play(claim)
    assert claimed.status in (200, 201), claimed
    assert play(FIRST["balance"], claimed.body["apiKey"]).body["tokens"] == 60_000


def test_the_second_document_checks_and_spends(platform, fund, play):
    key = fund(platform, 10_000)
    checked = play(SECOND["check"], key)
    assert (checked.status, checked.body) == (
        200,
        {"ok": True, "allowed": True, "cost_tokens": 5, "balance_after": 9_995},
    )
    spent = play(SECOND["spend"], key)
    assert (spent.status, spent.body) == (200, {"ok": True, "charged": 5, "balance_after": 9_995})
    assert play(SECOND["spend"], key).body == spent.body
    assert play(SECOND["check"], key).body["balance_after"] == 9_990


def test_the_second_document_refuses_as_printed(platform, fund, play):
    refused = play(SECOND["check"], "amai_live_your_secret_here")
    assert (refused.status, refused.body["ok"], refused.body["error"]) == (401, False, "auth_required")
    poor = play(SECOND["spend"], fund(platform, 2))
    assert (poor.status, poor.body["error"]) == (402, "insufficient_credits")
    assert (poor.body["cost_tokens"], poor.body["balance"]) == (5, 2)
    poor = play(SECOND["check"], fund(platform, 2))
    assert (poor.status, poor.body["allowed"], poor.body["balance_after"]) == (200, False, 2)


@pytest.mark.parametrize(
    "tool", ["chat", "image", "voice_clone", "dub", "music", "sfx", "speech2text", "translate"]
)
def test_every_tool_of_the_second_document_has_a_price(platform, fund, play, tool):
    checked = play(SECOND["check"].replace("chat", tool), fund(platform, 10_000))
    assert (checked.status, checked.body["allowed"]) == (200, True)
    assert checked.body["cost_tokens"] == 10_000 - checked.body["balance_after"] > 0
