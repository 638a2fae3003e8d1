"""The laws of referrals: who may bring whom, what it earns, and what takes that away again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from kit.db import Database
from kit.errors import AppError, Forbidden, NotFound, Unavailable
from kit.ids import new_id
from ledger import accounts, debts, grants, refunds, scopes
from ledger.balances import balance
from ledger.credits import adjust
from ledger.keys import caller_of
from payments import purchases, referrals
from payments.errors import AlreadyReferred, ReferralRing, ReferralTooLate, SelfReferral
from payments.packages import Package
from payments.purchases import OpenPurchase, PaidSession
from payments.referrals import Programme

NOW = datetime.now(UTC)
SMALL = Package("small", "Small", 10_000, 500, "usd")
RULES = Programme(1_000, timedelta(0), rewards_a_month=3, total_tokens=5_000, life=timedelta(days=365))
LATER = replace(RULES, hold=timedelta(days=10))


async def code_of(conn, person):
    return (await referrals.standing(conn, person.account_id, RULES)).code


async def apply(conn, referee, referrer, rules=RULES):
    return await referrals.apply(conn, referee.credential, await code_of(conn, referrer), rules)


async def order(conn, person, *, email="", card=None, paid=500):
    """Have a person pay for credits; returns the purchase's id."""
    command = OpenPurchase(new_id("pur"), "stripe", email or person.email, SMALL, None)
    purchase = await purchases.open_purchase(conn, command, person.user_id)
    await purchases.fulfil(
        conn,
        PaidSession("stripe", f"cs_{purchase.id}", purchase.id, 500, "usd", False, False, card, paid),
    )
    return purchase.id


async def take_back(conn, person, purchase_id, tokens=10_000):
    return await debts.clawback(
        conn, person.account_id, purchase_id=purchase_id, amount_tokens=tokens, reference=new_id("evt"), event_at=NOW
    )  # fmt: skip


async def sweep(conn, rules=RULES):
    for referral_id in await referrals.due(conn, rules.hold, 100):
        await referrals.settle(conn, referral_id, rules)


async def state(conn, referee):
    """The state of who was brought, and why if it was refused."""
    row = (
        await conn.execute(
            text("SELECT state, refusal FROM referrals WHERE referee_id = :id"), {"id": referee.account_id}
        )
    ).one()
    return row.refusal or row.state


async def free(conn, person):
    return (await balance(conn, person.account_id)).available_tokens


async def brought(conn, customers, referrer, rules=RULES, **how):
    """Somebody new who came with the referrer's code and ordered; returns them with their order."""
    referee = await customers(conn, 0)
    await apply(conn, referee, referrer, rules)
    return referee, await order(conn, referee, **how)


async def suspend(conn, person):
    await conn.execute(text("UPDATE users SET suspended_at = now() WHERE id = :id"), {"id": person.user_id})


@pytest.fixture
async def anna(conn, customers):
    return await customers(conn, 0)


@pytest.fixture
async def ben(conn, customers):
    return await customers(conn, 0)


# -- codes -----------------------------------------------------------------------------------------------------


async def test_a_code_is_made_at_the_first_look_and_stays(conn, anna, ben):
    code = await code_of(conn, anna)
    assert await code_of(conn, anna) == code
    assert await code_of(conn, ben) != code
    assert len(code) == 8
    assert set(code) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")


async def test_a_code_that_another_account_has_is_drawn_again(conn, anna, ben, monkeypatch):
    taken = await code_of(conn, anna)
    drawn = iter(taken + "0" * 8)
    monkeypatch.setattr("payments.referrals.secrets.choice", lambda _: next(drawn))
    assert await code_of(conn, ben) == "00000000"


async def test_first_looks_at_the_same_time_find_one_code(db, customers):
    async with db.transaction() as conn:
        anna = await customers(conn, 0)
    looks = await asyncio.gather(*(db.run(referrals.standing, anna.account_id, RULES) for _ in range(10)))
    assert len({look.code for look in looks}) == 1


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("k7q2-9xwm", "K7Q29XWM"),
        (" K7Q2 9XWM ", "K7Q29XWM"),
        ("oIl00000", "01100000"),
        ("K7Q29XW", None),
        ("K7Q29XWMM", None),
        ("K7Q29XWU", None),
        ("", None),
        ("K7Q29XW\n", None),
        ("ＡBCDEFGH", None),
    ],
)
def test_a_code_is_read_however_it_was_written_down(written, code):
    assert referrals.read_code(written) == code


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("dev@company.com", "dev+two@company.com", True),
        ("dev@company.com", "D.E.V@Company.com", True),
        ("a.b@gmail.com", "ab+x@googlemail.com", True),
        ("dev@company.com", "dev@company.org", False),
        ("dev@company.com", "dex@company.com", False),
        ("+one@company.com", "+two@company.com", False),
    ],
)
def test_a_mailbox_is_the_same_however_its_address_is_varied(one, other, same):
    assert (referrals.mailbox(one) == referrals.mailbox(other)) is same


# -- applying --------------------------------------------------------------------------------------------------


async def test_a_code_is_applied_once_for_each_account_and_again_changes_nothing(conn, customers, anna, ben):
    first = await apply(conn, ben, anna)
    assert first.code == await code_of(conn, anna)
    assert await apply(conn, ben, anna) == first
    with pytest.raises(AlreadyReferred):
        await apply(conn, ben, await customers(conn, 0))
    stands = await referrals.standing(conn, ben.account_id, RULES)
    assert stands.own == first
    assert (await referrals.standing(conn, anna.account_id, RULES)).applied == 1
    await order(conn, ben)
    assert await apply(conn, ben, anna) == first, "a lost answer is there after the order too"


async def test_a_code_is_applied_before_the_first_paid_order_or_never(conn, anna, ben):
    purchase_id = await order(conn, ben)
    with pytest.raises(ReferralTooLate):
        await apply(conn, ben, anna)
    await take_back(conn, ben, purchase_id)
    with pytest.raises(ReferralTooLate):
        await apply(conn, ben, anna)


async def test_nobody_refers_themselves_under_whatever_address(conn, customers):
    one = await customers(conn, 0, email="dev@company.com")
    for address in ("dev+two@company.com", "d.ev@company.com"):
        other = await customers(conn, 0, email=address)
        for referee, referrer in ((one, one), (other, one), (one, other)):
            with pytest.raises(SelfReferral):
                await apply(conn, referee, referrer)


async def test_no_ring_is_closed_over_however_many_steps(conn, customers):
    people = [await customers(conn, 0) for _ in range(5)]
    for referee, referrer in pairwise(people):
        await apply(conn, referee, referrer)
    for referrer in people[:-1]:
        with pytest.raises(ReferralRing):
            await apply(conn, people[-1], referrer)
    await apply(conn, people[-1], await customers(conn, 0))


async def test_two_at_once_never_close_a_ring_together(db, customers, assert_sound):
    async with db.transaction() as conn:
        rings = [[await customers(conn, 0) for _ in range(4)] for _ in range(6)]
        for a, b, c, d in rings:
            await apply(conn, a, b)
            await apply(conn, c, d)
            [await code_of(conn, each) for each in (a, c)]

    async def attempt(referee, referrer):
        try:
            return await db.run(apply, referee, referrer)
        except ReferralRing as refusal:
            return refusal

    for a, b, c, d in rings:
        outcomes = await asyncio.gather(attempt(b, c), attempt(d, a))
        assert sum(isinstance(outcome, ReferralRing) for outcome in outcomes) == 1
    await assert_sound(db)


async def test_the_database_itself_refuses_rings_second_referrals_and_changes(conn, anna, ben):
    await apply(conn, ben, anna)
    insert = (
        "INSERT INTO referrals (id, referee_id, referrer_id, reward) VALUES ('ref_x', :referee, :referrer, 1)"
    )
    for statement, facts in [
        (insert, {"referee": anna.account_id, "referrer": ben.account_id}),
        (insert, {"referee": anna.account_id, "referrer": anna.account_id}),
        (insert, {"referee": ben.account_id, "referrer": anna.account_id}),
        ("UPDATE referrals SET reward = 5", {}),
        ("UPDATE referrals SET state = 'rewarded'", {}),
        ("UPDATE referrals SET transfer_id = 1, rewarded_at = now(), state = 'rewarded'", {}),
        ("UPDATE referral_codes SET code = 'IIIIIIII'", {}),
        ("DELETE FROM referrals", {}),
    ]:
        with pytest.raises(DBAPIError):
            async with conn.begin_nested():
                await conn.execute(text(statement), facts)


async def test_unknown_codes_and_those_of_the_suspended_are_refused_alike_with_equal_work(
    conn, customers, anna, ben
):
    unknown = "0" * 8
    suspended = await customers(conn, 0)
    codes = [unknown, await code_of(conn, suspended), await code_of(conn, ben), await code_of(conn, anna)]
    await suspend(conn, suspended)
    await caller_of(conn, ben.credential, scopes.ANY)  # its use is noted once in a minute
    work: list[list[str]] = []

    def listen(_conn, _cursor, statement, *_):
        work[-1].append(statement)

    event.listen(conn.sync_connection.engine, "before_cursor_execute", listen)
    refusals = []
    for code in codes[:3]:
        work.append([])
        with pytest.raises(AppError) as refused:
            await referrals.apply(conn, ben.credential, code, RULES)
        refusals.append(refused.value)
    event.remove(conn.sync_connection.engine, "before_cursor_execute", listen)
    assert refusals == [NotFound("referral code"), NotFound("referral code"), SelfReferral()]
    assert work[0]
    assert work[0] == work[1] == work[2]


async def test_a_closed_programme_takes_no_new_referrals_and_keeps_its_promises(conn, customers, anna):
    closed = replace(RULES, reward_tokens=0)
    await brought(conn, customers, anna)
    with pytest.raises(Forbidden):
        await apply(conn, await customers(conn, 0), anna, closed)
    await sweep(conn, closed)
    assert await free(conn, anna) == 1_000


# -- the reward ------------------------------------------------------------------------------------------------


async def test_the_first_paid_order_earns_its_referrer_the_reward_once_it_has_stood(conn, anna, ben):
    await apply(conn, ben, anna)
    await sweep(conn)
    assert (await state(conn, ben), await free(conn, anna)) == ("applied", 0)

    await order(conn, ben)
    await order(conn, ben)  # a second order changes nothing
    await sweep(conn, LATER)
    assert (await state(conn, ben), await free(conn, anna)) == ("ordered", 0)
    stands = await referrals.standing(conn, anna.account_id, RULES)
    assert (stands.pending_tokens, stands.earned_tokens, stands.ordered) == (1_000, 0, 1)

    for _ in range(3):
        await sweep(conn)
    assert (await state(conn, ben), await free(conn, anna)) == ("rewarded", 1_000)
    assert await free(conn, ben) == 20_000
    stands = await referrals.standing(conn, anna.account_id, RULES)
    assert (stands.pending_tokens, stands.earned_tokens, stands.rewarded) == (0, 1_000, 1)


async def test_an_order_that_a_promotion_code_paid_for_earns_nothing_and_the_first_paid_one_does(
    db, customers, assert_sound
):
    async with db.transaction() as conn:
        anna, late = await customers(conn, 0), await customers(conn, 0)
        early, _ = await brought(conn, customers, anna, paid=0)
        await order(conn, late, paid=0)
        await apply(conn, late, anna)
        await sweep(conn)
        assert [await state(conn, person) for person in (early, late)] == ["applied"] * 2
        assert await free(conn, anna) == 0
    await assert_sound(db)
    async with db.transaction() as conn:
        for person in (early, late):
            await order(conn, person)
        await sweep(conn)
        assert [await state(conn, person) for person in (early, late)] == ["rewarded"] * 2
        assert await free(conn, anna) == 2_000
    await assert_sound(db)


async def test_settling_before_its_time_changes_nothing(conn, customers, anna):
    ben, _ = await brought(conn, customers, anna)
    [referral_id] = await referrals.due(conn, timedelta(0), 10)
    await referrals.settle(conn, referral_id, LATER)
    assert (await state(conn, ben), await free(conn, anna)) == ("ordered", 0)


async def test_a_reward_is_a_grant_out_of_promotion_that_ends_and_burns_before_what_was_paid_for(
    conn, customers, anna
):
    await brought(conn, customers, anna)
    await order(conn, anna)
    await sweep(conn)
    row = (
        await conn.execute(
            text(
                "SELECT source, house, amount, priority, expires_at - starts_at AS life FROM grants"
                " WHERE account_id = :id AND source = 'referral'"
            ),
            {"id": anna.account_id},
        )
    ).one()
    assert tuple(row) == ("referral", "promotion:referral", 1_000, 50, timedelta(days=365))


async def test_the_reward_is_what_was_promised_when_the_code_was_applied(conn, customers, anna):
    await brought(conn, customers, anna)
    await sweep(conn, replace(RULES, reward_tokens=5))
    assert await free(conn, anna) == 1_000


async def test_what_a_referrer_may_earn_in_a_month_is_bounded(conn, customers, anna):
    people = [await brought(conn, customers, anna) for _ in range(5)]
    await sweep(conn)
    assert [await state(conn, person) for person, _ in people] == ["rewarded"] * 3 + ["month_cap"] * 2
    assert await free(conn, anna) == 3_000

    await conn.execute(text("ALTER TABLE referrals DISABLE TRIGGER USER"))
    await conn.execute(text("UPDATE referrals SET rewarded_at = rewarded_at - interval '31 days'"))
    await conn.execute(text("ALTER TABLE referrals ENABLE TRIGGER USER"))
    await brought(conn, customers, anna)
    await sweep(conn)
    assert await free(conn, anna) == 4_000


async def test_a_reversed_reward_makes_room_under_the_bounds(conn, customers, anna):
    rules = replace(RULES, rewards_a_month=1, total_tokens=1_000)
    ben, purchase_id = await brought(conn, customers, anna)
    await sweep(conn, rules)
    await take_back(conn, ben, purchase_id)
    await sweep(conn, rules)
    assert await free(conn, anna) == 0
    await brought(conn, customers, anna)
    await sweep(conn, rules)
    assert await free(conn, anna) == 1_000


async def test_what_a_referrer_may_earn_in_all_is_bounded(conn, customers, anna):
    rules = replace(RULES, rewards_a_month=100, total_tokens=2_500)
    people = [await brought(conn, customers, anna) for _ in range(3)]
    await sweep(conn, rules)
    assert [await state(conn, person) for person, _ in people] == ["rewarded", "rewarded", "total_cap"]
    assert await free(conn, anna) == 2_000


async def forget(conn, person):
    await conn.execute(
        text("UPDATE users SET deleted_at = now(), email = 'deleted-' || id || '@invalid' WHERE id = :id"),
        {"id": person.user_id},
    )


@pytest.mark.parametrize("end", [suspend, forget])
@pytest.mark.parametrize("whom", ["referrer", "referee"])
async def test_nothing_is_earned_by_or_for_the_suspended_and_the_deleted(conn, customers, anna, whom, end):
    ben, _ = await brought(conn, customers, anna)
    await end(conn, anna if whom == "referrer" else ben)
    await sweep(conn)
    assert (await state(conn, ben), await free(conn, anna)) == ("suspended", 0)


async def test_an_order_paid_with_a_card_of_the_referrers_earns_nothing(conn, customers, anna):
    await order(conn, anna, card="card-1")
    same, _ = await brought(conn, customers, anna, card="card-1")
    other, _ = await brought(conn, customers, anna, card="card-2")
    unknown, _ = await brought(conn, customers, anna)
    await sweep(conn)
    assert [await state(conn, person) for person in (same, other, unknown)] == [
        "same_person", "rewarded", "rewarded",
    ]  # fmt: skip


async def test_an_order_that_the_referrer_paid_under_another_address_earns_nothing(conn, customers, anna):
    ben, _ = await brought(conn, customers, anna, email=anna.email.replace("@", "+ben@"))
    await sweep(conn)
    assert (await state(conn, ben), await free(conn, anna)) == ("same_person", 0)


# -- taken back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [10_000, 1])
async def test_an_order_taken_back_while_it_waits_is_refused_at_once(conn, customers, anna, tokens):
    ben, purchase_id = await brought(conn, customers, anna)
    await take_back(conn, ben, purchase_id, tokens)
    assert await state(conn, ben) == "taken_back"
    assert (await referrals.standing(conn, anna.account_id, RULES)).pending_tokens == 0
    if tokens == 1:
        await take_back(conn, ben, purchase_id, 1)  # and again, which changes nothing
    await order(conn, ben)
    await sweep(conn)
    assert (await state(conn, ben), await free(conn, anna)) == ("taken_back", 0)


async def test_an_order_taken_back_after_its_reward_takes_the_reward_along(conn, customers, anna):
    ben, purchase_id = await brought(conn, customers, anna)
    await sweep(conn)
    await take_back(conn, ben, purchase_id, 4_000)
    for _ in range(3):
        await sweep(conn)
    await take_back(conn, ben, purchase_id, 6_000)
    await sweep(conn)
    assert (await state(conn, ben), await free(conn, anna)) == ("reversed", 0)
    purse = await accounts.lock_one(conn, anna.account_id)
    assert (purse.debt, purse.frozen) == (0, False)
    assert (await referrals.standing(conn, anna.account_id, RULES)).earned_tokens == 0


async def test_a_later_order_taken_back_leaves_the_reward(conn, customers, anna):
    ben, _ = await brought(conn, customers, anna)
    second = await order(conn, ben)
    await take_back(conn, ben, second)
    await sweep(conn)
    assert (await state(conn, ben), await free(conn, anna)) == ("rewarded", 1_000)


async def test_what_was_spent_of_a_reversed_reward_is_owed(conn, customers, anna):
    ben, purchase_id = await brought(conn, customers, anna)
    await sweep(conn)
    await adjust(conn, anna.account_id, amount_tokens=-300, reference="spent", reason="test")
    await take_back(conn, ben, purchase_id)
    await sweep(conn)
    purse = await accounts.lock_one(conn, anna.account_id)
    assert (purse.balance, purse.debt, purse.frozen) == (0, 300, True)


async def test_what_ran_out_of_a_reversed_reward_is_not_owed(conn, customers, anna):
    short = replace(RULES, life=timedelta(days=1))
    ben, purchase_id = await brought(conn, customers, anna)
    await sweep(conn, short)
    await adjust(conn, anna.account_id, amount_tokens=-300, reference="spent", reason="test")
    await grants.settle(conn, await accounts.lock_one(conn, anna.account_id), NOW + timedelta(days=2))
    assert await free(conn, anna) == 0
    await take_back(conn, ben, purchase_id)
    await sweep(conn)
    assert await state(conn, ben) == "reversed"
    assert (await accounts.lock_one(conn, anna.account_id)).debt == 300


async def test_a_reward_that_an_operator_reversed_is_not_taken_twice(conn, customers, anna):
    ben, purchase_id = await brought(conn, customers, anna)
    await sweep(conn)
    [transfer_id] = await conn.scalars(text("SELECT transfer_id FROM referrals"))
    await refunds.reverse(conn, anna.account_id, transfer_id, reference="fraud", reason="test")
    await take_back(conn, ben, purchase_id)
    await sweep(conn)
    assert (await state(conn, ben), await free(conn, anna)) == ("reversed", 0)
    assert (await accounts.lock_one(conn, anna.account_id)).debt == 0


# -- at the same time, and in spite of faults ------------------------------------------------------------------


async def test_sweeps_at_the_same_time_reward_once_and_keep_the_bounds(db, customers, assert_sound):
    async with db.transaction() as conn:
        anna = await customers(conn, 0)
        for _ in range(8):
            await brought(conn, customers, anna)
        waiting = await referrals.due(conn, RULES.hold, 100)
    await asyncio.gather(*(db.run(referrals.settle, each, RULES) for each in waiting * 3))
    async with db.transaction() as conn:
        assert await free(conn, anna) == 3_000
    await assert_sound(db)


async def test_an_application_and_the_first_payment_at_once_agree(db, customers, assert_sound):
    """Whichever comes first: the order is the referral's, or the code came too late."""
    async with db.transaction() as conn:
        anna = await customers(conn, 0)
        await code_of(conn, anna)
        people = [await customers(conn, 0) for _ in range(12)]

    async def attempt(person):
        try:
            await db.run(apply, person, anna)
        except ReferralTooLate:
            return False
        return True

    for person in people:
        applied, _ = await asyncio.gather(attempt(person), db.run(order, person))
        async with db.transaction() as conn:
            count = text("SELECT count(*) FROM referrals WHERE referee_id = :id AND state = 'ordered'")
            found = (await conn.execute(count, {"id": person.account_id})).scalar_one()
        assert found == applied
    await assert_sound(db)


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_connection_that_breaks_anywhere_rewards_and_reverses_once(
    db, line, customers, assert_sound, delivered
):
    through = Database(line.url, pool_size=1)
    cuts = -1
    for message in range(1, 60):
        if line.cuts == cuts:  # the last time the line held to the end
            break
        cuts = line.cuts
        async with db.transaction() as conn:
            anna = await customers(conn, 0)
            ben, purchase_id = await brought(conn, customers, anna)
        for expected, break_it in ((1_000, None), (0, purchase_id)):
            if break_it:
                async with db.transaction() as conn:
                    await take_back(conn, ben, break_it)
            [referral_id] = await db.run(referrals.due, RULES.hold, 10)
            line.cut(message, delivered=delivered)
            for _ in range(2):
                try:
                    await through.run(referrals.settle, referral_id, RULES)
                except Unavailable:
                    line.mend()
            line.mend()
            async with db.transaction() as conn:
                assert await free(conn, anna) == expected
    assert line.cuts > 10
    await through.close()
    await assert_sound(db)
