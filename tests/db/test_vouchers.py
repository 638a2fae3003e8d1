"""Vouchers: redeemed once for each account, so many times in all, whoever comes at the same time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, text, update
from sqlalchemy.exc import IntegrityError

from kit.errors import AppError, AuthRequired, Forbidden, NotFound
from ledger.balances import balance
from ledger.keys import Credential, Limits, hash_key, mint
from ledger.tables import users
from payments import vouchers
from payments.errors import VoucherClosed
from payments.tables import voucher_redemptions
from payments.tables import vouchers as vouchers_table
from payments.vouchers import VoucherTerms

GIFT = VoucherTerms("spring", 500, 1, None, None)


def of(**changes):
    return VoucherTerms(**{name: getattr(GIFT, name) for name in GIFT.__slots__} | changes)


async def outcome(db, credential, code):
    try:
        return await db.run(vouchers.redeem, credential, code)
    except AppError as refusal:
        return refusal


async def test_an_account_redeems_a_code_once_however_often_and_at_once_it_asks(db, customers, assert_sound):
    async with db.transaction() as conn:
        owner = await customers(conn, 100)
        made = (await vouchers.make(conn, of(max_redemptions=5), 1))[0]
    answers = await asyncio.gather(*(outcome(db, owner.credential, made.code) for _ in range(8)))
    first = next(answer for answer in answers if not answer.replayed)
    assert sum(not answer.replayed for answer in answers) == 1
    for answer in answers:
        assert (answer.free_after_tokens, answer.redeemed_at) == (600, first.redeemed_at)
    async with db.transaction() as conn:
        assert (await balance(conn, owner.account_id)).available_tokens == 600
        assert (await vouchers.voucher(conn, made.voucher.id)).redemptions == 1
    await assert_sound(db)


async def test_of_many_accounts_at_once_only_as_many_redeem_as_the_code_allows(db, customers, assert_sound):
    async with db.transaction() as conn:
        owners = [await customers(conn, 0) for _ in range(9)]
        made = (await vouchers.make(conn, of(max_redemptions=3), 1))[0]
    answers = await asyncio.gather(*(outcome(db, owner.credential, made.code) for owner in owners))
    refused = [answer for answer in answers if isinstance(answer, AppError)]
    assert refused == [VoucherClosed("used_up")] * 6
    async with db.transaction() as conn:
        held = [(await balance(conn, owner.account_id)).available_tokens for owner in owners]
    assert sorted(held) == [0] * 6 + [500] * 3
    await assert_sound(db)


async def test_a_redemption_is_answered_alike_after_the_code_was_closed(conn, customers):
    owner, late = await customers(conn, 0), await customers(conn, 0)
    made = (await vouchers.make(conn, of(max_redemptions=2), 1))[0]
    first = await vouchers.redeem(conn, owner.credential, made.code)
    assert await vouchers.disable(conn, made.voucher.id)
    assert not await vouchers.disable(conn, made.voucher.id)
    again = await vouchers.redeem(conn, owner.credential, made.code)
    assert (again.replayed, again.redeemed_at) == (True, first.redeemed_at)
    with pytest.raises(VoucherClosed, match="disabled"):
        await vouchers.redeem(conn, late.credential, made.code)


async def test_an_expired_code_gives_nothing(conn, customers):
    owner = await customers(conn, 0)
    past = datetime.now(UTC) - timedelta(seconds=1)
    made = (await vouchers.make(conn, of(expires_at=past), 1))[0]
    with pytest.raises(VoucherClosed, match="expired"):
        await vouchers.redeem(conn, owner.credential, made.code)
    assert (await balance(conn, owner.account_id)).available_tokens == 0


async def test_redeemed_credits_expire_when_their_days_are_over(conn, customers):
    owner = await customers(conn, 0)
    made = (await vouchers.make(conn, of(credits_days=30), 1))[0]
    given = await vouchers.redeem(conn, owner.credential, made.code)
    expires_at = (
        await conn.execute(
            text("SELECT expires_at FROM grants WHERE account_id = :id"), {"id": owner.account_id}
        )
    ).scalar_one()
    assert expires_at == given.credits_expire_at
    assert timedelta(days=29) < expires_at - datetime.now(UTC) <= timedelta(days=30)


async def test_a_code_is_read_as_people_type_it_and_only_its_hash_is_kept(conn, customers):
    owner = await customers(conn, 0)
    made = (await vouchers.make(conn, GIFT, 1))[0]
    typed = made.code.lower().replace("-", " ").replace("0", "o").replace("1", "l")
    assert (await vouchers.redeem(conn, owner.credential, typed)).amount_tokens == 500
    row = (await conn.execute(text("SELECT CAST(v AS text) FROM vouchers v"))).scalar_one()
    assert made.code.replace("-", "") not in row
    assert made.voucher.hint == made.code[:4]


async def test_codes_are_made_in_the_order_of_their_vouchers_and_never_twice(conn):
    made = await vouchers.make(conn, GIFT, 200)
    assert len({new.code for new in made}) == 200
    assert all(new.code.startswith(new.voucher.hint) for new in made)


async def test_an_unknown_code_a_bad_key_and_a_suspended_user_get_nothing(conn, customers):
    owner = await customers(conn, 0)
    made = (await vouchers.make(conn, GIFT, 1))[0]
    with pytest.raises(NotFound):
        await vouchers.redeem(conn, owner.credential, "0000-0000-0000-0000")
    with pytest.raises(AuthRequired):
        await vouchers.redeem(conn, Credential(b"\0" * 32), made.code)
    await conn.execute(
        update(users).where(users.c.id == owner.user_id).values(suspended_at=datetime.now(UTC))
    )
    with pytest.raises(Forbidden):
        await vouchers.redeem(conn, owner.credential, made.code)
    assert (await vouchers.voucher(conn, made.voucher.id)).redemptions == 0


async def test_a_key_that_may_top_up_may_redeem_and_any_other_limited_one_may_not(conn, customers):
    owner = await customers(conn, 0)
    made = (await vouchers.make(conn, GIFT, 1))[0]
    narrow = await mint(conn, owner.user_id, "x", brand="amai", limits=Limits(scopes=("tools:*", "read")))
    with pytest.raises(Forbidden, match="checkout"):
        await vouchers.redeem(conn, Credential(hash_key(narrow.secret)), made.code)
    payer = await mint(conn, owner.user_id, "y", brand="amai", limits=Limits(scopes=("checkout",)))
    assert (await vouchers.redeem(conn, Credential(hash_key(payer.secret)), made.code)).amount_tokens == 500


@pytest.mark.parametrize("statement", [delete(vouchers_table), update(vouchers_table).values(amount=1)])
async def test_what_a_voucher_is_worth_is_fixed_in_the_database(conn, statement):
    await vouchers.make(conn, GIFT, 1)
    with pytest.raises(IntegrityError):
        await conn.execute(statement)


@pytest.mark.parametrize(
    "statement", [delete(voucher_redemptions), update(voucher_redemptions).values(free_after=0)]
)
async def test_redemptions_are_append_only(conn, customers, statement):
    owner = await customers(conn, 0)
    made = (await vouchers.make(conn, GIFT, 1))[0]
    await vouchers.redeem(conn, owner.credential, made.code)
    with pytest.raises(IntegrityError):
        await conn.execute(statement)


async def test_the_database_counts_no_redemption_past_the_limit(conn):
    await vouchers.make(conn, GIFT, 1)
    with pytest.raises(IntegrityError):
        await conn.execute(update(vouchers_table).values(redemptions=2))
