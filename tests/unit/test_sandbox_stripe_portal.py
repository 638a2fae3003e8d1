"""The portal's page of the Stripe twin: cards and payments of one customer, for whoever has its address."""

from __future__ import annotations

import re

import pytest

from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.testing import ORDER, SECRET_KEY, WEBHOOK_SECRET, ManualClock, client_of


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def app(clock):
    return create_twin(TwinSettings(secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET), clock=clock)


@pytest.fixture
async def twin(app):
    async with client_of(app) as client:
        yield client


@pytest.fixture
async def portal(twin):
    customer = (await twin.post("/v1/customers", data={"email": "dev@company.example"})).json()["id"]
    made = await twin.post(
        "/v1/billing_portal/sessions", data={"customer": customer, "return_url": "https://shop.example/"}
    )
    return customer, made.json()["url"]


async def test_a_card_is_added_made_the_default_and_removed(twin, portal):
    customer, url = portal
    assert "No card is saved" in (await twin.get(url)).text
    for card in ("pm_card_visa", "pm_card_mastercard"):
        assert (await twin.post(url, data={"action": "add", "card": card})).status_code == 303
    newest, oldest = (await twin.get(f"/v1/customers/{customer}/payment_methods")).json()["data"]
    assert newest["card"]["last4"] == "4444"
    await twin.post(url, data={"action": "default", "payment_method": oldest["id"]})
    shown = (await twin.get(f"/v1/customers/{customer}")).json()
    assert shown["invoice_settings"]["default_payment_method"] == oldest["id"]
    assert re.search(r"4242.*default", (await twin.get(url)).text)
    await twin.post(url, data={"action": "remove", "payment_method": oldest["id"]})
    again = await twin.post(url, data={"action": "remove", "payment_method": oldest["id"]})
    assert again.status_code == 404
    shown = (await twin.get(f"/v1/customers/{customer}")).json()
    assert shown["invoice_settings"]["default_payment_method"] is None


async def test_the_page_says_that_it_is_a_sandbox_and_lists_what_was_paid(twin, portal):
    customer, url = portal
    order = {name: value for name, value in ORDER.items() if name != "customer_email"}
    session = (await twin.post("/v1/checkout/sessions", data=order | {"customer": customer})).json()
    await twin.post(session["url"], data={"outcome": "pay"})
    page = (await twin.get(url)).text
    assert "Sandbox - no real money" in page
    assert "$12.00" in page
    assert "https://shop.example/" in page


async def test_a_portal_page_is_open_for_an_hour_and_to_its_address_alone(twin, portal, clock):
    _, url = portal
    assert (await twin.get(f"{url}x")).status_code == 404
    clock.advance(3601)
    assert (await twin.get(url)).status_code == 404
    assert (await twin.post(url, data={"action": "add", "card": "pm_card_visa"})).status_code == 404
