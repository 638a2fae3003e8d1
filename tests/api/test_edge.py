"""The edge: ids, sizes, methods, HEAD, unexpected errors, logs and counters - the same for every route."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import structlog
from prometheus_client import REGISTRY

from gateway.app import create_app
from kit.errors import Unavailable
from ledger.chain import Block

JOB = b'{"task": "image.generate", "input": {"prompt": "x"}}'
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "path", ["/api/v1/health", "/api/v1/nowhere", "/", "/api/v1/keys", "/static/nowhere.css"]
)
async def test_every_answer_carries_a_request_id(web: httpx.AsyncClient, path: str):
    first, second = (await web.get(path)).headers, (await web.get(path)).headers
    assert first["x-request-id"].startswith("req_")
    assert first["x-request-id"] != second["x-request-id"]
    assert first["x-content-type-options"] == "nosniff"


async def test_a_sane_request_id_is_kept(web):
    sent = "4bf92f35-77b3.a:1_X"
    assert (await web.get("/api/v1/packages", headers={"x-request-id": sent})).headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "a b", 'a"b', "x" * 129, "ä", "<script>"])
async def test_another_request_id_is_replaced(web, sent: str):
    answer = await web.get("/api/v1/packages", headers={"x-request-id": sent.encode()})
    assert answer.headers["x-request-id"].startswith("req_")


async def test_a_front_that_names_requests_is_left_to_it(settings, stub_ledger, models, objects):
    app = create_app(settings, stub_ledger, models, None, objects, names_requests=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as web:
        assert "x-request-id" not in (await web.get("/api/v1/packages")).headers


async def test_logs_carry_the_request_id_of_the_answer(web, stub_ledger):
    seen: list[dict[str, Any]] = []

    async def ping() -> None:
        seen.append(structlog.contextvars.get_contextvars())

    stub_ledger.ping = ping
    answer = await web.get("/api/v1/health", headers={"x-request-id": "mine"})
    assert seen == [{"request_id": "mine"}]
    assert answer.headers["x-request-id"] == "mine"
    assert structlog.contextvars.get_contextvars() == {}


@pytest.mark.parametrize(
    "path", ["/api/v1/nowhere", "/api/v1/keys/", "/api", "/API/v1/health", "/static/", "/docs/x"]
)
async def test_unknown_paths_get_404_in_json(web, path: str):
    answer = await web.get(path)
    assert answer.status_code == 404
    assert answer.json() == {"ok": False, "error": "not_found", "message": "No such path."}


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/api/v1/keys", "GET, HEAD, POST"),
        ("GET", "/api/v1/keys/revoke", "POST"),
        ("HEAD", "/api/v1/keys/revoke", "POST"),
        ("POST", "/api/v1/credits/balance", "GET, HEAD"),
        ("OPTIONS", "/api/v1/health", "GET, HEAD"),
        ("PATCH", "/api/v1/files/file_01k8z0c6m5n7q2r4t6v8x0y2z4", "DELETE, GET, HEAD"),
        ("BREW", "/api/v1/media/jobs", "GET, HEAD, POST"),
    ],
)
async def test_other_methods_get_405_with_allow(web, method: str, path: str, allow: str):
    answer = await web.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allow
    if method != "HEAD":
        assert answer.json()["error"] == "method_not_allowed"


@pytest.mark.parametrize(
    "path", ["/api/v1/packages", "/api/v1/health", "/", "/openapi.json", "/static/farebox.css"]
)
async def test_head_answers_as_get_without_the_body(web, path: str):
    get, head = await web.get(path), await web.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"] != "0"
    assert head.headers["content-type"] == get.headers["content-type"]


async def test_a_body_over_the_limit_gets_413_by_its_declared_length(caller, stub_ledger):
    answer = await caller.post("/api/v1/media/jobs", content=b" " * 20_001, headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["error"] == "payload_too_large"
    assert "20000 bytes" in answer.json()["message"]
    assert answer.headers["connection"] == "close"
    assert stub_ledger.calls == []


async def test_a_body_over_the_limit_gets_413_while_it_is_read(caller, stub_ledger):
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(21):
            yield b" " * 1000

    answer = await caller.post("/api/v1/media/jobs", content=chunks(), headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["error"] == "payload_too_large"
    assert stub_ledger.calls == []


async def test_a_body_at_the_limit_is_read(caller):
    padded = JOB + b" " * (20_000 - len(JOB))
    assert (await caller.post("/api/v1/media/jobs", content=padded, headers=JSON)).status_code == 202


async def test_an_unexpected_error_is_a_500_without_its_text_logged_and_counted(caller, stub_ledger):
    stub_ledger.broken = ZeroDivisionError("the reserve is at 12 High Street")
    before = REGISTRY.get_sample_value("farebox_unexpected_errors_total", {"edge": "http"}) or 0
    with structlog.testing.capture_logs() as logs:
        answer = await caller.get("/api/v1/credits/balance")
    assert answer.status_code == 500
    assert answer.json() == {
        "ok": False,
        "error": "internal_error",
        "message": "Something went wrong on our side.",
    }
    assert answer.headers["x-request-id"]
    assert REGISTRY.get_sample_value("farebox_unexpected_errors_total", {"edge": "http"}) == before + 1
    assert any(line["log_level"] == "error" and line["exc_info"] for line in logs if "exc_info" in line)


async def test_books_that_are_away_get_503_with_retry_after(caller, stub_ledger):
    stub_ledger.broken = Unavailable("The ledger", 2)
    answer = await caller.get("/api/v1/credits/balance")
    assert (answer.status_code, answer.json()["error"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "2"


async def test_requests_are_counted_by_route_and_never_by_id(web):
    def count(route: str, status: str, method: str = "GET") -> float:
        labels = {"method": method, "route": route, "status": status}
        return REGISTRY.get_sample_value("farebox_http_requests_total", labels) or 0

    before = (
        count("/api/v1/media/jobs/{job_id}", "401"),
        count("unmatched", "404"),
        count("/api/v1/health", "405", "OTHER"),
    )
    await web.get("/api/v1/media/jobs/job_01k8z0c6m5n7q2r4t6v8x0y2z4")
    await web.get("/nowhere")
    await web.request("BREW", "/api/v1/health")
    assert (
        count("/api/v1/media/jobs/{job_id}", "401"),
        count("unmatched", "404"),
        count("/api/v1/health", "405", "OTHER"),
    ) == tuple(n + 1 for n in before)
    metrics = (await web.get("/metrics")).text
    assert "job_01k8z0c6m5n7q2r4t6v8x0y2z4" not in metrics
    assert "BREW" not in metrics


async def test_what_callers_must_not_cache_says_so(caller):
    for path in ("/api/v1/credits/balance", "/api/v1/media/jobs", "/checkout/success?session_id=cs_1"):
        assert "no-store" in (await caller.get(path)).headers["cache-control"], path


async def test_balance_is_printed_with_two_places_and_what_is_held(caller):
    answer = await caller.get("/api/v1/credits/balance")
    assert answer.content == (
        b'{"ok":true,"credits":599.00,"tokens":59900,"held":{"credits":1.00,"tokens":100}}'
    )
    assert (await caller.get("/api/v1/balance")).content == answer.content


async def test_the_trial_balance_is_public_and_asked_once_for_many(web, stub_ledger):
    answers = await asyncio.gather(*(web.get("/api/v1/ledger/trial-balance") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].json()["balanced"] is True
    assert answers[0].json()["rows"][0] == {
        "mode": "live",
        "kind": "clearing",
        "accounts": 1,
        "entries": 1,
        "credits": -600.0,
        "tokens": -60000,
    }
    assert answers[0].json()["lastBlock"] is None, "nothing is sealed yet"
    assert stub_ledger.calls == ["trial_balance"]


async def test_the_trial_balance_shows_the_last_sealed_block(web, stub_ledger):
    sealed_at = datetime(2026, 11, 22, 12, tzinfo=UTC)
    stub_ledger.last_block = Block(3, 20, 31, 10, 20, bytes(32), bytes(32), b"\xab" * 32, sealed_at)
    assert (await web.get("/api/v1/ledger/trial-balance")).json()["lastBlock"] == {
        "number": 3,
        "upToTransfer": 31,
        "hash": "ab" * 32,
        "sealedAt": "2026-11-22T12:00:00Z",
    }


async def test_without_a_provider_payments_are_unavailable_and_webhooks_do_not_exist(web):
    sold = await web.post(
        "/api/v1/checkout/stripe", json={"email": "dev@company.com", "packageCode": "builder_600"}
    )
    assert (sold.status_code, sold.json()["error"]) == (503, "payments_unavailable")
    claimed = await web.post("/api/v1/claim/stripe", json={"sessionId": "cs_test_1"})
    assert (claimed.status_code, claimed.json()["error"]) == (503, "payments_unavailable")
    event = await web.post(
        "/api/v1/webhooks/stripe", content=b"{}", headers={"stripe-signature": "t=1,v1=00"}
    )
    assert (event.status_code, event.json()["error"]) == (404, "not_found")


async def test_what_is_called_often_is_logged_only_when_it_is_refused(caller, caplog):
    caplog.set_level(logging.INFO, "gateway.middleware")
    with structlog.testing.capture_logs() as logs:
        await caller.get("/api/v1/credits/balance")
        await caller.post("/api/v1/tools/check", json={"tool": "fly", "units": 1})
        await caller.post("/api/v1/media/jobs", content=JOB, headers=JSON)
    assert [(line["route"], line["status"]) for line in logs if line["event"] == "request"] == [
        ("/api/v1/tools/check", 400),
        ("/api/v1/media/jobs", 202),
    ]
    with structlog.testing.capture_logs() as logs:
        answer = await caller.post("/api/v1/tools/check", json={"tool": "chat", "units": 1})
    assert answer.status_code == 200
    assert [line for line in logs if line["event"] == "request"] == []
