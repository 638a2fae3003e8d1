"""Operators and their log: whose key works, and that every change is told once, with the change or not at all."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import delete, text, update
from sqlalchemy.exc import IntegrityError

from gateway import interventions, lookups, prices
from gateway.errors import HoldOfJob
from gateway.jobs import submit_many
from gateway.operator_ports import Adjust, GiveBack, GiveCredits, HoldQuery, JobsQuery, Undo, UserQuery
from gateway.ports import SubmitJob
from gateway.prices import NewPrice
from kit.errors import AppError, AuthRequired, Forbidden, NotFound
from kit.ids import new_id
from ledger import actions, operators, scopes
from ledger.actions import Actor
from ledger.errors import (
    AccountFrozen,
    ExceedsOriginal,
    HoldResolved,
    InsufficientCredits,
    NotReversible,
    OperatorExists,
    ReferenceConflict,
)
from ledger.holds import HoldRequest, place
from ledger.keys import hash_key
from ledger.payers import authorise
from ledger.spends import Spend, spend_many
from ledger.tables import operator_actions
from ledger.tables import operators as operators_table
from payments.vouchers import VoucherTerms

HAND = Actor(None, "ada", None)
NAMELESS = Actor(None, "", None)
"""The log refuses a line without a name, and with it the change that it was to tell."""


async def told(conn, user_id=None):
    """The log's lines, oldest first."""
    return list(reversed(await actions.list_actions(conn, 100, user_id=user_id)))


async def spend(conn, owner, cost=100, reference="s1"):
    return (await spend_many(conn, [Spend(owner.credential, "chat", reference, 1000, cost, 1)]))[0]


def gift(owner, tokens=500, reference="ticket-17", **terms):
    return GiveCredits(owner.user_id, tokens, reference, "sorry", **terms)


async def hold_of(conn, owner, tokens=40):
    use = (owner.credential, scopes.tool("chat"))
    payer = (await authorise(conn, [use]))[use]
    hold_id = new_id("hold")
    await place(conn, [HoldRequest(hold_id, payer, "chat", "h1", tokens, 1, None)])
    return hold_id


async def job_of(conn, owner):
    job_id = new_id("job")
    job = SubmitJob(owner.credential, job_id, "image.generate", "image", "image", {}, 1000, 60, 1, None, "f")
    await submit_many(conn, [job], timedelta(hours=1))
    return job_id


# -- keys ------------------------------------------------------------------------------------------------------------


async def test_an_operators_key_works_until_it_is_revoked_and_its_use_is_noted(conn):
    made = await operators.add(conn, HAND, "grace", brand="amai")
    assert made.secret.startswith("amai_op_")
    actor = await operators.actor_of(conn, hash_key(made.secret), "req_1")
    assert actor == Actor(made.operator.id, "grace", "req_1")
    assert (await operators.list_operators(conn))[0].last_used_at is not None
    assert (await operators.revoke(conn, HAND, "grace")).revoked_at is not None
    with pytest.raises(AuthRequired):
        await operators.actor_of(conn, hash_key(made.secret), None)
    assert [line.action for line in await told(conn)] == ["operator.add", "operator.revoke"]
    stored = (await conn.execute(text("SELECT CAST(o AS text) FROM operators o"))).scalar_one()
    assert made.secret.removeprefix("amai_op_") not in stored


async def test_a_live_name_is_taken_and_a_revoked_one_is_free_again(conn):
    await operators.add(conn, HAND, "grace", brand="amai")
    with pytest.raises(OperatorExists):
        await operators.add(conn, HAND, "grace", brand="amai")
    await operators.revoke(conn, HAND, "grace")
    await operators.add(conn, HAND, "grace", brand="amai")
    with pytest.raises(NotFound):
        await operators.revoke(conn, HAND, "nobody")


async def test_a_customers_key_is_no_operators(conn, customers):
    owner = await customers(conn, 0)
    with pytest.raises(AuthRequired):
        await operators.actor_of(conn, owner.credential.hash, None)


# -- the log ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        delete(operator_actions),
        update(operator_actions).values(reason="x"),
        text("TRUNCATE operator_actions"),
    ],
)
async def test_the_log_is_append_only(conn, statement):
    await operators.add(conn, HAND, "grace", brand="amai")
    with pytest.raises(IntegrityError):
        await conn.execute(statement)


async def test_operators_are_never_deleted(conn):
    await operators.add(conn, HAND, "grace", brand="amai")
    with pytest.raises(IntegrityError):
        await conn.execute(delete(operators_table))


async def test_an_action_that_fails_leaves_no_line_and_an_action_without_its_line_is_undone(db, customers):
    async with db.transaction() as conn:
        owner = await customers(conn, 100)
    with pytest.raises(InsufficientCredits):
        await db.run(interventions.adjust, HAND, Adjust(owner.user_id, -200, "a1", "wrong"))
    with pytest.raises(IntegrityError):
        await db.run(interventions.give_credits, NAMELESS, gift(owner))
    async with db.transaction() as conn:
        assert await told(conn) == []
        assert (await lookups.user(conn, owner.user_id)).balance_tokens == 100


async def test_no_change_of_any_kind_is_possible_without_its_line(conn, customers):
    owner, banned = await customers(conn, 1000), await customers(conn, 100)
    charge = (await spend(conn, owner)).transfer_id
    hold_id, job_id = await hold_of(conn, owner), await job_of(conn, owner)
    (code,) = await interventions.make_vouchers(conn, HAND, VoucherTerms("x", 5, 1, None, None), 1, None)
    await operators.add(conn, HAND, "grace", brand="amai")
    await interventions.set_suspended(conn, HAND, banned.user_id, True, "x")
    await interventions.set_frozen(conn, HAND, banned.user_id, True, "x")
    changes = (
        lambda: interventions.set_suspended(conn, NAMELESS, owner.user_id, True, "x"),
        lambda: interventions.set_suspended(conn, NAMELESS, banned.user_id, False, "x"),
        lambda: interventions.set_frozen(conn, NAMELESS, owner.user_id, True, "x"),
        lambda: interventions.set_frozen(conn, NAMELESS, banned.user_id, False, "x"),
        lambda: interventions.give_credits(conn, NAMELESS, gift(owner)),
        lambda: interventions.adjust(conn, NAMELESS, Adjust(owner.user_id, -1, "a", "x")),
        lambda: interventions.refund(conn, NAMELESS, GiveBack(charge, 1, "r", "x")),
        lambda: interventions.reverse(conn, NAMELESS, Undo(charge, "u", "x")),
        lambda: interventions.void_hold(conn, NAMELESS, hold_id, "x"),
        lambda: interventions.end_job(conn, NAMELESS, job_id, "x"),
        lambda: interventions.make_vouchers(conn, NAMELESS, code.voucher.terms, 1, None),
        lambda: interventions.disable_voucher(conn, NAMELESS, code.voucher.id, "x"),
        lambda: prices.announce(conn, NAMELESS, NewPrice("chat", 7, 1, None, "x")),
        lambda: operators.add(conn, NAMELESS, "ada", brand="amai"),
        lambda: operators.revoke(conn, NAMELESS, "grace"),
    )
    for change in changes:
        with pytest.raises(IntegrityError, match="operator_actions_named_check"):
            async with conn.begin_nested():
                await change()


async def test_the_log_is_read_in_pages_and_by_user(conn, customers):
    one, other = await customers(conn, 0), await customers(conn, 0)
    for number in range(3):
        await interventions.give_credits(conn, HAND, gift(one, reference=str(number)))
    await interventions.give_credits(conn, HAND, gift(other))
    lines = await actions.list_actions(conn, 100)
    assert len(lines) == 4
    first = await actions.list_actions(conn, 3)
    assert first + await actions.list_actions(conn, 3, before=first[-1].id) == lines
    assert {line.user_id for line in await told(conn, one.user_id)} == {one.user_id}


# -- what operators do -----------------------------------------------------------------------------------------------


async def test_a_suspended_user_is_refused_until_that_is_taken_back_and_repeats_are_not_told(conn, customers):
    owner = await customers(conn, 100)
    for _ in range(2):
        user = await interventions.set_suspended(conn, HAND, owner.user_id, True, "abuse")
    assert user.suspended_at is not None
    assert isinstance(await spend(conn, owner), Forbidden)
    for _ in range(2):
        await interventions.set_suspended(conn, HAND, owner.user_id, False, "sorted out")
    assert (await spend(conn, owner)).charged_tokens == 100
    lines = await told(conn, owner.user_id)
    assert [(line.action, line.reason) for line in lines] == [
        ("user.suspend", "abuse"),
        ("user.unsuspend", "sorted out"),
    ]
    assert lines[0].before == {"suspended_at": None}
    assert lines[0].after["suspended_at"] is not None


async def test_nothing_is_spent_after_the_commit_of_a_suspension_or_a_freeze(db, customers, assert_sound):
    async with db.transaction() as conn:
        owners = [await customers(conn, 10_000) for _ in range(2)]

    async def balance_of(owner):
        async with db.transaction() as conn:
            return (await lookups.user(conn, owner.user_id)).balance_tokens

    async def spends_until_refused(owner, agent):
        outcome, number = None, 0
        while not isinstance(outcome, AppError):
            number += 1
            async with db.transaction() as conn:
                outcome = await spend(conn, owner, cost=1, reference=f"{agent}-{number}")
        return type(outcome)

    stops = ((interventions.set_suspended, Forbidden), (interventions.set_frozen, AccountFrozen))
    for owner, (stop, refusal) in zip(owners, stops, strict=True):
        spending = asyncio.gather(*(spends_until_refused(owner, agent) for agent in range(4)))
        while await balance_of(owner) == 10_000:  # a query is a real pause
            continue
        await db.run(stop, HAND, owner.user_id, True, "abuse")
        stood = await balance_of(owner)
        assert await spending == [refusal] * 4
        assert await balance_of(owner) == stood
    await assert_sound(db)


async def test_a_frozen_account_spends_nothing_until_it_is_thawed(conn, customers):
    owner = await customers(conn, 100)
    for _ in range(2):
        await interventions.set_frozen(conn, HAND, owner.user_id, True, "fraud?")
    assert isinstance(await spend(conn, owner), AccountFrozen)
    await interventions.set_frozen(conn, HAND, owner.user_id, False, "no")
    assert (await spend(conn, owner)).charged_tokens == 100
    assert [line.action for line in await told(conn)] == ["account.freeze", "account.unfreeze"]


async def test_credits_are_given_once_for_a_reference_and_told_with_the_balance(db, customers, assert_sound):
    async with db.transaction() as conn:
        owner = await customers(conn, 100)
    moves = await asyncio.gather(*(db.run(interventions.give_credits, HAND, gift(owner)) for _ in range(6)))
    assert {(move.transfer_id, move.free_tokens) for move in moves} == {(moves[0].transfer_id, 600)}
    assert sum(not move.replayed for move in moves) == 1
    async with db.transaction() as conn:
        (line,) = await told(conn)
    assert (line.name, line.operator_id, line.target) == ("ada", None, str(moves[0].transfer_id))
    assert (line.before["balanceTokens"], line.after["balanceTokens"]) == (100, 600)
    assert line.after["reference"] == "ticket-17"
    await assert_sound(db)


async def test_a_reference_with_another_amount_or_priority_is_refused(conn, customers):
    owner = await customers(conn, 0)
    await interventions.give_credits(conn, HAND, gift(owner))
    for other in (gift(owner, tokens=600), gift(owner, priority=10)):
        with pytest.raises(ReferenceConflict):
            await interventions.give_credits(conn, HAND, other)


async def test_a_charge_is_refunded_in_parts_or_whole_and_never_more(conn, customers):
    owner = await customers(conn, 100)
    charge = await spend(conn, owner)
    part = await interventions.refund(conn, HAND, GiveBack(charge.transfer_id, 30, "r1", "half broken"))
    assert (part.amount_tokens, part.free_tokens, part.replayed) == (30, 30, False)
    with pytest.raises(ExceedsOriginal):
        await interventions.refund(conn, HAND, GiveBack(charge.transfer_id, 71, "r2", "more"))
    rest = GiveBack(charge.transfer_id, None, "r3", "all broken")
    assert (await interventions.refund(conn, HAND, rest)).amount_tokens == 70
    again = await interventions.refund(conn, HAND, rest)
    assert (again.amount_tokens, again.free_tokens, again.replayed) == (70, 100, True)
    assert [line.action for line in await told(conn)] == ["transfer.refund"] * 2


async def test_refunds_at_once_never_give_back_more_than_the_charge(db, customers, assert_sound):
    async with db.transaction() as conn:
        owner = await customers(conn, 100)
        charge = (await spend(conn, owner)).transfer_id

    async def refund(number):
        try:
            return (
                await db.run(interventions.refund, HAND, GiveBack(charge, 30, f"r{number}", "x"))
            ).amount_tokens
        except ExceedsOriginal:
            return 0

    assert sorted(await asyncio.gather(*(refund(number) for number in range(8)))) == [0] * 5 + [30] * 3
    async with db.transaction() as conn:
        assert (await lookups.user(conn, owner.user_id)).balance_tokens == 90
        assert len(await told(conn)) == 3
    await assert_sound(db)


async def test_what_is_no_charge_is_not_refunded_and_what_is_no_users_is_not_found(conn, customers):
    owner = await customers(conn, 100)
    given = await interventions.give_credits(conn, HAND, gift(owner))
    for tokens in (None, 5):
        with pytest.raises(NotReversible):
            await interventions.refund(conn, HAND, GiveBack(given.transfer_id, tokens, "r1", "x"))
    with pytest.raises(NotFound):
        await interventions.refund(conn, HAND, GiveBack(2**62, None, "r1", "x"))
    undone = await interventions.reverse(conn, HAND, Undo(given.transfer_id, "u1", "wrong user"))
    assert (undone.amount_tokens, undone.free_tokens) == (-500, 100)


async def test_a_balance_is_corrected_both_ways_once(conn, customers):
    owner = await customers(conn, 100)
    down = Adjust(owner.user_id, -40, "a1", "counted twice")
    assert (await interventions.adjust(conn, HAND, down)).free_tokens == 60
    assert (await interventions.adjust(conn, HAND, down)).replayed
    assert (await interventions.adjust(conn, HAND, Adjust(owner.user_id, 15, "a2", "x"))).free_tokens == 75


async def test_a_voided_hold_frees_its_money_once(conn, customers):
    owner = await customers(conn, 100)
    hold_id = await hold_of(conn, owner)
    assert [h.id for h in await lookups.pending_holds(conn, HoldQuery(10, user_id=owner.user_id))] == [
        hold_id
    ]
    freed = await interventions.void_hold(conn, HAND, hold_id, "lost client")
    assert freed.state == "voided"
    assert (await lookups.user(conn, owner.user_id)).free_tokens == 100
    with pytest.raises(HoldResolved):
        await interventions.void_hold(conn, HAND, hold_id, "again")
    assert [line.action for line in await told(conn)] == ["hold.void"]


async def test_a_jobs_hold_goes_with_its_job_alone(conn, customers):
    owner = await customers(conn, 100)
    job_id = await job_of(conn, owner)
    (hold,) = await lookups.pending_holds(conn, HoldQuery(10, user_id=owner.user_id))
    assert (hold.job_id, hold.email) == (job_id, owner.email)
    with pytest.raises(HoldOfJob):
        await interventions.void_hold(conn, HAND, hold.id, "x")
    for _ in range(2):
        assert (await interventions.end_job(conn, HAND, job_id, "stuck")).status == "canceled"
    assert (await lookups.user(conn, owner.user_id)).free_tokens == 100
    (line,) = await told(conn)
    assert line.action == "job.cancel"
    assert (line.before["status"], line.after["status"]) == ("queued", "canceled")


async def test_jobs_are_found_by_what_they_are(conn, customers):
    owner = await customers(conn, 100)
    job_id = await job_of(conn, owner)
    for fits in ({"status": "queued"}, {"task": "image.generate"}, {"user_id": owner.user_id}):
        assert [j.id for j in await lookups.find_jobs(conn, JobsQuery(10, **fits))] == [job_id]
    for other in ({"status": "failed"}, {"task": "x"}, {"user_id": "user_x"}, {"before": job_id}):
        assert await lookups.find_jobs(conn, JobsQuery(10, **other)) == []
    assert [u.id for u in await lookups.find_users(conn, UserQuery(job_id, None, 10))] == [owner.user_id]


# -- who is found ----------------------------------------------------------------------------------------------------


async def test_users_are_found_by_all_that_they_may_name(conn, customers):
    owner = await customers(conn, 100, "Ada.Lovelace@example.com".lower())
    await customers(conn, 100, "other@example.com")
    hold_id = await hold_of(conn, owner)
    assert (await spend(conn, owner, cost=10, reference="order 66")).charged_tokens == 10
    prefix = owner.secret.removeprefix("amai_live_")[:10]
    for term in ("Lovelace", "ada.lovelace@example.com", owner.user_id, owner.key_id, prefix, hold_id):
        assert [u.id for u in await lookups.find_users(conn, UserQuery(term, None, 10))] == [owner.user_id], (
            term
        )
    found = await lookups.find_users(conn, UserQuery(None, "order 66", 10))
    assert [u.id for u in found] == [owner.user_id]


async def test_a_search_reads_no_wildcards(conn, customers):
    await customers(conn, 0)
    for term in ("%", "_xample", "nobody"):
        assert await lookups.find_users(conn, UserQuery(term, None, 10)) == []


async def test_pages_of_users_join_to_the_whole(conn, customers):
    for _ in range(5):
        await customers(conn, 0)
    whole = await lookups.find_users(conn, UserQuery(None, None, 100))
    first = await lookups.find_users(conn, UserQuery(None, None, 3))
    rest = await lookups.find_users(conn, UserQuery(None, None, 100, before=first[-1].id))
    assert first + rest == whole


async def test_an_unknown_user_is_not_found_by_any_action(conn):
    for action in (
        lookups.user_overview(conn, "user_x"),
        interventions.set_suspended(conn, HAND, "user_x", True, "x"),
        interventions.set_frozen(conn, HAND, "user_x", True, "x"),
        interventions.give_credits(conn, HAND, GiveCredits("user_x", 1, "r", "x")),
        interventions.void_hold(conn, HAND, "hold_x", "x"),
        interventions.end_job(conn, HAND, "job_x", "x"),
        interventions.disable_voucher(conn, HAND, "voucher_x", "x"),
    ):
        with pytest.raises(AppError) as refused:
            await action
        assert refused.value.code == "not_found"
