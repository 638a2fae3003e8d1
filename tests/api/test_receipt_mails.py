"""Receipts by mail over the running routes: one for a grant and one for money back, however often they are told.

A payment that nobody claimed is reached by signing in with its e-mail address.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from gateway.app import create_app
from kit.settings import Settings
from payments.cards import CardCheckout
from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.stripe_webhooks import event_body, signature_header
from sandbox.testing import SECRET_KEY, WEBHOOK_SECRET, running

EMAIL = "buyer@company.com"
ORDER = {"email": EMAIL, "packageCode": "builder_600"}


@pytest_asyncio.fixture
async def twin() -> AsyncIterator[tuple[Any, str]]:
    app = create_twin(TwinSettings(secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET))
    with running(app) as url:
        yield app.state.twin._state, url


@pytest.fixture
def checkout(twin: tuple[Any, str], card_shop: Callable[[str], CardCheckout]) -> CardCheckout:
    return card_shop(twin[1])


@pytest_asyncio.fixture
async def app(
    settings: Settings, server: LedgerServer, models: Any, objects: Any, checkout: CardCheckout
) -> FastAPI:
    return create_app(settings, local_ledger(server), models, checkout, objects)


async def told(client: httpx.AsyncClient, twin: Any) -> None:
    """Bring all of the twin's events as webhooks, twice, at once and newest first."""
    events = list(twin.document["events"].values())[::-1] * 2

    async def one(event: dict[str, Any]) -> None:
        body = event_body(event)
        signature = signature_header(WEBHOOK_SECRET, event["created"], body)
        answer = await client.post(
            "/api/v1/webhooks/stripe", content=body, headers={"stripe-signature": signature}
        )
        assert answer.status_code == 200, answer.text

    await asyncio.gather(*map(one, events))


async def bought(client: httpx.AsyncClient, twin: tuple[Any, str]) -> str:
    started = (await client.post("/api/v1/checkout/stripe", json=ORDER)).json()
    async with httpx.AsyncClient(verify=False) as page:
        await page.post(f"{twin[1]}/_twin/sessions/{started['sessionId']}/pay", json={})
    await told(client, twin[0])
    return str(started["sessionId"])


async def test_a_buyer_gets_one_receipt_with_what_was_bought_and_how_to_come_to_it(client, twin, mailbox):
    session_id = await bought(client, twin)
    await told(client, twin[0])
    (mail,) = await mailbox(EMAIL)
    assert "600 credits were bought (builder_600)" in mail
    assert "Paid: 50.00 USD" in mail
    assert "Purchase: pur_" in mail
    assert f"http://farebox.test/checkout/success?session_id={session_id}" in mail
    (purchase_id,) = re.findall(r"Purchase: (pur_\w+)", mail)
    assert f"sign in with this e-mail address:\nhttp://farebox.test/account#{purchase_id}\n" in mail


async def test_a_payment_that_nobody_claimed_is_reached_by_signing_in(client, twin, person):
    await bought(client, twin)
    payer = await person(EMAIL)
    assert (await payer.get("/credits/balance")).json()["tokens"] == 60_000


async def test_money_back_is_told_once_for_each_part(client, twin, mailbox):
    await bought(client, twin)
    (payment_id,) = twin[0].document["payment_intents"]
    async with httpx.AsyncClient(verify=False) as page:
        for amount in (1_000, 4_000):
            await page.post(f"{twin[1]}/_twin/payments/{payment_id}/refund", json={"amount": amount})
            await told(client, twin[0])
            await told(client, twin[0])
    _, part, rest = await mailbox(EMAIL)
    assert "Went back: 10.00 USD" in part
    assert "Went back: 40.00 USD" in rest
