"""What a provider answers is a session of ours, or an error that a caller can act on; never a surprise."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import NotFound
from payments.btcpay_checkout import BtcpayCheckout
from payments.checkout import ProviderSession
from payments.coinbase_checkout import CoinbaseCheckout
from payments.errors import PaymentsUnavailable
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
