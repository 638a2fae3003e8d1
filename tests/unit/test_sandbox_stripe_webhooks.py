"""The Stripe twin's webhooks, in process: signed, kept until they arrive, bent only when a test asks."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from sandbox.stripe_instance import Twin
from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.stripe_webhooks import (
    ATTEMPTS_MOST,
    RETRY_MOST_S,
    WebhookSender,
    retry_pause_s,
    signature_header,
)
from sandbox.testing import ORDER, SECRET_KEY, WEBHOOK_SECRET, Inbox, ManualClock, client_of, counting_tokens

HOOK = "http://shop.example/api/v1/webhooks/stripe"


class Desk:
    """One twin, its receiver, and the clock between them; nothing is delivered until a test says so."""

    def __init__(
        self,
        *,
        clock: ManualClock | None = None,
        inbox: Inbox | None = None,
        state_file: Path | None = None,
        webhook_url: str | None = HOOK,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.clock = clock or ManualClock()
        self.inbox = inbox or Inbox()
        settings = TwinSettings(
            secret_key=SECRET_KEY,
            webhook_secret=WEBHOOK_SECRET,
            webhook_url=webhook_url,
            state_file=state_file,
        )
        self.app: FastAPI = create_twin(
            settings,
            clock=self.clock,
            new_token=counting_tokens(),
            webhook_transport=transport or httpx.ASGITransport(self.inbox.app()),
        )
        self.http = client_of(self.app)

    @property
    def sender(self) -> WebhookSender:
        twin: Twin = self.app.state.twin
        assert twin.sender is not None
        return twin.sender

    async def paid(self) -> str:
        name = "line_items[0][price_data][product_data][name]"
        order = ORDER | {name: "Builder – 600 crédits"}  # not ASCII: what is signed is bytes
        session_id = str((await self.http.post("/v1/checkout/sessions", data=order)).json()["id"])
        assert (await self.http.post(f"/_twin/sessions/{session_id}/pay")).status_code == 200
        return session_id

    async def order(self, **controls: Any) -> None:
        assert (await self.http.post("/_twin/webhooks", json=controls)).status_code == 200

    async def deliveries(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (await self.http.get("/_twin/deliveries")).json()["data"]
        return rows

    def types(self) -> list[str]:
        return [json.loads(webhook.body)["type"] for webhook in self.inbox.received]


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    async with desk.http:
        yield desk


COMPLETED = ["checkout.session.completed", "payment_intent.succeeded"]


async def test_the_signature_is_stripes() -> None:
    header = signature_header("whsec_test_secret", 1_700_000_000, b'{"id":"evt_1","object":"event"}')
    assert header == "t=1700000000,v1=0c8670ed117751cc551a20e35839447075c42800ea3cf3e8a2fbda99cd1e6edd"


async def test_an_event_arrives_as_stripe_sends_it(desk: Desk) -> None:
    session_id = await desk.paid()
    await desk.sender.deliver_due()
    first = desk.inbox.received[0]
    timestamp = int(desk.clock.now_s)
    expected = hmac.new(
        WEBHOOK_SECRET.encode(), f"{timestamp}.".encode() + first.body, hashlib.sha256
    ).hexdigest()
    assert first.headers["stripe-signature"] == f"t={timestamp},v1={expected}"
    event = json.loads(first.body)
    assert event["id"].startswith("evt_")
    assert (event["object"], event["type"]) == ("event", "checkout.session.completed")
    assert (event["api_version"], event["livemode"]) == ("2026-10-28.endive", False)
    assert event["created"] == timestamp
    assert event["data"]["object"]["id"] == session_id
    assert event["data"]["object"]["payment_status"] == "paid"
    assert event["pending_webhooks"] == 1
    assert event["request"] == {"id": None, "idempotency_key": None}


async def test_the_body_is_not_what_a_reprinted_event_would_be(desk: Desk) -> None:
    await desk.paid()
    await desk.sender.deliver_due()
    body = desk.inbox.received[0].body
    assert json.dumps(json.loads(body)).encode() != body
    assert json.dumps(json.loads(body), separators=(",", ":")).encode() != body


async def test_each_event_arrives_once_and_in_order(desk: Desk) -> None:
    await desk.paid()
    await desk.sender.deliver_due()
    await desk.sender.deliver_due()
    assert desk.types() == COMPLETED
    assert [delivery["state"] for delivery in await desk.deliveries()] == ["delivered", "delivered"]
    events = (await desk.http.get("/v1/events")).json()["data"]
    assert [event["pending_webhooks"] for event in events] == [0, 0]


@pytest.mark.parametrize("status", [400, 404, 500, 301])
async def test_only_a_2xx_answer_ends_the_tries(desk: Desk, status: int) -> None:
    desk.inbox.statuses = [status, 200, 200]
    await desk.paid()
    pause_s = await desk.sender.deliver_due()
    assert pause_s == pytest.approx(0.2)
    assert (await desk.deliveries())[0]["last_status"] == status
    await desk.sender.deliver_due()
    assert desk.types() == COMPLETED  # not yet due
    desk.clock.advance(pause_s)
    await desk.sender.deliver_due()
    assert desk.types() == [*COMPLETED, COMPLETED[0]]
    bodies = [json.loads(webhook.body) for webhook in desk.inbox.received]
    assert bodies[0]["id"] == bodies[2]["id"]


async def test_a_retry_is_signed_with_its_own_time(desk: Desk) -> None:
    desk.inbox.statuses = [500, 500]
    await desk.paid()
    await desk.sender.deliver_due()
    desk.clock.advance(7)
    await desk.sender.deliver_due()
    stamps = [webhook.headers["stripe-signature"].split(",")[0] for webhook in desk.inbox.received]
    now = int(desk.clock.now_s)
    assert stamps == [f"t={now - 7}", f"t={now - 7}", f"t={now}", f"t={now}"]


async def test_pauses_double_and_are_bounded() -> None:
    pauses = [retry_pause_s(attempts) for attempts in range(1, ATTEMPTS_MOST)]
    assert pauses[:4] == [0.2, 0.4, 0.8, 1.6]
    assert max(pauses) == pauses[-1] == RETRY_MOST_S


async def test_the_tries_end_and_can_be_begun_again_by_hand(desk: Desk) -> None:
    desk.inbox.statuses = [500] * 2 * ATTEMPTS_MOST
    await desk.paid()
    for _ in range(ATTEMPTS_MOST + 5):
        await desk.sender.deliver_due()
        desk.clock.advance(RETRY_MOST_S)
    assert len(desk.inbox.received) == 2 * ATTEMPTS_MOST
    failed = await desk.deliveries()
    assert [(row["state"], row["attempts"]) for row in failed] == [("failed", ATTEMPTS_MOST)] * 2
    assert (await desk.http.post(f"/_twin/events/{failed[0]['event']}/resend")).status_code == 200
    await desk.sender.deliver_due()
    assert (await desk.deliveries())[-1]["state"] == "delivered"
    assert len(desk.inbox.received) == 2 * ATTEMPTS_MOST + 1


async def test_an_unreachable_receiver_is_tried_again() -> None:
    def refuse(_request: httpx.Request) -> httpx.Response:
        message = "connection refused"
        raise httpx.ConnectError(message)

    desk = Desk(transport=httpx.MockTransport(refuse))
    async with desk.http:
        await desk.paid()
        await desk.sender.deliver_due()
        rows = await desk.deliveries()
    assert [(row["state"], row["attempts"], row["last_status"]) for row in rows] == [("pending", 1, None)] * 2
    assert rows[0]["last_error"] == "ConnectError: connection refused"


async def test_a_held_webhook_waits_until_it_is_released(desk: Desk) -> None:
    await desk.order(mode="hold")
    await desk.paid()
    await desk.sender.deliver_due()
    assert desk.inbox.received == []
    assert (await desk.http.post("/_twin/webhooks/release")).json() == {"released": 2}
    await desk.sender.deliver_due()
    assert desk.types() == COMPLETED


async def test_duplicates_carry_the_same_event(desk: Desk) -> None:
    await desk.order(duplicate=2, concurrent=True)
    await desk.paid()
    await desk.sender.deliver_due()
    ids = [json.loads(webhook.body)["id"] for webhook in desk.inbox.received]
    assert len(ids) == 6
    assert len(set(ids)) == 2
    assert sorted(row["copy"] for row in await desk.deliveries()) == [0, 0, 1, 1, 2, 2]


async def test_reversed_webhooks_arrive_newest_first(desk: Desk) -> None:
    await desk.order(reverse=True)
    await desk.paid()
    await desk.sender.deliver_due()
    assert desk.types() == COMPLETED[::-1]


async def test_a_delayed_webhook_comes_late(desk: Desk) -> None:
    await desk.order(delay_s=3)
    await desk.paid()
    assert await desk.sender.deliver_due() == pytest.approx(3)
    assert desk.inbox.received == []
    desk.clock.advance(3)
    await desk.sender.deliver_due()
    assert desk.types() == COMPLETED


async def test_what_a_control_leaves_out_stays_as_it_was(desk: Desk) -> None:
    await desk.order(mode="hold", duplicate=3)
    answer = (await desk.http.post("/_twin/webhooks", json={"reverse": True})).json()
    assert (answer["mode"], answer["duplicate"], answer["reverse"]) == ("hold", 3, True)
    assert (await desk.http.post("/_twin/webhooks", json={"mode": "lose"})).status_code == 400
    assert (await desk.http.post("/_twin/webhooks", json={"duplicates": 1})).status_code == 400


async def test_undelivered_webhooks_survive_a_restart(tmp_path: Path) -> None:
    clock, inbox = ManualClock(), Inbox(statuses=[503, 503])
    before = Desk(clock=clock, inbox=inbox, state_file=tmp_path / "stripe.json")
    async with before.http:
        await before.paid()
        await before.sender.deliver_due()
        first_tries = await before.deliveries()
    after = Desk(clock=clock, inbox=inbox, state_file=tmp_path / "stripe.json")
    async with after.http:
        await after.sender.start_over()
        await after.sender.deliver_due()
        second_tries = await after.deliveries()
    assert [row["id"] for row in first_tries] == [row["id"] for row in second_tries]
    assert [(row["state"], row["attempts"]) for row in second_tries] == [("delivered", 2)] * 2
    assert after.types() == COMPLETED * 2


async def test_a_held_webhook_is_sent_after_a_restart(tmp_path: Path) -> None:
    before = Desk(state_file=tmp_path / "stripe.json")
    async with before.http:
        await before.order(mode="hold")
        await before.paid()
        await before.sender.deliver_due()
    after = Desk(state_file=tmp_path / "stripe.json")
    async with after.http:
        await after.sender.start_over()
        await after.sender.deliver_due()
    assert (before.inbox.received, after.types()) == ([], COMPLETED)


async def test_a_twin_without_a_receiver_queues_nothing() -> None:
    desk = Desk(webhook_url=None)
    async with desk.http:
        await desk.paid()
        event = (await desk.http.get("/v1/events")).json()["data"][0]
        assert (await desk.deliveries(), event["pending_webhooks"]) == ([], 0)
        assert (await desk.http.post(f"/_twin/events/{event['id']}/resend")).status_code == 400
