"""The wire of x402: whatever comes in is a payment of its form or a 400, and no answer is taken for another."""

from __future__ import annotations

import base64
import json

import pytest
from fastapi import FastAPI
from fastapi.responses import Response
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kit.errors import InvalidRequest
from kit.settings import Settings
from payments.errors import PaymentsUnavailable
from payments.x402 import X402Checkout
from payments.x402_facilitator import UNANSWERED, HttpFacilitator
from payments.x402_wire import ASSETS, Call, Till, parse_payment
from sandbox.testing import running

CALL = Call("POST /api/v1/media/jobs", "image.generate", "f" * 64, "image.generate", 1, 100, 100_000)
PAYLOAD = {"accepted": {}, "payload": {}}
WALLETS = {"x402_facilitator": "https://x402.org/facilitator", "x402_pay_to": "0x" + "1" * 40}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.fixed_dictionaries(
        {"x402Version": st.just(2) | anything},
        optional={
            "accepted": anything,
            "payload": anything | st.fixed_dictionaries({"signature": anything, "authorization": anything}),
        },
    )
    | anything
)
def test_what_is_no_payment_is_named_as_such(value):
    with pytest.raises(InvalidRequest):
        parse_payment(base64.b64encode(json.dumps(value).encode()).decode())


@given(st.text(max_size=200))
def test_what_is_no_base64_is_named_as_such(header):
    with pytest.raises(InvalidRequest):
        parse_payment(header)


def test_no_two_offers_of_one_call_have_the_same_quote():
    till = Till(ASSETS["eip155:84532"], "0x" + "1" * 40, b"a secret of this test run alone")
    assert till.required(CALL, "http://t", "", 0) != till.required(CALL, "http://t", "", 0)


@pytest.mark.parametrize(
    ("tokens", "tokens_per_usdc", "minor"),
    [(100, 1000, 100_000), (1, 3, 333_334), (3, 3, 1_000_000), (1, 1_000_000, 1), (1, 2_000_000, 1)],
)
def test_a_price_is_rounded_up_once(tokens, tokens_per_usdc, minor):
    checkout = X402Checkout(None, None, None, tokens_per_usdc)
    assert checkout.price_minor(tokens) == minor


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"not json"),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"success": "true", "isValid": 1}'),
        (302, b'{"success": true, "isValid"'),
        (429, b"{}"),
        (500, b'{"success": true, "isValid": true}'),
    ],
)
async def test_an_answer_without_a_verdict_is_no_verdict(status, body):
    app = FastAPI(openapi_url=None)

    @app.post("/{verb}")
    async def answer(verb: str) -> Response:
        return Response(body, status)

    with running(app) as url:
        facilitator = HttpFacilitator(url)
        with pytest.raises(PaymentsUnavailable):
            await facilitator.verify(PAYLOAD)
        assert await facilitator.settle(PAYLOAD) == UNANSWERED
        await facilitator.close()


async def test_a_facilitator_that_is_away_settles_nothing_and_refuses_nothing():
    facilitator = HttpFacilitator("http://127.0.0.1:9")
    with pytest.raises(PaymentsUnavailable):
        await facilitator.verify(PAYLOAD)
    assert (await facilitator.settle(PAYLOAD)).pending
    await facilitator.close()


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"x402_facilitator": "https://x402.org/facilitator"}, "PAY_TO"),
        (WALLETS | {"x402_network": "eip155:8453", "sandbox": True}, "sandbox"),
        (WALLETS | {"stripe_secret_key": "sk_live_1", "stripe_webhook_secret": "whsec_1"}, "test USDC"),
        (WALLETS | {"x402_pay_to": "0x12"}, "x402_pay_to"),
        (WALLETS | {"x402_facilitator": "facilitator"}, "x402_facilitator"),
        (WALLETS | {"x402_network": "eip155:1"}, "x402_network"),
    ],
)
def test_settings_that_mix_or_lack_money_are_refused(values, what):
    with pytest.raises(ValidationError, match=what):
        Settings(**values)


def test_real_usdc_starts_no_sandbox_by_itself():
    assert Settings(**WALLETS).wants_sandbox
    assert not Settings(**WALLETS, x402_network="eip155:8453").wants_sandbox
