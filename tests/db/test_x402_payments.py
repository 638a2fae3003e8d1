"""A wallet's payment is settled by one and granted once, whoever asks, however often, and wherever it breaks off."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from ledger.balances import balance
from ledger.keys import Credential, caller_of, hash_key
from ledger.users import account_of_email
from payments import x402_payments
from payments.errors import PaymentReused
from payments.x402_facilitator import UNANSWERED, Settlement
from payments.x402_payments import Bill, Minter, Paid, Refused, Settling, Unknown

MINTER = Minter("amai", b"a secret of this test run alone")
WALLET = "0x857b06519e91e3a54538791bdbb0e22373e36b66"
NETWORK = "eip155:84532"
SETTLED = Settlement(
    success=True, pending=False, reason="", transaction="0x12", payer=WALLET, network=NETWORK
)
FAILED = Settlement(
    success=False, pending=False, reason="transaction_failed", transaction="", payer=WALLET, network=NETWORK
)


def bill(**fields) -> Bill:
    base = Bill(
        network=NETWORK,
        asset="0x036cbd53842c5426634e7929541ec2318f3dcf7e",
        payer=WALLET,
        nonce=f"0x{secrets.token_hex(32)}",
        quote_hash=secrets.token_bytes(32),
        resource="POST /api/v1/media/jobs",
        fingerprint="f" * 64,
        retry_key=None,
        package_code="image.generate",
        price_version=1,
        credits_tokens=100,
        amount_minor=100_000,
        key_label="image.generate",
        key_days=1,
        payload={"x402Version": 2},
    )
    return dataclasses.replace(base, **fields)


async def begin(on, wanted: Bill):
    return await x402_payments.begin(on, wanted, MINTER)


async def conclude(on, settling: Settling, said: Settlement):
    return await x402_payments.conclude(on, settling.payment_id, settling.attempt, said, MINTER)


async def tokens(conn) -> int:
    owner = await account_of_email(conn, x402_payments.address_of(WALLET, NETWORK))
    return (await balance(conn, owner.account_id)).available_tokens


async def let_it_be_due(conn) -> None:
    await conn.execute(
        text("UPDATE x402_payments SET due_at = now() - interval '1 s' WHERE state = 'settling'")
    )


async def test_a_settled_payment_is_a_purchase_of_its_price_with_a_key_that_spends_it(conn):
    settling = await begin(conn, bill())
    paid = await conclude(conn, settling, SETTLED)
    assert isinstance(paid, Paid)
    assert await tokens(conn) == 100
    caller = await caller_of(conn, Credential(hash_key(paid.secret)), "tasks:image.generate")
    assert caller.key_id == paid.key.id


async def test_one_nonce_is_one_payment_even_for_the_database(conn):
    wanted = bill()
    await begin(conn, wanted)
    with pytest.raises(IntegrityError):
        await conn.execute(
            text(
                "INSERT INTO x402_payments (id, network, asset, payer, nonce, quote_hash, resource, fingerprint,"
                " package_code, price_version, credits_tokens, amount_minor, key_label, payload, due_at)"
                " SELECT 'x402_other', network, asset, payer, nonce, quote_hash, resource, fingerprint,"
                " package_code, price_version, credits_tokens, amount_minor, key_label, payload, due_at"
                " FROM x402_payments"
            )
        )


async def test_of_many_with_one_nonce_one_settles(db):
    wanted = bill()
    outcomes = await asyncio.gather(*(db.run(begin, wanted) for _ in range(10)))
    assert len([each for each in outcomes if isinstance(each, Settling)]) == 1
    assert len([each for each in outcomes if isinstance(each, Unknown) and not each.unclear]) == 9


async def test_of_many_signed_under_one_idempotency_key_one_settles(db):
    wanted = [bill(retry_key="job-001") for _ in range(10)]
    outcomes = await asyncio.gather(*(db.run(begin, each) for each in wanted))
    assert len([each for each in outcomes if isinstance(each, Settling)]) == 1
    assert len({each.payment_id for each in outcomes}) == 1


async def test_one_idempotency_key_means_one_request(conn):
    await begin(conn, bill(retry_key="job-001"))
    with pytest.raises(PaymentReused):
        await begin(conn, bill(retry_key="job-001", fingerprint="e" * 64))


async def test_an_idempotency_key_is_free_again_after_a_refusal(conn):
    refused = await conclude(conn, await begin(conn, bill(retry_key="job-001")), FAILED)
    assert refused == Refused("transaction_failed")
    assert isinstance(await begin(conn, bill(retry_key="job-001")), Settling)


async def test_the_same_answer_many_times_at_once_grants_once_and_shows_one_key(db, assert_sound):
    settling = await db.run(begin, bill())
    outcomes = await asyncio.gather(*(db.run(conclude, settling, SETTLED) for _ in range(10)))
    assert len({each.secret for each in outcomes}) == 1
    assert [each.replayed for each in outcomes].count(False) == 1
    assert await db.run(tokens) == 100
    await assert_sound(db)


async def test_payments_of_one_wallet_at_once_are_one_account(db, assert_sound):
    settling = [await db.run(begin, bill()) for _ in range(8)]
    await asyncio.gather(*(db.run(conclude, each, SETTLED) for each in settling))
    assert await db.run(tokens) == 800
    await assert_sound(db)


async def test_a_crash_between_settlement_and_grant_is_made_good_by_the_next_to_ask(db, assert_sound):
    """The first asker died with the answer in its hand; its payment is due when its lease is over."""
    first = await db.run(begin, bill())
    assert await db.run(x402_payments.due, 10) == []
    await db.run(let_it_be_due)
    [second] = await db.run(x402_payments.due, 10)
    assert (second.payment_id, second.attempt) == (first.payment_id, 2)
    assert isinstance(await db.run(conclude, second, SETTLED), Paid)
    late = await db.run(conclude, first, SETTLED)
    assert late.replayed
    assert await db.run(tokens) == 100
    await assert_sound(db)


async def test_what_is_due_is_asked_about_by_one(db):
    for _ in range(6):
        await db.run(begin, bill())
    await db.run(let_it_be_due)
    taken = await asyncio.gather(*(db.run(x402_payments.due, 2) for _ in range(5)))
    ids = [each.payment_id for batch in taken for each in batch]
    assert len(ids) == len(set(ids)) == 6


async def test_a_late_refusal_ends_nothing(conn):
    first = await begin(conn, bill())
    await let_it_be_due(conn)
    [second] = await x402_payments.due(conn, 1)
    assert await conclude(conn, first, FAILED) == Unknown(first.payment_id, unclear=False)
    assert isinstance(await conclude(conn, second, SETTLED), Paid)


async def test_a_refusal_after_a_question_without_an_answer_is_unclear(conn):
    first = await begin(conn, bill())
    await conclude(conn, first, UNANSWERED)
    await let_it_be_due(conn)
    [second] = await x402_payments.due(conn, 1)
    assert await conclude(conn, second, FAILED) == Unknown(first.payment_id, unclear=True)
    await let_it_be_due(conn)
    assert await x402_payments.due(conn, 1) == [], "a person looks at it"
    assert await tokens(conn) == 0


async def test_a_failure_that_names_a_transaction_is_unclear(conn):
    first = await begin(conn, bill())
    said = dataclasses.replace(FAILED, transaction="0x34")
    assert await conclude(conn, first, said) == Unknown(first.payment_id, unclear=True)


@pytest.mark.parametrize("said", [FAILED, dataclasses.replace(FAILED, transaction="0x34")])
async def test_a_success_is_believed_after_a_failure(conn, said):
    settling = await begin(conn, bill())
    await conclude(conn, settling, said)
    assert isinstance(await conclude(conn, settling, SETTLED), Paid)
    assert await tokens(conn) == 100


@pytest.mark.parametrize(
    "change", [{"payer": "0x" + "1" * 40}, {"network": "eip155:8453"}, {"transaction": ""}]
)
async def test_a_success_that_names_another_payment_grants_nothing(conn, change):
    settling = await begin(conn, bill())
    said = dataclasses.replace(SETTLED, **change)
    assert await conclude(conn, settling, said) == Unknown(settling.payment_id, unclear=True)
    assert await tokens(conn) == 0


@pytest.mark.parametrize(
    "change", ["state = 'refused'", "settled_at = NULL", "transaction_hash = '0x99'", "purchase_id = NULL"]
)
async def test_a_settled_payment_stays_so(conn, change):
    await conclude(conn, await begin(conn, bill()), SETTLED)
    with pytest.raises(DBAPIError, match="settled for good"):
        await conn.execute(text(f"UPDATE x402_payments SET {change}"))


@pytest.mark.parametrize(
    "change", ["credits_tokens = 1", "amount_minor = 1", "nonce = 'x'", "payload = '{}'"]
)
async def test_what_a_payment_buys_is_fixed(conn, change):
    await begin(conn, bill())
    with pytest.raises(DBAPIError, match="is fixed"):
        await conn.execute(text(f"UPDATE x402_payments SET {change}"))
