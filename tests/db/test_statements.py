"""The laws of statements: whatever happened, every reading of the past is what a simple model of it says."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from dataclasses import astuple, dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from gateway.ports import StatementQuery
from gateway.usage import DAYS_OF_USAGE, DIMENSIONS, usage
from gateway.usage import queries as usage_queries
from kit.errors import AuthRequired, InvalidRequest, NotFound
from kit.ids import new_id
from kit.settings import Settings
from ledger import accounts, debts, grants, holds, keys, refunds, scopes
from ledger.audit import LEDGER_CHECKS
from ledger.balances import balance
from ledger.credits import adjust, credit
from ledger.grants import Terms
from ledger.payers import Payer
from ledger.statements import LINES_A_PAGE, Statement, balance_at, cost_of, queries, statement
from ledger.transfers import Posting, post

NOW = datetime.now(UTC)
LONG_AGO = datetime(2026, 1, 1, 22, tzinfo=UTC)
TICK = timedelta(microseconds=1)
GAPS = (timedelta(0), TICK, timedelta(seconds=1), timedelta(hours=7), timedelta(hours=30), timedelta(days=20))
TOOLS = ("chat", "image", "video")
REFERENCES = ("a", "b", "c")
CHARGES = ("spend", "capture")
FULL_YEAR = (LONG_AGO.date(), LONG_AGO.date() + timedelta(days=DAYS_OF_USAGE - 1))


# -- the model: a list of what happened ----------------------------------------------------------------------------


@dataclass
class Happened:
    """One entry as the model knows it; the books add the transfer's id and the time of writing."""

    kind: str
    tool: str
    reference: str
    amount: int
    key: str | None = None
    units: int | None = None
    price_version: int | None = None
    reason: str | None = None
    at: datetime | None = None
    of: Happened | None = None
    hold: str | None = None
    id: int = 0
    written_at: datetime = NOW
    balance: int = 0

    @property
    def charge(self) -> Happened | None:
        """The charge that this entry gives back, if it does."""
        return self.of if self.of and self.of.kind in CHARGES else None


@dataclass
class Held:
    id: str
    tool: str
    reference: str
    key: str
    amount: int
    state: str = "pending"


@dataclass
class Life:
    """An account that lives through operations, in the books and in the model alike."""

    conn: Any
    account_id: int
    keys: list[keys.Caller]
    past: list[Happened] = field(default_factory=list)
    holds: list[Held] = field(default_factory=list)
    debt: int = 0
    clawed: Counter[str] = field(default_factory=Counter)
    expires: int = 0
    references: int = 0

    @property
    def balance(self) -> int:
        return self.past[-1].balance if self.past else 0

    @property
    def free(self) -> int:
        return self.balance - sum(h.amount for h in self.holds if h.state == "pending")

    def note(self, what: Happened) -> None:
        what.balance = self.balance + what.amount
        self.past.append(what)

    def collect(self, incoming: int) -> None:
        """A debt is paid out of what came in or came free."""
        pay = min(self.debt, incoming, self.free)
        if pay > 0:
            self.debt -= pay
            self.note(Happened("debt_payment", "debt", str(len(self.past)), -pay))

    def charged(self) -> list[Happened]:
        return [each for each in self.past if each.kind in CHARGES]

    def left_of(self, charge: Happened) -> int:
        return -charge.amount - sum(each.amount for each in self.past if each.of is charge)

    def unused(self, kind: str) -> str:
        """A reference that no other operation has: a clawback that is all debt adds no entry."""
        self.references += 1
        return f"{kind}-{self.references}"

    # Each operation takes two numbers and does what it can with them.

    async def buy(self, amount: int, _: int, kind: str = "purchase") -> None:
        reference = self.unused(kind)
        terms = Terms(purchase_id=reference if kind == "purchase" else None)
        if kind == "grant" and amount % 2:
            self.expires += 1
            terms = Terms(expires_at=NOW + timedelta(days=self.expires))
        await credit(
            self.conn, self.account_id, kind=kind, house="promotion:test", amount_tokens=amount,
            reference=reference, reason=f"why {amount}", event_at=NOW, terms=terms,
        )  # fmt: skip
        self.note(Happened(kind, kind, reference, amount, reason=f"why {amount}", at=NOW))
        self.collect(amount)

    async def give(self, amount: int, _: int) -> None:
        await self.buy(amount, _, kind="grant")

    async def expire(self, _: int, __: int) -> None:
        """Everything that has an end ends; what that took of each grant is read from the grants."""
        purse = await accounts.lock_one(self.conn, self.account_id)
        await grants.allocate(self.conn, purse)
        before = await self.lots()
        await grants.settle(self.conn, purse, NOW + timedelta(days=self.expires))
        after = await self.lots()
        for lot, remaining in before.items():
            if took := remaining - after[lot]:
                self.note(Happened("expiry", "expiry", f"{lot}:{len(self.past)}", -took))

    async def lots(self) -> dict[int, int]:
        rows = await self.conn.execute(
            text("SELECT id, remaining FROM grants WHERE account_id = :id ORDER BY priority, expires_at, id"),
            {"id": self.account_id},
        )
        return {row.id: row.remaining for row in rows}

    async def hold(self, amount: int, pick: int) -> None:
        tool, reference = TOOLS[pick % 3], REFERENCES[pick // 3 % 3]
        caller = self.keys[amount % 2]
        if self.taken(tool, reference) or self.debt or amount > self.free:
            return
        payer = Payer(await accounts.lock_one(self.conn, self.account_id), caller)
        request = holds.HoldRequest(new_id("hold"), payer, tool, reference, amount, 7, None)
        assert (await holds.place(self.conn, [request]))[0] == self.free - amount
        self.holds.append(Held(request.id, tool, reference, caller.key_id, amount))

    def taken(self, tool: str, reference: str) -> bool:
        return any((each.tool, each.reference) == (tool, reference) for each in (*self.holds, *self.past))

    async def capture(self, amount: int, pick: int) -> None:
        if hold := self.pending(pick):
            part = min(amount, hold.amount)
            at = NOW - timedelta(minutes=pick)
            await holds.capture(self.conn, hold.id, part, at)
            hold.state = "captured"
            self.note(
                Happened("capture", hold.tool, hold.reference, -part, hold.key, None, 7, at=at, hold=hold.id)
            )
            self.collect(hold.amount - part)

    async def void(self, _: int, pick: int) -> None:
        if hold := self.pending(pick):
            await holds.release(self.conn, hold.id, "voided")
            hold.state = "voided"
            self.collect(hold.amount)

    def pending(self, pick: int) -> Held | None:
        pending = [each for each in self.holds if each.state == "pending"]
        return pending[pick % len(pending)] if pending else None

    async def spend(self, amount: int, pick: int) -> None:
        tool, reference = TOOLS[pick % 3], REFERENCES[pick // 3 % 3]
        if self.taken(tool, reference) or self.debt or amount > self.free:
            return
        key, units = self.keys[pick % 2].key_id, amount * 250
        await write_spend(self.conn, self.account_id, tool, reference, amount, key=key, units=units)
        self.note(Happened("spend", tool, reference, -amount, key, units, 3, at=NOW))

    async def refund(self, amount: int, pick: int) -> None:
        open_charges = [each for each in self.charged() if self.left_of(each)]
        if open_charges:
            charge = open_charges[pick % len(open_charges)]
            part, reference = min(amount, self.left_of(charge)), self.unused("refund")
            await refunds.refund(
                self.conn, self.account_id, await self.id_of(charge), amount_tokens=part, reference=reference
            )
            self.note(
                Happened(
                    "refund", "refund", reference, part, charge.key, None, charge.price_version, of=charge
                )
            )
            self.collect(part)

    async def reverse(self, _: int, pick: int) -> None:
        whole = [
            each for each in self.past
            if (each.kind in CHARGES or (each.kind, each.amount < 0) == ("adjustment", True))
            and not any(other.of is each for other in self.past)
        ]  # fmt: skip
        if whole:
            original, reference = whole[pick % len(whole)], self.unused("reversal")
            await refunds.reverse(
                self.conn,
                self.account_id,
                await self.id_of(original),
                reference=reference,
                reason="a mistake",
            )
            self.note(
                Happened(
                    "reversal", "reversal", reference, -original.amount, original.key, None,
                    original.price_version, "a mistake", of=original,
                )
            )  # fmt: skip
            self.collect(-original.amount)

    async def adjust(self, amount: int, pick: int) -> None:
        signed, reference = amount if pick % 2 else -min(amount, self.free), self.unused("adjustment")
        if signed:
            await adjust(
                self.conn, self.account_id, amount_tokens=signed, reference=reference, reason="count"
            )
            self.note(Happened("adjustment", "adjustment", reference, signed, reason="count"))
            self.collect(max(signed, 0))

    async def claw_back(self, amount: int, pick: int) -> None:
        bought = [
            each
            for each in self.past
            if each.kind == "purchase" and self.clawed[each.reference] < each.amount
        ]
        if bought:
            purchase, reference = bought[pick % len(bought)], self.unused("dispute")
            asked = min(amount, purchase.amount - self.clawed[purchase.reference])
            outcome = await debts.clawback(
                self.conn, self.account_id, purchase_id=purchase.reference, amount_tokens=asked,
                reference=reference, event_at=NOW,
            )  # fmt: skip
            self.clawed[purchase.reference] += asked
            if outcome.taken_tokens:
                self.note(Happened("clawback", "clawback", reference, -outcome.taken_tokens, at=NOW))
            self.debt += outcome.debt_tokens

    async def id_of(self, what: Happened) -> int:
        found = await self.conn.execute(
            text("SELECT id FROM transfers WHERE account_id = :a AND tool = :t AND reference = :r"),
            {"a": self.account_id, "t": what.tool, "r": what.reference},
        )
        return found.scalar_one()

    async def read_back(self) -> None:
        """Take over what only the books know: ids and stamps."""
        rows = await self.conn.execute(
            text("SELECT tool, reference, id, created_at, event_at FROM transfers WHERE account_id = :id"),
            {"id": self.account_id},
        )
        known = {(row.tool, row.reference): row for row in rows}
        assert len(known) == len(self.past), "the model knows every transfer"
        for each in self.past:
            row = known[each.tool, each.reference]
            each.id, each.written_at, each.at = row.id, row.created_at, each.at or row.event_at

    # What the model says.

    def balance_at(self, at: datetime) -> int:
        return next((each.balance for each in reversed(self.past) if each.written_at <= at), 0)

    def lines(self) -> list[tuple[object, ...]]:
        """The whole statement, newest first."""
        return [
            (
                version, e.id, e.kind, e.tool, e.reference, e.reason, e.key, e.units, e.price_version, e.amount,
                e.balance, e.at, e.written_at, e.of.id if e.of else None, e.hold,
            )
            for version, e in reversed(list(enumerate(self.past, 1)))
        ]  # fmt: skip

    def usage(self, since: date, until: date) -> dict[tuple[object, ...], list[int]]:
        table: dict[tuple[object, ...], list[int]] = {}
        for each in self.past:
            day = each.written_at.date()
            charge = each if each.kind in CHARGES else each.charge
            if charge is None or not since <= day <= until:
                continue
            row = table.setdefault((day, charge.tool, charge.key), [0, 0, 0, 0])
            if charge is each:
                row[0] += 1
                row[1] += each.units or 0
                row[2] -= each.amount
            else:
                row[3] += each.amount
        return table


async def write_spend(conn, account_id, tool, reference, amount, *, key, units):
    """Write one spend the way a batch of them is written: under the lock, stamped by the database."""
    purse = await accounts.lock_one(conn, account_id)
    house = await accounts.ensure_house(conn, f"revenue:{tool}")
    facts = {
        "a": account_id, "t": tool, "r": reference, "n": amount, "k": key, "u": units, "h": house, "at": NOW,
        "free": purse.free - amount,
    }  # fmt: skip
    await conn.execute(
        text(
            "WITH moved AS (INSERT INTO transfers (kind, account_id, tool, reference, amount, price_version, event_at,"
            " key_id, units_milli, free_after)"
            " VALUES ('spend', :a, :t, :r, -CAST(:n AS bigint), 3, :at, :k, :u, :free) RETURNING id),"
            " paid AS (UPDATE accounts SET balance = balance - :n, version = version + 1 WHERE id = :a"
            " RETURNING version, balance)"
            " INSERT INTO entries (account_id, version, transfer_id, amount, balance_after)"
            " SELECT CAST(:a AS bigint), version, id, -CAST(:n AS bigint), balance FROM moved, paid"
            " UNION ALL SELECT :h, id, id, :n, NULL FROM moved"
        ),
        facts,
    )


OPERATIONS = (
    Life.buy, Life.give, Life.expire, Life.hold, Life.hold, Life.capture, Life.void, Life.spend, Life.spend,
    Life.refund, Life.refund, Life.reverse, Life.adjust, Life.claw_back,
)  # fmt: skip
STEP = st.tuples(
    st.integers(0, 1),
    st.sampled_from(OPERATIONS),
    st.integers(1, 40),
    st.integers(0, 8),
    st.sampled_from(GAPS),
)
STEPS = st.lists(STEP, min_size=20, max_size=40)

TOLD = [
    (0, *each, GAPS[place % len(GAPS)])
    for place, each in enumerate((
        (Life.give, 31, 0), (Life.spend, 10, 0), (Life.hold, 20, 1), (Life.capture, 15, 0), (Life.refund, 5, 0),
        (Life.reverse, 1, 1), (Life.adjust, 5, 0), (Life.reverse, 1, 0), (Life.adjust, 5, 0), (Life.adjust, 5, 1),
        (Life.expire, 1, 0), (Life.spend, 70, 2),
        (Life.claw_back, 80, 0), (Life.buy, 30, 0), (Life.hold, 10, 3), (Life.void, 1, 0), (Life.hold, 10, 4),
    ))
]  # fmt: skip
"""Every kind of transfer, days apart and at one time, whatever else is drawn."""

law = settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def live(conn, customers, steps) -> list[Life]:
    """Let two accounts live through the steps, then spread their stamps over days; the caller rolls back.

    No product path sets a stamp: a superuser moves them afterwards, in their order, equal ones included.
    """
    lives = []
    for _ in range(2):
        customer = await customers(conn, 0)
        callers = [await keys.caller_of(conn, customer.credential, scopes.ANY)]
        more = await keys.mint(conn, customer.user_id, "second", brand="amai")
        callers.append(replace(callers[0], key_id=more.key.id))
        lives.append(Life(conn, customer.account_id, callers))
        await lives[-1].buy(90, 0)
    for which, operation, first, second, _ in steps:
        await operation(lives[which], first, second)
    for life in lives:
        assert (await balance(conn, life.account_id)).total_tokens == life.balance, "the model is right"
        await life.read_back()
        stamps = [each.written_at for each in life.past]
        assert stamps == sorted(stamps), "every writer stamps in the order of versions"
        moment = LONG_AGO
        forged = []
        for place, each in enumerate(life.past):
            moment += steps[place % len(steps)][4] if steps else TICK
            forged.append((each.id, moment))
        await conn.execute(text("SET LOCAL session_replication_role = replica"))
        await conn.execute(
            text(
                "UPDATE transfers SET created_at = f.at"
                " FROM unnest(CAST(:ids AS bigint[]), CAST(:ats AS timestamptz[])) AS f (id, at)"
                " WHERE transfers.id = f.id"
            ),
            {"ids": [one for one, _ in forged], "ats": [at for _, at in forged]},
        )
        await conn.execute(text("SET LOCAL session_replication_role = origin"))
        await life.read_back()
    return lives


async def pages(conn, account_id, limit, **bounds) -> list[tuple[object, ...]]:
    """Every page, joined."""
    lines: list[tuple[object, ...]] = []
    before = None
    while True:
        page = await statement(conn, account_id, limit=limit, before=before, **bounds)
        assert len(page.lines) <= limit
        lines += map(astuple, page.lines)
        if page.next_before is None:
            return lines
        assert len(page.lines) == limit, "only the last page is short"
        before = page.next_before


# -- the laws ------------------------------------------------------------------------------------------------------


@law
@given(steps=STEPS)
@example(steps=TOLD)
async def test_the_balance_at_any_time_is_what_was_written_by_then(shared_superuser, customers, steps):
    async with shared_superuser.connect() as conn:
        for life in await live(conn, customers, steps):
            for stamp in {each.written_at for each in life.past}:
                for at in (stamp - TICK, stamp, stamp + TICK, stamp + timedelta(hours=3)):
                    assert await balance_at(conn, life.account_id, at) == life.balance_at(at)
            assert await balance_at(conn, life.account_id, LONG_AGO - TICK) == 0
            now = (await balance(conn, life.account_id)).total_tokens
            assert await balance_at(conn, life.account_id, NOW) == now


@law
@given(steps=STEPS, limit=st.integers(1, 9), more=st.booleans())
@example(steps=TOLD, limit=2, more=True)
@example(steps=TOLD, limit=19, more=False)
async def test_the_pages_of_a_statement_joined_are_the_whole(shared_superuser, customers, steps, limit, more):
    async with shared_superuser.connect() as conn:
        for life in await live(conn, customers, steps):
            whole = life.lines()
            assert await pages(conn, life.account_id, LINES_A_PAGE) == whole
            assert await pages(conn, life.account_id, limit) == whole
            first = await statement(conn, life.account_id, limit=limit)
            joined = list(map(astuple, first.lines))
            page = first
            while page.next_before is not None:
                if more:  # what is written between two pages shows on neither
                    await life.buy(5, 0)
                page = await statement(conn, life.account_id, limit=limit, before=page.next_before)
                joined += map(astuple, page.lines)
            assert joined == whole


@law
@given(steps=STEPS, limit=st.integers(1, 9), picks=st.tuples(st.integers(0, 99), st.integers(0, 99)))
@example(steps=TOLD, limit=3, picks=(4, 11))
async def test_a_statement_of_a_period_has_the_lines_written_in_it(
    shared_superuser, customers, steps, limit, picks
):
    async with shared_superuser.connect() as conn:
        for life in await live(conn, customers, steps):
            stamps = [each.written_at for each in life.past]
            edges = sorted({*stamps, *(stamp + TICK for stamp in stamps), LONG_AGO})
            since, until = sorted(edges[pick % len(edges)] for pick in picks)
            inside = [line for line in life.lines() if since <= line[12] < until]
            assert await pages(conn, life.account_id, limit, since=since, until=until) == inside
            later = [line for line in life.lines() if since <= line[12]]
            assert await pages(conn, life.account_id, limit, since=since) == later
            earlier = [line for line in life.lines() if line[12] < until]
            assert await pages(conn, life.account_id, limit, until=until) == earlier
            if since < until:
                assert await pages(conn, life.account_id, limit, since=until, until=since) == []


@law
@given(steps=STEPS)
@example(steps=TOLD)
async def test_each_balance_of_a_statement_follows_from_the_line_before(shared_superuser, customers, steps):
    async with shared_superuser.connect() as conn:
        for life in await live(conn, customers, steps):
            oldest_first = (await statement(conn, life.account_id, limit=LINES_A_PAGE)).lines[::-1]
            running = 0
            for version, line in enumerate(oldest_first, 1):
                running += line.amount_tokens
                assert (line.version, line.balance_after_tokens) == (version, running)


@law
@given(steps=STEPS, span=st.integers(0, 40))
@example(steps=TOLD, span=0)
async def test_usage_is_the_sum_of_charges_and_refunds_by_day_tool_and_key(
    shared_superuser, customers, steps, span
):
    async with shared_superuser.connect() as conn:
        for life in await live(conn, customers, steps):
            periods = [FULL_YEAR] + [
                (day, day + timedelta(days=span)) for day in {each.written_at.date() for each in life.past}
            ]
            for since, until in periods:
                rows = await usage(conn, life.account_id, since, until)
                assert {
                    (r.day, r.tool, r.key_id): [r.charges, r.units_milli, r.charged_tokens, r.refunded_tokens]
                    for r in rows
                } == life.usage(since, until)
                order = [(r.day, r.tool) for r in rows]
                assert order == sorted(order)


@law
@given(steps=STEPS)
@example(steps=TOLD)
async def test_usage_nets_to_what_charges_and_their_refunds_took_from_the_balance(
    shared_superuser, customers, steps
):
    async with shared_superuser.connect() as conn:
        for life in await live(conn, customers, steps):
            lines = (await statement(conn, life.account_id, limit=LINES_A_PAGE)).lines
            charges = {line.transfer_id for line in lines if line.kind in CHARGES}
            moved = [
                line
                for line in lines
                if FULL_YEAR[0] <= line.written_at.date() <= FULL_YEAR[1]
                and (line.transfer_id in charges or line.reverses_id in charges)
            ]
            rows = await usage(conn, life.account_id, *FULL_YEAR)
            assert sum(row.net_tokens for row in rows) == -sum(line.amount_tokens for line in moved)


@law
@given(steps=STEPS)
@example(steps=TOLD)
async def test_the_cost_of_a_reference_is_what_was_charged_given_back_and_is_held(
    shared_superuser, customers, steps
):
    async with shared_superuser.connect() as conn:
        for life in await live(conn, customers, steps):
            for reference in REFERENCES:
                for tool in (*TOOLS, None):
                    found = [
                        each for each in (*life.charged(), *life.holds)
                        if each.reference == reference and tool in (each.tool, None)
                    ]  # fmt: skip
                    if not found:
                        with pytest.raises(NotFound):
                            await cost_of(conn, life.account_id, reference, tool)
                        continue
                    charges = [each for each in found if isinstance(each, Happened)]
                    back = [each for each in life.past if any(each.of is charge for charge in charges)]
                    cost = await cost_of(conn, life.account_id, reference, tool)
                    assert (cost.charged_tokens, cost.refunded_tokens, cost.held_tokens) == (
                        -sum(each.amount for each in charges),
                        sum(each.amount for each in back),
                        sum(
                            each.amount
                            for each in found
                            if isinstance(each, Held) and each.state == "pending"
                        ),
                    )
                    assert [line.transfer_id for line in cost.lines] == sorted(e.id for e in charges + back)
                    assert set(map(astuple, cost.lines)) <= set(life.lines())
                    assert cost.net_tokens == sum(life.left_of(charge) for charge in charges)


@law
@given(steps=STEPS)
@example(steps=TOLD)
async def test_a_reader_of_another_account_sees_nothing(shared_superuser, customers, steps):
    async with shared_superuser.connect() as conn:
        lives = await live(conn, customers, steps)
        stranger = (await customers(conn, 0)).account_id
        assert await balance_at(conn, stranger, NOW) == 0
        assert await statement(conn, stranger, limit=LINES_A_PAGE) == Statement([], None)
        assert await usage(conn, stranger, *FULL_YEAR) == []
        for life in lives:
            for each in (*life.past, *life.holds):
                for tool in (each.tool, None):
                    with pytest.raises(NotFound):
                        await cost_of(conn, stranger, each.reference, tool)


async def test_the_lives_of_the_model_are_sound_books(shared_superuser, customers):
    """The operations reach every kind that a user's account can have, and leave nothing that the audit minds."""
    async with shared_superuser.connect() as conn:
        life, _ = await live(conn, customers, TOLD)
        kinds = {each.kind for each in life.past}
        assert kinds == {
            "purchase", "grant", "spend", "capture", "refund", "reversal", "expiry", "adjustment", "clawback",
            "debt_payment",
        }  # fmt: skip
        for check in LEDGER_CHECKS:
            assert (await conn.execute(text(check.sql))).all() == [], check.name


async def test_two_accounts_may_use_one_reference_and_each_has_its_own_cost(conn, customers):
    people = [await customers(conn, 100) for _ in range(3)]
    for amount, person in enumerate(people, 5):
        await write_spend(conn, person.account_id, "chat", "a", amount, key=person.key_id, units=1)
    for amount, person in enumerate(people, 5):
        for tool in ("chat", None):
            assert (await cost_of(conn, person.account_id, "a", tool)).charged_tokens == amount


async def test_a_hold_of_a_tool_that_never_charged_is_found_without_naming_the_tool(conn, customers):
    customer = await customers(conn, 100)
    life = Life(conn, customer.account_id, [await keys.caller_of(conn, customer.credential, scopes.ANY)] * 2)
    life.note(Happened("grant", "grant", "start", 100))
    await life.hold(30, 2)
    assert life.holds[0].tool == "video"
    assert (await cost_of(conn, customer.account_id, life.holds[0].reference)).held_tokens == 30


async def test_what_is_neither_charge_nor_hold_has_no_cost(conn, customers):
    customer = await customers(conn, 100)  # a grant with the reference `start`
    with pytest.raises(NotFound):
        await cost_of(conn, customer.account_id, "start", None)
    with pytest.raises(NotFound):
        await cost_of(conn, customer.account_id, "start", "grant")


async def test_a_house_account_has_no_statement(conn, customers):
    await customers(conn, 100)
    house = await accounts.ensure_house(conn, "promotion:test")
    for read in (
        balance_at(conn, house, NOW),
        statement(conn, house, limit=1),
        usage(conn, house, *FULL_YEAR),
    ):
        with pytest.raises(NotFound):
            await read


@pytest.mark.parametrize("limit", [-1, 0, LINES_A_PAGE + 1])
async def test_a_page_has_bounds(conn, customers, limit):
    customer = await customers(conn, 100)
    with pytest.raises(InvalidRequest):
        await statement(conn, customer.account_id, limit=limit)


@pytest.mark.parametrize("before", [-(10**30), 0, 1])
async def test_nothing_comes_before_the_first_line(conn, customers, before):
    customer = await customers(conn, 100)
    assert await statement(conn, customer.account_id, limit=5, before=before) == Statement([], None)


async def test_a_cursor_past_the_end_is_the_start(conn, customers):
    customer = await customers(conn, 100)
    page = await statement(conn, customer.account_id, limit=5, before=10**30)
    assert [line.version for line in page.lines] == [1]


@pytest.mark.parametrize(
    ("since", "days"), [(date(2026, 1, 1), -1), (date(2026, 1, 1), DAYS_OF_USAGE), (date.min, 3_000_000)]
)
async def test_a_period_of_usage_has_bounds(conn, customers, since, days):
    customer = await customers(conn, 100)
    with pytest.raises(InvalidRequest):
        await usage(conn, customer.account_id, since, since + timedelta(days=days))


async def test_the_ends_of_time_are_times(conn, customers):
    customer = await customers(conn, 100)
    first, last = (day.replace(tzinfo=UTC) for day in (datetime.min, datetime.max))
    assert await balance_at(conn, customer.account_id, first) == 0
    assert await balance_at(conn, customer.account_id, last) == 100
    assert len((await statement(conn, customer.account_id, limit=5, since=first, until=last)).lines) == 1
    assert await usage(conn, customer.account_id, date.min, date.min) == []
    assert await usage(conn, customer.account_id, date.max, date.max) == []


# -- what a read costs ---------------------------------------------------------------------------------------------


async def long_account(conn, customers, entries):
    """An account with many entries, a second apart."""
    customer = await customers(conn, 1)
    await accounts.lock(conn, [customer.account_id])
    await post(
        conn,
        [
            Posting("grant", customer.account_id, "promotion:test", 1, "grant", f"g{n}", NOW)
            for n in range(1, entries)
        ],
    )
    await conn.execute(text("SET LOCAL session_replication_role = replica"))
    await conn.execute(
        text(
            "UPDATE transfers t SET created_at = CAST(:start AS timestamptz) + e.version * interval '1 second'"
            " FROM entries e WHERE e.transfer_id = t.id AND e.account_id = :id AND t.account_id = :id"
        ),
        {"start": LONG_AGO, "id": customer.account_id},
    )
    await conn.execute(text("ANALYZE entries"))
    await conn.execute(text("ANALYZE transfers"))
    return customer.account_id


async def rows_read(conn, query, values):
    """Rows of entries and transfers that a query touched, filtered away ones too."""
    plan = (
        await conn.execute(
            text(f"EXPLAIN (ANALYZE, FORMAT JSON) {query.text}"), values
        )
    ).scalar_one()[0]["Plan"]  # fmt: skip
    touched = 0
    waiting = [plan]
    while waiting:
        node = waiting.pop()
        waiting += node.get("Plans", [])
        if node.get("Relation Name") in ("entries", "transfers"):
            read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            touched += read * node["Actual Loops"]
    return touched


async def test_a_past_balance_reads_a_logarithm_of_the_entries(shared_superuser, customers):
    async with shared_superuser.connect() as conn:
        account_id = await long_account(conn, customers, 4096)
        values = {
            "account_id": account_id,
            "instants": [LONG_AGO + timedelta(seconds=1000)],
            "included": [True],
        }
        assert await balance_at(conn, account_id, values["instants"][0]) == 1000
        # Twelve halvings, an entry and its transfer each, and the entry that is the answer.
        assert 0 < await rows_read(conn, queries["written_by"], values) <= 2 * 13 + 1


async def test_a_page_and_a_day_read_their_own_entries_alone(shared_superuser, customers):
    async with shared_superuser.connect() as conn:
        account_id = await long_account(conn, customers, 4096)
        values = {"account_id": account_id, "after": 2000, "up_to": 2050}
        every_row = {"limit": 100, **{f"by_{dimension}": True for dimension in DIMENSIONS}}
        assert 0 < await rows_read(conn, usage_queries["usage"], {**values, **every_row}) <= 2 * 50
        assert 0 < await rows_read(conn, queries["lines"], values) <= 2 * 50


# -- through the Ledger --------------------------------------------------------------------------------------------


async def test_each_key_reads_the_past_of_its_own_account(db, fresh_url, tmp_path, customers):
    server = LedgerServer(Settings(database_url=fresh_url, data_dir=tmp_path, secret="s"))
    ledger = local_ledger(server)
    async with db.transaction() as conn:
        rich, other = await customers(conn, 100), await customers(conn, 7)
        await write_spend(conn, rich.account_id, "image", "job-1", 40, key=rich.key_id, units=1000)
    today = datetime.now(UTC).date()
    week = (today - timedelta(days=3), today + timedelta(days=3))
    later = datetime.combine(week[1], time(), UTC)

    async def read(credential):
        return await asyncio.gather(
            ledger.balance_at(credential, later),
            ledger.statement(StatementQuery(credential, 10, None, None, None)),
            ledger.usage(credential, *week),
            ledger.cost(credential, "job-1", None),
            return_exceptions=True,
        )

    total, page, used, cost = await read(rich.credential)
    assert (total, [line.amount_tokens for line in page.lines]) == (60, [-40, 100])
    assert [(u.tool, u.key_id, u.charges, u.units_milli, u.net_tokens) for u in used] == [
        ("image", rich.key_id, 1, 1000, 40)
    ]
    assert (cost.net_tokens, cost.lines) == (40, page.lines[:1])
    assert pickle.loads(pickle.dumps((page, used, cost))) == (page, used, cost)

    total, page, used, cost = await read(other.credential)
    assert (total, len(page.lines), used, cost) == (7, 1, [], NotFound("reference"))
    assert [type(outcome) for outcome in await read(keys.Credential(b"unknown"))] == [AuthRequired] * 4
    await server.close()
