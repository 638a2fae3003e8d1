"""Coinbase's facilitator lets a request in by a token that its key signed for this very request."""

from __future__ import annotations

import base64

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import ValidationError

from kit.settings import Settings
from payments.cdp import CdpKey
from payments.errors import PaymentsUnavailable
from payments.x402_facilitator import HttpFacilitator
from sandbox.testing import COINBASE_KEY, COINBASE_KEY_ID, running
from sandbox.x402_facilitator import CdpGuard, Chain, create_facilitator

VERIFY = "https://api.cdp.coinbase.com/platform/v2/x402/verify"
EC_KEY = ec.generate_private_key(ec.SECP256R1())
PEM = EC_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
ED_KEY = Ed25519PrivateKey.from_private_bytes(base64.b64decode(COINBASE_KEY)[:32])


@pytest.mark.parametrize(
    ("secret", "algorithm", "public"),
    [(COINBASE_KEY, "EdDSA", ED_KEY.public_key()), (PEM, "ES256", EC_KEY.public_key())],
)
def test_a_token_has_the_published_form(secret, algorithm, public):
    header = CdpKey(COINBASE_KEY_ID, secret, lambda: 1_800_000_000.9).authorization("POST", VERIFY)
    token = header["Authorization"].removeprefix("Bearer ")
    head = jwt.get_unverified_header(token)
    assert (head["alg"], head["kid"], head["typ"]) == (algorithm, COINBASE_KEY_ID, "JWT")
    claims = jwt.decode(
        token, public, [algorithm], options={"verify_exp": False, "verify_nbf": False, "verify_aud": False}
    )
    assert claims == {
        "sub": COINBASE_KEY_ID,
        "iss": "cdp",
        "aud": ["cdp_service"],
        "nbf": 1_800_000_000,
        "exp": 1_800_000_120,
        "uris": ["POST api.cdp.coinbase.com/platform/v2/x402/verify"],
    }


def test_no_two_tokens_share_a_nonce():
    key = CdpKey(COINBASE_KEY_ID, COINBASE_KEY)
    tokens = [key.authorization("POST", VERIFY)["Authorization"].split()[1] for _ in range(20)]
    assert len({jwt.get_unverified_header(token)["nonce"] for token in tokens}) == 20


OTHER = base64.b64encode(bytes(range(1, 65))).decode()


@pytest.mark.parametrize(
    ("key", "lets_in"),
    [
        (CdpKey(COINBASE_KEY_ID, COINBASE_KEY), True),
        (CdpKey("another key", COINBASE_KEY), False),
        (CdpKey(COINBASE_KEY_ID, OTHER), False),
        (CdpKey(COINBASE_KEY_ID, COINBASE_KEY, lambda: 1_000_000_000), False),
        (None, False),
    ],
    ids=["ours", "another id", "another secret", "too old", "none"],
)
async def test_a_guarded_facilitator_answers_rightly_signed_requests_alone(key, lets_in):
    chain = Chain()
    offer = {
        "resource": {"url": "https://shop.example"},
        "accepts": [
            {
                "scheme": "exact",
                "network": "eip155:84532",
                "amount": "10",
                "payTo": "0x" + "1" * 40,
                "asset": "0x" + "2" * 40,
                "maxTimeoutSeconds": 60,
            }
        ],
    }
    payment = chain.sign(offer)
    with running(create_facilitator(chain, CdpGuard(COINBASE_KEY_ID, COINBASE_KEY))) as url:
        facilitator = HttpFacilitator(url, key=key)
        try:
            if lets_in:
                assert (await facilitator.verify(payment)).valid
                assert (await facilitator.settle(payment)).success
            else:
                with pytest.raises(PaymentsUnavailable):
                    await facilitator.verify(payment)
                assert (await facilitator.settle(payment)).pending
                assert chain.settles == 0
        finally:
            await facilitator.close()


@pytest.mark.parametrize(
    "half",
    [
        {"x402_cdp_key_id": "id"},
        {"x402_cdp_key_secret": COINBASE_KEY},
        {"x402_cdp_key_id": "id", "x402_cdp_key_secret": "no key"},
        {"x402_cdp_key_id": "id", "x402_cdp_key_secret": COINBASE_KEY, "x402_facilitator_token": "t"},
    ],
)
def test_half_a_key_or_two_ways_to_sign_in_are_refused_at_the_start(half):
    with pytest.raises(ValidationError):
        Settings(**half)
