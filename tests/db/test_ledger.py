"""The laws of the books, on real Postgres."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from kit.ids import new_id
from ledger import accounts, holds
from ledger.audit import LEDGER_CHECKS, run_checks, trial_balance
from ledger.balances import balance
from ledger.credits import credit
from ledger.errors import HoldResolved, InsufficientCredits, ReferenceConflict
from ledger.payers import Payer
from ledger.transfers import Posting, post


async def payer_of(conn, account_id):
    return Payer(await accounts.lock_one(conn, account_id), None)


def hold_of(payer, amount, reference=None, expires_at=None):
    return holds.HoldRequest(
        new_id("hold"), payer, "image", reference or new_id("job"), amount, 1, expires_at
    )


async def place_one(conn, account_id, amount, expires_at=None):
    """Hold an amount; returns the hold's id."""
    request = hold_of(await payer_of(conn, account_id), amount, expires_at=expires_at)
    outcome = (await holds.place(conn, [request]))[0]
    assert isinstance(outcome, int), outcome
    return request.id


async def try_one(conn, account_id, amount):
    """Return what is free after a hold, or its refusal."""
    return (await holds.place(conn, [hold_of(await payer_of(conn, account_id), amount)]))[0]


async def test_entries_of_a_transfer_sum_to_zero_and_so_do_all_entries(conn, customers):
    customer = await customers(conn, 500)
    rows = (
        await conn.execute(text("SELECT account_id, amount, balance_after FROM entries ORDER BY amount"))
    ).all()
    mine = [row for row in rows if row.account_id == customer.account_id]
    assert [(row.amount, row.balance_after) for row in mine] == [(500, 500)]
    assert sum(row.amount for row in rows) == 0
    assert [row.amount_tokens for row in (await trial_balance(conn)).rows] == [-500, 500]


async def test_versions_run_without_a_gap_from_1_and_each_balance_after_follows_from_the_one_before(
    conn, customers
):
    customer = await customers(conn, 100)
    for number in range(1, 4):
        await credit(
            conn,
            customer.account_id,
            kind="grant",
            house="promotion:test",
            amount_tokens=number,
            reference=f"again-{number}",
        )
    rows = (
        await conn.execute(
            text("SELECT version, balance_after FROM entries WHERE account_id = :id ORDER BY version"),
            {"id": customer.account_id},
        )
    ).all()
    assert [tuple(row) for row in rows] == [(1, 100), (2, 101), (3, 103), (4, 106)]


async def test_a_users_balance_is_the_last_balance_after_and_held_is_the_sum_of_pending_holds(
    conn, customers
):
    customer = await customers(conn, 100)
    pending = [await place_one(conn, customer.account_id, amount) for amount in (1, 2, 3, 4)]
    await holds.capture(conn, pending[0], 1, datetime.now(UTC))
    await holds.capture(conn, pending[1], 1, datetime.now(UTC))
    await holds.release(conn, pending[2], "voided")
    row = (
        await conn.execute(
            text(
                "SELECT a.balance, a.held, (SELECT sum(h.amount) FROM holds h"
                " WHERE h.account_id = a.id AND h.state = 'pending') AS pending, (SELECT e.balance_after"
                " FROM entries e WHERE e.account_id = a.id ORDER BY version DESC LIMIT 1) AS last_after"
                " FROM accounts a WHERE a.id = :id"
            ),
            {"id": customer.account_id},
        )
    ).one()
    assert tuple(row) == (98, 4, 4, 98)


async def test_several_transfers_of_one_batch_follow_one_another(conn, customers):
    customer = await customers(conn, 100)
    await accounts.lock(conn, [customer.account_id])
    now = datetime.now(UTC)
    posted = await post(
        conn,
        [
            Posting("grant", customer.account_id, "promotion:test", n, "grant", f"b{n}", now)
            for n in (5, 7, 11)
        ],
    )
    assert [each.version for each in posted] == [2, 3, 4]
    rows = await conn.execute(
        text("SELECT version, amount, balance_after FROM entries WHERE account_id = :id ORDER BY version"),
        {"id": customer.account_id},
    )
    assert [tuple(row) for row in rows] == [(1, 100, 100), (2, 5, 105), (3, 7, 112), (4, 11, 123)]


async def test_the_same_reference_moves_money_once(conn, customers):
    customer = await customers(conn, 0)
    grant = {"kind": "grant", "house": "promotion:test", "reference": "gift-1"}
    first = await credit(conn, customer.account_id, amount_tokens=100, **grant)
    assert await credit(conn, customer.account_id, amount_tokens=100, **grant) == first
    with pytest.raises(ReferenceConflict):
        await credit(conn, customer.account_id, amount_tokens=101, **grant)
    assert (await balance(conn, customer.account_id)).total_tokens == 100


async def test_a_hold_lowers_what_is_free_and_moves_nothing(conn, customers):
    customer = await customers(conn, 300)
    assert await try_one(conn, customer.account_id, 120) == 180
    stands = await balance(conn, customer.account_id)
    assert (stands.total_tokens, stands.held_tokens, stands.available_tokens) == (300, 120, 180)


async def test_a_hold_never_exceeds_what_is_free(conn, customers):
    customer = await customers(conn, 100)
    assert await try_one(conn, customer.account_id, 60) == 40
    assert await try_one(conn, customer.account_id, 41) == InsufficientCredits(41, 40)
    assert await try_one(conn, customer.account_id, 40) == 0


async def test_a_large_refused_hold_does_not_starve_the_small_ones_behind_it(conn, customers):
    customer = await customers(conn, 100)
    payer = await payer_of(conn, customer.account_id)
    outcomes = await holds.place(conn, [hold_of(payer, amount) for amount in (30, 500, 30, 30, 30)])
    assert outcomes == [70, InsufficientCredits(500, 70), 40, 10, InsufficientCredits(30, 10)]
    assert (await balance(conn, customer.account_id)).held_tokens == 90


async def test_a_capture_takes_the_cost_and_frees_the_rest(conn, customers):
    customer = await customers(conn, 100)
    hold_id = await place_one(conn, customer.account_id, 80)
    await holds.capture(conn, hold_id, 50, datetime.now(UTC))
    stands = await balance(conn, customer.account_id)
    assert (stands.total_tokens, stands.held_tokens) == (50, 0)
    revenue = {row.kind: row.amount_tokens for row in (await trial_balance(conn)).rows}
    assert revenue["revenue"] == 50


@pytest.mark.parametrize("first", ["captured", "voided", "expired"])
@pytest.mark.parametrize("second", ["captured", "voided", "expired"])
async def test_a_hold_resolves_once(conn, customers, first, second):
    customer = await customers(conn, 100)
    hold_id = await place_one(conn, customer.account_id, 80)

    async def resolve(how):
        if how == "captured":
            return await holds.capture(conn, hold_id, 80, datetime.now(UTC))
        return await holds.release(conn, hold_id, how)

    await resolve(first)
    with pytest.raises(HoldResolved) as refused:
        await resolve(second)
    assert refused.value.state == first
    expected = 20 if first == "captured" else 100
    assert (await balance(conn, customer.account_id)).available_tokens == expected


@pytest.mark.parametrize("amount", [0, -1, 81])
async def test_a_capture_never_exceeds_its_hold(conn, customers, amount):
    customer = await customers(conn, 100)
    hold_id = await place_one(conn, customer.account_id, 80)
    with pytest.raises(ValueError, match="does not fit"):
        await holds.capture(conn, hold_id, amount, datetime.now(UTC))


async def test_only_due_holds_expire(conn, customers):
    customer = await customers(conn, 100)
    now = datetime.now(UTC)
    await place_one(conn, customer.account_id, 10, expires_at=now - timedelta(seconds=1))
    await place_one(conn, customer.account_id, 20, expires_at=now + timedelta(hours=1))
    await place_one(conn, customer.account_id, 30)
    assert await holds.expire_due(conn, limit=10) == 1
    assert (await balance(conn, customer.account_id)).held_tokens == 50


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET amount = amount + 1",
        "DELETE FROM entries",
        "TRUNCATE entries CASCADE",
        "UPDATE transfers SET amount = amount + 1",
        "DELETE FROM transfers",
        "DELETE FROM holds",
        "DELETE FROM accounts",
    ],
)
async def test_no_entry_is_ever_updated_or_deleted(conn, customers, statement):
    await customers(conn, 100)
    with pytest.raises(DBAPIError, match="append-only"):
        await conn.execute(text(statement))


@pytest.mark.parametrize(
    ("statement", "guard"),
    [
        ("UPDATE accounts SET balance = -1 WHERE kind = 'user'", "never_overdrawn"),
        ("UPDATE accounts SET held = balance + 1 WHERE kind = 'user'", "never_overdrawn"),
        ("UPDATE accounts SET held = -1 WHERE kind = 'user'", "never_overdrawn"),
        ("UPDATE accounts SET balance = 1 WHERE kind = 'promotion'", "house_is_never_hot"),
    ],
)
async def test_the_database_itself_refuses_an_overdraft(conn, customers, statement, guard):
    await customers(conn, 100)
    with pytest.raises(DBAPIError, match=guard):
        await conn.execute(text(statement))


async def test_the_database_itself_refuses_a_second_resolution(conn, customers):
    customer = await customers(conn, 100)
    hold_id = await place_one(conn, customer.account_id, 80)
    await holds.release(conn, hold_id, "voided")
    with pytest.raises(DBAPIError, match="outcome already"):
        await conn.execute(text("UPDATE holds SET state = 'pending', resolved_at = NULL"))


async def test_concurrent_holds_never_exceed_the_balance(db, customers, assert_sound):
    async with db.transaction() as conn:
        customer = await customers(conn, 100)

    async def attempt():
        return await db.run(try_one, customer.account_id, 10)

    outcomes = await asyncio.gather(*(attempt() for _ in range(30)))
    assert sorted(o for o in outcomes if isinstance(o, int)) == list(range(0, 100, 10))
    assert sum(isinstance(o, InsufficientCredits) for o in outcomes) == 20
    await assert_sound(db)


async def test_concurrent_credits_of_one_reference_move_money_once(db, customers, assert_sound):
    async with db.transaction() as conn:
        customer = await customers(conn, 0)

    async def attempt():
        return await db.run(
            credit,
            customer.account_id,
            kind="grant",
            house="promotion:race",
            amount_tokens=100,
            reference="once",
        )

    assert len(set(await asyncio.gather(*(attempt() for _ in range(10))))) == 1
    async with db.transaction() as conn:
        assert (await balance(conn, customer.account_id)).total_tokens == 100
    await assert_sound(db)


async def test_capture_and_void_of_one_hold_in_a_race_leave_one_outcome(db, customers, assert_sound):
    async with db.transaction() as conn:
        customer = await customers(conn, 1000)
        payer = await payer_of(conn, customer.account_id)
        requests = [hold_of(payer, 10) for _ in range(20)]
        await holds.place(conn, requests)

    async def attempt(work, *args):
        try:
            await db.run(work, *args)
        except HoldResolved:
            return False
        return True

    for request in requests:
        won = await asyncio.gather(
            attempt(holds.capture, request.id, 10, datetime.now(UTC)),
            attempt(holds.release, request.id, "voided"),
        )
        assert sorted(won) == [False, True]
    await assert_sound(db)


BREAKAGES = {
    "the two sides of every transfer sum to zero": "UPDATE entries SET amount = amount + 1 WHERE balance_after IS NULL",
    "the two sides of every transfer are of one world": "UPDATE accounts SET world = 'test' WHERE kind = 'promotion'",
    "every entry belongs to a transfer and an account": "DELETE FROM transfers WHERE kind = 'grant'",
    "the user's side of every transfer carries its amount": "UPDATE transfers SET amount = amount + 1",
    "all entries sum to zero": "UPDATE entries SET amount = amount + 1 WHERE balance_after IS NULL",
    "a user's entries run without a gap from 1 and each balance follows from the last": (
        "UPDATE entries SET balance_after = balance_after + 1 WHERE balance_after IS NOT NULL"
    ),
    "a user's balance and version are those of the last entry": (
        "UPDATE accounts SET balance = balance + 1 WHERE kind = 'user'"
    ),
    "what is held is the sum of the pending holds": "UPDATE accounts SET held = held + 1 WHERE kind = 'user'",
    "a captured hold has one transfer of the captured amount, any other hold has none": (
        "UPDATE holds SET state = 'captured', captured = amount, resolved_at = now()"
    ),
    "a user's balance is the sum of the grants less what is not worked out yet": (
        "UPDATE grants SET remaining = remaining - 1"
    ),
    "what remains of a grant is its amount less what was drawn on it": "UPDATE grants SET remaining = remaining - 1",
    "a grant is opened by one transfer of its amount, and every credit of a user opens one": "DELETE FROM grants",
    "refunds and reversals of a transfer never exceed it": (
        "INSERT INTO transfers (kind, account_id, tool, reference, amount, event_at, reverses_id)"
        " SELECT 'refund', account_id, 'refund', 'forged', amount, now(), id FROM transfers"
    ),
    "what is clawed back of grants was taken or is owed": "UPDATE grants SET clawed = 1",
    "what a user owes is what the debt account says": "UPDATE accounts SET debt = 1 WHERE kind = 'user'",
}


@pytest.mark.parametrize("check", LEDGER_CHECKS, ids=lambda check: check.name)
async def test_the_audit_finds_each_broken_invariant(shared_superuser, check, customers):
    async with shared_superuser.connect() as conn:
        customer = await customers(conn, 100)
        await place_one(conn, customer.account_id, 10)
        await conn.execute(
            text("SET LOCAL session_replication_role = replica")
        )  # no triggers: a forger's hand
        await conn.execute(text(BREAKAGES[check.name]))
        findings = {finding.name: finding for finding in await _checks_here(conn)}
        await conn.rollback()
    assert not findings[check.name].ok


async def _checks_here(conn):
    """Run the checks in a transaction that has written: `run_checks` itself insists on a fresh snapshot."""
    found = []
    for check in LEDGER_CHECKS:
        rows = (await conn.execute(text(check.sql))).mappings().all()
        found.append(type("Found", (), {"name": check.name, "ok": not rows}))
    return found


async def test_sound_books_pass_the_audit(db, customers, assert_sound):
    async with db.transaction() as conn:
        customer = await customers(conn, 100)
        hold_id = await place_one(conn, customer.account_id, 10)
        await holds.capture(conn, hold_id, 4, datetime.now(UTC))
    await assert_sound(db)
    findings = await db.run(run_checks, LEDGER_CHECKS)
    assert len(findings) == len(LEDGER_CHECKS)
