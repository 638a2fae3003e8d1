"""The signatures of crypto providers: published vectors hold, everything near them does not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kit.errors import InvalidRequest
from kit.settings import COINBASE_LIVE
from kit.signing import BadKeys, private_key
from payments.btcpay_checkout import BtcpayCheckout
from payments.coinbase_checkout import CoinbaseCheckout
from payments.coinbase_commerce import CoinbaseCommerce
from payments.hook0 import HEADER, verify_hook0
from sandbox.testing import COINBASE_KEY, COINBASE_KEY_ID

T = 1636936200
V0 = "1b3d69df55f1e52f05224ba94a5162abeb17ef52cd7f4948c390f810d6a87e98"
V1 = "6ff29df35f86d5a22d7831397add4b3ff866238e983cd365990ca3910b628a5d"
SIGNED_V0 = {HEADER: f"t={T},v0={V0}"}
SIGNED_V1 = {
    HEADER: f"t={T},h=content-type x-event-id,v1={V1}",
    "content-type": "application/json",
    "x-event-id": "evt_1",
}


COMMERCE_SECRET = "30291a20-0bd1-4267-9b0f-e6e7b123c0bf"
COMMERCE_SIGNATURE = "8be7742c7d372f08a6a3224edadf18a22b65fa9e28f3f2de97376cdaa092590d"
COMMERCE_BODY = (
    b'{"id":1,"scheduled_for":"2017-01-31T20:50:02Z","attempt_number":1,"event":{"id":'
    b'"24934862-d980-46cb-9402-43c81b0cdba6","type":"charge:created","api_version":"2018-03-22","created_at":'
    b'"2017-01-31T20:49:02Z","data":{"code":"66BEOV2A","name":"The Sovereign Individual","description":'
    b'"Mastering the Transition to the Information Age","hosted_url":"https://commerce.coinbase.com/charges/66BEOV2A",'
    b'"created_at":"2017-01-31T20:49:02Z","expires_at":"2017-01-31T21:04:02Z","timeline":[{"time":'
    b'"2017-01-31T20:49:02Z","status":"NEW"}],"metadata":{},"pricing_type":"no_price","payments":[],"addresses":'
    b'{"bitcoin":"0000000000000000000000000000000000","ethereum":"0x0000000000000000000000000000000000000000",'
    b'"litecoin":"3000000000000000000000000000000000","bitcoincash":'
    b'"bitcoincash:000000000000000000000000000000000000000000"}}}}'
)
"""Source: the tests of Coinbase's own `coinbase-commerce` packages."""
SHA256_EQUALS = (
    "It's a Secret to Everybody",
    b"Hello, World!",
    "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
)
"""BTCPay publishes no vector; it signs as GitHub does. Source: GitHub, validating webhook deliveries."""


def test_the_published_vector_of_commerce_verifies():
    provider, headers = CoinbaseCommerce(COMMERCE_SECRET), {"x-cc-webhook-signature": COMMERCE_SIGNATURE}
    event = provider.verify(COMMERCE_BODY, headers)
    assert (event.event_id, event.type) == ("24934862-d980-46cb-9402-43c81b0cdba6", "charge:created")
    with pytest.raises(InvalidRequest):
        provider.verify(COMMERCE_BODY + b" ", headers)


async def test_the_published_vector_of_btcpays_scheme_verifies():
    """Its body is none of BTCPay's: what is refused then is the body, and no longer the signature."""
    secret, body, signature = SHA256_EQUALS
    provider = BtcpayCheckout("https://pay.example", "store", "key", secret)
    for sent, field in ((body, "body"), (body + b" ", "BTCPay-Sig")):
        with pytest.raises(InvalidRequest) as refused:
            provider.verify(sent, {"btcpay-sig": signature})
        assert refused.value.field == field
    await provider.close()


@pytest.mark.parametrize("signed_with", ["new", "old", "other"])
async def test_while_a_secret_is_rotated_either_is_valid(signed_with):
    two = " new ,old"
    invoice, charge = {"deliveryId": "a", "type": "InvoiceSettled"}, {"id": "1", "type": "charge:created"}
    body = json.dumps({**invoice, "event": charge | {"data": {}}}).encode()
    checkout = json.dumps(
        {"id": "68f7a946db0529ea9b6d3a12", "eventType": "checkout.payment.success"}
    ).encode()

    def digest(signed: bytes) -> str:
        return hmac.new(signed_with.encode(), signed, hashlib.sha256).hexdigest()

    coinbase = CoinbaseCheckout(COINBASE_KEY_ID, COINBASE_KEY, two, clock=lambda: T)
    btcpay = BtcpayCheckout("https://pay.example", "store", "key", two)
    for provider, sent, headers in (
        (coinbase, checkout, {HEADER: f"t={T},v0={digest(b'%d.' % T + checkout)}"}),
        (btcpay, body, {"btcpay-sig": f"sha256={digest(body)}"}),
        (CoinbaseCommerce(two), body, {"x-cc-webhook-signature": digest(body)}),
    ):
        if signed_with == "other":
            with pytest.raises(InvalidRequest):
                provider.verify(sent, headers)
        else:
            assert provider.verify(sent, headers).provider == provider.name
        await provider.close()


def test_the_published_vectors_verify():
    verify_hook0(["secret"], b"hello !", SIGNED_V0, T)
    verify_hook0(["secret"], b'{"a":1}', SIGNED_V1, T)
    verify_hook0(["secret"], b"hello !", SIGNED_V0, T + 300)


@pytest.mark.parametrize(
    ("body", "headers", "now"),
    [
        pytest.param(b"hello?!", SIGNED_V0, T, id="another body"),
        pytest.param(b"hello !", SIGNED_V0, T + 301, id="too old"),
        pytest.param(b"hello !", SIGNED_V0, T - 301, id="from the future"),
        pytest.param(b'{"a":1}', SIGNED_V1 | {"x-event-id": "evt_2"}, T, id="another header"),
        pytest.param(
            b'{"a":1}', {k: v for k, v in SIGNED_V1.items() if k != "x-event-id"}, T, id="a header is gone"
        ),
        pytest.param(b"hello !", {HEADER: f"t={T},v0={V0},v1={'0' * 64}"}, T, id="v1 without names"),
        pytest.param(
            b"hello !",
            {HEADER: f"t={T},v0={V0},h=content-type,v1={'0' * 64}", "content-type": "x"},
            T,
            id="a wrong v1 beside a right v0",
        ),
        pytest.param(b"hello !", {HEADER: f"t={T},v0={V0},t={T}"}, T, id="a time twice"),
        pytest.param(b"hello !", {HEADER: f"t={T}"}, T, id="no digest"),
        pytest.param(b"hello !", {HEADER: f"t={'9' * 400},v0={V0}"}, T, id="a huge time"),
        pytest.param(b"hello !", {HEADER: f"t=\u0661,v0={V0}"}, T, id="digits of another script"),
        pytest.param(b"hello !", {HEADER: f"t={T},v0=\u00e9"}, T, id="not ascii"),
        pytest.param(b"hello !", {HEADER: "x" * 5000}, T, id="too long"),
        pytest.param(b"hello !", {}, T, id="none"),
    ],
)
def test_whatever_differs_from_what_was_signed_is_refused(body, headers, now):
    with pytest.raises(InvalidRequest) as refused:
        verify_hook0(["secret"], body, headers, now)
    assert refused.value.field == "X-Hook0-Signature"


def coinbase() -> CoinbaseCheckout:
    return CoinbaseCheckout(COINBASE_KEY_ID, COINBASE_KEY, "secret", clock=lambda: T)


def hook0(body: bytes) -> dict[str, str]:
    return {HEADER: f"t={T},v0={hmac.new(b'secret', b'%d.' % T + body, hashlib.sha256).hexdigest()}"}


async def test_a_coinbase_event_is_known_by_its_checkout_its_type_and_its_refunds():
    provider = coinbase()
    paid = {"id": "68f7a946db0529ea9b6d3a12", "eventType": "checkout.payment.success", "amount": "1.00"}
    first = {"id": "ref_1", "status": "COMPLETED"}
    second = {"id": "ref_2", "status": "COMPLETED"}

    def known(event: dict[str, Any]) -> str:
        body = json.dumps(event).encode()
        found = provider.verify(body, hook0(body))
        assert found.object_id == paid["id"]
        return found.event_id

    def back(*refunds: dict[str, str]) -> str:
        return known(paid | {"eventType": "checkout.refund.success", "refunds": refunds})

    assert known(paid) == known(paid | {"status": "COMPLETED"}) == f"{paid['id']}:checkout.payment.success"
    assert back(first, second) == back(second, first), "the same news, in another order"
    assert len({back(first), back(second, first), back(first, second | {"status": "PENDING"})}) == 3
    unlisted = [{"refundId": "ref_1"}, {"refundId": "ref_2"}, {"refund": first}]
    assert len({known(paid | {"eventType": "checkout.refund.success"} | each) for each in unlisted}) == 3
    await provider.close()


@pytest.mark.parametrize("about", [{}, {"id": 7}, {"id": "w_1"}, {"id": "a\x00"}])
async def test_an_event_of_coinbases_about_no_checkout_is_kept_once_and_asks_nothing(about):
    provider = coinbase()
    known = set()
    for _ in range(2):
        body = json.dumps({"eventType": "wallet.activity.detected"} | about).encode()
        event = provider.verify(body, hook0(body))
        assert (event.type, event.object_id, event.body) == ("wallet.activity.detected", None, body)
        known.add(event.event_id)
    assert len(known) == 1
    await provider.close()


async def test_btcpay_redeliveries_are_one_event():
    provider = BtcpayCheckout("https://pay.example", "store", "key", "secret")
    event = {
        "deliveryId": "a",
        "type": "InvoiceSettled",
        "storeId": "store",
        "invoiceId": "4kSe5LQuFFXAA9VXDPTUBb",
    }
    again = event | {"deliveryId": "b", "originalDeliveryId": "a", "isRedelivery": True}
    known = []
    for each in (event, again):
        body = json.dumps(each).encode()
        digest = hmac.new(b"secret", body, hashlib.sha256).hexdigest()
        known.append(provider.verify(body, {"btcpay-sig": f"sha256={digest}"}).event_id)
        with pytest.raises(InvalidRequest):
            provider.verify(body + b" ", {"btcpay-sig": f"sha256={digest}"})
        with pytest.raises(InvalidRequest):
            provider.verify(body, {"btcpay-sig": digest})
    assert known == ["a", "a"]
    await provider.close()


async def test_an_event_of_another_store_or_of_no_invoice_asks_nothing():
    provider = BtcpayCheckout("https://pay.example", "store", "key", "secret")
    for change in ({"storeId": "other"}, {"invoiceId": "__test__1__test__"}, {"invoiceId": "../../keys"}):
        event = {"deliveryId": "a", "type": "InvoiceSettled", "storeId": "store"} | {
            "invoiceId": "4kSe5LQuFFXAA9VXDPTUBb",
            **change,
        }
        body = json.dumps(event).encode()
        digest = hmac.new(b"secret", body, hashlib.sha256).hexdigest()
        assert provider.verify(body, {"btcpay-sig": f"sha256={digest}"}).object_id is None
    await provider.close()


def test_a_commerce_webhook_is_signed_over_its_raw_body():
    provider = CoinbaseCommerce("secret")
    event = {"id": "e1", "type": "charge:created", "data": {"id": "c1"}}
    body = json.dumps({"event": event}).encode()
    digest = hmac.new(b"secret", body, hashlib.sha256).hexdigest()
    assert provider.verify(body, {"x-cc-webhook-signature": digest}).event_id == "e1"
    for wrong in (digest[::-1], digest.upper(), ""):
        with pytest.raises(InvalidRequest):
            provider.verify(body, {"x-cc-webhook-signature": wrong})


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"null", b"{}", b"\xff", b'{"event": 1}', b'{"id": [], "eventType": 1}'),
        b'{"eventType": "a\\u0000", "type": "a\\u0000", "event": {"id": "a\\u0000", "type": "a", "data": {}}}',
        b'{"id": "68f7a946db0529ea9b6d3a12", "eventType": "x", "refunds": [7], "deliveryId": "a\\u0000", "type": "a"}',
        b'{"id": "68f7a946db0529ea9b6d3a12", "eventType": "x", "refunds": {"a": 1}}',
    ],
)
async def test_a_signed_body_that_is_no_event_is_the_senders_fault(body):
    digest = hmac.new(b"secret", body, hashlib.sha256).hexdigest()
    btcpay, provider = BtcpayCheckout("https://pay.example", "store", "key", "secret"), coinbase()
    with pytest.raises(InvalidRequest):
        CoinbaseCommerce("secret").verify(body, {"x-cc-webhook-signature": digest})
    with pytest.raises(InvalidRequest):
        btcpay.verify(body, {"btcpay-sig": f"sha256={digest}"})
    with pytest.raises(InvalidRequest):
        provider.verify(body, hook0(body))
    await btcpay.close()
    await provider.close()


def pem() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()


@pytest.mark.parametrize("kind", ["Ed25519", "P-256", "P-256 on one line"])
async def test_each_request_carries_a_token_for_itself_alone(kind):
    secret = {"Ed25519": COINBASE_KEY, "P-256": pem(), "P-256 on one line": pem().replace("\n", "\\n")}[kind]
    provider = CoinbaseCheckout(COINBASE_KEY_ID, secret, "secret", clock=lambda: T)
    assert provider.livemode
    scheme, _, token = provider._authorization("GET", "/checkouts/1")["Authorization"].partition(" ")
    assert scheme == "Bearer"
    claims = jwt.decode(
        token,
        private_key(secret).public_key(),
        ["EdDSA" if kind == "Ed25519" else "ES256"],
        issuer="cdp",
        audience="cdp_service",
        options={"verify_exp": False, "verify_nbf": False},
    )
    assert claims["uris"] == [f"GET {COINBASE_LIVE.removeprefix('https://')}/checkouts/1"]
    assert (claims["sub"], claims["nbf"], claims["exp"]) == (COINBASE_KEY_ID, T, T + 120)
    header = jwt.get_unverified_header(token)
    assert (header["kid"], header["typ"]) == (COINBASE_KEY_ID, "JWT")
    other = provider._authorization("GET", "/checkouts/1")["Authorization"].partition(" ")[2]
    assert header["nonce"] != jwt.get_unverified_header(other)["nonce"]
    await provider.close()


@pytest.mark.parametrize("secret", ["", "x", base64.b64encode(b"short").decode(), "-----BEGIN x"])
def test_what_is_no_key_is_refused(secret):
    with pytest.raises(BadKeys):
        private_key(secret)


def test_a_provider_without_a_webhook_secret_is_refused():
    for none in ("", " ", ",", " , "):
        for make in (
            lambda: CoinbaseCheckout("id", COINBASE_KEY, none),  # noqa: B023  # called in its turn
            lambda: BtcpayCheckout("https://pay.example", "store", "key", none),  # noqa: B023
            lambda: CoinbaseCommerce(none),  # noqa: B023
        ):
            with pytest.raises(ValueError, match="webhook"):
                make()
