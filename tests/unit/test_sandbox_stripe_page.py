"""The Stripe twin's hosted page, in process: what a buyer sees, and that no click pays twice."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.testing import ORDER, SECRET_KEY, WEBHOOK_SECRET, ManualClock, client_of, counting_tokens

JSON = {"Accept": "application/json"}


@pytest_asyncio.fixture
async def twin() -> AsyncIterator[httpx.AsyncClient]:
    settings = TwinSettings(secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET)
    async with client_of(create_twin(settings, clock=ManualClock(), new_token=counting_tokens())) as client:
        yield client


async def opened(twin: httpx.AsyncClient, **changes: str | None) -> str:
    order = {name: value for name, value in {**ORDER, **changes}.items() if value is not None}
    response = await twin.post("/v1/checkout/sessions", data=order)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


async def session(twin: httpx.AsyncClient, session_id: str) -> dict[str, object]:
    path = f"/v1/checkout/sessions/{session_id}"
    shown: dict[str, object] = (await twin.get(path)).json()
    return shown


async def payments(twin: httpx.AsyncClient) -> int:
    params = {"type": "payment_intent.succeeded"}
    events = (await twin.get("/v1/events", params=params)).json()
    return len(events["data"])


async def test_the_page_says_what_is_sold_to_whom_and_that_it_is_a_sandbox(twin: httpx.AsyncClient) -> None:
    page = await twin.get(f"/c/pay/{await opened(twin)}")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    for text in ("Sandbox - no real money", "Builder, 600 credits", "$12.00", "dev@company.example"):
        assert text in page.text
    for outcome in ("pay", "decline", "delayed", "cancel"):
        assert f'name="outcome" value="{outcome}"' in page.text


async def test_the_page_needs_nothing_from_elsewhere(twin: httpx.AsyncClient) -> None:
    page = await twin.get(f"/c/pay/{await opened(twin)}")
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "<script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_what_the_shop_wrote_is_shown_as_text_and_never_as_markup(twin: httpx.AsyncClient) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    session_id = await opened(twin, **{"line_items[0][price_data][product_data][name]": hostile})
    page = await twin.get(f"/c/pay/{session_id}")
    assert hostile not in page.text
    assert "&lt;img src=x onerror=alert(1)&gt;" in page.text


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [("123456", "eur", "€1,234.56"), ("1205", "chf", "12.05 CHF"), ("1200", "jpy", "¥1,200")],
)
async def test_amounts_are_written_in_their_currency(
    twin: httpx.AsyncClient, amount: str, currency: str, shown: str
) -> None:
    price = "line_items[0][price_data]"
    session_id = await opened(twin, **{f"{price}[unit_amount]": amount, f"{price}[currency]": currency})
    assert shown in (await twin.get(f"/c/pay/{session_id}")).text


async def test_paying_returns_the_buyer_to_the_shop_with_the_session(twin: httpx.AsyncClient) -> None:
    session_id = await opened(twin)
    answer = await twin.post(f"/c/pay/{session_id}", data={"outcome": "pay"})
    assert answer.status_code == 303
    assert answer.headers["location"] == f"https://shop.example/done?session={session_id}"
    shown = await session(twin, session_id)
    assert (shown["status"], shown["payment_status"]) == ("complete", "paid")


async def test_a_script_gets_json_where_a_browser_is_redirected(twin: httpx.AsyncClient) -> None:
    session_id = await opened(twin)
    answer = await twin.post(f"/c/pay/{session_id}", data={"outcome": "pay"}, headers=JSON)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["payment_status"]) == ("complete", "paid")
    assert body["redirect_url"] == f"https://shop.example/done?session={session_id}"


async def test_a_script_may_send_json_too(twin: httpx.AsyncClient) -> None:
    answer = await twin.post(f"/c/pay/{await opened(twin)}", json={"outcome": "delayed"}, headers=JSON)
    assert (answer.json()["status"], answer.json()["payment_status"]) == ("complete", "unpaid")


async def test_a_declined_card_leaves_the_session_open_to_try_again(twin: httpx.AsyncClient) -> None:
    session_id = await opened(twin)
    page = await twin.post(f"/c/pay/{session_id}", data={"outcome": "decline"})
    assert page.status_code == 200
    assert 'role="alert"' in page.text
    assert "declined" in page.text
    shown = await session(twin, session_id)
    assert (shown["status"], shown["payment_intent"]) == ("open", None)
    script = await twin.post(f"/c/pay/{session_id}", data={"outcome": "decline"}, headers=JSON)
    assert (script.json()["status"], script.json()["redirect_url"]) == ("open", None)
    assert (await twin.post(f"/c/pay/{session_id}", data={"outcome": "pay"})).status_code == 303


async def test_cancelling_returns_to_the_shop_and_changes_nothing(twin: httpx.AsyncClient) -> None:
    session_id = await opened(twin)
    before = await session(twin, session_id)
    answer = await twin.post(f"/c/pay/{session_id}", data={"outcome": "cancel"})
    assert (answer.status_code, answer.headers["location"]) == (303, "https://shop.example/credits")
    assert await session(twin, session_id) == before


async def test_without_a_cancel_address_the_page_offers_no_way_back(twin: httpx.AsyncClient) -> None:
    session_id = await opened(twin, cancel_url=None)
    assert 'value="cancel"' not in (await twin.get(f"/c/pay/{session_id}")).text
    page = await twin.post(f"/c/pay/{session_id}", data={"outcome": "cancel"})
    assert (page.status_code, "no address to return to" in page.text) == (200, True)


async def test_a_complete_session_is_never_paid_twice(twin: httpx.AsyncClient) -> None:
    session_id = await opened(twin)
    await twin.post(f"/c/pay/{session_id}", data={"outcome": "pay"})
    before = await session(twin, session_id)
    for outcome in ("pay", "delayed", "decline", "cancel"):
        again = await twin.post(f"/c/pay/{session_id}", data={"outcome": outcome})
        assert again.status_code == 409
        assert "cannot be paid a second time" in again.text
    script = await twin.post(f"/c/pay/{session_id}", data={"outcome": "pay"}, headers=JSON)
    assert (script.status_code, script.json()["error"]["type"]) == (409, "invalid_request_error")
    assert await session(twin, session_id) == before
    assert await payments(twin) == 1


async def test_an_expired_session_is_refused_with_a_page_that_says_so(twin: httpx.AsyncClient) -> None:
    session_id = await opened(twin)
    await twin.post(f"/_twin/sessions/{session_id}/expire")
    page = await twin.post(f"/c/pay/{session_id}", data={"outcome": "pay"})
    assert page.status_code == 409
    assert "expired" in page.text
    assert 'name="outcome"' not in (await twin.get(f"/c/pay/{session_id}")).text
    assert await payments(twin) == 0


@pytest.mark.parametrize("outcome", ["", "steal", None])
async def test_an_unknown_choice_is_refused(twin: httpx.AsyncClient, outcome: str | None) -> None:
    session_id = await opened(twin)
    data = {} if outcome is None else {"outcome": outcome}
    assert (await twin.post(f"/c/pay/{session_id}", data=data)).status_code == 400
    assert (await session(twin, session_id))["status"] == "open"


async def test_an_unknown_session_has_a_page_of_its_own(twin: httpx.AsyncClient) -> None:
    page = await twin.get("/c/pay/cs_test_none")
    assert (page.status_code, "Not found" in page.text) == (404, True)
    answer = await twin.post("/c/pay/cs_test_none", data={"outcome": "pay"}, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "resource_missing")


async def test_the_buyer_types_an_address_where_the_shop_knows_none(twin: httpx.AsyncClient) -> None:
    session_id = await opened(twin, customer_email=None)
    assert 'type="email"' in (await twin.get(f"/c/pay/{session_id}")).text
    bad = await twin.post(f"/c/pay/{session_id}", data={"outcome": "pay", "email": "nobody"})
    assert bad.status_code == 400
    await twin.post(
        f"/c/pay/{session_id}", data={"outcome": "pay", "email": "me@home.example", "country": "de"}
    )
    details = (await session(twin, session_id))["customer_details"]
    assert isinstance(details, dict)
    assert (details["email"], details["address"]["country"]) == ("me@home.example", "DE")


async def test_the_address_that_the_shop_gave_cannot_be_changed(twin: httpx.AsyncClient) -> None:
    session_id = await opened(twin)
    await twin.post(f"/c/pay/{session_id}", data={"outcome": "pay", "email": "other@home.example"})
    details = (await session(twin, session_id))["customer_details"]
    assert isinstance(details, dict)
    assert details["email"] == "dev@company.example"
