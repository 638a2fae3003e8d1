"""The Stripe twin under retries and restarts: a key takes effect once, what was answered is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio
from fastapi import FastAPI

from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.testing import ORDER, SECRET_KEY, WEBHOOK_SECRET, ManualClock, client_of, counting_tokens


def new_twin(clock: ManualClock | None = None, state_file: Path | None = None) -> FastAPI:
    settings = TwinSettings(
        secret_key=SECRET_KEY,
        webhook_secret=WEBHOOK_SECRET,
        webhook_url="http://shop.example/hook",
        state_file=state_file,
    )
    return create_twin(settings, clock=clock or ManualClock(), new_token=counting_tokens())


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest_asyncio.fixture
async def twin(clock: ManualClock) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(new_twin(clock)) as client:
        yield client


async def opened(twin: httpx.AsyncClient, **changes: str) -> dict[str, Any]:
    response = await twin.post("/v1/checkout/sessions", data={**ORDER, **changes})
    assert response.status_code == 200, response.text
    session: dict[str, Any] = response.json()
    return session


# Idempotency keys


async def test_one_key_opens_one_session(twin: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "pur_1"}
    first = await twin.post("/v1/checkout/sessions", data=ORDER, headers=headers)
    again = await twin.post("/v1/checkout/sessions", data=dict(reversed(ORDER.items())), headers=headers)
    assert again.content == first.content
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Original-Request"] == first.headers["Request-Id"]
    assert len((await twin.get("/v1/checkout/sessions")).json()["data"]) == 1


async def test_concurrent_requests_under_one_key_open_one_session(twin: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "pur_1"}
    answers = await asyncio.gather(
        *(twin.post("/v1/checkout/sessions", data=ORDER, headers=headers) for _ in range(10))
    )
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_a_key_reused_for_something_else_is_an_idempotency_error(twin: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "pur_1"}
    session = (await twin.post("/v1/checkout/sessions", data=ORDER, headers=headers)).json()
    other_order = ORDER | {"client_reference_id": "pur_2"}
    for path, order in [
        ("/v1/checkout/sessions", other_order),
        (f"/v1/checkout/sessions/{session['id']}/expire", {}),
    ]:
        response = await twin.post(path, data=order, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "idempotency_error"
    assert (await twin.get(f"/v1/checkout/sessions/{session['id']}")).json()["status"] == "open"


async def test_a_refused_validation_does_not_use_up_the_key(twin: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "pur_1"}
    bad = await twin.post("/v1/checkout/sessions", data=ORDER | {"mode": "gift"}, headers=headers)
    good = await twin.post("/v1/checkout/sessions", data=ORDER, headers=headers)
    assert (bad.status_code, good.status_code) == (400, 200)


async def test_a_refusal_that_ran_is_repeated_under_its_key(twin: httpx.AsyncClient) -> None:
    session = await opened(twin)
    path, headers = f"/v1/checkout/sessions/{session['id']}/expire", {"Idempotency-Key": "second"}
    await twin.post(path)
    first, again = await twin.post(path, headers=headers), await twin.post(path, headers=headers)
    assert (first.status_code, again.status_code) == (400, 400)
    assert again.headers["Idempotent-Replayed"] == "true"


async def test_a_key_is_forgotten_after_a_day(twin: httpx.AsyncClient, clock: ManualClock) -> None:
    headers = {"Idempotency-Key": "pur_1"}
    first = (await twin.post("/v1/checkout/sessions", data=ORDER, headers=headers)).json()
    clock.advance(24 * 3600 + 1)
    later = (await twin.post("/v1/checkout/sessions", data=ORDER, headers=headers)).json()
    assert first["id"] != later["id"]


# Faults


@pytest.mark.parametrize(("after_effect", "sessions_left"), [(False, 0), (True, 1)])
async def test_a_fault_fails_before_or_after_the_effect(
    twin: httpx.AsyncClient, after_effect: bool, sessions_left: int
) -> None:
    fault = {"next_requests_fail": 1, "status": 503, "after_effect": after_effect}
    await twin.post("/_twin/faults", json=fault)
    headers = {"Idempotency-Key": "pur_1"}
    failed = await twin.post("/v1/checkout/sessions", data=ORDER, headers=headers)
    assert (failed.status_code, failed.json()["error"]["type"]) == (503, "api_error")
    assert len((await twin.get("/v1/checkout/sessions")).json()["data"]) == sessions_left
    retried = await twin.post("/v1/checkout/sessions", data=ORDER, headers=headers)
    assert retried.status_code == 200
    assert ("Idempotent-Replayed" in retried.headers) is after_effect
    assert len((await twin.get("/v1/checkout/sessions")).json()["data"]) == 1


async def test_only_as_many_requests_fail_as_were_ordered(twin: httpx.AsyncClient) -> None:
    await twin.post("/_twin/faults", json={"next_requests_fail": 2})
    statuses = [(await twin.get("/v1/events")).status_code for _ in range(3)]
    assert statuses == [500, 500, 200]


async def test_a_malformed_control_is_400_in_stripes_shape(twin: httpx.AsyncClient) -> None:
    response = await twin.post("/_twin/faults", json={"next_requests_fail": 1, "status": 200})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "status"


# Memory


async def test_everything_survives_a_restart(tmp_path: Path) -> None:
    state_file = tmp_path / "sandbox" / "stripe.json"
    headers = {"Idempotency-Key": "pur_1"}
    async with client_of(new_twin(state_file=state_file)) as twin:
        first = await twin.post("/v1/checkout/sessions", data=ORDER, headers=headers)
        await twin.post(f"/_twin/sessions/{first.json()['id']}/pay")
        paid = (await twin.get(f"/v1/checkout/sessions/{first.json()['id']}")).json()
        events = (await twin.get("/v1/events")).json()
    async with client_of(new_twin(state_file=state_file)) as twin:
        assert (await twin.get(f"/v1/checkout/sessions/{paid['id']}")).json() == paid
        assert (await twin.get("/v1/events")).json() == events
        again = await twin.post("/v1/checkout/sessions", data=ORDER, headers=headers)
        assert (again.content, again.headers["Idempotent-Replayed"]) == (first.content, "true")
    assert [path.name for path in state_file.parent.iterdir()] == ["stripe.json"]
    assert state_file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("broken", [b"", b'{"format": 1, "sessions"', b"[]", b'{"format": 999}'])
async def test_a_broken_state_file_is_set_aside_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: bytes
) -> None:
    state_file = tmp_path / "stripe.json"
    state_file.write_bytes(broken)
    async with client_of(new_twin(state_file=state_file)) as twin:
        session = await opened(twin)
    assert (tmp_path / "stripe.json.corrupt-1").read_bytes() == broken
    assert str(state_file) in caplog.text
    assert session["id"] in orjson.loads(state_file.read_bytes())["sessions"]


async def test_the_state_file_holds_no_secret(tmp_path: Path) -> None:
    state_file = tmp_path / "stripe.json"
    async with client_of(new_twin(state_file=state_file)) as twin:
        session = await opened(twin)
        await twin.post(f"/_twin/sessions/{session['id']}/pay")
    saved = state_file.read_text()
    assert SECRET_KEY not in saved
    assert WEBHOOK_SECRET not in saved


async def test_a_failed_write_leaves_the_last_state_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_file = tmp_path / "stripe.json"
    async with client_of(new_twin(state_file=state_file)) as twin:
        session = await opened(twin)
        before = state_file.read_bytes()
        monkeypatch.setattr("sandbox.stripe_store.os.fsync", _full_disk)
        with pytest.raises(OSError, match="full"):
            await opened(twin)
        assert state_file.read_bytes() == before
    monkeypatch.undo()
    async with client_of(new_twin(state_file=state_file)) as twin:
        assert (await twin.get(f"/v1/checkout/sessions/{session['id']}")).status_code == 200


def _full_disk(_descriptor: int) -> None:
    message = "the disk is full"
    raise OSError(message)
