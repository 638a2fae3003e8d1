"""What a provider answers is a session of ours, or an error that a caller can act on; never a surprise."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import NotFound
from payments.btcpay_checkout import BtcpayCheckout
from payments.checkout import ProviderSession, SessionRequest
from payments.coinbase_checkout import CoinbaseCheckout
from payments.errors import PaymentsUnavailable
from payments.packages import Package
from payments.provider_api import AWAY, NOT_UNDERSTOOD, REFUSED, ProviderApi
from sandbox.testing import COINBASE_KEY, COINBASE_KEY_ID

Answer = Callable[[httpx.Request], httpx.Response]


async def ask(answer: Answer, *, repeatable: bool) -> tuple[Any, list[float]]:
    """Ask a provider that answers so; returns what came of it and the pauses between the tries."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    api = ProviderApi("https://provider.example/v1/", pause)
    await api._http.aclose()
    api._http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    try:
        return await api.ask("POST", "/things", dict, {"a": 1}, repeatable=repeatable), pauses
    except (PaymentsUnavailable, NotFound) as error:
        return error, pauses
    finally:
        await api.close()


def broken(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("too slow", request=request)


@pytest.mark.parametrize("stumble", [429, 500, 503, None])
async def test_a_provider_that_stumbles_is_asked_again_and_at_most_three_times(stumble):
    asked = []

    def once_broken(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        if len(asked) == 1:
            return broken(request) if stumble is None else httpx.Response(stumble)
        return httpx.Response(200, json={"ok": True})

    assert await ask(once_broken, repeatable=True) == ({"ok": True}, [0.2])
    assert asked == ["https://provider.example/v1/things"] * 2
    refusal, pauses = await ask(
        broken if stumble is None else lambda _: httpx.Response(stumble), repeatable=True
    )
    assert (refusal.reason, pauses) == (AWAY, [0.2, 0.4])


async def test_what_may_not_be_repeated_is_asked_once():
    asked = []

    def away(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return broken(request)

    refusal, pauses = await ask(away, repeatable=False)
    assert (refusal.reason, pauses, len(asked)) == (AWAY, [], 1)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (httpx.Response(401), REFUSED),
        (httpx.Response(403), REFUSED),
        (httpx.Response(400, text="no"), NOT_UNDERSTOOD),
        (httpx.Response(302, headers={"location": "https://elsewhere.example"}), NOT_UNDERSTOOD),
        (httpx.Response(200, text="<html>"), NOT_UNDERSTOOD),
    ],
)
async def test_a_refusal_says_what_can_be_done_and_is_not_repeated(answer, reason):
    refusal, pauses = await ask(lambda _: answer, repeatable=True)
    assert (refusal.reason, pauses) == (reason, [])


async def test_what_the_provider_does_not_know_is_not_found():
    refusal, _ = await ask(lambda _: httpx.Response(404), repeatable=True)
    assert isinstance(refusal, NotFound)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
AMOUNT = JSON | st.sampled_from(["50.00", "0E+999999999", "1e-999999999", "NaN", "5", "1e14"])
CHECKOUT = st.fixed_dictionaries(
    {},
    optional={
        "id": JSON,
        "url": JSON,
        "amount": AMOUNT,
        "currency": st.just("USD") | JSON,
        "status": st.sampled_from(["ACTIVE", "COMPLETED", "EXPIRED", "Settled", "Expired", "Invalid"]) | JSON,
        "metadata": JSON,
        "checkoutLink": JSON,
        "settlement": st.fixed_dictionaries(
            {}, optional={"totalAmount": AMOUNT, "currency": st.just("USDC") | JSON}
        )
        | JSON,
    },
)
PAYMENT = st.fixed_dictionaries({}, optional={"status": st.just("Settled"), "value": AMOUNT, "fee": AMOUNT})
METHODS = st.lists(
    st.fixed_dictionaries({}, optional={"rate": AMOUNT, "payments": st.lists(PAYMENT, max_size=2)})
)


@cache
def coinbase() -> CoinbaseCheckout:
    return CoinbaseCheckout(COINBASE_KEY_ID, COINBASE_KEY, "secret")


@cache
def btcpay() -> BtcpayCheckout:
    return BtcpayCheckout("https://pay.example", "store", "key", "secret")


def whole(make: Callable[[], ProviderSession]) -> None:
    """A session is whole, or there is none."""
    try:
        session = make()
    except PaymentsUnavailable:
        return
    assert not (session.paid and session.closed)
    assert not session.paid or (session.received_minor or 0) >= session.amount_minor >= 0


@settings(deadline=None)
@given(CHECKOUT | JSON)
def test_no_answer_of_coinbase_is_more_than_it_says(answer):
    whole(lambda: coinbase()._session(answer))


@settings(deadline=None)
@given(CHECKOUT | JSON, METHODS | JSON)
def test_no_answer_of_btcpay_is_more_than_it_says(invoice, methods):
    whole(lambda: btcpay()._session(invoice, methods))


PAID: dict[str, Any] = {
    "id": "68f7a946db0529ea9b6d3a12",
    "url": "https://payments.coinbase.com/payment-links/pl_01",
    "amount": "57.87",
    "currency": "USDC",
    "fiatAmount": "50.00",
    "fiatCurrency": "EUR",
    "status": "COMPLETED",
    "metadata": {"purchase_id": "pur_1"},
    "settlement": {"totalAmount": "57.87", "currency": "USDC"},
}
"""A checkout that was opened for 50 euros: Coinbase asks for coins, and keeps the price beside."""


def in_euros(**fields: Any) -> ProviderSession:
    return coinbase()._session(PAID | fields)


def test_a_price_in_a_countrys_money_is_compared_in_that_money():
    session = in_euros()
    assert (session.currency, session.amount_minor, session.received_minor) == ("eur", 5_000, 5_000)
    assert session.paid
    short = in_euros(status="EXPIRED", settlement={"totalAmount": "57.86", "currency": "USDC"})
    assert (short.paid, short.closed, short.received_minor) == (False, True, 4_999)
    over = in_euros(settlement={"totalAmount": "115.74", "currency": "USDC"})
    assert (over.paid, over.received_minor) == (True, 10_000)
    dollars = in_euros(
        fiatCurrency="USD", amount="50.10", settlement={"totalAmount": "50.10", "currency": "USDC"}
    )
    assert (dollars.paid, dollars.received_minor) == (True, 5_000), "not at par on that day"


@pytest.mark.parametrize("shop", ["https://shop.example", "http://127.0.0.1:8000"])
async def test_coinbase_is_told_of_no_way_back_that_it_refuses(shop):
    provider = CoinbaseCheckout(COINBASE_KEY_ID, COINBASE_KEY, "secret")
    orders = []

    def answer(request: httpx.Request) -> httpx.Response:
        orders.append(json.loads(request.content))
        return httpx.Response(201, json=PAID | {"status": "ACTIVE"})

    await provider._api._http.aclose()
    provider._api._http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    package = Package("builder_600", "Builder", 60_000, 5_000, "eur")
    await provider.create(
        SessionRequest("pur_1", "a@company.com", package, "Builder", f"{shop}/paid", f"{shop}/left")
    )
    back = {name: value for name, value in orders[0].items() if name.endswith("RedirectUrl")}
    if shop.startswith("https"):
        assert back == {
            "successRedirectUrl": f"{shop}/paid?by=crypto&session_id=pur_1",
            "failRedirectUrl": f"{shop}/left",
        }
    else:
        assert not back
    await provider.close()


@pytest.mark.parametrize("status", ["COMPLETED", "PARTIALLY_REFUNDED", "REFUNDED"])
def test_a_payment_that_coinbase_calls_complete_is_whole_however_its_coins_are_rounded(status):
    rounded = {"totalAmount": "57.86", "currency": "USDC"}
    session = in_euros(status=status, settlement=rounded, refundedAmount="1.00")
    assert (session.paid, session.closed, session.received_minor) == (True, False, 5_000)


def sent_back(status: str, *refunds: tuple[str, str]) -> list[tuple[int, bool]]:
    """What went back, by the checkout's status and the coins and status of each refund."""
    told = [
        {"id": f"ref_{n}", "amount": a, "currency": "USDC", "status": s} for n, (a, s) in enumerate(refunds)
    ]
    return [(each.amount_minor, each.stands) for each in in_euros(status=status, refunds=told).returns]


def test_a_refund_that_failed_takes_nothing():
    part, rest = "28.935", "28.935"
    assert sent_back("PARTIALLY_REFUNDED", (part, "COMPLETED")) == [(2_500, True)]
    assert sent_back("REFUNDED", (part, "COMPLETED"), (rest, "PENDING")) == [(5_000, True)]
    assert sent_back("PARTIALLY_REFUNDED", (part, "COMPLETED"), (rest, "FAILED")) == [(2_500, True)]
    assert sent_back("COMPLETED", ("57.87", "FAILED")) == [(5_000, False)]
    assert sent_back("COMPLETED", (part, "PENDING")) == []


def test_later_news_of_refunds_is_of_a_later_phase():
    phases = [
        in_euros(
            status="REFUNDED" if refunds[-1] != "FAILED" else "COMPLETED",
            refunds=[{"id": str(n), "amount": "9.00", "status": s} for n, s in enumerate(refunds)],
        )
        .returns[0]
        .phase
        for refunds in (["PENDING"], ["FAILED"], ["FAILED", "PENDING"], ["FAILED", "COMPLETED"])
    ]
    assert phases == sorted(set(phases))


def test_a_refund_is_in_the_money_that_it_is_told_in():
    told = [
        {"id": "ref_1", "amount": "30.00", "currency": "USDC", "fiatAmount": "25.00", "fiatCurrency": "EUR"}
    ]
    (back,) = in_euros(status="PARTIALLY_REFUNDED", refunds=told).returns
    assert back.amount_minor == 2_500
    (whole_sum,) = in_euros(status="PARTIALLY_REFUNDED", refundedAmount="28.935").returns
    assert whole_sum.amount_minor == 2_500
    with pytest.raises(PaymentsUnavailable):
        in_euros(status="PARTIALLY_REFUNDED", refunds=[{"id": "ref_1", "amount": "1.00", "currency": "GBP"}])
