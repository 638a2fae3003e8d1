"""The twin of a facilitator answers the official facilitator client as the real one does."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from eth_account import Account
from x402 import x402Client
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.schemas import PaymentPayload, PaymentRequired

from sandbox.testing import running
from sandbox.x402_facilitator import START_MINOR, Chain, create_facilitator

OFFER: dict[str, Any] = {
    "x402Version": 2,
    "resource": {"url": "http://farebox.test/api/v1/media/jobs"},
    "accepts": [
        {
            "scheme": "exact",
            "network": "eip155:84532",
            "amount": "100000",
            "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
            "payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
            "maxTimeoutSeconds": 300,
            "extra": {"name": "USDC", "version": "2"},
        }
    ],
}


@pytest.fixture
def chain() -> Chain:
    return Chain()


@pytest.fixture
def url(chain: Chain) -> Iterator[str]:
    with running(create_facilitator(chain)) as url:
        yield url


async def payment_of(account) -> PaymentPayload:
    payer = x402Client()
    payer.register("eip155:*", ExactEvmScheme(account))
    return await payer.create_payment_payload(PaymentRequired.model_validate(OFFER))


def test_the_published_example_verifies_and_nothing_near_it_does(chain):
    """Source: the example of the x402 specification, scheme `exact` on EVM chains."""
    signed = {
        "from": "0x857b06519E91e3A54538791bDbb0E22373e36b66",
        "to": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
        "value": "10000",
        "validAfter": "1740672089",
        "validBefore": "1740672154",
        "nonce": "0xf3746613c2d920b5fdabc0856f2aeb2d4f88ee6037b8cc5d04a71a4462f13480",
    }
    signature = (
        "0x2d6a7588d6acca505cbf0d9a4a227e0c52c6c34008c8e8986a1283259764173608a2ce6496642e377d6da8dbbf5836e9bd15092f9e"
        "cab05ded3d6293af148b571c"
    )
    wanted = OFFER["accepts"][0] | {"amount": "10000"}

    def problem(**changes: str) -> str | None:
        authorization = signed | changes
        payload = {"signature": signature, "authorization": authorization}
        return chain.problem({"accepted": wanted, "payload": payload}, wanted)

    chain.clock = lambda: 1_740_672_100.0
    assert problem() is None
    assert problem(nonce=f"0x{'1' * 64}") == "invalid_exact_evm_payload_signature"
    assert problem(**{"from": signed["to"]}) == "invalid_exact_evm_payload_signature"
    chain.clock = lambda: 1_740_672_154.0
    assert problem() == "invalid_exact_evm_payload_authorization_valid_before"


async def test_a_real_signature_is_good_and_moves_money_once(chain, url):
    account = Account.create()
    payment = await payment_of(account)
    async with HTTPFacilitatorClient(FacilitatorConfig(url=url)) as facilitator:
        verdict = await facilitator.verify(payment, payment.accepted)
        assert (verdict.is_valid, verdict.payer) == (True, account.address)
        first = await facilitator.settle(payment, payment.accepted)
        second = await facilitator.settle(payment, payment.accepted)
    assert first.success
    assert second.transaction == first.transaction
    assert chain.balance(account.address) == START_MINOR - 100_000
    assert chain.balances["0x209693bc6afc0c5328ba36faf03c514ef312287c"] == 100_000


async def test_a_used_nonce_is_refused_by_a_facilitator_that_forgets(chain, url):
    chain.forgets = True
    payment = await payment_of(Account.create())
    async with HTTPFacilitatorClient(FacilitatorConfig(url=url)) as facilitator:
        assert (await facilitator.settle(payment, payment.accepted)).success
        verdict = await facilitator.verify(payment, payment.accepted)
        again = await facilitator.settle(payment, payment.accepted)
    assert (verdict.is_valid, verdict.invalid_reason) == (False, "invalid_exact_evm_nonce_already_used")
    assert (again.success, again.error_reason) == (False, "invalid_exact_evm_nonce_already_used")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("from", "0x" + "1" * 40, "invalid_exact_evm_payload_signature"),
        ("to", "0x" + "1" * 40, "invalid_exact_evm_payload_recipient_mismatch"),
        ("value", "1", "invalid_exact_evm_payload_authorization_value_mismatch"),
        ("validBefore", "1", "invalid_exact_evm_payload_authorization_valid_before"),
        ("validAfter", "99999999999", "invalid_exact_evm_payload_authorization_valid_after"),
        ("nonce", "0x" + "2" * 64, "invalid_exact_evm_payload_signature"),
    ],
)
async def test_a_changed_authorization_is_refused(url, field, value, reason):
    payment = await payment_of(Account.create())
    payment.payload["authorization"][field] = value
    async with HTTPFacilitatorClient(FacilitatorConfig(url=url)) as facilitator:
        verdict = await facilitator.verify(payment, payment.accepted)
    assert (verdict.is_valid, verdict.invalid_reason) == (False, reason)


async def test_outcomes_come_as_arranged(chain, url):
    payment = await payment_of(Account.create())
    async with (
        httpx.AsyncClient() as control,
        HTTPFacilitatorClient(FacilitatorConfig(url=url)) as facilitator,
    ):
        await control.post(f"{url}/_twin/next", json={"outcomes": ["fail", "pending"]})
        failed = await facilitator.settle(payment, payment.accepted)
        assert (failed.success, failed.error_reason, chain.transactions) == (False, "transaction_failed", {})
        pending = await facilitator.settle(payment, payment.accepted)
        assert (pending.success, pending.error_reason) == (False, "settlement_pending")
        done = await facilitator.settle(payment, payment.accepted)
        assert (done.success, done.transaction) == (True, pending.transaction)
        assert (await control.get(f"{url}/_twin/chain")).json()["transfers"] == 1


async def test_its_own_wallet_signs_for_who_has_none(chain, url):
    header = base64.b64encode(json.dumps(OFFER).encode()).decode()
    async with httpx.AsyncClient() as control:
        signed = (await control.post(f"{url}/_twin/sign", json={"paymentRequired": header})).json()
    payment = PaymentPayload.model_validate_json(base64.b64decode(signed["paymentSignature"]))
    async with HTTPFacilitatorClient(FacilitatorConfig(url=url)) as facilitator:
        assert (await facilitator.verify(payment, payment.accepted)).is_valid
        payment.payload["authorization"]["nonce"] = "0x" + "3" * 64
        assert not (await facilitator.verify(payment, payment.accepted)).is_valid
