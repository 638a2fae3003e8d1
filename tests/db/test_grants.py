"""The laws of grants: the order in which they burn, what goes back to them, what expires, what is taken back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from kit.errors import InvalidRequest, NotFound
from kit.ids import new_id
from ledger import accounts, debts, grants, holds, refunds, reinstatements, scopes
from ledger.audit import LEDGER_CHECKS, run_checks
from ledger.balances import balance
from ledger.credits import adjust, credit, schedule
from ledger.errors import (
    AccountFrozen,
    ExceedsOriginal,
    InsufficientCredits,
    NotReversible,
    ReferenceConflict,
)
from ledger.grants import Terms
from ledger.payers import Payer

NOW = datetime.now(UTC)
TOMORROW = NOW + timedelta(days=1)
NEXT_MONTH = NOW + timedelta(days=30)


async def give(conn, account_id, amount, reference, *, kind="grant", house="promotion:test", **terms):
    return await credit(
        conn,
        account_id,
        kind=kind,
        house=house,
        amount_tokens=amount,
        reference=reference,
        terms=Terms(**terms),
    )


async def buy(conn, account_id, amount, purchase_id):
    return await give(
        conn,
        account_id,
        amount,
        purchase_id,
        kind="purchase",
        house="clearing:stripe",
        purchase_id=purchase_id,
    )


async def hold(conn, account_id, amount):
    payer = Payer(await accounts.lock_one(conn, account_id), None)
    request = holds.HoldRequest(new_id("hold"), payer, "image", new_id("job"), amount, 1, None)
    outcome = (await holds.place(conn, [request]))[0]
    assert isinstance(outcome, int), outcome
    return request.id


async def charge(conn, account_id, amount):
    """Take an amount the way a job does; returns the transfer's id."""
    return await holds.capture(conn, await hold(conn, account_id, amount), amount, NOW)


async def work_out(conn, account_id):
    await grants.allocate(conn, await accounts.lock_one(conn, account_id))


async def settle(conn, account_id, now=None):
    await grants.settle(conn, await accounts.lock_one(conn, account_id), now)


async def remaining(conn, account_id):
    """What is left of each grant by its reference, once everything is worked out."""
    await work_out(conn, account_id)
    rows = await conn.execute(
        text("SELECT reference, remaining FROM grants WHERE account_id = :id ORDER BY id"), {"id": account_id}
    )
    return {row.reference: row.remaining for row in rows}


async def free(conn, account_id):
    return (await balance(conn, account_id)).available_tokens


async def debt(conn, account_id):
    return (await accounts.lock_one(conn, account_id)).debt


async def take_back(conn, account_id, amount, purchase_id, reference="dp_1"):
    return await debts.clawback(
        conn, account_id, purchase_id=purchase_id, amount_tokens=amount, reference=reference, event_at=NOW
    )


@pytest.fixture
async def account(conn, customers):
    return (await customers(conn, 0)).account_id


async def test_grants_burn_by_priority_then_expiry_then_age(conn, account):
    await give(conn, account, 10, "paid", priority=100)
    await give(conn, account, 10, "paid-later", priority=100)
    await give(conn, account, 10, "gift-for-ever")
    await give(conn, account, 10, "gift-of-a-month", expires_at=NEXT_MONTH)
    await give(conn, account, 10, "gift-of-a-day", expires_at=TOMORROW)
    order = ["gift-of-a-day", "gift-of-a-month", "gift-for-ever", "paid", "paid-later"]
    for place, name in enumerate(order):
        await charge(conn, account, 10)
        left = await remaining(conn, account)
        assert [left[each] for each in order] == [0] * (place + 1) + [10] * (4 - place), name


async def test_one_debit_may_draw_on_several_grants(conn, account):
    await give(conn, account, 10, "a")
    await give(conn, account, 10, "b")
    await give(conn, account, 10, "c")
    await charge(conn, account, 25)
    assert await remaining(conn, account) == {"a": 0, "b": 0, "c": 5}


async def test_a_debit_draws_only_on_grants_opened_before_it(conn, account):
    await give(conn, account, 100, "paid", priority=100)
    await charge(conn, account, 30)
    await give(conn, account, 50, "gift")  # burns first, and was not there when the charge was made
    assert await remaining(conn, account) == {"paid": 70, "gift": 50}
    await charge(conn, account, 60)
    assert await remaining(conn, account) == {"paid": 60, "gift": 0}


async def test_it_does_not_matter_when_the_draws_are_worked_out(conn, customers):
    outcomes = []
    for often in (True, False):
        account = (await customers(conn, 0)).account_id
        for number in range(6):
            await give(conn, account, 10 + number, f"g{number}", priority=100 - number)
            await charge(conn, account, 7)
            if often:
                await work_out(conn, account)
        outcomes.append(await remaining(conn, account))
    assert outcomes[0] == outcomes[1]


async def test_the_draws_of_many_small_debits_are_one_row(conn, account):
    await give(conn, account, 1000, "a")
    for _ in range(20):
        await charge(conn, account, 5)
    await work_out(conn, account)
    rows = (
        await conn.execute(
            text("SELECT from_version, to_version, amount FROM draws WHERE account_id = :id"), {"id": account}
        )
    ).all()
    assert [tuple(row) for row in rows] == [(2, 21, 100)]


async def test_a_bounded_part_can_be_worked_out_at_a_time(conn, account):
    await give(conn, account, 1000, "a")
    for _ in range(10):
        await charge(conn, account, 5)
    for _ in range(4):
        await grants.allocate(conn, await accounts.lock_one(conn, account), at_most=3)
    purse = await accounts.lock_one(conn, account)
    assert purse.allocated_version == purse.version == 11


async def test_an_expired_grant_leaves_the_balance(conn, account):
    await give(conn, account, 100, "short", expires_at=TOMORROW)
    await give(conn, account, 100, "long", expires_at=NEXT_MONTH)
    await charge(conn, account, 30)
    await settle(conn, account, TOMORROW)
    assert await remaining(conn, account) == {"short": 0, "long": 100}
    assert await free(conn, account) == 100


async def test_expired_credits_cannot_be_spent_though_no_sweep_has_passed(conn, customers):
    from ledger.payers import authorise

    customer = await customers(conn, 0)
    await give(conn, customer.account_id, 100, "short", expires_at=TOMORROW)
    await conn.execute(
        text(
            "UPDATE grants SET starts_at = now() - interval '2 days', expires_at = now() - interval '1 second'"
        )
    )
    await conn.execute(text("UPDATE accounts SET due_at = now() WHERE kind = 'user'"))
    payer = (await authorise(conn, [(customer.credential, scopes.ANY)]))[(customer.credential, scopes.ANY)]
    assert payer.refusal(1) == InsufficientCredits(1, 0)


async def test_what_a_hold_set_aside_does_not_expire_under_it(conn, account):
    await give(conn, account, 100, "short", expires_at=TOMORROW)
    held = await hold(conn, account, 40)
    await settle(conn, account, TOMORROW)
    stands = await balance(conn, account)
    assert (stands.total_tokens, stands.held_tokens) == (40, 40)
    await give(conn, account, 100, "new", priority=1)  # burns first: it covers the hold from now on
    await settle(conn, account, TOMORROW + timedelta(hours=1))
    assert await remaining(conn, account) == {"short": 0, "new": 100}
    await holds.capture(conn, held, 40, NOW)
    assert await free(conn, account) == 60


async def test_what_comes_free_from_a_hold_after_its_expiry_expires_then(conn, account):
    await give(conn, account, 100, "short", expires_at=TOMORROW)
    await give(conn, account, 50, "long")
    held = await hold(conn, account, 40)
    await settle(conn, account, TOMORROW)
    assert (await balance(conn, account)).total_tokens == 90
    await holds.release(conn, held, "voided")
    await settle(conn, account, TOMORROW + timedelta(minutes=1))
    assert await free(conn, account) == 50


async def test_a_sweep_finds_the_accounts_that_are_due(db, customers, assert_sound):
    async with db.transaction() as conn:
        account = (await customers(conn, 20)).account_id
        await give(conn, account, 100, "short", expires_at=TOMORROW)
        assert await grants.accounts_due(conn, 10) == []
        await conn.execute(
            text(
                "UPDATE grants SET starts_at = now() - interval '2 days', expires_at = now() WHERE reference = 'short'"
            )
        )
        await conn.execute(text("UPDATE accounts SET due_at = now() WHERE due_at IS NOT NULL"))
    assert await db.run(grants.accounts_due, 10) == [account]
    await db.run(grants.settle_due, account)
    assert await db.run(grants.accounts_due, 10) == []
    async with db.transaction() as conn:
        assert await free(conn, account) == 20
    await assert_sound(db)


async def test_a_look_at_all_accounts_finds_those_behind(db, customers):
    async with db.transaction() as conn:
        ids = [(await customers(conn, 20)).account_id for _ in range(5)]
        for account in ids:
            await work_out(conn, account)
        await charge(conn, ids[3], 5)
    assert await db.run(grants.accounts_behind, 0, 100) == ([ids[3]], 0)
    _, after = await db.run(grants.accounts_behind, 0, 2)
    assert after > 0
    await db.run(grants.allocate_behind, ids[3])
    assert await db.run(grants.accounts_behind, 0, 100) == ([], 0)


async def test_a_grant_that_starts_later_is_in_nobodys_balance_before(conn, account):
    promise = {"kind": "grant", "house": "promotion:test", "amount_tokens": 70, "reference": "later"}
    await schedule(conn, account, starts_at=TOMORROW, **promise)
    await schedule(conn, account, starts_at=TOMORROW, **promise)
    assert await free(conn, account) == 0
    await settle(conn, account, NOW)
    assert await free(conn, account) == 0
    await settle(conn, account, TOMORROW)
    await settle(conn, account, TOMORROW)
    assert await free(conn, account) == 70
    with pytest.raises(ReferenceConflict):
        await schedule(conn, account, starts_at=TOMORROW, **{**promise, "amount_tokens": 71})


async def test_a_refund_returns_to_the_grants_it_came_from(conn, account):
    await give(conn, account, 10, "a", expires_at=NEXT_MONTH)
    await give(conn, account, 10, "b")
    paid = await charge(conn, account, 15)
    await give(conn, account, 10, "c", priority=1)
    await refunds.refund(conn, account, paid, amount_tokens=3, reference="r1")
    assert await remaining(conn, account) == {"a": 0, "b": 8, "c": 10}
    await refunds.refund(conn, account, paid, amount_tokens=12, reference="r2")
    assert await remaining(conn, account) == {"a": 10, "b": 10, "c": 10}
    assert await free(conn, account) == 30


async def test_a_refund_of_one_debit_in_a_run_returns_that_debit_alone(conn, account):
    await give(conn, account, 100, "a")
    paid = [await charge(conn, account, amount) for amount in (5, 6, 7)]
    await refunds.refund(conn, account, paid[1], amount_tokens=6, reference="r1")
    assert await remaining(conn, account) == {"a": 88}
    with pytest.raises(ExceedsOriginal):
        await refunds.refund(conn, account, paid[1], amount_tokens=1, reference="r2")


@pytest.mark.parametrize("parts", [(11,), (10, 1), (4, 4, 4), (0,), (-1,)])
async def test_refunds_of_a_transfer_never_exceed_its_amount(conn, account, parts):
    await give(conn, account, 100, "a")
    paid = await charge(conn, account, 10)
    for number, part in enumerate(parts[:-1]):
        await refunds.refund(conn, account, paid, amount_tokens=part, reference=f"r{number}")
    with pytest.raises(ExceedsOriginal):
        await refunds.refund(conn, account, paid, amount_tokens=parts[-1], reference="last")


async def test_the_same_refund_happens_once(conn, account):
    await give(conn, account, 100, "a")
    paid = await charge(conn, account, 10)
    first = await refunds.refund(conn, account, paid, amount_tokens=4, reference="r")
    assert await refunds.refund(conn, account, paid, amount_tokens=4, reference="r") == first
    with pytest.raises(ReferenceConflict):
        await refunds.refund(conn, account, paid, amount_tokens=5, reference="r")
    assert await free(conn, account) == 94


async def test_only_a_charge_can_be_refunded(conn, account):
    given = await give(conn, account, 100, "a")
    with pytest.raises(NotReversible):
        await refunds.refund(conn, account, given, amount_tokens=4, reference="r")
    with pytest.raises(NotFound):
        await refunds.refund(conn, account, 999_999, amount_tokens=4, reference="r")


async def test_credits_that_would_end_before_they_begin_are_refused_by_name(conn, account):
    for moment in (NOW - timedelta(days=1), NOW):
        with pytest.raises(InvalidRequest, match="expiresAt"):
            await give(conn, account, 10, "late", expires_at=moment)
        with pytest.raises(InvalidRequest, match="expiresAt"):
            await schedule(
                conn,
                account,
                kind="grant",
                house="promotion:test",
                amount_tokens=10,
                reference="later",
                starts_at=TOMORROW,
                terms=Terms(expires_at=TOMORROW),
            )
    assert await remaining(conn, account) == {}


async def test_a_repeat_is_answered_after_its_credits_have_ended(conn, account):
    facts = {"kind": "grant", "house": "promotion:test", "amount_tokens": 10, "reference": "short"}
    first = await credit(conn, account, **facts, terms=Terms(expires_at=TOMORROW))
    assert await credit(conn, account, **facts, terms=Terms(expires_at=NOW - timedelta(days=1))) == first


async def test_a_refund_to_an_expired_grant_expires_with_it(conn, account):
    await give(conn, account, 10, "short", expires_at=TOMORROW)
    paid = await charge(conn, account, 10)
    await settle(conn, account, TOMORROW)
    await refunds.refund(conn, account, paid, amount_tokens=10, reference="r")
    assert await free(conn, account) == 10
    await settle(conn, account, TOMORROW)
    assert await free(conn, account) == 0


async def test_a_clawback_takes_what_remains_of_that_payments_grant(conn, account):
    await buy(conn, account, 100, "pay_1")
    await buy(conn, account, 100, "pay_2")
    await charge(conn, account, 30)
    assert await take_back(conn, account, 70, "pay_1") == debts.Clawback(70, 0)
    assert await remaining(conn, account) == {"pay_1": 0, "pay_2": 100}
    assert await debt(conn, account) == 0


async def test_what_was_spent_of_a_payment_taken_back_is_owed_and_freezes_spending(conn, account):
    await buy(conn, account, 100, "pay_1")
    await give(conn, account, 50, "other", priority=200)
    await charge(conn, account, 30)
    assert await take_back(conn, account, 100, "pay_1") == debts.Clawback(70, 30)
    assert await remaining(conn, account) == {"pay_1": 0, "other": 50}
    payer = Payer(await accounts.lock_one(conn, account), None)
    assert payer.refusal(1) == AccountFrozen(30)


async def test_the_next_purchase_pays_the_debt_first(conn, account):
    await buy(conn, account, 100, "pay_1")
    await charge(conn, account, 100)
    await take_back(conn, account, 100, "pay_1")
    await buy(conn, account, 60, "pay_2")
    assert (await debt(conn, account), await free(conn, account)) == (40, 0)
    await buy(conn, account, 60, "pay_3")
    assert (await debt(conn, account), await free(conn, account)) == (0, 20)
    assert Payer(await accounts.lock_one(conn, account), None).refusal(20) is None
    assert await remaining(conn, account) == {"pay_1": 0, "pay_2": 0, "pay_3": 20}


async def test_a_repeated_purchase_pays_a_debt_no_second_time(conn, account):
    await buy(conn, account, 100, "pay_1")
    await charge(conn, account, 100)
    await take_back(conn, account, 100, "pay_1")
    for _ in range(3):
        await buy(conn, account, 60, "pay_2")
    assert (await debt(conn, account), await free(conn, account)) == (40, 0)


async def test_the_same_clawback_happens_once(conn, account):
    await buy(conn, account, 100, "pay_1")
    await charge(conn, account, 90)
    first = await take_back(conn, account, 50, "pay_1", "dp_1")
    assert first == debts.Clawback(10, 40)
    assert await take_back(conn, account, 50, "pay_1", "dp_1") == first
    with pytest.raises(ReferenceConflict):
        await take_back(conn, account, 49, "pay_1", "dp_1")
    assert await take_back(conn, account, 50, "pay_1", "dp_2") == debts.Clawback(0, 50)
    assert await take_back(conn, account, 50, "pay_1", "dp_2") == debts.Clawback(0, 50)
    assert await debt(conn, account) == 90


async def test_credits_clawed_back_never_exceed_credits_granted(conn, account):
    await buy(conn, account, 100, "pay_1")
    await take_back(conn, account, 60, "pay_1", "dp_1")
    with pytest.raises(ExceedsOriginal):
        await take_back(conn, account, 41, "pay_1", "dp_2")
    with pytest.raises(NotFound):
        await take_back(conn, account, 1, "pay_unknown", "dp_3")
    with pytest.raises(DBAPIError, match="clawed"):
        await conn.execute(text("UPDATE grants SET clawed = amount + 1"))


async def test_a_clawback_during_a_job_leaves_its_hold(conn, account):
    await buy(conn, account, 100, "pay_1")
    held = await hold(conn, account, 60)
    assert await take_back(conn, account, 100, "pay_1") == debts.Clawback(40, 60)
    await holds.capture(conn, held, 25, NOW)  # 35 come free and are paid on the debt
    assert (await debt(conn, account), await free(conn, account)) == (25, 0)


async def test_a_hold_that_is_voided_pays_the_debt(conn, account):
    await buy(conn, account, 100, "pay_1")
    held = await hold(conn, account, 60)
    await take_back(conn, account, 100, "pay_1")
    await holds.release(conn, held, "voided")
    assert (await debt(conn, account), await free(conn, account)) == (0, 0)


async def test_a_promise_taken_back_before_its_start_leaves_no_debt(conn, account):
    await schedule(
        conn,
        account,
        kind="referral",
        house="promotion:referral",
        amount_tokens=70,
        reference="friend",
        starts_at=TOMORROW,
        terms=Terms(purchase_id="pay_of_friend"),
    )
    assert await take_back(conn, account, 70, "pay_of_friend") == debts.Clawback(70, 0)
    await settle(conn, account, TOMORROW)
    assert await free(conn, account) == 0


async def test_a_refund_after_a_clawback_pays_the_debt_first(conn, account):
    await buy(conn, account, 100, "pay_1")
    paid = await charge(conn, account, 30)
    await take_back(conn, account, 100, "pay_1")
    await refunds.refund(conn, account, paid, amount_tokens=30, reference="r")
    assert (await debt(conn, account), await free(conn, account)) == (0, 0)


async def test_a_debt_is_the_minus_of_its_house_account(conn, account):
    await buy(conn, account, 100, "pay_1")
    await charge(conn, account, 80)
    await take_back(conn, account, 100, "pay_1")
    await buy(conn, account, 30, "pay_2")
    booked = await conn.execute(
        text(
            "SELECT sum(e.amount) FROM entries e JOIN accounts a ON a.id = e.account_id WHERE a.code = :code"
        ),
        {"code": f"debt:{account}"},
    )
    assert booked.scalar_one() == -50 == -await debt(conn, account)


async def test_an_operators_freeze_stops_spending_until_it_is_taken_back(conn, account):
    await give(conn, account, 100, "a")
    await accounts.freeze(conn, account)
    assert Payer(await accounts.lock_one(conn, account), None).refusal(1) == AccountFrozen(0)
    await accounts.unfreeze(conn, account)
    assert Payer(await accounts.lock_one(conn, account), None).refusal(1) is None


async def test_an_adjustment_goes_both_ways_and_never_below_zero(conn, account):
    up = await adjust(conn, account, amount_tokens=50, reference="up", reason="goodwill")
    assert await adjust(conn, account, amount_tokens=50, reference="up", reason="goodwill") == up
    await adjust(conn, account, amount_tokens=-20, reference="down", reason="a mistake")
    assert await free(conn, account) == 30
    with pytest.raises(InsufficientCredits):
        await adjust(conn, account, amount_tokens=-31, reference="too far", reason="a mistake")
    with pytest.raises(ReferenceConflict):
        await adjust(conn, account, amount_tokens=-19, reference="down", reason="a mistake")


async def test_a_reversal_undoes_a_transfer_once(conn, account):
    await give(conn, account, 100, "a")
    paid = await charge(conn, account, 30)
    first = await refunds.reverse(conn, account, paid, reference="x", reason="wrong account")
    assert await refunds.reverse(conn, account, paid, reference="x", reason="wrong account") == first
    with pytest.raises(NotReversible):
        await refunds.reverse(conn, account, paid, reference="y", reason="again")
    with pytest.raises(ExceedsOriginal):
        await refunds.refund(conn, account, paid, amount_tokens=1, reference="r")
    assert await remaining(conn, account) == {"a": 100}


async def test_credits_are_reversed_only_while_none_was_spent(conn, account):
    given = await give(conn, account, 100, "a")
    adjusted = await adjust(conn, account, amount_tokens=10, reference="up", reason="test")
    await charge(conn, account, 1)
    with pytest.raises(NotReversible):
        await refunds.reverse(conn, account, given, reference="x", reason="mistake")
    await refunds.reverse(conn, account, adjusted, reference="y", reason="mistake")
    assert await remaining(conn, account) == {"a": 99, "up": 0}


async def test_a_purchase_is_clawed_back_and_never_reversed(conn, account):
    bought = await buy(conn, account, 100, "pay_1")
    with pytest.raises(NotReversible):
        await refunds.reverse(conn, account, bought, reference="x", reason="mistake")


async def test_the_balance_is_the_sum_of_unexpired_grants_once_worked_out(db, customers):
    async with db.transaction() as conn:
        account = (await customers(conn, 0)).account_id
        await buy(conn, account, 500, "pay_1")
        await give(conn, account, 60, "gift", expires_at=TOMORROW)
        paid = [await charge(conn, account, amount) for amount in (10, 55, 20)]
        await refunds.refund(conn, account, paid[1], amount_tokens=50, reference="r1")
        await take_back(conn, account, 500, "pay_1")
        await settle(conn, account, TOMORROW)
    findings = await db.run(run_checks, LEDGER_CHECKS)
    assert [finding for finding in findings if not finding.ok] == []
    async with db.transaction() as conn:
        assert sum((await remaining(conn, account)).values()) == (await balance(conn, account)).total_tokens


async def put_back(conn, account_id, amount, purchase_id, reference="won_1"):
    return await reinstatements.reinstate(
        conn, account_id, purchase_id=purchase_id, amount_tokens=amount, reference=reference, event_at=NOW
    )


async def test_what_a_clawback_took_comes_back_to_its_grant(conn, account):
    await buy(conn, account, 100, "pay_1")
    await charge(conn, account, 30)
    await take_back(conn, account, 100, "pay_1")
    assert (await debt(conn, account), await free(conn, account)) == (30, 0)
    assert await put_back(conn, account, 100, "pay_1") == reinstatements.Reinstatement(70, 30)
    assert (await debt(conn, account), await free(conn, account)) == (0, 70)
    assert await remaining(conn, account) == {"pay_1": 70}
    with pytest.raises(ExceedsOriginal):
        await put_back(conn, account, 1, "pay_1", "won_2")


async def test_what_was_paid_on_a_debt_comes_back_to_the_credits_that_paid_it(conn, account):
    await buy(conn, account, 100, "pay_1")
    await charge(conn, account, 100)
    await take_back(conn, account, 100, "pay_1")
    await buy(conn, account, 60, "pay_2")  # pays a part of the debt
    assert await put_back(conn, account, 100, "pay_1") == reinstatements.Reinstatement(60, 40)
    assert (await debt(conn, account), await free(conn, account)) == (0, 60)
    assert await remaining(conn, account) == {"pay_1": 0, "pay_2": 60}


async def test_what_comes_back_for_one_payment_pays_the_debt_of_another(conn, account):
    await buy(conn, account, 100, "pay_1")
    await buy(conn, account, 100, "pay_2")
    await charge(conn, account, 100)  # pay_1's
    await take_back(conn, account, 100, "pay_2", "dp_2")
    await take_back(conn, account, 100, "pay_1", "dp_1")
    assert await debt(conn, account) == 100
    assert await put_back(conn, account, 100, "pay_2") == reinstatements.Reinstatement(100, 0)
    assert (await debt(conn, account), await free(conn, account)) == (0, 0)


async def test_the_same_reinstatement_happens_once(conn, account):
    await buy(conn, account, 100, "pay_1")
    await charge(conn, account, 90)
    await take_back(conn, account, 100, "pay_1")
    first = await put_back(conn, account, 50, "pay_1", "won_1")
    assert await put_back(conn, account, 50, "pay_1", "won_1") == first
    with pytest.raises(ReferenceConflict):
        await put_back(conn, account, 49, "pay_1", "won_1")
    with pytest.raises(NotFound):
        await put_back(conn, account, 1, "pay_unknown", "won_2")
    findings = await run_checks_here(conn)
    assert findings == []


async def test_a_charge_can_still_be_refunded_whole_after_a_reinstatement(conn, account):
    await buy(conn, account, 100, "pay_1")
    spent = await charge(conn, account, 100)
    await take_back(conn, account, 100, "pay_1")
    await buy(conn, account, 100, "pay_2")
    await put_back(conn, account, 100, "pay_1")
    await refunds.refund(conn, account, spent, amount_tokens=100, reference="sorry")
    assert await remaining(conn, account) == {"pay_1": 100, "pay_2": 100}
    assert await run_checks_here(conn) == []


async def run_checks_here(conn):
    """The rows of the test's own transaction that break an invariant of the books."""
    await work_out_all(conn)
    found = []
    for check in LEDGER_CHECKS:
        found += [(check.name, dict(row)) for row in (await conn.execute(text(check.sql))).mappings()]
    return found


async def work_out_all(conn):
    for account_id in (await conn.scalars(text("SELECT id FROM accounts WHERE kind = 'user'"))).all():
        await work_out(conn, account_id)
