"""The twins of the crypto providers: they refuse what their providers refuse, and lose nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from payments.coinbase_checkout import CoinbaseCheckout
from payments.hook0 import HEADER, verify_hook0
from sandbox.btcpay_api import STORE_ID
from sandbox.crypto_twin import CryptoSettings, Provider, create_crypto_twin
from sandbox.testing import (
    API_KEY,
    COINBASE_KEY,
    COINBASE_KEY_ID,
    CRYPTO_WEBHOOK_SECRET,
    Inbox,
    ManualClock,
    counting_tokens,
)

HOOK = "http://shop.example/api/v1/webhooks/crypto"
UUID4 = "8e03978e-40d5-43e8-bc93-6894a57f9324"


class Desk:
    """One twin, its receiver, and the clock between them; nothing is delivered until a test says so."""

    def __init__(
        self, provider: Provider, *, state_file: Path | None = None, inbox: Inbox | None = None
    ) -> None:
        self.provider, self.clock, self.inbox = provider, ManualClock(), inbox or Inbox()
        key = (COINBASE_KEY_ID, COINBASE_KEY) if provider == "coinbase" else (STORE_ID, API_KEY)
        self.app: FastAPI = create_crypto_twin(
            provider,
            CryptoSettings(*key, CRYPTO_WEBHOOK_SECRET, webhook_url=HOOK, state_file=state_file),
            clock=self.clock,
            new_token=counting_tokens(),
            webhook_transport=httpx.ASGITransport(self.inbox.app()),
        )
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://twin.example")

    def authorization(self, method: str, path: str) -> dict[str, str]:
        if self.provider == "btcpay":
            return {"authorization": f"token {API_KEY}"}
        if self.provider == "commerce":
            return {"x-cc-api-key": API_KEY}
        ours = CoinbaseCheckout(
            COINBASE_KEY_ID, COINBASE_KEY, "x", "http://twin.example/api/v1", clock=self.clock
        )
        return ours._authorization(method, path)

    async def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        headers = self.authorization(method, path.partition("?")[0]) | request.pop("headers", {})
        base = {"coinbase": "/api/v1", "btcpay": f"/api/v1/stores/{STORE_ID}", "commerce": ""}[self.provider]
        return await self.http.request(method, base + path, headers=headers, **request)

    async def open(self) -> dict[str, Any]:
        if self.provider == "btcpay":
            made = await self.call("POST", "/invoices", json={"amount": "50.00", "currency": "USD"})
        elif self.provider == "commerce":
            price = {"amount": "50.00", "currency": "USD"}
            made = await self.call("POST", "/charges", json={"name": "Builder", "local_price": price})
            return dict(made.json()["data"])
        else:
            made = await self.call("POST", "/checkouts", json={"amount": "50.00", "currency": "USD"})
        assert made.is_success, made.text
        return dict(made.json())

    async def turn(self, path: str, **order: Any) -> httpx.Response:
        return await self.http.post(f"/_twin/{path}", json=order or None)

    async def delivered(self) -> list[dict[str, Any]]:
        """Deliver what is due and return what was sent since the last time."""
        before = len(self.inbox.received)
        await self.app.state.twin.sender.deliver_due()
        return [json.loads(webhook.body) for webhook in self.inbox.received[before:]]


@pytest.fixture(params=["coinbase", "btcpay", "commerce"])
def desk(request) -> Desk:
    return Desk(request.param)


def kinds(told: list[dict[str, Any]]) -> list[str]:
    return [each.get("eventType") or each.get("type") or each["event"]["type"] for each in told]


LIFE = {
    "coinbase": ["checkout.payment.success"],
    "btcpay": [
        "InvoiceCreated", "InvoiceReceivedPayment", "InvoiceProcessing", "InvoicePaymentSettled", "InvoiceSettled",
    ],
    "commerce": ["charge:created", "charge:pending", "charge:confirmed"],
}  # fmt: skip


async def test_a_payment_is_told_of_in_the_providers_own_words(desk):
    made = await desk.open()
    assert (await desk.turn(f"payments/{made['id']}/pay")).json()["status"] == "settled"
    assert kinds(await desk.delivered()) == LIFE[desk.provider]
    assert await desk.delivered() == []


async def test_a_webhook_that_is_refused_comes_again_with_a_new_signature(desk):
    desk.inbox.statuses = [500]
    made = await desk.open()
    await desk.turn(f"payments/{made['id']}/pay")
    await desk.delivered()
    desk.clock.advance(60)
    (again,) = await desk.delivered()
    first, *_, last = desk.inbox.received
    assert kinds([again]) == kinds([json.loads(first.body)])
    if desk.provider == "coinbase":
        for webhook in (first, last):
            stamp = int(webhook.headers[HEADER].split(",")[0].removeprefix("t="))
            verify_hook0([CRYPTO_WEBHOOK_SECRET], webhook.body, webhook.headers, stamp)
        assert first.headers[HEADER] != last.headers[HEADER]
    if desk.provider == "btcpay":
        assert again["isRedelivery"]
        assert again["originalDeliveryId"] == json.loads(first.body)["deliveryId"] != again["deliveryId"]


async def test_both_versions_of_hook0_signatures_are_sent():
    desk = Desk("coinbase")
    for _ in range(2):
        made = await desk.open()
        await desk.turn(f"payments/{made['id']}/pay")
    await desk.delivered()
    assert sorted("v1=" in webhook.headers[HEADER] for webhook in desk.inbox.received) == [False, True]


async def test_nobody_without_the_key_gets_in(desk):
    path = {
        "coinbase": "/api/v1/checkouts",
        "btcpay": f"/api/v1/stores/{STORE_ID}/invoices",
        "commerce": "/charges",
    }
    for headers in ({}, {"authorization": "Bearer x"}, {"authorization": "token x"}, {"x-cc-api-key": "x"}):
        answer = await desk.http.post(path[desk.provider], json={}, headers=headers)
        assert answer.status_code == 401


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda d: d.authorization("GET", "/checkouts"), id="another method"),
        pytest.param(lambda d: d.authorization("POST", "/checkouts/1"), id="another path"),
        pytest.param(
            lambda d: (d.authorization("POST", "/checkouts"), d.clock.advance(121))[0], id="too old"
        ),
    ],
)
async def test_a_coinbase_token_is_good_for_one_request_for_two_minutes(
    spoil: Callable[[Desk], dict[str, str]],
):
    desk = Desk("coinbase")
    headers = spoil(desk)
    order = {"amount": "50.00", "currency": "USD"}
    refused = await desk.http.post("/api/v1/checkouts", json=order, headers=headers)
    assert refused.status_code == 401
    good = await desk.http.post(
        "/api/v1/checkouts", json=order, headers=desk.authorization("POST", "/checkouts")
    )
    assert good.status_code == 201


async def test_a_checkout_is_opened_once_for_an_idempotency_key():
    desk = Desk("coinbase")
    order = {"amount": "50.00", "currency": "USD"}
    made = [
        await desk.call("POST", "/checkouts", json=order, headers={"X-Idempotency-Key": UUID4}) for _ in "ab"
    ]
    assert made[0].json()["id"] == made[1].json()["id"]
    refused = await desk.call("POST", "/checkouts", json=order, headers={"X-Idempotency-Key": "mine"})
    assert refused.status_code == 400


async def test_checkouts_are_listed_in_pages():
    desk = Desk("coinbase")
    made = [(await desk.open())["id"] for _ in range(3)]
    first = (await desk.call("GET", "/checkouts?pageSize=2")).json()
    rest = (await desk.call("GET", f"/checkouts?pageSize=2&pageToken={first['nextPageToken']}")).json()
    assert [row["id"] for row in first["checkouts"] + rest["checkouts"]] == made[::-1]
    assert rest["nextPageToken"] == ""


@pytest.mark.parametrize(
    "order",
    [
        {"amount": 50, "currency": "USD"},
        {"amount": "50.001", "currency": "USD"},
        {"amount": "-1", "currency": "USD"},
        {"amount": "x", "currency": "USD"},
        {"amount": "1.00", "currency": "CHF"},
        {"amount": "1e2", "currency": "USD"},
        {"amount": "100000000.01", "currency": "USD"},
        {"amount": "1.00", "currency": "USD", "metadata": {"a": "x" * 101}},
        {"amount": "1.00", "currency": "USD", "metadata": {str(n): "x" for n in range(21)}},
        {"amount": "1.00", "currency": "USD", "description": "x" * 501},
        {"amount": "1.00", "currency": "USD", "successRedirectUrl": "https://" + "x" * 2048},
        [],
    ],
)
async def test_an_order_that_coinbase_would_refuse_is_refused(order):
    assert (await Desk("coinbase").call("POST", "/checkouts", json=order)).status_code in (400, 409)


async def test_coinbase_sends_back_no_more_than_came():
    desk = Desk("coinbase")
    checkout = (await desk.open())["id"]
    await desk.turn(f"payments/{checkout}/pay")
    part = await desk.call(
        "POST", f"/checkouts/{checkout}/refund", json={"amount": "20.00", "currency": "USD"}
    )
    assert part.json()["checkout"]["status"] == "PARTIALLY_REFUNDED"
    assert part.json()["refund"]["fiatAmount"] == "20.00"
    more = await desk.call(
        "POST", f"/checkouts/{checkout}/refund", json={"amount": "30.01", "currency": "USD"}
    )
    assert more.status_code == 409
    rest = await desk.call(
        "POST", f"/checkouts/{checkout}/refund", json={"amount": "30.00", "currency": "USD"}
    )
    assert rest.json()["checkout"]["status"] == "REFUNDED"
    assert kinds(await desk.delivered())[1:] == ["checkout.refund.success"] * 2


async def test_an_open_checkout_can_be_deactivated_and_is_never_paid_then():
    desk = Desk("coinbase")
    checkout = (await desk.open())["id"]
    assert (await desk.call("POST", f"/checkouts/{checkout}/deactivate")).json()["status"] == "DEACTIVATED"
    assert (await desk.turn(f"payments/{checkout}/pay")).status_code == 409


async def test_btcpay_keeps_an_expired_invoice_expired_and_an_operator_may_mark_it():
    desk = Desk("btcpay")
    invoice = (await desk.open())["id"]
    await desk.turn(f"payments/{invoice}/expire")
    await desk.turn(f"payments/{invoice}/pay")
    shown = (await desk.call("GET", f"/invoices/{invoice}")).json()
    assert (shown["status"], shown["additionalStatus"]) == ("Expired", "PaidLate")
    (method,) = (await desk.call("GET", f"/invoices/{invoice}/payment-methods")).json()
    assert (method["payments"][0]["value"], method["rate"]) == ("0.001", "50000")
    marked = await desk.call("POST", f"/invoices/{invoice}/status", json={"status": "Settled"})
    assert (marked.json()["status"], marked.json()["additionalStatus"]) == ("Settled", "Marked")
    assert kinds(await desk.delivered())[-1] == "InvoiceSettled"


async def test_what_nobody_pays_expires_by_itself(desk):
    made = await desk.open()
    desk.clock.advance(3601)
    await desk.delivered()
    ends = {"coinbase": "checkout.payment.expired", "btcpay": "InvoiceExpired", "commerce": "charge:failed"}
    assert kinds([json.loads(desk.inbox.received[-1].body)]) == [ends[desk.provider]]
    assert (await desk.turn(f"payments/{made['id']}/expire")).status_code == 409


async def test_a_twin_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "coinbase.json"
    before = Desk("coinbase", state_file=path)
    checkout = await before.open()
    await before.turn(f"payments/{checkout['id']}/pay")
    after = Desk("coinbase", state_file=path)
    shown = await after.call("GET", f"/checkouts/{checkout['id']}")
    assert shown.json()["status"] == "COMPLETED"
    assert kinds(await after.delivered()) == ["checkout.payment.success"]
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_twin_without_secrets_is_refused():
    with pytest.raises(ValueError, match="empty"):
        CryptoSettings("id", "key", "")
    with pytest.raises(ValueError, match="Ed25519"):
        create_crypto_twin("coinbase", CryptoSettings("id", "key", "secret"))


# -- the page -----------------------------------------------------------------------------------------------------


async def test_the_page_says_that_no_coin_moves_and_offers_every_ending(desk):
    path = f"/pay/{(await desk.open())['id']}"
    page = await desk.http.get(path)
    assert "Sandbox - no real money" in page.text
    assert "No coin moves" in page.text
    assert "50.00 USD" in page.text
    for outcome in ("pay", "part", "over", "slow", "expire", "fail"):
        assert f'value="{outcome}"' in page.text
    assert "script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_a_double_click_sends_coins_once(desk):
    path = f"/pay/{(await desk.open())['id']}"
    answers = await asyncio.gather(*(desk.http.post(path, data={"outcome": "pay"}) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    assert "This checkout is paid" in (await desk.http.get(path)).text


async def test_coins_that_wait_can_be_confirmed_on_the_page(desk):
    path = f"/pay/{(await desk.open())['id']}"
    waiting = await desk.http.post(path, data={"outcome": "slow"})
    assert 'value="confirm"' in waiting.text
    assert 'value="pay"' not in waiting.text
    done = await desk.http.post(path, data={"outcome": "confirm"}, headers={"accept": "application/json"})
    assert (done.json()["status"], done.json()["received"]) == ("settled", "50.00")


@pytest.mark.parametrize("outcome", ["", "steal", "x" * 5000])
async def test_what_the_page_does_not_offer_is_refused(desk, outcome):
    path = f"/pay/{(await desk.open())['id']}"
    assert (await desk.http.post(path, data={"outcome": outcome})).status_code == 409
    assert (await desk.http.get("/pay/nowhere")).status_code == 404
    assert (await desk.http.post("/pay/nowhere", data={"outcome": "pay"})).status_code == 404
