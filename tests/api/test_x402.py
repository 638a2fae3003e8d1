"""A stranger with a wallet pays for a call, over the real books and the facilitator's twin; routes by status."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from eth_account import Account
from fastapi import FastAPI
from sqlalchemy import text
from x402 import x402Client
from x402.http.clients.httpx import x402HttpxClient
from x402.mechanisms.evm.exact import ExactEvmScheme

from gateway.answers import Problem
from gateway.app import create_app
from gateway.x402_answers import AccountToppedUp, PackageBought, PaidJobAccepted
from kit.errors import Unavailable
from kit.settings import Settings
from ledger.accounts import freeze
from ledger.debts import clawback
from payments.x402 import X402Checkout, x402_for
from sandbox.testing import running
from sandbox.x402_facilitator import Chain, create_facilitator

JOBS, BUY = "/api/v1/media/jobs", "/api/v1/checkout/x402"
PAY_TO = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
FOX = {"task": "image.generate", "input": {"prompt": "cinematic fox astronaut", "aspectRatio": "1:1"}}
BUILDER = {"packageCode": "builder_600"}


@pytest.fixture
def chain() -> Chain:
    return Chain()


@pytest.fixture
def facilitator(chain: Chain) -> Iterator[str]:
    with running(create_facilitator(chain)) as url:
        yield url


@pytest.fixture
def selling(settings: Settings, facilitator: str) -> Settings:
    return Settings(**{**settings.model_dump(), "x402_facilitator": facilitator, "x402_pay_to": PAY_TO})


@pytest_asyncio.fixture
async def x402(selling: Settings, ledger) -> AsyncIterator[X402Checkout]:
    checkout = x402_for(selling, ledger)
    yield checkout
    await checkout.close()


@pytest.fixture
def app(selling: Settings, ledger, models, objects, x402) -> FastAPI:
    return create_app(selling, ledger, models, None, objects, x402=x402)


def decoded(header: str) -> dict[str, Any]:
    return dict(json.loads(base64.b64decode(header)))


def encoded(value: dict[str, Any]) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


async def offered(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(path, json=body)
    assert answer.status_code == 402, answer.text
    return decoded(answer.headers["payment-required"])


async def signed(
    chain: Chain, client: httpx.AsyncClient, path: str = JOBS, body: dict[str, Any] | None = None
) -> dict[str, str]:
    """The header of a payment, by the twin's own wallet, for the offer of this call."""
    return {"payment-signature": encoded(chain.sign(await offered(client, path, body or FOX)))}


async def wallet_tokens(client: httpx.AsyncClient, key: str) -> int:
    answer = await client.get("/api/v1/credits/balance", headers={"x-api-key": key})
    return int(answer.json()["tokens"])


@pytest.mark.parametrize("first_names", [False, True])
async def test_a_settled_payment_is_granted_by_whichever_name_its_network_is_told(client, chain, first_names):
    chain.first_names = first_names
    paid = await client.post(BUY, json=BUILDER, headers=await signed(chain, client, BUY, BUILDER))
    assert paid.status_code == 200, paid.text
    assert decoded(paid.headers["payment-response"])["network"] == "eip155:84532"


# -- 402 ---------------------------------------------------------------------------------------------------------


async def test_402_offers_this_very_call_at_its_price(client):
    answer = await client.post(JOBS, json=FOX)
    assert answer.status_code == 402
    refusal = Problem.model_validate_json(answer.content)
    assert refusal.error == "payment_required"
    offer = decoded(answer.headers["payment-required"])
    assert refusal.details == offer
    wanted = offer["accepts"][0]
    assert (wanted["scheme"], wanted["network"], wanted["payTo"]) == ("exact", "eip155:84532", PAY_TO)
    assert wanted["amount"] == "100000", "100 tokens at 1000 a USDC are a tenth of one"
    assert wanted["extra"]["paymentFlow"] == "upfront"


async def test_402_for_a_payment_that_the_facilitator_finds_bad(client, chain):
    payment = chain.sign(await offered(client, JOBS, FOX))
    payment["payload"]["signature"] = "0x" + "00" * 65
    answer = await client.post(JOBS, json=FOX, headers={"payment-signature": encoded(payment)})
    assert answer.status_code == 402
    assert "invalid_exact_evm_payload_signature" in answer.json()["message"]
    assert chain.settles == 0


@pytest.mark.parametrize(
    "other",
    [
        {**FOX, "input": {"prompt": "another fox"}},
        {**FOX, "creditsToConsume": 1},
    ],
)
async def test_402_for_a_payment_of_another_call(client, chain, other):
    payment = await signed(chain, client)
    answer = await client.post(JOBS, json=other, headers=payment)
    assert answer.status_code == 402, answer.text
    assert (chain.verifies, chain.settles) == (0, 0)


async def test_402_for_a_payment_of_another_path(client, chain):
    payment = await signed(chain, client, BUY, BUILDER)
    assert (await client.post(JOBS, json=FOX, headers=payment)).status_code == 402
    assert chain.settles == 0


@pytest.mark.parametrize("field", ["payTo", "amount", "network", "quote"])
async def test_402_for_terms_that_are_not_ours(client, chain, field):
    offer = await offered(client, JOBS, FOX)
    wanted = offer["accepts"][0]
    if field == "quote":
        wanted["extra"]["quote"] = wanted["extra"]["quote"][:-2] + "AA"
    else:
        wanted[field] = {"payTo": chain.wallet, "amount": "1", "network": "eip155:8453"}[field]
    answer = await client.post(JOBS, json=FOX, headers={"payment-signature": encoded(chain.sign(offer))})
    assert answer.status_code == 402
    assert (chain.verifies, chain.settles) == (0, 0)


async def test_402_for_an_offer_that_is_over(client, chain, x402):
    payment = await signed(chain, client)
    began = x402._clock()
    x402._clock = lambda: began + 301
    assert (await client.post(JOBS, json=FOX, headers=payment)).status_code == 402
    assert chain.settles == 0


async def test_402_for_a_wallet_that_has_too_little(client, chain):
    chain.balances[chain.wallet] = 99_999
    payment = await signed(chain, client)
    answer = await client.post(JOBS, json=FOX, headers=payment)
    assert answer.status_code == 402
    assert "insufficient" in answer.json()["message"]


async def test_402_for_a_settlement_that_failed_and_again_for_its_repeat(client, chain):
    chain.arranged.append("fail")
    payment = await signed(chain, client)
    for _ in range(2):
        answer = await client.post(JOBS, json=FOX, headers=payment)
        assert answer.status_code == 402
        assert "transaction_failed" in answer.json()["message"]
    assert (chain.settles, len(chain.transactions)) == (1, 0)
    assert (await client.post(JOBS, json=FOX, headers=await signed(chain, client))).status_code == 202


# -- 202 and 200 -------------------------------------------------------------------------------------------------


async def test_202_for_a_paid_job_whose_key_reads_it(client, chain, db, assert_sound):
    answer = await client.post(JOBS, json=FOX, headers=await signed(chain, client))
    assert answer.status_code == 202, answer.text
    job = PaidJobAccepted.model_validate_json(answer.content)
    assert job.balance_after_tokens == 0, "a purchase of exactly the price"
    assert decoded(answer.headers["payment-response"])["transaction"] == job.payment.transaction
    assert chain.balances[PAY_TO.lower()] == 100_000
    headers = {"x-api-key": job.payment.api_key}
    shown = await client.get(f"{JOBS}/{job.job_id}", headers=headers)
    assert (shown.status_code, shown.json()["status"]) == (200, "queued")
    keys = await client.post("/api/v1/keys", json={"label": "more"}, headers=headers)
    assert keys.status_code == 403, "a job's key makes no keys"
    await assert_sound(db)


async def test_the_same_payment_again_is_the_same_job_and_the_same_key(client, chain, db, assert_sound):
    payment = await signed(chain, client)
    first, second = [await client.post(JOBS, json=FOX, headers=payment) for _ in range(2)]
    assert (first.status_code, second.status_code) == (202, 202)
    assert second.headers["idempotent-replayed"] == "true"
    assert second.json() == first.json()
    assert (chain.settles, len(chain.transactions)) == (1, 1)
    await assert_sound(db)


async def test_a_payment_is_answered_again_after_its_offer_is_over(client, chain, x402):
    payment = await signed(chain, client)
    first = await client.post(JOBS, json=FOX, headers=payment)
    began = x402._clock()
    x402._clock = lambda: began + 10_000
    again = await client.post(JOBS, json=FOX, headers=payment)
    assert (again.status_code, again.json()) == (202, first.json())


async def test_what_a_canceled_job_cost_stays_the_wallets(client, chain):
    first = (await client.post(JOBS, json=FOX, headers=await signed(chain, client))).json()
    headers = {"x-api-key": first["payment"]["apiKey"]}
    await client.post(f"{JOBS}/{first['jobId']}/cancel", headers=headers)
    second = (await client.post(JOBS, json=FOX, headers=await signed(chain, client))).json()
    assert second["balanceAfterTokens"] == 100, "the second payment's key sees what the first left"
    unpaid = await client.post(JOBS, json=FOX, headers={"x-api-key": second["payment"]["apiKey"]})
    assert (unpaid.status_code, unpaid.json()["balanceAfterTokens"]) == (202, 0)


async def test_200_for_a_package_with_a_full_key(client, chain, db, assert_sound):
    payment = await signed(chain, client, BUY, BUILDER)
    answer = await client.post(BUY, json=BUILDER, headers=payment)
    assert answer.status_code == 200, answer.text
    bought = PackageBought.model_validate_json(answer.content)
    assert (bought.payment.amount, bought.payment.tokens) == ("50000000", 60_000)
    assert await wallet_tokens(client, bought.api_key) == 60_000
    assert (bought.scopes, bought.expires_at) == (None, None)
    again = await client.post(BUY, json=BUILDER, headers=payment)
    assert again.json() == answer.json()
    assert again.headers["idempotent-replayed"] == "true"
    await assert_sound(db)


async def test_one_idempotency_key_is_paid_once_whatever_the_wallet_signs(client, chain, db, assert_sound):
    retry = {"x-idempotency-key": "job-001"}
    first = await client.post(JOBS, json=FOX, headers=await signed(chain, client) | retry)
    second = await client.post(JOBS, json=FOX, headers=await signed(chain, client) | retry)
    assert (second.status_code, second.json()) == (202, first.json())
    assert len(chain.transactions) == 1
    other = {**FOX, "input": {"prompt": "another fox"}}
    reused = await client.post(JOBS, json=other, headers=await signed(chain, client, body=other) | retry)
    assert (reused.status_code, reused.json()["error"]) == (409, "payment_reused")
    assert len(chain.transactions) == 1
    await assert_sound(db)


# -- 409 and 503 -------------------------------------------------------------------------------------------------


async def test_409_for_a_signature_off_the_chain_without_the_first_quote(client, chain):
    """A settled signature is public: whoever copies it, with an offer of their own, must not get the key."""
    offer = await offered(client, JOBS, FOX)
    payment = chain.sign(offer)
    paid = await client.post(JOBS, json=FOX, headers={"payment-signature": encoded(payment)})
    assert paid.status_code == 202
    stolen = {**payment, "accepted": (await offered(client, JOBS, FOX))["accepts"][0]}
    answer = await client.post(JOBS, json=FOX, headers={"payment-signature": encoded(stolen)})
    assert (answer.status_code, answer.json()["error"]) == (409, "payment_reused")
    assert "apiKey" not in answer.text


async def due_now(db) -> None:
    async with db.transaction() as conn:
        await conn.execute(text("UPDATE x402_payments SET due_at = now() WHERE state = 'settling'"))


async def test_the_same_payment_ten_times_at_once_is_one_job(client, chain, db, assert_sound):
    payment = await signed(chain, client)
    answers = await asyncio.gather(*(client.post(JOBS, json=FOX, headers=payment) for _ in range(10)))
    assert {a.status_code for a in answers} <= {202, 409}
    assert {a.json()["error"] for a in answers if a.status_code == 409} <= {"settlement_pending"}
    again = await client.post(JOBS, json=FOX, headers=payment)
    assert again.status_code == 202
    assert {a.json()["jobId"] for a in answers if a.status_code == 202} == {again.json()["jobId"]}
    assert (chain.settles, len(chain.transactions)) == (1, 1)
    await assert_sound(db)


@pytest.mark.parametrize("outcome", ["lost", "pending", "down"])
async def test_409_while_nobody_knows_and_then_paid_once(client, chain, db, assert_sound, outcome):
    chain.arranged.append(outcome)
    payment = await signed(chain, client)
    pending = await client.post(JOBS, json=FOX, headers=payment)
    assert (pending.status_code, pending.json()["error"]) == (409, "settlement_pending")
    assert pending.headers["retry-after"] == "5"
    early = await client.post(JOBS, json=FOX, headers=payment)
    assert (early.status_code, chain.settles) == (409, 1), "nobody asks again before it is due"
    await due_now(db)
    paid = await client.post(JOBS, json=FOX, headers=payment)
    assert paid.status_code == 202, paid.text
    assert (chain.settles, len(chain.transactions)) == (2, 1)
    await assert_sound(db)


async def test_upkeep_settles_what_its_caller_gave_up(client, chain, db, x402, assert_sound):
    chain.arranged.append("lost")
    payment = await signed(chain, client)
    assert (await client.post(JOBS, json=FOX, headers=payment)).status_code == 409
    await due_now(db)
    await x402.settle_due(10)
    await x402.settle_due(10)
    assert chain.settles == 2
    paid = await client.post(JOBS, json=FOX, headers=payment)
    assert (paid.status_code, chain.settles) == (202, 2)
    await assert_sound(db)


async def test_an_answer_that_the_books_could_not_take_at_once_is_not_lost(  # noqa: PLR0917  # fixtures
    client, chain, server, db, monkeypatch, assert_sound
):
    """The facilitator forgets: had its answer been lost, the payment would be unclear."""
    chain.forgets = True
    away = iter([True, True])
    conclude = server.conclude_x402

    async def flaky(*args):
        if next(away, False):
            raise Unavailable("The ledger", 2)
        return await conclude(*args)

    monkeypatch.setattr(server, "conclude_x402", flaky)
    monkeypatch.setattr("payments.x402.CONCLUDE_PAUSES_S", (0, 0))
    paid = await client.post(JOBS, json=FOX, headers=await signed(chain, client))
    assert (paid.status_code, chain.settles) == (202, 1), paid.text
    await assert_sound(db)


async def test_a_crash_after_the_settlement_is_made_good(  # noqa: PLR0917  # fixtures
    client, chain, server, db, monkeypatch, assert_sound
):
    async def dies(*args):
        raise RuntimeError("killed with the answer in its hand")

    payment = await signed(chain, client)
    with monkeypatch.context() as broken:
        broken.setattr(server, "conclude_x402", dies)
        assert (await client.post(JOBS, json=FOX, headers=payment)).status_code == 500
    assert len(chain.transactions) == 1
    await due_now(db)
    paid = await client.post(JOBS, json=FOX, headers=payment)
    assert (paid.status_code, len(chain.transactions)) == (202, 1)
    await assert_sound(db)


async def test_409_settlement_unclear_when_a_used_nonce_is_all_that_is_known(client, chain, db, assert_sound):
    """The wallet may have used the nonce for a payment to itself: a used nonce is no proof of ours."""
    chain.forgets = True
    chain.arranged.append("lost")
    payment = await signed(chain, client)
    assert (await client.post(JOBS, json=FOX, headers=payment)).status_code == 409
    await due_now(db)
    for _ in range(2):
        answer = await client.post(JOBS, json=FOX, headers=payment)
        assert (answer.status_code, answer.json()["error"]) == (409, "settlement_unclear")
    await assert_sound(db)


async def test_503_when_the_facilitator_cannot_verify(client, chain):
    payment = await signed(chain, client)
    chain.arranged.append("verify:down")
    answer = await client.post(JOBS, json=FOX, headers=payment)
    assert (answer.status_code, answer.json()["error"]) == (503, "payments_unavailable")
    assert (await client.post(JOBS, json=FOX, headers=payment)).status_code == 202


# -- 400, 401, 403 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header", ["", "!", "bm8=", encoded({"x402Version": 1}), encoded({"x402Version": 2, "payload": []})]
)
async def test_400_for_a_header_that_is_no_payment(client, chain, header):
    answer = await client.post(JOBS, json=FOX, headers={"payment-signature": header})
    assert answer.status_code == 400, answer.text
    assert answer.json()["details"][0]["field"] == "PAYMENT-SIGNATURE"


@pytest.mark.parametrize("field", ["from", "to", "value", "validAfter", "validBefore", "nonce"])
async def test_400_for_a_field_that_is_not_of_its_form(client, chain, field):
    payment = chain.sign(await offered(client, JOBS, FOX))
    for bad in (7, None, "", "0x00\u0000", "1" * 200):
        payment["payload"]["authorization"][field] = bad
        answer = await client.post(JOBS, json=FOX, headers={"payment-signature": encoded(payment)})
        assert answer.status_code == 400, (bad, answer.text)


async def test_400_for_a_bad_job_before_any_price(client):
    assert (await client.post(JOBS, json={"task": "image.generate", "input": {}})).status_code == 400


async def test_400_for_a_bad_webhook_url_before_any_money_is_taken(client, chain):
    order = {**FOX, "webhookUrl": "https://127.0.0.1/hook"}
    answer = await client.post(JOBS, json=order)
    assert answer.status_code == 400, answer.text
    assert answer.json()["details"][0]["field"] == "webhookUrl"
    assert chain.settles == 0


async def test_401_for_a_wrong_key_although_wallets_may_pay(client, chain):
    answer = await client.post(JOBS, json=FOX, headers={"x-api-key": "amai_live_" + "K" * 43})
    assert answer.status_code == 401


async def test_401_and_503_where_no_facilitator_is_configured(settings, ledger, models, objects):
    app = create_app(settings, ledger, models, None, objects)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://farebox.test") as client:
        assert (await client.post(JOBS, json=FOX)).status_code == 401
        answer = await client.post(BUY, json=BUILDER)
        assert (answer.status_code, answer.json()["error"]) == (503, "payments_unavailable")


async def test_403_for_a_suspended_wallet_whose_money_is_not_taken(client, chain, db):
    await client.post(JOBS, json=FOX, headers=await signed(chain, client))
    async with db.transaction() as conn:
        await conn.execute(text("UPDATE users SET suspended_at = now()"))
    answer = await client.post(JOBS, json=FOX, headers=await signed(chain, client))
    assert (answer.status_code, chain.settles) == (403, 1)


@pytest.mark.parametrize("why", ["an operator", "a debt"])
async def test_403_for_a_job_of_a_frozen_wallet_whose_money_is_not_taken(client, chain, db, why):
    await client.post(JOBS, json=FOX, headers=await signed(chain, client))
    async with db.transaction() as conn:
        bought = (
            await conn.execute(
                text(
                    "SELECT a.id AS account_id, p.id FROM purchases p JOIN accounts a ON a.user_id = p.user_id"
                )
            )
        ).one()
        if why == "a debt":  # the credits are held for the job
            await clawback(
                conn, bought.account_id, purchase_id=bought.id, amount_tokens=100, reference="ret_1",
                event_at=datetime.now(UTC),
            )  # fmt: skip
        else:
            await freeze(conn, bought.account_id)
    answer = await client.post(JOBS, json=FOX, headers=await signed(chain, client))
    assert (answer.status_code, answer.json()["error"], chain.settles) == (403, "account_frozen", 1)
    package = await client.post(BUY, json=BUILDER, headers=await signed(chain, client, BUY, BUILDER))
    assert (package.status_code, chain.settles) == (200, 2), "what pays a debt is taken"


@pytest_asyncio.fixture
async def tight_client(selling, ledger, models, objects, x402) -> AsyncIterator[httpx.AsyncClient]:
    """A stranger where a wallet may pay once a minute."""
    tight = Settings(**{**selling.model_dump(), "limit_purchase": 1})
    app = create_app(tight, ledger, models, None, objects, x402=x402)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://farebox.test"
    ) as client:
        yield client


async def test_429_for_a_wallet_that_pays_too_often(tight_client, chain):
    payments = [await signed(chain, tight_client, BUY, BUILDER) for _ in range(2)]
    answers = [await tight_client.post(BUY, json=BUILDER, headers=each) for each in payments]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert chain.settles == 1


async def test_a_stranger_who_names_a_wallet_uses_up_none_of_its_requests(tight_client, chain):
    forged = chain.sign(await offered(tight_client, BUY, BUILDER))
    forged["payload"]["signature"] = "0x" + "00" * 65
    answers = [
        await tight_client.post(BUY, json=BUILDER, headers=each)
        for each in ({"payment-signature": encoded(forged)}, await signed(chain, tight_client, BUY, BUILDER))
    ]
    assert [answer.status_code for answer in answers] == [402, 200]


async def test_a_wallets_address_of_record_is_no_e_mail_address(client, chain, db):
    """Else somebody could open its account first, and own what its payments bring."""
    await client.post(JOBS, json=FOX, headers=await signed(chain, client))
    async with db.transaction() as conn:
        email = (await conn.execute(text("SELECT email FROM users"))).scalar_one()
    for path in ("/api/v1/auth/email/start", "/api/v1/checkout/stripe"):
        answer = await client.post(path, json={"email": email, **(BUILDER if "stripe" in path else {})})
        assert answer.status_code == 400, (email, answer.text)


# -- the official client -----------------------------------------------------------------------------------------


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The app behind a socket, on this loop: its books' connections belong to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


async def test_the_official_client_pays_for_a_job_and_reads_it(app, chain, db, assert_sound):
    account = Account.create()
    payer = x402Client()
    payer.register("eip155:*", ExactEvmScheme(account))
    async with served(app) as url, x402HttpxClient(payer, base_url=url, timeout=30) as agent:
        answer = await agent.post(JOBS, json=FOX)
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert job["payment"]["payer"] == account.address.lower()
        receipt = decoded(answer.headers["payment-response"])
        assert receipt["transaction"] in chain.transactions.values()
        key = {"x-api-key": job["payment"]["apiKey"]}
        shown = await agent.get(f"{JOBS}/{job['jobId']}", headers=key)
        assert shown.json()["status"] == "queued"
        payer.set_spend_controls(False)  # by itself it pays a dollar at most, and a package is fifty
        bought = await agent.post(BUY, json=BUILDER)
        assert bought.status_code == 200, bought.text
        assert await wallet_tokens(agent, bought.json()["apiKey"]) == 60_000
    assert (chain.settles, len(chain.transactions)) == (2, 2)
    await assert_sound(db)


async def test_the_official_client_is_told_why_a_poor_wallet_cannot_pay(app, chain):
    account = Account.create()
    chain.balances[account.address.lower()] = 1
    payer = x402Client()
    payer.register("eip155:*", ExactEvmScheme(account))
    async with served(app) as url, x402HttpxClient(payer, base_url=url, timeout=30) as agent:
        answer = await agent.post(JOBS, json=FOX)
    assert (answer.status_code, chain.settles) == (402, 0)
    assert "invalid_exact_evm_insufficient_balance" in answer.json()["message"]


# -- into an account that is there -------------------------------------------------------------------------------


async def test_200_for_a_package_into_the_account_of_a_key_once(client, chain, db, customers, assert_sound):
    async with db.transaction() as conn:
        customer = await customers(conn, 700)
    client.headers["x-api-key"] = customer.secret
    before = await wallet_tokens(client, customer.secret)
    header = await signed(chain, client, BUY, BUILDER)
    answers = [await client.post(BUY, json=BUILDER, headers=header) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert all("apiKey" not in answer.json() for answer in answers)
    assert AccountToppedUp.model_validate_json(answers[0].content).package_code == "builder_600"
    assert await wallet_tokens(client, customer.secret) == before + 60_000
    async with db.transaction() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM users WHERE email LIKE '0x%'")) == 0
    await assert_sound(db)


async def test_402_for_a_top_up_that_was_offered_to_another_account(client, chain, db, customers):
    async with db.transaction() as conn:
        customer, other = await customers(conn, 0), await customers(conn, 0)
    header = await signed(chain, client, BUY, BUILDER)  # a stranger's offer
    client.headers["x-api-key"] = customer.secret
    assert (await client.post(BUY, json=BUILDER, headers=header)).status_code == 402
    header = await signed(chain, client, BUY, BUILDER)
    client.headers["x-api-key"] = other.secret
    assert (await client.post(BUY, json=BUILDER, headers=header)).status_code == 402
    assert await wallet_tokens(client, other.secret) == 0


async def test_409_for_a_top_up_that_another_account_shows_as_its_own(client, chain, db, customers):
    async with db.transaction() as conn:
        customer, other = await customers(conn, 0), await customers(conn, 0)
    client.headers["x-api-key"] = customer.secret
    header = await signed(chain, client, BUY, BUILDER)
    assert (await client.post(BUY, json=BUILDER, headers=header)).status_code == 200
    client.headers["x-api-key"] = other.secret
    assert (await client.post(BUY, json=BUILDER, headers=header)).status_code == 409


async def test_401_for_a_top_up_with_a_wrong_key(client):
    client.headers["x-api-key"] = "amai_live_" + "x" * 43
    assert (await client.post(BUY, json=BUILDER)).status_code == 401
