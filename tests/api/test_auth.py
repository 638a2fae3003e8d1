"""Who may call: keys in either header; what cannot be a key never reaches the ledger."""

from __future__ import annotations

import httpx
import pytest

KEY = "amai_live_" + "K" * 43
OTHER = "amai_live_" + "L" * 43
BALANCE = "/api/v1/credits/balance"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {KEY}"},
        {"authorization": f"Bearer   {KEY} "},
        {"x-api-key": KEY},
        {"authorization": f"Bearer {KEY}", "x-api-key": KEY},
    ],
)
async def test_a_key_is_taken_from_either_header(web: httpx.AsyncClient, headers: dict[str, str]):
    answer = await web.get(BALANCE, headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"authorization": f"Bearer {KEY} {KEY}"},
        {"authorization": "Bearer sk_live_" + "K" * 43},
        {"authorization": "Bearer amai_live_short"},
        {"authorization": "Bearer amai_live_" + "K" * 42 + "!"},
        {"x-api-key": ""},
        {"x-api-key": "amai_play_" + "K" * 43},
    ],
)
async def test_what_cannot_be_a_key_gets_401_without_asking_the_ledger(
    web, stub_ledger, headers: dict[str, str]
):
    answer = await web.get(BALANCE, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"] == "auth_required"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert stub_ledger.calls == []


async def test_an_unknown_key_gets_the_same_401_from_the_ledger(web, stub_ledger):
    answer = await web.get(BALANCE, headers={"x-api-key": OTHER})
    assert answer.status_code == 401
    assert answer.json() == (await web.get(BALANCE)).json()
    assert stub_ledger.calls == ["balance"]


async def test_two_different_keys_get_400(web):
    answer = await web.get(BALANCE, headers={"authorization": f"Bearer {KEY}", "x-api-key": OTHER})
    assert answer.status_code == 400
    twice = await web.get(BALANCE, headers=[("x-api-key", KEY), ("x-api-key", OTHER)])
    assert twice.status_code == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/keys"),
        ("POST", "/api/v1/keys"),
        ("POST", "/api/v1/keys/revoke"),
        ("GET", "/api/v1/credits/balance"),
        ("GET", "/api/v1/balance"),
        ("POST", "/api/v1/media/jobs"),
        ("GET", "/api/v1/media/jobs"),
        ("GET", "/api/v1/media/jobs/job_01k8z0c6m5n7q2r4t6v8x0y2z4"),
        ("POST", "/api/v1/media/jobs/job_01k8z0c6m5n7q2r4t6v8x0y2z4/cancel"),
        ("POST", "/api/v1/files"),
        ("GET", "/api/v1/files"),
        ("GET", "/api/v1/files/file_01k8z0c6m5n7q2r4t6v8x0y2z4"),
        ("DELETE", "/api/v1/files/file_01k8z0c6m5n7q2r4t6v8x0y2z4"),
        ("GET", "/api/v1/files/file_01k8z0c6m5n7q2r4t6v8x0y2z4/content"),
    ],
)
async def test_a_stranger_gets_401_before_anything_is_read(web, stub_ledger, method: str, path: str):
    answer = await web.request(method, path, content=b"{ not json" if method == "POST" else None)
    assert answer.status_code == 401, answer.text
    assert stub_ledger.calls == []


@pytest.mark.parametrize(
    ("headers", "field", "kept"),
    [
        ({}, None, None),
        ({"x-idempotency-key": "job-001"}, None, "job-001"),
        ({"idempotency-key": "job-001"}, None, "job-001"),
        ({"idempotency-key": '"job-001"'}, None, "job-001"),
        ({"idempotency-key": r'"a\"b\\c"'}, None, 'a"b\\c'),
        ({}, "job-001", "job-001"),
        ({"x-idempotency-key": "job-001"}, "job-001", "job-001"),
        ({"x-idempotency-key": "job-001", "idempotency-key": '"job-001"'}, "job-001", "job-001"),
    ],
)
async def test_an_idempotency_key_is_taken_from_wherever_it_stands(caller, stub_ledger, headers, field, kept):
    body = {"task": "image.generate", "input": {"prompt": "x"}, "idempotencyKey": field}
    answer = await caller.post("/api/v1/media/jobs", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    assert stub_ledger.submitted[0].idempotency_key == kept


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ([("x-idempotency-key", "a"), ("idempotency-key", "b")], None),
        ([("x-idempotency-key", "a"), ("x-idempotency-key", "b")], None),
        ([("x-idempotency-key", "a")], "b"),
        ([("x-idempotency-key", "k" * 256)], None),
        ([("x-idempotency-key", "")], None),
        ([("x-idempotency-key", b"k\xe9y")], None),
        ([("x-idempotency-key", '""')], None),
    ],
)
async def test_idempotency_keys_that_differ_or_cannot_be_kept_get_400(caller, stub_ledger, headers, field):
    body = {"task": "image.generate", "input": {"prompt": "x"}, "idempotencyKey": field}
    answer = await caller.post("/api/v1/media/jobs", json=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["details"][0]["field"] == "idempotencyKey"
    assert stub_ledger.calls == []
