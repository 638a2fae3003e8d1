"""From checkout to the first key, over the real books, the real Stripe SDK and the twin behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import text

from gateway.answers import CheckoutSettled, CheckoutStarted, KeyClaimed, Packages, WebhookReceived
from gateway.app import create_app
from kit.settings import Settings
from payments.stripe_checkout import checkout_for
from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.testing import SECRET_KEY, WEBHOOK_SECRET, Inbox, running

"""How the Stripe SDK calls httpx."""

CHECKOUT, CLAIM, WEBHOOK = "/api/v1/checkout/stripe", "/api/v1/claim/stripe", "/api/v1/webhooks/stripe"
EVENTS_OF_A_PAYMENT = 2
"""`checkout.session.completed` and `payment_intent.succeeded`."""
ORDER = {"email": "dev@company.com", "packageCode": "builder_600"}


@pytest.fixture
def inbox() -> Inbox:
    """What Stripe sent us; tests pass it on when they want it to arrive."""
    return Inbox()


@pytest.fixture
def twin(inbox: Inbox) -> Iterator[str]:
    with ExitStack() as stack:
        hook = stack.enter_context(running(inbox.app()))
        yield stack.enter_context(
            running(
                create_twin(
                    TwinSettings(
                        secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET, webhook_url=f"{hook}{WEBHOOK}"
                    )
                )
            )
        )


@asynccontextmanager
async def selling(settings: Settings, ledger, models, objects, api_base: str) -> AsyncIterator[FastAPI]:
    """The surface over the real SDK, whose connections are closed at the end."""
    configured = Settings(
        **{
            **settings.model_dump(),
            "stripe_secret_key": SECRET_KEY,
            "stripe_webhook_secret": WEBHOOK_SECRET,
            "stripe_api_base": api_base,
        }
    )
    checkout = checkout_for(configured, ledger)
    yield create_app(configured, ledger, models, checkout, objects)
    await checkout.close()


@pytest_asyncio.fixture
async def app(settings: Settings, ledger, models, objects, twin: str) -> AsyncIterator[FastAPI]:
    async with selling(settings, ledger, models, objects, twin) as app:
        yield app


@pytest_asyncio.fixture
async def payer() -> AsyncIterator[httpx.AsyncClient]:
    """Someone with a browser."""
    async with httpx.AsyncClient() as client:
        yield client


async def order(client: httpx.AsyncClient, **fields: str) -> dict[str, str]:
    answer = await client.post(CHECKOUT, json={**ORDER, **fields})
    assert answer.status_code == 200, answer.text
    CheckoutStarted.model_validate_json(answer.content)
    return dict(answer.json())


async def pay(payer: httpx.AsyncClient, checkout: dict[str, str]) -> None:
    answer = await payer.post(checkout["checkoutUrl"], data={"outcome": "pay"})
    assert (
        answer.headers["location"]
        == f"http://farebox.test/checkout/success?session_id={checkout['sessionId']}"
    )


async def deliver(client: httpx.AsyncClient, inbox: Inbox) -> list[httpx.Response]:
    received = await asyncio.to_thread(inbox.wait_for, EVENTS_OF_A_PAYMENT)
    return [
        await client.post(
            WEBHOOK, content=event.body, headers={"stripe-signature": event.headers["stripe-signature"]}
        )
        for event in received
    ]


async def claim(client: httpx.AsyncClient, checkout: dict[str, str]) -> httpx.Response:
    return await client.post(CLAIM, json={"sessionId": checkout["sessionId"], "keyLabel": "Primary key"})


async def test_packages_are_public(client):
    answer = await client.get("/api/v1/packages")
    Packages.model_validate_json(answer.content)
    builder = next(package for package in answer.json()["packages"] if package["code"] == "builder_600")
    assert builder == {
        "code": "builder_600",
        "name": "Builder",
        "credits": 600.0,
        "tokens": 60_000,
        "priceMinor": 5000,
        "currency": "usd",
    }


async def test_a_payment_becomes_a_key_with_its_credits(client, payer, db, assert_sound):
    checkout = await order(client)
    await pay(payer, checkout)
    answer = await claim(client, checkout)
    assert answer.status_code == 200, answer.text
    KeyClaimed.model_validate_json(answer.content)
    assert answer.headers["cache-control"] == "no-store"
    key = answer.json()
    assert (key["label"], key["email"], key["tokens"], key["balanceTokens"]) == (
        "Primary key",
        "dev@company.com",
        60_000,
        60_000,
    )
    balance = await client.get(
        "/api/v1/credits/balance", headers={"authorization": f"Bearer {key['apiKey']}"}
    )
    assert balance.json()["tokens"] == 60_000
    await assert_sound(db)


async def test_a_fulfilled_purchase_knows_the_card_that_paid(client, payer, db):
    for email in ("dev@company.com", "dev@company.com", "other@company.com"):
        checkout = await order(client, email=email)
        await pay(payer, checkout)
        await claim(client, checkout)
    async with db.transaction() as conn:
        rows = await conn.execute(text("SELECT card_fingerprint FROM purchases ORDER BY id"))
        cards = list(rows.scalars())
    assert cards[0] == cards[1] != cards[2]
    assert all(cards)


async def test_a_claim_waits_for_the_payment_and_is_answered_once(client, payer):
    checkout = await order(client)
    early = await claim(client, checkout)
    assert (early.status_code, early.json()["error"]) == (409, "payment_pending")
    await pay(payer, checkout)
    answers = await asyncio.gather(*(claim(client, checkout) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    assert {answer.json().get("error") for answer in answers} == {None, "already_claimed"}


@pytest.mark.parametrize("session_id", ["cs_test_nowhere", "pur_1", "cs_../x", "0"])
async def test_an_unknown_session_is_404(client, session_id: str):
    answer = await client.post(CLAIM, json={"sessionId": session_id, "keyLabel": "x"})
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/api/v1/claim/stripe", "/api/v1/checkout/settle"])
async def test_a_session_that_was_made_up_is_404_and_the_provider_is_not_asked(
    settings, ledger, models, objects, path
):
    nobody = "http://127.0.0.1:9"
    async with (
        selling(settings, ledger, models, objects, nobody) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client,
    ):
        body = {"sessionId": "cs_test_made_up"} | ({"keyLabel": "x"} if "claim" in path else {})
        answer = await client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


async def test_an_account_that_existed_gets_the_credits_and_no_key_is_given_out(
    client, payer, customer, inbox
):
    owner = await customer(100)
    checkout = await order(client, email=owner.email.upper())
    await pay(payer, checkout)
    answer = await claim(client, checkout)
    assert (answer.status_code, answer.json()["error"]) == (409, "account_exists")
    assert "apiKey" not in answer.text
    assert await owner.tokens() == 60_100


async def test_a_checkout_with_a_key_tops_that_account_up(client, payer, customer, inbox):
    owner = await customer(100)
    checkout = await order(owner.client, email="accounting@company.com")
    await pay(payer, checkout)
    assert {answer.json()["duplicate"] for answer in await deliver(client, inbox)} == {False}
    assert await owner.tokens() == 60_100
    assert (await claim(client, checkout)).json()["error"] == "account_exists"
    bad = await client.post(CHECKOUT, json=ORDER, headers={"x-api-key": "amai_live_" + "L" * 43})
    assert bad.status_code == 401


async def test_webhooks_apply_once_however_often_they_arrive(client, payer, inbox, db, assert_sound):
    checkout = await order(client)
    await pay(payer, checkout)
    first = await deliver(client, inbox)
    again = await deliver(client, inbox)
    for answer in first + again:
        assert answer.status_code == 200
        WebhookReceived.model_validate_json(answer.content)
    assert {answer.json()["duplicate"] for answer in again} == {True}
    key = (await claim(client, checkout)).json()
    assert key["balanceTokens"] == 60_000
    await assert_sound(db)


@pytest.mark.parametrize(
    ("body", "signature"),
    [
        (b'{"id": "evt_1"}', None),
        (b'{"id": "evt_1"}', ""),
        (b'{"id": "evt_1"}', "t=1700000000,v1=0c86"),
        (b"", "t=1,v1=x"),
    ],
)
async def test_a_webhook_that_stripe_did_not_sign_gets_400_and_is_not_kept(client, db, body, signature):
    headers = {} if signature is None else {"stripe-signature": signature}
    answer = await client.post(WEBHOOK, content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert answer.json()["details"][0]["field"] == "Stripe-Signature"


async def test_a_signed_body_that_was_changed_gets_400(client, payer, inbox):
    checkout = await order(client)
    await pay(payer, checkout)
    event = (await asyncio.to_thread(inbox.wait_for, 1))[0]
    answer = await client.post(
        WEBHOOK, content=event.body + b" ", headers={"stripe-signature": event.headers["stripe-signature"]}
    )
    assert answer.status_code == 400
    assert (await claim(client, checkout)).status_code == 200


async def test_a_provider_that_is_away_is_503_with_retry_after(settings, ledger, models, objects):
    nobody = "http://127.0.0.1:9"
    async with (
        selling(settings, ledger, models, objects, nobody) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client,
    ):
        answer = await client.post(CHECKOUT, json=ORDER)
    assert (answer.status_code, answer.json()["error"]) == (503, "payments_unavailable")
    assert answer.headers["retry-after"]


async def test_a_signed_in_browser_tops_up_its_own_account_and_no_claim_follows(person, client, payer):
    browser = await person("ada@example.com")
    order = {"email": "someone.else@example.com", "packageCode": "starter_100"}
    started = await browser.post("/checkout/stripe", order)
    assert started.status_code == 200, started.text
    checkout = started.json()
    await pay(payer, checkout)
    refused = await claim(client, checkout)
    assert (refused.status_code, refused.json()["error"]) == (409, "account_exists")
    assert (await browser.get("/balance")).json()["tokens"] == 10_000


async def settled(client, checkout) -> httpx.Response:
    return await client.post("/api/v1/checkout/settle", json={"sessionId": checkout["sessionId"]})


async def test_a_payer_who_comes_back_has_the_credits_before_any_webhook(
    client, payer, customer, db, assert_sound
):
    owner = await customer(100)
    checkout = await order(owner.client)
    unpaid = await settled(client, checkout)
    CheckoutSettled.model_validate_json(unpaid.content)
    assert (unpaid.status_code, unpaid.json()["paid"], unpaid.json()["key"]) == (200, False, "none")
    await pay(payer, checkout)
    answers = await asyncio.gather(*(settled(client, checkout) for _ in range(5)))
    assert {(answer.status_code, answer.json()["paid"], answer.json()["key"]) for answer in answers} == {
        (200, True, "none")
    }
    assert await owner.tokens() == 60_100
    await assert_sound(db)


async def test_what_a_payment_opened_waits_for_its_claim_and_no_look_shows_the_key(client, payer):
    checkout = await order(client)
    await pay(payer, checkout)
    first = await settled(client, checkout)
    assert (first.json()["paid"], first.json()["key"]) == (True, "waits")
    assert "apiKey" not in first.text
    assert (await claim(client, checkout)).status_code == 200
    assert (await settled(client, checkout)).json()["key"] == "claimed"


@pytest.mark.parametrize("session_id", ["cs_test_nowhere", "pur_1", "cs_../x", "0"])
async def test_nothing_is_to_be_seen_of_a_session_of_nobody(client, session_id):
    answer = await settled(client, {"sessionId": session_id})
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
