"""The laws of spends: each decided as if it came alone, once for its reference, within balance, cap and key."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from kit.errors import AuthRequired, Forbidden
from kit.ids import new_id
from kit.settings import load_settings
from ledger import accounts, holds, keys
from ledger.balances import balance
from ledger.credits import credit
from ledger.errors import AccountFrozen, InsufficientCredits, KeyCapReached, ReferenceConflict
from ledger.payers import Payer
from ledger.spends import Check, Spend, Spent, check_many, spend_many

REFUSED_BY_THE_DATABASE = {
    "one side": "INSERT INTO entries VALUES (:user, 2, :transfer, 5, 5)",
    "sides that do not cancel": (
        "INSERT INTO entries VALUES (:user, 2, :transfer, 5, 5), (:house, :transfer, :transfer, -4, NULL)"
    ),
    "three sides": (
        "INSERT INTO entries VALUES (:user, 2, :transfer, 5, 5), (:house, 98, :transfer, -4, NULL),"
        " (:house, 99, :transfer, -1, NULL)"
    ),
    "a transfer that is not there": (
        "INSERT INTO entries VALUES (:user, 2, 999999, 5, 5), (:house, 99, 999999, -5, NULL)"
    ),
    "an account that is not there": (
        "INSERT INTO entries VALUES (:user, 2, :transfer, 5, 5), (999999, 99, :transfer, -5, NULL)"
    ),
    "sides that are not the transfer's own account": (
        "INSERT INTO entries VALUES (:house, 98, :transfer, 5, NULL), (:house, 99, :transfer, -5, NULL)"
    ),
}


def spend(customer, reference, cost=1, *, tool="image", units=None, version=1):
    return Spend(customer.credential, tool, reference, units or cost * 1000, cost, version)


def summary(outcomes):
    return [o.charged_tokens if isinstance(o, Spent) else type(o) for o in outcomes]


async def cap(conn, customer, tokens, per="total"):
    await conn.execute(
        text("UPDATE api_keys SET cap_tokens = :tokens, cap_per = :per WHERE id = :id"),
        {"tokens": tokens, "per": per, "id": customer.key_id},
    )


async def second_key(conn, customer):
    """Another key of the same account."""
    made = await keys.mint(conn, customer.user_id, "second", brand="amai")
    return type(customer)(customer.user_id, customer.account_id, made.key.id, customer.email, made.secret)


async def free(conn, customer):
    return (await balance(conn, customer.account_id)).available_tokens


async def top_up(conn, customer, tokens):
    await credit(
        conn,
        customer.account_id,
        kind="grant",
        house="promotion:test",
        amount_tokens=tokens,
        reference=new_id("grant"),
    )


async def hold(conn, customer, reference, amount):
    payer = Payer(await accounts.lock_one(conn, customer.account_id), None)
    request = holds.HoldRequest(new_id("hold"), payer, "image", reference, amount, 1, None)
    await holds.place(conn, [request])
    return request.id


async def test_each_spend_of_a_batch_is_decided_on_its_own(conn, customers):
    rich, poor, stranger = await customers(conn, 100), await customers(conn, 5), await customers(conn, 100)
    frozen, revoked, banned, capped = [await customers(conn, 100) for _ in range(4)]
    await accounts.freeze(conn, frozen.account_id)
    await keys.revoke(conn, revoked.user_id, revoked.secret.split("_")[-1][:8])
    await conn.execute(text("UPDATE users SET suspended_at = now() WHERE id = :id"), {"id": banned.user_id})
    await cap(conn, capped, 3)
    unknown = Spend(keys.Credential(b"\0" * 32), "image", "r", 1000, 1, 1)
    outcomes = await spend_many(
        conn,
        [
            spend(rich, "a", 10), unknown, spend(poor, "a", 6), spend(frozen, "a"), spend(revoked, "a"),
            spend(banned, "a"), spend(capped, "a", 4), spend(capped, "b", 3), spend(stranger, "a", 100),
            spend(poor, "b", 5), spend(rich, "b", 90),
        ],
    )  # fmt: skip
    assert summary(outcomes) == [
        10, AuthRequired, InsufficientCredits, AccountFrozen, AuthRequired, Forbidden, KeyCapReached, 3, 100, 5, 90,
    ]  # fmt: skip
    assert [await free(conn, c) for c in (rich, poor, stranger, frozen, capped)] == [0, 0, 0, 100, 97]


async def test_a_large_rejected_spend_leaves_its_credits_to_the_next(conn, customers):
    customer = await customers(conn, 10)
    outcomes = await spend_many(
        conn,
        [spend(customer, "a", 4), spend(customer, "b", 9), spend(customer, "c", 6), spend(customer, "d", 1)],
    )
    assert summary(outcomes) == [4, InsufficientCredits, 6, InsufficientCredits]
    assert [o.balance_after_tokens for o in outcomes if isinstance(o, Spent)] == [6, 0]


async def test_a_repeat_within_a_batch_is_one_spend(conn, customers):
    customer = await customers(conn, 10)
    same = spend(customer, "a", 4)
    first, again, other = await spend_many(conn, [same, same, spend(customer, "a", 5)])
    assert (first.replayed, again.replayed) == (False, True)
    assert (first.transfer_id, first.charged_tokens, first.balance_after_tokens) == (
        again.transfer_id, again.charged_tokens, again.balance_after_tokens,
    )  # fmt: skip
    assert isinstance(other, ReferenceConflict)
    assert await free(conn, customer) == 6


async def test_a_refused_spend_leaves_its_reference_free(conn, customers):
    customer = await customers(conn, 3)
    assert summary(await spend_many(conn, [spend(customer, "a", 4), spend(customer, "a", 3)])) == [
        InsufficientCredits, 3,
    ]  # fmt: skip
    await top_up(conn, customer, 10)
    assert summary(await spend_many(conn, [spend(customer, "b", 11)])) == [InsufficientCredits]
    await top_up(conn, customer, 10)
    assert summary(await spend_many(conn, [spend(customer, "b", 11)])) == [11]


@pytest.mark.parametrize("since", ["poor", "frozen", "capped", "dearer", "other key"])
async def test_a_replay_returns_the_same_answer_whatever_changed_since(conn, customers, since):
    customer = await customers(conn, 10)
    [first] = await spend_many(conn, [spend(customer, "a", 4)])
    asked = spend(customer, "a", 4)
    match since:
        case "poor":
            await spend_many(conn, [spend(customer, "b", 6)])
        case "frozen":
            await accounts.freeze(conn, customer.account_id)
        case "capped":
            await cap(conn, customer, 0)
        case "dearer":
            asked = spend(customer, "a", 400, units=4000, version=2)
        case "other key":
            asked = spend(await second_key(conn, customer), "a", 4)
    before = await free(conn, customer)
    [again] = await spend_many(conn, [asked])
    assert again == Spent(first.transfer_id, 4, 6, replayed=True)
    assert await free(conn, customer) == before


async def test_a_revoked_key_gets_no_replay(conn, customers):
    customer = await customers(conn, 10)
    await spend_many(conn, [spend(customer, "a", 4)])
    await conn.execute(text("UPDATE api_keys SET revoked_at = now() WHERE id = :id"), {"id": customer.key_id})
    assert summary(await spend_many(conn, [spend(customer, "a", 4)])) == [AuthRequired]


async def test_the_same_reference_with_other_units_is_a_conflict(conn, customers):
    customer = await customers(conn, 10)
    await spend_many(conn, [spend(customer, "a", 4)])
    outcomes = await spend_many(conn, [spend(customer, "a", 5), spend(customer, "a", 4, units=1)])
    assert summary(outcomes) == [ReferenceConflict, ReferenceConflict]
    assert await free(conn, customer) == 6


async def test_a_reference_is_one_account_s_and_one_tool_s(conn, customers):
    one, other = await customers(conn, 10), await customers(conn, 10)
    outcomes = await spend_many(
        conn, [spend(one, "a", 1), spend(other, "a", 2), spend(one, "a", 3, tool="music")]
    )
    assert summary(outcomes) == [1, 2, 3]


async def test_a_reference_of_held_or_charged_work_is_taken(conn, customers):
    customer = await customers(conn, 10)
    hold_id = await hold(conn, customer, "job", 3)
    assert summary(await spend_many(conn, [spend(customer, "job", 3)])) == [ReferenceConflict]
    await holds.capture(conn, hold_id, 3, holds.datetime.now(holds.UTC))
    assert summary(await spend_many(conn, [spend(customer, "job", 3)])) == [ReferenceConflict]
    assert await free(conn, customer) == 7


async def test_what_is_held_is_not_free_to_spend(conn, customers):
    customer = await customers(conn, 10)
    await hold(conn, customer, "job", 7)
    outcomes = await spend_many(conn, [spend(customer, "a", 4), spend(customer, "b", 3)])
    assert summary(outcomes) == [InsufficientCredits, 3]
    assert outcomes[1].balance_after_tokens == 0


@pytest.mark.parametrize(("per", "age"), [("day", "1 day"), ("month", "1 month")])
async def test_a_cap_starts_anew_with_its_window(conn, customers, per, age):
    customer = await customers(conn, 100)
    await cap(conn, customer, 5, per)
    assert summary(await spend_many(conn, [spend(customer, "a", 5), spend(customer, "b", 1)])) == [
        5,
        KeyCapReached,
    ]
    await conn.execute(
        text("UPDATE api_keys SET cap_window = cap_window - CAST(:age AS interval) WHERE id = :id"),
        {"age": age, "id": customer.key_id},
    )
    assert summary(await spend_many(conn, [spend(customer, "c", 6), spend(customer, "d", 5)])) == [
        KeyCapReached,
        5,
    ]


async def test_a_cap_counts_holds_and_spends_of_its_own_key_alone(conn, customers):
    customer = await customers(conn, 100)
    free_one = await second_key(conn, customer)
    await cap(conn, customer, 5)
    outcomes = await spend_many(
        conn,
        [spend(customer, "a", 3), spend(free_one, "b", 50), spend(customer, "c", 3), spend(customer, "d", 2)],
    )
    assert summary(outcomes) == [3, 50, KeyCapReached, 2]


async def test_a_repeat_does_not_count_against_the_cap(conn, customers):
    customer = await customers(conn, 100)
    await cap(conn, customer, 5)
    for _ in range(3):
        assert summary(await spend_many(conn, [spend(customer, "a", 3), spend(customer, "a", 3)])) == [3, 3]
    assert summary(await spend_many(conn, [spend(customer, "b", 2)])) == [2]


async def test_credits_that_ended_are_settled_before_a_spend(conn, customers):
    customer = await customers(conn, 10)
    await conn.execute(
        text("UPDATE grants SET expires_at = clock_timestamp(), starts_at = now() - interval '1 day'"
             " WHERE account_id = :id"),
        {"id": customer.account_id},
    )  # fmt: skip
    await conn.execute(text("UPDATE accounts SET due_at = now() WHERE id = :id"), {"id": customer.account_id})
    assert summary(await spend_many(conn, [spend(customer, "a", 1)])) == [InsufficientCredits]
    assert await free(conn, customer) == 0


async def test_an_empty_batch_is_answered_empty(conn):
    assert await spend_many(conn, []) == []
    assert await check_many(conn, []) == []


async def test_a_check_charges_nothing_and_says_what_a_spend_would_meet(conn, customers):
    rich, frozen, capped = [await customers(conn, 100) for _ in range(3)]
    await accounts.freeze(conn, frozen.account_id)
    await cap(conn, capped, 3)
    asked = [
        Check(rich.credential, 40, "image"), Check(rich.credential, 100, "image"),
        Check(rich.credential, 101, "image"), Check(frozen.credential, 1, "image"),
        Check(capped.credential, 4, "image"), Check(keys.Credential(b"\0" * 32), 1, "image"),
    ]  # fmt: skip
    *answers, unknown = await check_many(conn, asked)
    assert [(a.allowed, a.balance_after_tokens, a.reason) for a in answers] == [
        (True, 60, None),
        (True, 0, None),
        (False, 100, "insufficient_credits"),
        (False, 100, "account_frozen"),
        (False, 100, "key_limit_reached"),
    ]
    assert isinstance(unknown, AuthRequired)
    assert [await free(conn, c) for c in (rich, frozen, capped)] == [100, 100, 100]


@pytest.mark.parametrize("forged", REFUSED_BY_THE_DATABASE.values(), ids=REFUSED_BY_THE_DATABASE)
async def test_entries_of_a_transfer_sum_to_zero_or_are_refused(conn, customers, forged):
    customer = await customers(conn, 10)
    transfer = (
        await conn.execute(
            text(
                "INSERT INTO transfers (kind, account_id, tool, reference, amount, event_at)"
                " VALUES ('adjustment', :user, 'adjustment', 'forged', 5, now()) RETURNING id"
            ),
            {"user": customer.account_id},
        )
    ).scalar_one()
    house = await accounts.ensure_house(conn, "promotion:test")
    with pytest.raises(DBAPIError) as refused:
        await conn.execute(text(forged), {"user": customer.account_id, "house": house, "transfer": transfer})
    assert refused.value.orig.sqlstate == "23514"


# -- between connections -------------------------------------------------------------------------------------------


async def test_spends_at_once_never_overdraw(db, customers, assert_sound):
    async with db.transaction() as conn:
        few = [await customers(conn, 50) for _ in range(4)]
    batches = [
        [spend(customer, f"{n}", 3) for customer in few for n in range(b, b + 6)] for b in range(0, 60, 6)
    ]
    answers = await asyncio.gather(*(db.run(spend_many, batch) for batch in batches))
    charged = [o for batch in answers for o in batch if isinstance(o, Spent)]
    refused = {type(o) for batch in answers for o in batch if not isinstance(o, Spent)}
    assert len(charged) == 4 * (50 // 3)
    assert refused == {InsufficientCredits}
    await assert_sound(db)


async def test_the_same_references_at_once_are_charged_once(db, customers, assert_sound):
    async with db.transaction() as conn:
        few = [await customers(conn, 1_000) for _ in range(4)]
    batch = [spend(customer, f"{n}", 3) for customer in few for n in range(20)]
    answers = await asyncio.gather(*(db.run(spend_many, batch[::turn]) for turn in (1, -1, 1, -1)))
    for turned in (1, 3):
        answers[turned].reverse()
    for same in zip(*answers, strict=True):
        assert len({(o.transfer_id, o.charged_tokens, o.balance_after_tokens) for o in same}) == 1
        assert sorted(o.replayed for o in same) == [False, True, True, True]
    await assert_sound(db)


async def test_a_cap_holds_exactly_under_concurrency(db, customers, assert_sound):
    async with db.transaction() as conn:
        customer = await customers(conn, 10_000)
        other = await second_key(conn, customer)
        await cap(conn, customer, 100, "day")
    batches = [[spend(who, f"{b}-{n}", 7) for n in range(8) for who in (customer, other)] for b in range(8)]
    answers = await asyncio.gather(*(db.run(spend_many, batch) for batch in batches))
    capped = [o for batch in answers for o in batch[::2]]
    assert summary(capped).count(7) == 100 // 7
    assert {type(o) for o in capped} == {Spent, KeyCapReached}
    assert all(isinstance(o, Spent) for batch in answers for o in batch[1::2])
    await assert_sound(db)


async def test_no_spend_is_accepted_after_its_key_was_revoked(db, customers, assert_sound):
    async with db.transaction() as conn:
        customer = await customers(conn, 10_000)
    revoked = asyncio.Event()
    late: list[object] = []

    async def keep_spending(worker: int) -> None:
        for n in range(1_000):
            began_after = revoked.is_set()
            [outcome] = await db.run(spend_many, [spend(customer, f"{worker}-{n}")])
            if began_after:
                late.append(outcome)
                return

    async def revoke() -> None:
        await db.run(spend_many, [spend(customer, "before")])
        await db.run(keys.revoke, customer.user_id, customer.secret.split("_")[-1][:8])
        revoked.set()

    await asyncio.gather(revoke(), *(keep_spending(w) for w in range(3)))
    assert [type(o) for o in late] == [AuthRequired] * 3
    await assert_sound(db)


@pytest_asyncio.fixture
async def server(fresh_url):
    server = LedgerServer(load_settings().model_copy(update={"database_url": fresh_url}))
    yield server
    await server.close()


async def test_spends_that_wait_together_travel_together_and_fail_alone(server, db, customers, assert_sound):
    async with db.transaction() as conn:
        rich, poor = await customers(conn, 1_000), await customers(conn, 1)
    ledger = local_ledger(server)
    asked = [spend(rich, f"{n}", 2) for n in range(50)] + [spend(poor, "a", 2), spend(poor, "b", 1)]
    outcomes = await asyncio.gather(*(ledger.spend(s) for s in asked), return_exceptions=True)
    assert summary(outcomes) == [2] * 50 + [InsufficientCredits, 1]
    assert (await ledger.check(Check(rich.credential, 900, "image"))).allowed
    again = await asyncio.gather(*(ledger.spend(s) for s in asked[:50]))
    assert all(o.replayed for o in again)
    await assert_sound(db)


async def test_a_spend_that_breaks_its_batch_breaks_no_other(server, db, customers, assert_sound):
    async with db.transaction() as conn:
        customer = await customers(conn, 100)
    asked = [spend(customer, "a", 2), spend(customer, "nul \0 byte", 2), spend(customer, "b", 2)]
    outcomes = await server.spend_many(asked)
    assert [isinstance(o, Spent) for o in outcomes] == [True, False, True]
    await assert_sound(db)
