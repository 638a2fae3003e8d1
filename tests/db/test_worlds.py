"""The test world has books of its own: whatever is done with a test key, live money does not hear of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from gateway import jobs, leases
from gateway.leases import Settlement
from gateway.ports import JobReceipt, StoredFile, SubmitJob
from kit.errors import AuthRequired, Forbidden
from kit.ids import new_id
from ledger import accounts, debts, keys, refunds, reinstatements, scopes, statements
from ledger.audit import trial_balance
from ledger.balances import Balance, balance, balances_by_key
from ledger.credits import credit
from ledger.grants import Terms
from ledger.keys import Credential
from ledger.refills import refill
from ledger.spends import Check, Spend, check_many, spend_many
from payments import purchases
from payments.errors import AccountExists, PaymentMismatch
from payments.packages import Package
from payments.purchases import OpenPurchase, PaidSession

BUILDER = Package("builder_600", "Builder", 60_000, 5_000, "usd")
BEFORE = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Player:
    """One user with an account and a key in each world."""

    user_id: str
    live: int
    play: int
    live_key: Credential
    play_key: Credential


async def player(conn, customers, live=100, play=100):
    customer = await customers(conn, live)
    account_id = await accounts.open_account(conn, customer.user_id, "test")
    if play:
        await refill(conn, account_id, play)
    minted = await keys.mint(conn, customer.user_id, "test", brand="amai", world="test")
    assert minted.secret.startswith("amai_test_")
    return Player(
        customer.user_id,
        customer.account_id,
        account_id,
        customer.credential,
        Credential(keys.hash_key(minted.secret), None, "test"),
    )


def spend(credential, reference="a", cost=5, tool="chat"):
    return Spend(credential, tool, reference, cost * 1_000, cost, 1)


async def sums(conn):
    """The sum of each house account, by world and code."""
    rows = await conn.execute(
        text(
            "SELECT a.world, split_part(a.code, ':', 1) || ':' || CASE WHEN a.kind = 'debt' THEN '' ELSE"
            " split_part(a.code, ':', 2) END AS code, CAST(sum(e.amount) AS bigint) AS sum"
            " FROM accounts a JOIN entries e ON e.account_id = a.id WHERE a.kind <> 'user' GROUP BY 1, 2"
        )
    )
    return {(row.world, row.code): row.sum for row in rows}


async def tokens(conn, account_id):
    return (await balance(conn, account_id)).available_tokens


# -- the database keeps the worlds apart ---------------------------------------------------------------------


@pytest.mark.parametrize("world", ["live", "test"])
async def test_a_transfer_with_sides_in_two_worlds_is_refused(conn, customers, world):
    one = await player(conn, customers)
    user = {"live": one.live, "test": one.play}[world]
    house = await accounts.ensure_house(conn, "promotion:test", "test" if world == "live" else "live")
    transfer = (
        await conn.execute(
            text(
                "INSERT INTO transfers (kind, account_id, tool, reference, amount, event_at)"
                " VALUES ('adjustment', :user, 'adjustment', 'forged', 5, now()) RETURNING id"
            ),
            {"user": user},
        )
    ).scalar_one()
    with pytest.raises(DBAPIError, match="of one world") as refused:
        await conn.execute(
            text("INSERT INTO entries VALUES (:user, 9, :transfer, 5, 5), (:house, 9, :transfer, -5, NULL)"),
            {"user": user, "house": house, "transfer": transfer},
        )
    assert refused.value.orig.sqlstate == "23514"


@pytest.mark.parametrize("table", ["accounts", "api_keys", "purchases"])
async def test_a_world_is_for_ever(conn, table):
    with pytest.raises(DBAPIError, match="the world of") as refused:
        await conn.execute(text(f"UPDATE {table} SET world = 'test'"))
    assert refused.value.orig.sqlstate == "23001"


async def test_there_is_no_third_world(conn, customers):
    customer = await customers(conn, 0)
    with pytest.raises(DBAPIError) as refused:
        await accounts.open_account(conn, customer.user_id, "dream")
    assert refused.value.orig.sqlstate == "23514"


async def test_a_key_needs_its_users_account_in_its_world(conn, customers):
    customer = await customers(conn, 0)
    with pytest.raises(DBAPIError) as refused:
        await keys.mint(conn, customer.user_id, "test", brand="amai", world="test")
    assert refused.value.orig.sqlstate == "23503"


async def test_a_user_has_one_account_in_each_world(conn, customers):
    one = await player(conn, customers)
    assert await accounts.open_account(conn, one.user_id, "test") == one.play != one.live
    assert await accounts.account_in(conn, one.user_id, "live") == one.live


async def test_a_child_of_another_world_than_its_parent_is_refused(conn, customers):
    one = await player(conn, customers)
    parent = await keys.mint(conn, one.user_id, "parent", brand="amai", limits=keys.Limits(scopes=("read",)))
    with pytest.raises(DBAPIError, match="wider than its parent"):
        await keys.mint(
            conn, one.user_id, "child", brand="amai", world="test", parent_id=parent.key.id,
            limits=keys.Limits(scopes=("read",)),
        )  # fmt: skip


# -- what a key does stays in its world ----------------------------------------------------------------------


async def test_a_key_speaks_for_its_users_account_in_its_own_world(conn, customers):
    one = await player(conn, customers, live=300, play=70)
    assert [
        (caller.account_id, caller.world)
        for caller in [await keys.caller_of(conn, key, scopes.ANY) for key in (one.live_key, one.play_key)]
    ] == [(one.live, "live"), (one.play, "test")]
    assert await balances_by_key(conn, [one.play_key, one.live_key]) == [Balance(70, 0), Balance(300, 0)]
    checks = await check_many(conn, [Check(key, 80, "chat") for key in (one.live_key, one.play_key)])
    assert [check.allowed for check in checks] == [True, False]


async def test_one_reference_in_both_worlds_is_two_spends_each_in_its_own_revenue(conn, customers):
    one = await player(conn, customers, live=100, play=50)
    before = await sums(conn)
    batch = [spend(one.live_key, cost=5), spend(one.play_key, cost=7), spend(one.play_key, cost=7)]
    answers = await spend_many(conn, batch)
    assert [(a.charged_tokens, a.balance_after_tokens, a.replayed) for a in answers] == [
        (5, 95, False),
        (7, 43, False),
        (7, 43, True),
    ]
    after = await sums(conn)
    earned = {place: after[place] - before.get(place, 0) for place in after}
    assert (earned["live", "revenue:chat"], earned["test", "revenue:chat"]) == (5, 7)
    assert [len((await statements.statement(conn, a, limit=10)).lines) for a in (one.live, one.play)] == [
        2,
        2,
    ]


async def test_a_test_spend_locks_no_live_account(db, customers):
    async with db.transaction() as conn:
        one = await player(conn, customers)
    async with db.transaction() as busy:
        await accounts.lock(busy, [one.live])
        async with asyncio.timeout(5):
            assert (await db.run(spend_many, [spend(one.play_key)]))[0].charged_tokens == 5


async def test_a_jobs_charge_and_its_refund_are_its_worlds(conn, customers):
    one = await player(conn, customers, live=1_000, play=1_000)
    wanted = [submit(one.live_key, "live"), submit(one.play_key, "test")]
    assert {type(each) for each in await jobs.submit_many(conn, wanted, timedelta(hours=1))} == {JobReceipt}
    assert [await tokens(conn, account) for account in (one.live, one.play)] == [900, 900]
    for application, charge in (("image", 100), ("image-tiny", 70)):
        claimed = (await leases.claim(conn, "run_1", application, 1, timedelta(seconds=30)))[0]
        settled = Settlement(claimed.id, claimed.fence, [picture(claimed.id)], charge, {})
        assert await leases.settle(conn, settled) == "succeeded"
    books = await sums(conn)
    assert (books["live", "revenue:image"], books["test", "revenue:image"]) == (100, 70)
    transfer = (
        await conn.execute(text("SELECT id FROM transfers WHERE reference = :id"), {"id": claimed.id})
    ).scalar_one()
    await refunds.refund(conn, one.play, transfer, amount_tokens=40, reference="r")
    books = await sums(conn)
    assert (books["live", "revenue:image"], books["test", "revenue:image"]) == (100, 30)
    assert [await tokens(conn, account) for account in (one.live, one.play)] == [900, 970]


def picture(job_id):
    return StoredFile(
        new_id("file"), "0.png", f"outputs/{job_id}/1-0.png", "image/png", 3, "x", BEFORE, job_id
    )


def submit(credential, world, key=None):
    return SubmitJob(
        credential, new_id("job"), "image.generate", "image", "image-tiny" if world == "test" else "image",
        {"prompt": "fox"}, 1_000, 100, 1, key, "same", world=world,
    )  # fmt: skip


@pytest.mark.parametrize("world", ["live", "test"])
async def test_work_for_one_world_is_refused_to_a_key_of_the_other(conn, customers, world):
    one = await player(conn, customers, live=1_000, play=1_000)
    other = one.play_key if world == "live" else one.live_key
    refused, taken = await jobs.submit_many(
        conn,
        [submit(other, world), submit(one.live_key if world == "live" else one.play_key, world)],
        timedelta(hours=1),
    )
    assert isinstance(refused, Forbidden)
    assert isinstance(taken, JobReceipt)


async def test_one_idempotency_key_in_both_worlds_is_two_jobs(conn, customers):
    one = await player(conn, customers, live=1_000, play=1_000)
    made = await jobs.submit_many(
        conn,
        [submit(one.live_key, "live", key="job-001"), submit(one.play_key, "test", key="job-001")],
        timedelta(hours=1),
    )
    assert [receipt.replayed for receipt in made] == [False, False]
    assert made[0].job_id != made[1].job_id


async def test_what_a_test_account_owes_is_owed_in_the_test_world(conn, customers):
    one = await player(conn, customers, live=100, play=0)
    await credit(
        conn, one.play, kind="purchase", house="clearing:stripe", amount_tokens=50, reference="p",
        terms=Terms(purchase_id="p"),
    )  # fmt: skip
    await spend_many(conn, [spend(one.play_key, cost=30)])
    taken = await debts.clawback(
        conn, one.play, purchase_id="p", amount_tokens=50, reference="c", event_at=BEFORE
    )
    assert (taken.taken_tokens, taken.debt_tokens) == (20, 30)
    assert (await sums(conn))["test", "debt:"] == -30
    assert [(await accounts.lock_one(conn, a)).frozen for a in (one.live, one.play)] == [False, True]
    back = await reinstatements.reinstate(
        conn, one.play, purchase_id="p", amount_tokens=50, reference="r", event_at=BEFORE
    )
    assert (back.returned_tokens, back.forgiven_tokens) == (20, 30)
    after = await sums(conn)
    assert after["test", "debt:"] == 0
    assert not (await accounts.lock_one(conn, one.play)).frozen


# -- keys ----------------------------------------------------------------------------------------------------


async def test_a_revoked_test_key_is_refused_at_once_and_the_live_one_is_not(conn, customers):
    one = await player(conn, customers)
    test_key = (await keys.list_keys(conn, one.user_id, only="test"))[0]
    await keys.revoke(conn, one.user_id, test_key.prefix, only="test")
    with pytest.raises(AuthRequired):
        await keys.caller_of(conn, one.play_key, scopes.ANY)
    assert (await keys.caller_of(conn, one.live_key, scopes.ANY)).account_id == one.live


async def test_a_revocation_waits_for_the_spends_of_its_own_world(db, customers):
    async with db.transaction() as conn:
        one = await player(conn, customers)
        prefix = (await keys.list_keys(conn, one.user_id, only="test"))[0].prefix
    async with db.transaction() as busy:
        await accounts.lock(busy, [one.play])
        revoking = asyncio.create_task(db.run(keys.revoke, one.user_id, prefix))
        async with asyncio.timeout(4):
            while not await db.run(someone_waits):
                await asyncio.sleep(0.01)
        assert not revoking.done()
    assert (await revoking).revoked_at is not None


async def someone_waits(conn):
    return (
        await conn.execute(
            text(
                "SELECT count(*) > 0 FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        )
    ).scalar_one()


# -- test credits --------------------------------------------------------------------------------------------


async def test_a_refill_brings_what_is_free_up_to_the_amount_and_no_further(conn, customers):
    one = await player(conn, customers, play=0)
    assert (await refill(conn, one.play, 100)).granted_tokens == 100
    assert (await refill(conn, one.play, 100)).granted_tokens == 0
    await spend_many(conn, [spend(one.play_key, cost=30)])
    again = await refill(conn, one.play, 100)
    assert (again.granted_tokens, again.balance.available_tokens) == (30, 100)
    assert (await sums(conn))["test", "mint:test"] == -130
    assert ("live", "mint:test") not in await sums(conn)


async def test_a_refill_looks_at_what_is_free_not_at_what_is_held(conn, customers):
    one = await player(conn, customers, play=100)
    await jobs.submit_many(conn, [submit(one.play_key, "test")], timedelta(hours=1))
    filled = await refill(conn, one.play, 100)
    assert (filled.granted_tokens, filled.balance) == (100, Balance(200, 100))


async def test_refills_at_once_fill_once(db, customers, assert_sound):
    async with db.transaction() as conn:
        one = await player(conn, customers, play=0)
    filled = await asyncio.gather(*(db.run(refill, one.play, 100) for _ in range(5)))
    assert sorted(each.granted_tokens for each in filled) == [0, 0, 0, 0, 100]
    await assert_sound(db)


# -- money in ------------------------------------------------------------------------------------------------


async def test_a_test_keys_purchase_fills_the_test_account_alone(conn, customers):
    one = await player(conn, customers, live=0, play=0)
    paid = await opened(conn, one.user_id)
    await purchases.fulfil(conn, paid)
    assert [await tokens(conn, account) for account in (one.live, one.play)] == [0, 60_000]
    assert (await sums(conn))["test", "clearing:stripe"] == -60_000
    with pytest.raises(AccountExists):
        await purchases.claim(conn, "stripe", paid.session_id, "Primary", brand="amai", days=30)


async def test_real_money_never_fills_a_test_account(conn, customers):
    one = await player(conn, customers, play=0)
    paid = await opened(conn, one.user_id, livemode=True)
    with pytest.raises(PaymentMismatch):
        await purchases.fulfil(conn, paid)
    assert await tokens(conn, one.play) == 0


async def test_a_test_purchase_without_an_account_to_fill_is_refused(conn):
    with pytest.raises(DBAPIError) as refused:
        await opened(conn, None)
    assert refused.value.orig.sqlstate == "23514"


async def opened(conn, user_id, *, livemode=False):
    command = OpenPurchase(new_id("pur"), "stripe", "dev@company.com", BUILDER, None)
    purchase = await purchases.open_purchase(conn, command, user_id, "test")
    await purchases.attach_session(conn, purchase.id, f"cs_{purchase.id}")
    return PaidSession("stripe", f"cs_{purchase.id}", purchase.id, 5_000, "usd", livemode, livemode)


# -- together ------------------------------------------------------------------------------------------------


async def test_each_world_is_zero_by_itself(db, customers, assert_sound):
    async with db.transaction() as conn:
        one = await player(conn, customers)
        await spend_many(conn, [spend(one.live_key, cost=5), spend(one.play_key, cost=7)])
    books = await db.run(trial_balance)
    assert books.balanced
    assert {(row.world, row.kind): row.amount_tokens for row in books.rows} == {
        ("live", "promotion"): -100,
        ("live", "revenue"): 5,
        ("live", "user"): 95,
        ("test", "mint"): -100,
        ("test", "revenue"): 7,
        ("test", "user"): 93,
    }
    await assert_sound(db)


async def test_both_worlds_of_many_users_spend_at_once_without_a_deadlock(db, customers, assert_sound):
    async with db.transaction() as conn:
        few = [await player(conn, customers, live=1_000, play=1_000) for _ in range(6)]
    batches = [
        [spend(key, f"{turn}", 1) for one in few[::step] for key in (one.play_key, one.live_key)[::step]]
        for turn in range(20)
        for step in (1, -1)
    ]
    for answers in await asyncio.gather(*(db.run(spend_many, batch) for batch in batches)):
        assert {answer.charged_tokens for answer in answers} == {1}
    books = {(row.world, row.kind): row.amount_tokens for row in (await db.run(trial_balance)).rows}
    assert books["live", "revenue"] == books["test", "revenue"] == 6 * 20
    await assert_sound(db)
