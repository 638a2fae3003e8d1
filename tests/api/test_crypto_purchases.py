"""From a crypto checkout to the first key, over the real books and the twins of the providers."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import text

from gateway.answers import CheckoutStarted, KeyClaimed, WebhookReceived
from gateway.app import create_app
from kit.ids import new_id
from kit.settings import Settings
from payments.crypto import crypto_for
from payments.packages import Package
from payments.purchases import OpenPurchase
from sandbox.btcpay_api import STORE_ID
from sandbox.crypto_twin import CryptoSettings, create_crypto_twin
from sandbox.testing import API_KEY, COINBASE_KEY, COINBASE_KEY_ID, CRYPTO_WEBHOOK_SECRET, Inbox, running

CHECKOUT, CLAIM, WEBHOOK = "/api/v1/checkout/crypto", "/api/v1/claim/crypto", "/api/v1/webhooks/crypto"
ORDER = {"email": "dev@company.com", "packageCode": "builder_600"}
BUILDER = Package("builder_600", "Builder", 60_000, 5_000, "usd")
PROVIDERS = ("coinbase", "btcpay")
COMMERCE_SECRET = "the secret of a house that closed"


@dataclass
class World:
    """A provider's twin: its address, what it sent us, and its switches."""

    provider: str
    url: str
    inbox: Inbox

    @property
    def settings(self) -> dict[str, Any]:
        """What an operator sets to sell through it."""
        if self.provider == "coinbase":
            return {
                "coinbase_api_key_id": COINBASE_KEY_ID,
                "coinbase_api_key_secret": COINBASE_KEY,
                "coinbase_webhook_secret": CRYPTO_WEBHOOK_SECRET,
                "coinbase_api_base": f"{self.url}/api/v1",
            }
        return {
            "btcpay_url": self.url,
            "btcpay_store_id": STORE_ID,
            "btcpay_api_key": API_KEY,
            "btcpay_webhook_secret": CRYPTO_WEBHOOK_SECRET,
        }

    async def turn(self, path: str, **order: Any) -> dict[str, Any]:
        """Turn a switch of the twin."""
        async with httpx.AsyncClient() as http:
            answer = await http.post(f"{self.url}/_twin/{path}", json=order or None)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@pytest.fixture(params=PROVIDERS)
def world(request) -> Iterator[World]:
    inbox = Inbox()
    key = (COINBASE_KEY_ID, COINBASE_KEY) if request.param == "coinbase" else (STORE_ID, API_KEY)
    with ExitStack() as stack:
        hook = stack.enter_context(running(inbox.app()))
        settings = CryptoSettings(*key, CRYPTO_WEBHOOK_SECRET, webhook_url=f"{hook}{WEBHOOK}")
        url = stack.enter_context(running(create_crypto_twin(request.param, settings)))
        yield World(request.param, url, inbox)


@asynccontextmanager
async def selling(settings: Settings, ledger, models, objects, **providers: Any) -> AsyncIterator[FastAPI]:
    configured = Settings(**{**settings.model_dump(), **providers})
    crypto = crypto_for(configured, ledger)
    yield create_app(configured, ledger, models, None, objects, crypto=crypto)
    if crypto:
        await crypto.close()


@pytest_asyncio.fixture
async def app(settings: Settings, ledger, models, objects, world) -> AsyncIterator[FastAPI]:
    unlimited = {"limit_sensitive_auth": 0, "coinbase_commerce_webhook_secret": COMMERCE_SECRET}
    async with selling(settings, ledger, models, objects, **world.settings, **unlimited) as app:
        yield app


async def order(client: httpx.AsyncClient, **fields: str) -> dict[str, str]:
    answer = await client.post(CHECKOUT, json={**ORDER, **fields})
    assert answer.status_code == 200, answer.text
    CheckoutStarted.model_validate_json(answer.content)
    return dict(answer.json())


async def choose(checkout: dict[str, str], outcome: str) -> httpx.Response:
    """Press a button of the pay page."""
    async with httpx.AsyncClient() as payer:
        return await payer.post(checkout["checkoutUrl"], data={"outcome": outcome})


async def claim(client: httpx.AsyncClient, session_id: str) -> httpx.Response:
    return await client.post(CLAIM, json={"sessionId": session_id, "keyLabel": "Primary key"})


async def deliver(client: httpx.AsyncClient, world: World, kind: str) -> httpx.Response:
    """Pass on the first webhook of a type as soon as it came."""
    seen = 0
    while True:
        received = await asyncio.to_thread(world.inbox.wait_for, seen + 1)
        for webhook in received[seen:]:
            body = json.loads(webhook.body)
            if kind in (body.get("eventType"), body.get("type")):
                return await client.post(WEBHOOK, content=webhook.body, headers=webhook.headers)
        seen = len(received)


PAID = {"coinbase": "checkout.payment.success", "btcpay": "InvoiceSettled"}
EXPIRED = {"coinbase": "checkout.payment.expired", "btcpay": "InvoiceExpired"}


async def row_of(db, session_id: str) -> Any:
    async with db.transaction() as conn:
        found = await conn.execute(
            text("SELECT * FROM purchases WHERE session_id = :session_id"), {"session_id": session_id}
        )
        return found.one()


async def test_a_payment_becomes_a_key_with_its_credits(client, world, db, assert_sound):
    checkout = await order(client)
    paid = await choose(checkout, "pay")
    assert paid.status_code == 303
    address = httpx.URL(paid.headers["location"])
    assert str(address).startswith("http://farebox.test/checkout/success?by=crypto&session_id=pur_")
    answer = await claim(client, checkout["sessionId"])
    assert answer.status_code == 200, answer.text
    KeyClaimed.model_validate_json(answer.content)
    assert answer.headers["cache-control"] == "no-store"
    assert (answer.json()["email"], answer.json()["balanceTokens"]) == ("dev@company.com", 60_000)
    again = await claim(client, address.params["session_id"])
    assert (again.status_code, again.json()["error"]) == (409, "already_claimed")
    await assert_sound(db)


async def test_the_return_page_claims_by_the_purchase_that_its_address_names(client, world):
    checkout = await order(client)
    address = httpx.URL((await choose(checkout, "pay")).headers["location"])
    page = await client.get(str(address.raw_path, "ascii"))
    assert 'data-claim="/api/v1/claim/crypto"' in page.text
    assert (await claim(client, address.params["session_id"])).status_code == 200


async def test_webhooks_apply_once_however_often_they_arrive(client, world, db, assert_sound):
    await world.turn("webhooks", duplicate=2)
    checkout = await order(client)
    await choose(checkout, "pay")
    first = await deliver(client, world, PAID[world.provider])
    again = await deliver(client, world, PAID[world.provider])
    WebhookReceived.model_validate_json(first.content)
    assert (first.json()["duplicate"], again.json()["duplicate"]) == (False, True)
    row = await row_of(db, checkout["sessionId"])
    assert row.fulfilled_at is not None
    assert row.look_at is None
    assert (await claim(client, checkout["sessionId"])).json()["balanceTokens"] == 60_000
    await assert_sound(db)


async def test_fifty_concurrent_claims_make_one_key(client, world, db, assert_sound):
    checkout = await order(client)
    await choose(checkout, "pay")
    answers = await asyncio.gather(*(claim(client, checkout["sessionId"]) for _ in range(50)))
    refused = {answer.json()["error"] for answer in answers if answer.status_code != 200}
    assert [answer.status_code for answer in answers].count(200) == 1
    assert refused == {"already_claimed"}
    async with db.transaction() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM api_keys"))).scalar_one() == 1
    await assert_sound(db)


async def test_coins_that_are_not_confirmed_grant_nothing(client, world):
    checkout = await order(client)
    await choose(checkout, "slow")
    early = await claim(client, checkout["sessionId"])
    assert (early.status_code, early.json()["error"]) == (409, "payment_pending")
    await choose(checkout, "confirm")
    assert (await claim(client, checkout["sessionId"])).status_code == 200


async def test_a_part_waits_for_the_rest(client, world, db, assert_sound):
    checkout = await order(client)
    await choose(checkout, "part")
    assert (await claim(client, checkout["sessionId"])).json()["error"] == "payment_pending"
    assert (await row_of(db, checkout["sessionId"])).received_minor == 2_500
    await choose(checkout, "pay")
    assert (await claim(client, checkout["sessionId"])).json()["balanceTokens"] == 60_000
    assert (await row_of(db, checkout["sessionId"])).received_minor == 5_000
    await assert_sound(db)


async def test_a_checkout_that_closes_short_is_kept_for_an_operator_and_grants_nothing(
    client, world, db, assert_sound
):
    checkout = await order(client)
    await choose(checkout, "part")
    await choose(checkout, "expire")
    assert (await deliver(client, world, EXPIRED[world.provider])).status_code == 200
    answer = await claim(client, checkout["sessionId"])
    assert (answer.status_code, answer.json()["error"]) == (409, "payment_incomplete")
    row = await row_of(db, checkout["sessionId"])
    assert answer.json()["message"].startswith("25.00 of 50.00 USD arrived")
    assert row.id in answer.json()["message"]
    assert (row.received_minor, row.closed_at is not None, row.fulfilled_at) == (2_500, True, None)
    await assert_sound(db)


async def test_what_comes_late_is_granted_if_it_is_whole(client, world, db, assert_sound):
    checkout = await order(client)
    await choose(checkout, "part")
    await choose(checkout, "expire")
    await deliver(client, world, EXPIRED[world.provider])
    assert (await claim(client, checkout["sessionId"])).json()["error"] == "payment_incomplete"
    await choose(checkout, "pay")
    assert (await claim(client, checkout["sessionId"])).json()["balanceTokens"] == 60_000
    row = await row_of(db, checkout["sessionId"])
    assert row.fulfilled_at > row.closed_at
    await assert_sound(db)


async def test_more_than_the_price_grants_the_package_and_the_excess_is_kept(client, world, db, assert_sound):
    checkout = await order(client)
    await choose(checkout, "over")
    assert (await claim(client, checkout["sessionId"])).json()["balanceTokens"] == 60_000
    row = await row_of(db, checkout["sessionId"])
    assert row.received_minor - row.amount_minor == 1_000
    await assert_sound(db)


async def test_an_account_that_existed_gets_the_credits_and_no_key_is_given_out(client, world, customer):
    owner = await customer(100)
    checkout = await order(client, email=owner.email.upper())
    await choose(checkout, "pay")
    answer = await claim(client, checkout["sessionId"])
    assert (answer.status_code, answer.json()["error"]) == (409, "account_exists")
    assert "apiKey" not in answer.text
    assert await owner.tokens() == 60_100


async def test_a_checkout_with_a_key_tops_that_account_up(client, world, customer):
    owner = await customer(100)
    checkout = await order(owner.client, email="accounting@company.com")
    await choose(checkout, "pay")
    assert (await deliver(client, world, PAID[world.provider])).status_code == 200
    assert await owner.tokens() == 60_100
    bad = await client.post(CHECKOUT, json=ORDER, headers={"x-api-key": "amai_live_" + "L" * 43})
    assert bad.status_code == 401


async def test_a_webhook_that_claims_more_than_the_provider_says_grants_nothing(client, world, db):
    checkout = await order(client)
    if world.provider == "coinbase":
        body = {
            "id": checkout["sessionId"],
            "eventType": PAID["coinbase"],
            "status": "COMPLETED",
            "amount": "50.00",
        }
    else:
        body = {
            "deliveryId": "1",
            "type": "InvoiceSettled",
            "storeId": STORE_ID,
            "invoiceId": checkout["sessionId"],
        }
    answer = await client.post(
        WEBHOOK, content=json.dumps(body), headers=signed(world, json.dumps(body).encode())
    )
    assert answer.status_code == 200, answer.text
    async with db.transaction() as conn:
        event = (await conn.execute(text("SELECT * FROM provider_events"))).one()
        assert event.applied_at is None, "it is tried again: the provider's record may be late"
    assert (await claim(client, checkout["sessionId"])).json()["error"] == "payment_pending"


def signed(world: World, body: bytes) -> dict[str, str]:
    """Sign a body of our own as the provider would."""
    import time

    secret = CRYPTO_WEBHOOK_SECRET.encode()
    if world.provider == "btcpay":
        return {"btcpay-sig": "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()}
    now = int(time.time())
    digest = hmac.new(secret, b"%d." % now + body, hashlib.sha256).hexdigest()
    return {"x-hook0-signature": f"t={now},v0={digest}"}


@pytest.mark.parametrize("change", ["body", "signature", "none"])
async def test_a_webhook_that_is_not_rightly_signed_gets_400_and_is_not_kept(client, world, db, change):
    body = b'{"id": "68f7a946db0529ea9b6d3a12", "eventType": "checkout.payment.success"}'
    headers = {} if change == "none" else signed(world, body)
    if change == "signature":
        headers = {name: value[:-1] + ("0" if value[-1] != "0" else "1") for name, value in headers.items()}
    answer = await client.post(WEBHOOK, content=body + (b" " if change == "body" else b""), headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    async with db.transaction() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM provider_events"))).scalar_one() == 0


@pytest.mark.parametrize(
    ("body", "status"), [(b'{"id": "\xff"}', 400), (b'"' + b"y" * 20_000 + b'"', 413), (b"not json", 400)]
)
async def test_a_body_that_is_no_event_is_refused_and_not_kept(client, world, db, body, status):
    answer = await client.post(WEBHOOK, content=body, headers=signed(world, body))
    assert answer.status_code == status, answer.text
    async with db.transaction() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM provider_events"))).scalar_one() == 0


async def test_types_of_the_future_are_kept_and_acknowledged(client, world, db):
    body = json.dumps(
        {"eventType": "checkout.of.the.future", "deliveryId": "1", "type": "OfTheFuture", "storeId": STORE_ID}
    ).encode()
    for _ in range(2):
        assert (await client.post(WEBHOOK, content=body, headers=signed(world, body))).status_code == 200
    async with db.transaction() as conn:
        (event,) = (await conn.execute(text("SELECT * FROM provider_events"))).all()
    assert (bytes(event.body), event.object_id, event.applied_at is not None) == (body, None, True)


@pytest.mark.parametrize(
    "session_id", ["68f7a946db0529ea9b6d3a12", "4kSe5LQuFFXAA9VXDPTUBb", "cs_test_1", "../x", "0"]
)
async def test_an_unknown_session_is_404(client, world, session_id):
    answer = await claim(client, session_id)
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    answer = await claim(client, new_id("pur"))
    assert answer.status_code == 404


async def test_a_provider_that_stumbles_is_asked_again(client, world):
    checkout = await order(client)
    await choose(checkout, "pay")
    await world.turn("faults", next_requests_fail=2, status=503)
    assert (await claim(client, checkout["sessionId"])).status_code == 200


async def test_a_checkout_is_opened_once_though_its_answer_was_lost(settings, ledger, models, objects):
    with running(
        create_crypto_twin("coinbase", CryptoSettings(COINBASE_KEY_ID, COINBASE_KEY, CRYPTO_WEBHOOK_SECRET))
    ) as url:
        world = World("coinbase", url, Inbox())
        await world.turn("faults", next_requests_fail=1, status=500, after_effect=True)
        async with (
            selling(settings, ledger, models, objects, **world.settings) as app,
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client,
        ):
            checkout = await order(client)
            await choose(checkout, "pay")
            assert (await claim(client, checkout["sessionId"])).status_code == 200


async def test_without_a_provider_there_is_no_checkout_and_no_webhook(web):
    for path, body in ((CHECKOUT, ORDER), (CLAIM, {"sessionId": "68f7a946db0529ea9b6d3a12"})):
        answer = await web.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]) == (503, "payments_unavailable")
    assert (await web.post(WEBHOOK, content=b"{}", headers={"btcpay-sig": "sha256="})).status_code == 404


async def test_a_provider_that_is_only_listened_to_sells_nothing(settings, ledger, models, objects):
    async with (
        selling(settings, ledger, models, objects, coinbase_commerce_webhook_secret=COMMERCE_SECRET) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client,
    ):
        assert (await client.get("/api/v1/health")).json()["payments"]["mode"] == "off"
        assert "nothing can be bought for now" in (await client.get("/credits")).text


async def test_a_webhook_of_a_provider_without_a_secret_is_404(settings, ledger, models, objects, db):
    async with (
        selling(settings, ledger, models, objects, coinbase_commerce_webhook_secret=COMMERCE_SECRET) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client,
    ):
        for header in ("x-hook0-signature", "btcpay-sig"):
            digest = hmac.new(b"", b"{}", hashlib.sha256).hexdigest()
            answer = await client.post(WEBHOOK, content=b"{}", headers={header: f"sha256={digest}"})
            assert answer.status_code == 404
        assert (await client.post(CHECKOUT, json=ORDER)).json()["error"] == "payments_unavailable"
    async with db.transaction() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM purchases"))).scalar_one() == 0


async def test_a_provider_that_is_away_is_503_with_retry_after(settings, ledger, models, objects):
    world = World("btcpay", "http://127.0.0.1:9", Inbox())
    async with (
        selling(settings, ledger, models, objects, **world.settings) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client,
    ):
        answer = await client.post(CHECKOUT, json=ORDER)
    assert (answer.status_code, answer.json()["error"]) == (503, "payments_unavailable")
    assert answer.headers["retry-after"]


# -- Coinbase Commerce, after its end -----------------------------------------------------------------------------


@dataclass
class Charge:
    """A charge from before the end, with the webhooks that still come of it."""

    twin: str
    inbox: Inbox
    id: str
    purchase_id: str

    async def turn(self, outcome: str) -> None:
        async with httpx.AsyncClient() as http:
            assert (await http.post(f"{self.twin}/_twin/payments/{self.id}/{outcome}")).status_code == 200


@pytest_asyncio.fixture
async def charge(ledger) -> AsyncIterator[Charge]:
    inbox = Inbox()
    purchase = await ledger.open_purchase(
        OpenPurchase(new_id("pur"), "coinbase_commerce", "old@company.com", BUILDER, None)
    )
    with ExitStack() as stack:
        hook = stack.enter_context(running(inbox.app()))
        settings = CryptoSettings("shop", API_KEY, COMMERCE_SECRET, webhook_url=f"{hook}{WEBHOOK}")
        url = stack.enter_context(running(create_crypto_twin("commerce", settings)))
        async with httpx.AsyncClient(headers={"x-cc-api-key": API_KEY}) as http:
            made = await http.post(
                f"{url}/charges",
                json={
                    "name": "Builder",
                    "local_price": {"amount": "50.00", "currency": "USD"},
                    "metadata": {"purchase_id": purchase.id},
                },
            )
        assert made.status_code == 201, made.text
        yield Charge(url, inbox, made.json()["data"]["id"], purchase.id)


@pytest_asyncio.fixture
async def old_client(settings, ledger, models, objects) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        selling(settings, ledger, models, objects, coinbase_commerce_webhook_secret=COMMERCE_SECRET) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client,
    ):
        yield client


async def pass_on(client: httpx.AsyncClient, charge: Charge, kind: str, skip: int = 0) -> httpx.Response:
    """Bring on the first webhook of a kind that came, or a later one."""
    seen = 0
    while True:
        received = await asyncio.to_thread(charge.inbox.wait_for, seen + 1)
        for webhook in received[seen:]:
            skip -= json.loads(webhook.body)["event"]["type"] == kind
            if skip < 0:
                return await client.post(WEBHOOK, content=webhook.body, headers=webhook.headers)
        seen = len(received)


async def test_a_confirmed_charge_is_granted_once_and_claimed_by_its_id(old_client, charge, db, assert_sound):
    assert (await pass_on(old_client, charge, "charge:created")).status_code == 200
    assert (await claim(old_client, charge.purchase_id)).json()["error"] == "payment_pending"
    await charge.turn("over")
    for _ in range(2):
        assert (await pass_on(old_client, charge, "charge:confirmed")).status_code == 200
    assert (await claim(old_client, charge.id)).json()["balanceTokens"] == 60_000
    row = await row_of(db, charge.id)
    assert row.received_minor == 6_000
    await assert_sound(db)


async def test_a_failed_charge_keeps_what_arrived_and_a_late_one_is_granted(old_client, charge, db):
    await charge.turn("part")
    await charge.turn("expire")
    await pass_on(old_client, charge, "charge:failed")
    assert (await claim(old_client, charge.id)).json()["error"] == "payment_incomplete"
    assert (await row_of(db, charge.id)).received_minor == 2_500
    await charge.turn("slow")  # the rest is under way, which is told too
    await pass_on(old_client, charge, "charge:delayed")
    assert (await claim(old_client, charge.id)).json()["error"] == "payment_incomplete"
    await charge.turn("confirm")
    await pass_on(old_client, charge, "charge:delayed", skip=1)
    assert (await claim(old_client, charge.id)).status_code == 200
