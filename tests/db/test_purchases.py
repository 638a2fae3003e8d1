"""From a paid session to credits and a first key: each happens once."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from sqlalchemy import event, text

from kit.errors import AppError, NotFound
from kit.ids import new_id
from ledger import scopes
from ledger.balances import balance
from ledger.keys import Credential, caller_of, hash_key
from ledger.users import account_of_email
from payments import purchases
from payments.errors import (
    AccountExists,
    AlreadyClaimed,
    ClaimExpired,
    PaymentIncomplete,
    PaymentMismatch,
    PaymentPending,
)
from payments.packages import Package
from payments.purchases import LOOKS_MOST, OpenPurchase, PaidSession, UnpaidSession

BUILDER = Package("builder_600", "Builder", 60_000, 5_000, "usd")


async def opened(conn, email="dev@company.com", topup_user_id=None, session_id=None):
    command = OpenPurchase(new_id("pur"), "stripe", email, BUILDER, None)
    purchase = await purchases.open_purchase(conn, command, topup_user_id)
    session_id = session_id or f"cs_test_{purchase.id}"
    await purchases.attach_session(conn, purchase.id, session_id)
    return PaidSession("stripe", session_id, purchase.id, 5_000, "usd", livemode=False, expect_livemode=False)


async def tokens_of(conn, email):
    owner = await account_of_email(conn, email)
    return (await balance(conn, owner.account_id)).available_tokens


async def test_a_payment_is_fulfilled_at_most_once(conn):
    paid = await opened(conn)
    for _ in range(3):
        assert (await purchases.fulfil(conn, paid)).paid
    assert await tokens_of(conn, "dev@company.com") == 60_000


@pytest.mark.parametrize(
    ("change", "what"),
    [({"amount_minor": 4_999}, "amount"), ({"currency": "eur"}, "currency"), ({"livemode": True}, "mode")],
)
async def test_a_session_that_differs_from_what_was_sold_grants_nothing(conn, change, what):
    paid = dataclasses.replace(await opened(conn), **change)
    with pytest.raises(PaymentMismatch) as refused:
        await purchases.fulfil(conn, paid)
    assert refused.value.what == what
    assert await tokens_of(conn, "dev@company.com") == 0


async def test_a_session_cannot_pay_for_another_purchase(conn):
    paid = await opened(conn)
    with pytest.raises(NotFound):
        await purchases.fulfil(conn, dataclasses.replace(paid, session_id="cs_test_other"))


async def test_a_purchase_whose_session_was_never_written_down_is_fulfilled_by_its_own_id(conn):
    command = OpenPurchase(new_id("pur"), "stripe", "late@company.com", BUILDER, None)
    purchase = await purchases.open_purchase(conn, command, None)
    paid = PaidSession(
        "stripe", "cs_test_late", purchase.id, 5_000, "usd", livemode=False, expect_livemode=False
    )
    assert (await purchases.fulfil(conn, paid)).session_id == "cs_test_late"
    assert (await purchases.by_session(conn, "stripe", "cs_test_late")).paid


async def test_a_customers_purchases_are_found_without_reading_everybodys(conn):
    await purchases.fulfil(conn, await opened(conn))
    await conn.execute(
        text(
            "INSERT INTO purchases (id, provider, email, package_code, credits_tokens, amount_minor, currency)"
            " SELECT 'pur_' || n, 'stripe', n || '@example.com', 'x', 1, 1, 'usd' FROM generate_series(1, 5000) n"
        )
    )
    await conn.execute(text("ANALYZE purchases"))
    owner = await account_of_email(conn, "dev@company.com")
    asked = []
    event.listen(conn.sync_connection, "before_cursor_execute", lambda *call: asked.append(call[2:4]))
    assert len(await purchases.list_purchases(conn, owner.user_id, 20, None)) == 1
    await purchases.lock_of_user(conn, owner.user_id)
    for statement, values in asked[:2]:
        plan = "\n".join((await conn.exec_driver_sql(f"EXPLAIN {statement}", values)).scalars())
        assert "purchases_user_id_idx" in plan, plan
        assert "purchases_topup_user_id_idx" in plan, plan


async def test_a_claim_mints_the_first_key_once(conn):
    paid = await opened(conn)
    with pytest.raises(PaymentPending):
        await purchases.claim(conn, "stripe", paid.session_id, "Primary", brand="amai", days=30)
    await purchases.fulfil(conn, paid)
    claim = await purchases.claim(conn, "stripe", paid.session_id, "Primary", brand="amai", days=30)
    assert claim.secret.startswith("amai_live_")
    assert (claim.email, claim.credits_tokens, claim.balance_tokens) == ("dev@company.com", 60_000, 60_000)
    assert (await caller_of(conn, Credential(hash_key(claim.secret)), scopes.ANY)).email == "dev@company.com"
    with pytest.raises(AlreadyClaimed):
        await purchases.claim(conn, "stripe", paid.session_id, "Again", brand="amai", days=30)


async def test_a_claim_that_comes_too_late_gets_no_key_and_the_credits_stay(conn):
    paid = await opened(conn)
    await purchases.fulfil(conn, paid)
    with pytest.raises(ClaimExpired):
        await purchases.claim(conn, "stripe", paid.session_id, "Primary", brand="amai", days=0)
    claim = await purchases.claim(conn, "stripe", paid.session_id, "Primary", brand="amai", days=1)
    assert claim.balance_tokens == 60_000


async def test_a_claim_of_an_unknown_session_is_not_found(conn):
    with pytest.raises(NotFound):
        await purchases.claim(conn, "stripe", "cs_test_nobody", "Primary", brand="amai", days=30)


async def test_a_claim_never_opens_an_account_that_existed_before_its_payment(conn, customers):
    customer = await customers(conn, 0, email="owner@company.com")
    paid = await opened(conn, email="Owner@Company.com")
    await purchases.fulfil(conn, paid)
    with pytest.raises(AccountExists):
        await purchases.claim(conn, "stripe", paid.session_id, "Thief", brand="amai", days=30)
    assert (await balance(conn, customer.account_id)).available_tokens == 60_000


async def test_a_second_payment_of_one_email_cannot_claim(conn):
    first, second = await opened(conn), await opened(conn)
    await purchases.fulfil(conn, first)
    await purchases.fulfil(conn, second)
    assert (await purchases.claim(conn, "stripe", first.session_id, "Primary", brand="amai", days=30)).secret
    with pytest.raises(AccountExists):
        await purchases.claim(conn, "stripe", second.session_id, "Second", brand="amai", days=30)
    assert await tokens_of(conn, "dev@company.com") == 120_000


async def test_a_top_up_goes_to_the_account_of_the_key_whatever_the_email(conn, customers):
    customer = await customers(conn, 0)
    paid = await opened(conn, email="somebody@else.com", topup_user_id=customer.user_id)
    await purchases.fulfil(conn, paid)
    assert (await balance(conn, customer.account_id)).available_tokens == 60_000
    with pytest.raises(AccountExists):
        await purchases.claim(conn, "stripe", paid.session_id, "Primary", brand="amai", days=30)


async def test_concurrent_fulfilments_grant_once(db, assert_sound):
    async with db.transaction() as conn:
        paid = await opened(conn)
    await asyncio.gather(*(db.run(purchases.fulfil, paid) for _ in range(10)))
    async with db.transaction() as conn:
        assert await tokens_of(conn, "dev@company.com") == 60_000
    await assert_sound(db)


async def test_concurrent_first_payments_of_one_email_open_one_account(db, assert_sound):
    async with db.transaction() as conn:
        paid = [await opened(conn) for _ in range(8)]
    done = await asyncio.gather(*(db.run(purchases.fulfil, each) for each in paid))
    assert sum(each.opened_account for each in done) == 1
    async with db.transaction() as conn:
        assert await tokens_of(conn, "dev@company.com") == 8 * 60_000
    await assert_sound(db)


async def test_fifty_concurrent_claims_make_one_key(db):
    async with db.transaction() as conn:
        paid = await opened(conn)
        await purchases.fulfil(conn, paid)

    async def attempt():
        try:
            return await db.run(purchases.claim, "stripe", paid.session_id, "Primary", brand="amai", days=30)
        except AppError as refusal:
            return refusal

    outcomes = await asyncio.gather(*(attempt() for _ in range(50)))
    assert sum(isinstance(o, purchases.Claim) for o in outcomes) == 1
    assert sum(isinstance(o, AlreadyClaimed) for o in outcomes) == 49
    async with db.transaction() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM api_keys"))).scalar_one() == 1


def short(paid, received_minor, *, closed):
    return UnpaidSession(paid.provider, paid.session_id, paid.purchase_id, received_minor, closed)


async def test_what_arrived_short_is_kept_and_grants_nothing(conn):
    paid = await opened(conn)
    for received, closed in ((2_000, False), (3_000, True), (1_000, False)):  # the last is an older reading
        await purchases.note_unpaid(conn, short(paid, received, closed=closed))
    kept = await purchases.by_session(conn, "stripe", paid.session_id)
    assert (kept.received_minor, kept.closed, kept.paid) == (3_000, True, False)
    with pytest.raises(PaymentIncomplete) as refused:
        await purchases.claim(conn, "stripe", paid.session_id, "Primary", brand="amai", days=30)
    assert refused.value.message.startswith("30.00 of 50.00 USD arrived")
    assert await tokens_of(conn, "dev@company.com") == 0


async def test_a_checkout_that_closed_with_nothing_is_still_waited_for(conn):
    paid = await opened(conn)
    await purchases.note_unpaid(conn, short(paid, 0, closed=True))
    with pytest.raises(PaymentPending):
        await purchases.claim(conn, "stripe", paid.session_id, "Primary", brand="amai", days=30)
    assert (await purchases.fulfil(conn, paid)).paid, "late, and whole"


async def test_a_session_that_can_never_be_paid_is_not_looked_at_again(conn):
    paid = await opened(conn)
    closed = short(paid, 0, closed=True)
    for final, due in ((False, 1), (True, 0)):
        await purchases.note_unpaid(conn, dataclasses.replace(closed, final=final))
        await conn.execute(text("UPDATE purchases SET look_at = now() WHERE look_at IS NOT NULL"))
        assert len(await purchases.take_due(conn, 10)) == due
    assert (await purchases.fulfil(conn, paid)).paid, "the provider's word stands all the same"


async def test_more_than_the_price_grants_the_package_and_no_more(conn):
    paid = dataclasses.replace(await opened(conn), received_minor=6_000)
    assert (await purchases.fulfil(conn, paid)).received_minor == 6_000
    more = dataclasses.replace(paid, received_minor=9_000)
    assert (await purchases.fulfil(conn, more)).received_minor == 9_000
    assert await tokens_of(conn, "dev@company.com") == 60_000


async def test_less_than_the_price_grants_nothing_whatever_the_provider_calls_it(conn):
    paid = dataclasses.replace(await opened(conn), received_minor=4_999)
    with pytest.raises(PaymentMismatch):
        await purchases.fulfil(conn, paid)


async def test_an_unpaid_reading_after_the_grant_changes_nothing(conn):
    paid = await opened(conn)
    await purchases.fulfil(conn, paid)
    noted = await purchases.note_unpaid(conn, short(paid, 0, closed=True))
    assert (noted.paid, noted.closed, noted.received_minor) == (True, False, 5_000)


async def test_an_unpaid_session_of_another_purchase_is_not_found(conn):
    paid = await opened(conn)
    with pytest.raises(NotFound):
        await purchases.note_unpaid(
            conn, short(dataclasses.replace(paid, session_id="cs_test_other"), 1, closed=False)
        )


async def test_a_purchase_may_be_named_by_its_own_id(conn):
    paid = await opened(conn)
    assert (await purchases.by_session(conn, "stripe", paid.purchase_id)).session_id == paid.session_id
    with pytest.raises(NotFound):
        await purchases.by_session(conn, "coinbase", paid.purchase_id)


async def test_an_unpaid_purchase_is_looked_at_again_and_again_until_it_is_paid(conn):
    paid, other = await opened(conn), await opened(conn)
    assert await purchases.take_due(conn, 10) == [], "events have five minutes"
    await conn.execute(text("UPDATE purchases SET look_at = now()"))
    await purchases.fulfil(conn, other)
    for looks in range(LOOKS_MOST):
        (due,) = await purchases.take_due(conn, 10)
        assert due.id == paid.purchase_id
        assert await purchases.take_due(conn, 10) == []
        pause = (
            await conn.execute(text("SELECT look_at - now() FROM purchases WHERE looks > 0"))
        ).scalar_one()
        if looks < LOOKS_MOST - 1:
            assert 600 <= pause.total_seconds() <= 86_400
            await conn.execute(text("UPDATE purchases SET look_at = now() WHERE looks > 0"))
    assert pause is None, "a month is over"


async def test_two_runners_never_look_at_one_purchase_together(db):
    async with db.transaction() as conn:
        for _ in range(30):
            await opened(conn)
        await conn.execute(text("UPDATE purchases SET look_at = now()"))
    taken = await asyncio.gather(*(db.run(purchases.take_due, 10) for _ in range(4)))
    ids = [purchase.id for part in taken for purchase in part]
    assert len(ids) == len(set(ids))
