"""The Stripe twin's API, in process: sessions, refusals, refunds, lists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.testing import ORDER, SECRET_KEY, WEBHOOK_SECRET, ManualClock, client_of, counting_tokens


def new_twin(clock: ManualClock | None = None) -> FastAPI:
    settings = TwinSettings(secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET)
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


async def event_types(twin: httpx.AsyncClient) -> list[str]:
    events = (await twin.get("/v1/events", params={"limit": "100"})).json()["data"]
    return [event["type"] for event in reversed(events)]


# Sessions


async def test_a_new_session_is_open_unpaid_and_holds_what_was_asked(
    twin: httpx.AsyncClient, clock: ManualClock
) -> None:
    session = await opened(twin)
    assert session["id"].startswith("cs_test_")
    assert session["object"] == "checkout.session"
    assert (session["status"], session["payment_status"], session["payment_intent"]) == (
        "open",
        "unpaid",
        None,
    )
    assert (session["amount_total"], session["amount_subtotal"], session["currency"]) == (1200, 1200, "usd")
    assert session["client_reference_id"] == "pur_1"
    assert session["metadata"] == {"purchase": "pur_1"}
    assert session["customer_email"] == session["customer_details"]["email"] == "dev@company.example"
    assert session["livemode"] is False
    assert session["url"] == f"http://twin.example/c/pay/{session['id']}"
    assert session["created"] == int(clock.now_s)
    assert session["expires_at"] == session["created"] + 24 * 3600


async def test_the_total_is_the_sum_of_all_lines(twin: httpx.AsyncClient) -> None:
    second = {
        "line_items[1][price_data][currency]": "usd",
        "line_items[1][price_data][unit_amount]": "250",
        "line_items[1][price_data][product_data][name]": "Sticker",
        "line_items[1][quantity]": "3",
    }
    session = await opened(twin, **second, **{"line_items[0][quantity]": "2"})
    assert session["amount_total"] == 2 * 1200 + 3 * 250
    lines = (await twin.get(f"/v1/checkout/sessions/{session['id']}/line_items")).json()
    assert [line["amount_total"] for line in lines["data"]] == [2400, 750]


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"mode": None}, "mode", "parameter_missing"),
        ({"mode": "gift"}, "mode", None),
        ({"mode": "subscription"}, "mode", None),
        ({"success_url": None}, "success_url", "parameter_missing"),
        ({"success_url": "/done"}, "success_url", "url_invalid"),
        ({"success_url": "javascript:alert(1)"}, "success_url", "url_invalid"),
        ({"cancel_url": "https://"}, "cancel_url", "url_invalid"),
        ({"line_items[0][quantity]": "0"}, "line_items[0][quantity]", "parameter_invalid_integer"),
        ({"line_items[0][quantity]": "1.5"}, "line_items[0][quantity]", "parameter_invalid_integer"),
        ({"line_items[0][quantity]": None}, "line_items[0][quantity]", "parameter_missing"),
        (
            {"line_items[0][price_data][unit_amount]": "12e2"},
            "line_items[0][price_data][unit_amount]",
            "parameter_invalid_integer",
        ),
        (
            {"line_items[0][price_data][unit_amount]": "-5"},
            "line_items[0][price_data][unit_amount]",
            "parameter_invalid_integer",
        ),
        ({"line_items[0][price_data][unit_amount]": "49"}, "line_items", "amount_too_small"),
        ({"line_items[0][quantity]": "999999"}, "line_items", "amount_too_large"),
        ({"line_items[0][price_data][currency]": "dollar"}, "line_items[0][price_data][currency]", None),
        ({"line_items[0][price]": "price_1"}, "line_items[0][price]", "resource_missing"),
        ({"customer_email": "nobody"}, "customer_email", "email_invalid"),
        ({"customer_email": ""}, "customer_email", "parameter_invalid_empty"),
        ({"customer_email": None, "customer": "cus_none"}, "customer", "resource_missing"),
        ({"customer": "cus_none"}, "customer_email", None),
        ({"expires_at": "1"}, "expires_at", None),
        ({"client_reference_id": "x" * 201}, "client_reference_id", "parameter_invalid_string"),
        ({"metadata[long]": "x" * 501}, "metadata[long]", None),
        ({"payment_method_types[0]": "card"}, "payment_method_types", "parameter_unknown"),
        ({"payment_intent_data[colour]": "red"}, "payment_intent_data[colour]", "parameter_unknown"),
        ({"ui_mode": "elements"}, "ui_mode", None),
        ({"expand[0]": "invoice"}, "expand", None),
        ({"mode[a]": "b"}, "mode[a]", None),
    ],
)
async def test_a_bad_parameter_is_refused_by_name_and_opens_nothing(
    twin: httpx.AsyncClient, changes: dict[str, str | None], param: str, code: str | None
) -> None:
    order = {name: value for name, value in {**ORDER, **changes}.items() if value is not None}
    response = await twin.post("/v1/checkout/sessions", data=order)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["param"], error.get("code")) == ("invalid_request_error", param, code)
    assert error["message"]
    assert (await twin.get("/v1/checkout/sessions")).json()["data"] == []


async def test_line_items_are_required(twin: httpx.AsyncClient) -> None:
    order = {name: value for name, value in ORDER.items() if not name.startswith("line_items")}
    error = (await twin.post("/v1/checkout/sessions", data=order)).json()["error"]
    assert (error["param"], error["code"]) == ("line_items", "parameter_missing")


async def test_a_json_body_is_refused_as_stripe_does(twin: httpx.AsyncClient) -> None:
    response = await twin.post("/v1/checkout/sessions", json={"mode": "payment"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_an_oversized_body_is_refused(twin: httpx.AsyncClient) -> None:
    response = await twin.post("/v1/checkout/sessions", data={"mode": "x" * 300_000})
    assert response.status_code == 413


async def test_an_expired_session_cannot_be_expired_again(twin: httpx.AsyncClient) -> None:
    session = await opened(twin)
    path = f"/v1/checkout/sessions/{session['id']}/expire"
    expired = (await twin.post(path)).json()
    assert (expired["status"], expired["payment_status"], expired["url"]) == ("expired", "unpaid", None)
    assert (await twin.post(path)).status_code == 400
    assert await event_types(twin) == ["checkout.session.expired"]


async def test_a_session_expires_by_itself_when_its_time_is_over(
    twin: httpx.AsyncClient, clock: ManualClock
) -> None:
    session = await opened(twin, expires_at=str(int(clock.now_s) + 3600))
    path = f"/v1/checkout/sessions/{session['id']}"
    clock.advance(3599)
    assert (await twin.get(path)).json()["status"] == "open"
    clock.advance(1)
    assert (await twin.get(path)).json()["status"] == "expired"
    assert await event_types(twin) == ["checkout.session.expired"]
    assert (await twin.post(f"/_twin/sessions/{session['id']}/pay")).status_code == 400


async def test_paying_completes_the_session_with_an_intent_and_a_charge(twin: httpx.AsyncClient) -> None:
    session = await opened(twin)
    await twin.post(f"/_twin/sessions/{session['id']}/pay")
    params = {"expand[]": "payment_intent.latest_charge"}
    paid = (await twin.get(f"/v1/checkout/sessions/{session['id']}", params=params)).json()
    intent, charge = paid["payment_intent"], paid["payment_intent"]["latest_charge"]
    assert (paid["status"], paid["payment_status"], paid["url"]) == ("complete", "paid", None)
    assert (intent["status"], intent["amount_received"], intent["currency"]) == ("succeeded", 1200, "usd")
    assert intent["metadata"] == {"purchase": "pur_1"}
    assert (charge["paid"], charge["amount_captured"]) == (True, 1200)
    assert charge["payment_intent"] == intent["id"]
    assert (await twin.get(f"/v1/payment_intents/{intent['id']}")).json()["latest_charge"] == charge["id"]
    assert await event_types(twin) == ["checkout.session.completed", "payment_intent.succeeded"]


async def test_an_event_keeps_the_object_as_it_was(twin: httpx.AsyncClient) -> None:
    session = await opened(twin)
    await twin.post(f"/_twin/sessions/{session['id']}/delayed")
    await twin.post(f"/_twin/sessions/{session['id']}/settle")
    events = (await twin.get("/v1/events", params={"type": "checkout.session.completed"})).json()["data"]
    assert events[0]["data"]["object"]["payment_status"] == "unpaid"
    assert (await twin.get(f"/v1/events/{events[0]['id']}")).json() == events[0]


@pytest.mark.parametrize(
    ("outcome", "payment_status", "intent_status", "event"),
    [
        ("succeeded", "paid", "succeeded", "checkout.session.async_payment_succeeded"),
        ("failed", "unpaid", "requires_payment_method", "checkout.session.async_payment_failed"),
    ],
)
async def test_a_delayed_payment_settles_once(
    twin: httpx.AsyncClient, outcome: str, payment_status: str, intent_status: str, event: str
) -> None:
    path = f"/_twin/sessions/{(await opened(twin))['id']}"
    waiting = (await twin.post(f"{path}/delayed")).json()
    assert (waiting["status"], waiting["payment_status"]) == ("complete", "unpaid")
    settled = (await twin.post(f"{path}/settle", json={"outcome": outcome})).json()
    assert (settled["status"], settled["payment_status"]) == ("complete", payment_status)
    intent = (await twin.get(f"/v1/payment_intents/{settled['payment_intent']}")).json()
    assert intent["status"] == intent_status
    assert (await twin.post(f"{path}/settle", json={"outcome": "succeeded"})).status_code == 400
    assert (await event_types(twin)).count(event) == 1


async def test_a_customer_is_made_when_the_order_asks_for_one(twin: httpx.AsyncClient) -> None:
    without, with_customer = await opened(twin), await opened(twin, customer_creation="always")
    for session in (without, with_customer):
        await twin.post(f"/_twin/sessions/{session['id']}/pay")
    params = {"expand[0]": "customer"}
    first = (await twin.get(f"/v1/checkout/sessions/{without['id']}", params=params)).json()
    second = (await twin.get(f"/v1/checkout/sessions/{with_customer['id']}", params=params)).json()
    assert first["customer"] is None
    assert second["customer"]["email"] == "dev@company.example"


async def test_concurrent_payments_take_the_money_once(twin: httpx.AsyncClient) -> None:
    session = await opened(twin)
    path = f"/_twin/sessions/{session['id']}/pay"
    answers = await asyncio.gather(*(twin.post(path) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 19
    assert (await event_types(twin)).count("payment_intent.succeeded") == 1


# Refusals


@pytest.mark.parametrize("key", [None, "sk_test_wrong_0123456789", ""])
async def test_a_missing_or_wrong_key_is_401_and_is_not_repeated(key: str | None) -> None:
    async with client_of(new_twin(), key) as stranger:
        response = await stranger.get("/v1/checkout/sessions")
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert not key or key not in response.text


async def test_the_key_is_taken_as_a_basic_user_name_too() -> None:
    async with client_of(new_twin(), None) as twin:
        assert (await twin.get("/v1/checkout/sessions", auth=(SECRET_KEY, ""))).status_code == 200
        assert (await twin.get("/v1/checkout/sessions", auth=("sk_test_other", ""))).status_code == 401


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/checkout/sessions/cs_test_none", "session"),
        ("/v1/payment_intents/pi_none", "intent"),
        ("/v1/refunds/re_none", "refund"),
        ("/v1/events/evt_none", "id"),
        ("/v1/customers/cus_none", "customer"),
    ],
)
async def test_an_unknown_id_is_404_resource_missing(twin: httpx.AsyncClient, path: str, param: str) -> None:
    response = await twin.get(path)
    error = response.json()["error"]
    assert response.status_code == 404
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error",
        "resource_missing",
        param,
    )


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/nothing"), ("DELETE", "/v1/refunds"), ("GET", "/docs")]
)
async def test_an_unknown_route_is_404_in_stripes_shape(
    twin: httpx.AsyncClient, method: str, path: str
) -> None:
    response = await twin.request(method, path)
    assert response.status_code == 404
    assert response.json()["error"]["message"] == f"Unrecognized request URL ({method}: {path})."


@pytest.mark.parametrize(
    ("key", "secret"),
    [("", "whsec_1"), ("sk_live_1", "whsec_1"), ("rk_test_1", "whsec_1"), ("sk_test_1", "")],
)
async def test_a_twin_refuses_live_keys_and_empty_secrets(key: str, secret: str) -> None:
    with pytest.raises(ValueError, match="sandbox"):
        TwinSettings(secret_key=key, webhook_secret=secret)


async def test_settings_do_not_print_their_secrets() -> None:
    assert "sk_test_1" not in repr(TwinSettings(secret_key="sk_test_1", webhook_secret="whsec_1"))
    assert "whsec_1" not in repr(TwinSettings(secret_key="sk_test_1", webhook_secret="whsec_1"))


# Refunds


async def paid_intent(twin: httpx.AsyncClient) -> str:
    session = await opened(twin)
    answer = (await twin.post(f"/_twin/sessions/{session['id']}/pay")).json()
    return str(answer["payment_intent"])


async def test_refunds_never_exceed_what_was_paid(twin: httpx.AsyncClient) -> None:
    intent = await paid_intent(twin)
    part = (await twin.post("/v1/refunds", data={"payment_intent": intent, "amount": "500"})).json()
    assert (part["object"], part["amount"], part["status"]) == ("refund", 500, "succeeded")
    too_much = await twin.post("/v1/refunds", data={"payment_intent": intent, "amount": "701"})
    assert (too_much.status_code, too_much.json()["error"]["param"]) == (400, "amount")
    rest = (await twin.post("/v1/refunds", data={"payment_intent": intent})).json()
    assert rest["amount"] == 700
    again = await twin.post("/v1/refunds", data={"payment_intent": intent})
    assert again.json()["error"]["code"] == "charge_already_refunded"
    listed = (await twin.get("/v1/refunds", params={"payment_intent": intent})).json()["data"]
    assert [refund["id"] for refund in listed] == [rest["id"], part["id"]]


async def test_a_refund_tells_of_itself_and_of_its_charge(twin: httpx.AsyncClient) -> None:
    intent = await paid_intent(twin)
    await twin.post("/v1/refunds", data={"payment_intent": intent, "amount": "500"})
    newest, before = (await twin.get("/v1/events", params={"limit": "2"})).json()["data"]
    assert (before["type"], before["data"]["object"]["amount"]) == ("refund.created", 500)
    charge = newest["data"]["object"]
    assert newest["type"] == "charge.refunded"
    assert (charge["amount_refunded"], charge["refunded"]) == (500, False)
    assert before["request"]["id"].startswith("req_")


async def test_money_that_has_not_arrived_cannot_be_refunded(twin: httpx.AsyncClient) -> None:
    session = await opened(twin)
    answer = (await twin.post(f"/_twin/sessions/{session['id']}/delayed")).json()
    response = await twin.post("/v1/refunds", data={"payment_intent": answer["payment_intent"]})
    assert response.status_code == 400


# Lists


async def test_cursors_walk_the_whole_list_both_ways(twin: httpx.AsyncClient) -> None:
    ids = [(await opened(twin))["id"] for _ in range(5)][::-1]
    path = "/v1/checkout/sessions"
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        answer = (await twin.get(path, params={"limit": "2", **cursor})).json()
        seen += [session["id"] for session in answer["data"]]
        if not answer["has_more"]:
            break
        cursor = {"starting_after": seen[-1]}
    assert seen == ids
    newer = (await twin.get(path, params={"limit": "2", "ending_before": ids[4]})).json()
    assert [session["id"] for session in newer["data"]] == ids[2:4]
    assert newer["has_more"] is True


async def test_lists_are_filtered_by_status_and_age(twin: httpx.AsyncClient, clock: ManualClock) -> None:
    old = await opened(twin)
    await twin.post(f"/v1/checkout/sessions/{old['id']}/expire")
    clock.advance(10)
    new = await opened(twin)
    path = "/v1/checkout/sessions"
    for params in ({"status": "open"}, {"created[gte]": str(int(clock.now_s))}):
        rows = (await twin.get(path, params=params)).json()["data"]
        assert [session["id"] for session in rows] == [new["id"]]


@pytest.mark.parametrize(
    "params", [{"limit": "0"}, {"limit": "101"}, {"starting_after": "cs_none"}, {"colour": "red"}]
)
async def test_a_bad_list_request_is_refused(twin: httpx.AsyncClient, params: dict[str, str]) -> None:
    assert (await twin.get("/v1/checkout/sessions", params=params)).status_code == 400


async def test_health_repeats_the_nonce() -> None:
    settings = TwinSettings(secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET, instance="nonce-1")
    async with client_of(create_twin(settings), None) as anyone:
        assert (await anyone.get("/healthz")).json() == {"ok": True, "instance": "nonce-1"}
