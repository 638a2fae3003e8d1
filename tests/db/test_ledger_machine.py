"""Random interleavings of every operation against a model that fits a page: what holds after each step.

The model burns grants at once; the ledger works draws out later. Both must agree whenever it is asked to. The two
wallets are one user's, in the two worlds: what happens in one never shows in the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from kit.db import Database
from kit.ids import new_id
from ledger import accounts, debts, grants, holds, keys, refunds, reinstatements
from ledger.audit import LEDGER_CHECKS
from ledger.balances import balance
from ledger.credits import adjust, credit, schedule
from ledger.errors import (
    AccountFrozen,
    ExceedsOriginal,
    HoldResolved,
    InsufficientCredits,
    NotReversible,
    ReferenceConflict,
)
from ledger.grants import PRIORITY, Terms
from ledger.keys import Credential
from ledger.payers import Payer
from ledger.spends import Spend, Spent, spend_many

BEGAN = datetime.now(UTC) + timedelta(days=1)
"""The model's clock is ahead of the database's, so that only the machine lets a grant start or expire."""
DAY = timedelta(days=1)
AMOUNTS = st.integers(1, 40)
WHO = st.integers(0, 1)
PICK = st.integers(0, 10**6)
TOOLS = ("image", "chat")


@dataclass
class Lot:
    reference: str
    source: str
    amount: int
    priority: int
    expires_at: datetime | None
    starts_at: datetime | None
    age: int
    purchase_id: str | None = None
    remaining: int = 0
    clawed: int = 0
    takes: list[int] = field(default_factory=list)
    """What each clawback took of it and has not given back."""
    transfer_id: int | None = None

    @property
    def order(self):
        return (self.priority, self.expires_at or datetime.max.replace(tzinfo=UTC), self.age)


@dataclass
class Move:
    """A transfer that may be refunded or reversed, with what it drew."""

    id: int
    kind: str
    amount: int
    drawn: list[tuple[Lot, int]] = field(default_factory=list)
    returned: int = 0
    reversed: bool = False
    lot: Lot | None = None


@dataclass
class Wallet:
    account_id: int
    credential: Credential
    balance: int = 0
    debt: int = 0
    moved: int = 0
    lots: list[Lot] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    holds: dict[str, tuple[int, str]] = field(default_factory=dict)
    spends: dict[tuple[str, str], tuple[Spend, Spent]] = field(default_factory=dict)
    payments: list[Move] = field(default_factory=list)
    """What was paid on debts, and of that what came back."""

    @property
    def held(self):
        return sum(amount for amount, state in self.holds.values() if state == "pending")

    @property
    def free(self):
        return self.balance - self.held

    @property
    def stopped(self):
        return self.debt > 0

    def pending(self):
        return [hold_id for hold_id, (_, state) in self.holds.items() if state == "pending"]

    def open_lots(self):
        return sorted(
            (lot for lot in self.lots if lot.remaining and lot.starts_at is None), key=lambda lot: lot.order
        )

    def burn(self, amount):
        drawn = []
        for lot in self.open_lots():
            part = min(amount, lot.remaining)
            lot.remaining -= part
            amount -= part
            drawn.append((lot, part))
            if not amount:
                break
        assert not amount
        return drawn

    def debit(self, transfer_id, kind, amount):
        self.moves.append(Move(transfer_id, kind, -amount, self.burn(amount)))
        self.balance -= amount
        self.moved += 1

    def collect(self, incoming):
        pay = min(self.debt, incoming, self.free)
        if pay > 0:
            self.payments.append(Move(0, "debt_payment", pay, self.burn(pay)))
            self.balance -= pay
            self.debt -= pay
            self.moved += 1

    def open(self, lot):
        lot.starts_at = None
        lot.remaining = lot.amount
        self.balance += lot.amount
        self.moved += 1

    def give_back(self, move, amount):
        """To the grants it came from, and a debt is paid out of it."""
        self.undraw(move, amount)
        self.collect(amount)

    def undraw(self, move, amount):
        """What was drawn last comes back first, skipping what came back earlier."""
        skip, left = move.returned, amount
        for lot, part in sorted(move.drawn, key=lambda drawn: drawn[0].order, reverse=True):
            skipped = min(skip, part)
            skip -= skipped
            taken = min(part - skipped, left)
            lot.remaining += taken
            left -= taken
        assert not left
        move.returned += amount
        self.balance += amount
        self.moved += 1

    def reinstate(self, lot, amount):
        """Returns what came back to the balance, before other debts were paid out of it."""
        owed = min(amount, lot.clawed - sum(lot.takes))
        lot.clawed -= amount
        forgiven = min(owed, self.debt)
        self.debt -= forgiven
        left = owed - forgiven
        for payment in reversed(self.payments):
            if part := min(left, payment.amount - payment.returned):
                self.undraw(payment, part)
                left -= part
        assert not left
        left = amount - owed
        for place in reversed(range(len(lot.takes))):
            if part := min(left, lot.takes[place]):
                lot.takes[place] -= part
                lot.remaining += part
                self.balance += part
                self.moved += 1
                left -= part
        assert not left
        self.collect(amount - forgiven)
        return amount - forgiven


class LedgerMachine(RuleBasedStateMachine):
    url: str
    open_customer: Callable[..., Awaitable[Any]]

    @initialize()
    def begin(self):
        self.loop = asyncio.new_event_loop()
        self.database = Database(self.url, pool_size=1)
        self.conn = self.run(self.database.engine.connect())
        self.now = BEGAN
        self.count = 0
        customer = self.run(self.open_customer(self.conn, 0))
        play = self.run(accounts.open_account(self.conn, customer.user_id, "test"))
        key = self.run(keys.mint(self.conn, customer.user_id, "test", brand="amai", world="test"))
        self.wallets = [
            Wallet(customer.account_id, customer.credential),
            Wallet(play, Credential(keys.hash_key(key.secret))),
        ]

    def teardown(self):
        if hasattr(self, "conn"):
            self.run(self.conn.rollback())
            self.run(self.conn.close())
            self.run(self.database.close())
            self.loop.close()

    def run(self, work):
        return self.loop.run_until_complete(work)

    def refused(self, error, work):
        with pytest.raises(error):
            self.run(work)

    def name(self, prefix):
        self.count += 1
        return f"{prefix}{self.count}"

    # -- money in ----------------------------------------------------------------------------------------------

    @rule(
        who=WHO,
        amount=AMOUNTS,
        source=st.sampled_from(["purchase", "grant", "referral"]),
        days=st.one_of(st.none(), st.integers(1, 4)),
        priority=st.one_of(st.none(), st.integers(1, 200)),
        repeat=st.booleans(),
    )
    def credit(self, who, amount, source, days, priority, repeat):  # noqa: PLR0917  # a rule draws its arguments by name
        wallet = self.wallets[who]
        reference = self.name("c")
        purchase_id = reference if source == "purchase" else None
        expires_at = self.now + days * DAY if days else None
        lot = Lot(
            reference, source, amount, PRIORITY[source] if priority is None else priority, expires_at, None,
            self.count, purchase_id,
        )  # fmt: skip
        terms = Terms(expires_at=expires_at, priority=priority, purchase_id=purchase_id)
        facts = {"kind": source, "house": f"clearing:{source}", "reference": reference, "terms": terms}
        lot.transfer_id = self.run(credit(self.conn, wallet.account_id, amount_tokens=amount, **facts))
        wallet.lots.append(lot)
        wallet.open(lot)
        wallet.moves.append(Move(lot.transfer_id, source, amount, lot=lot))
        wallet.collect(amount)
        if repeat:
            again = self.run(credit(self.conn, wallet.account_id, amount_tokens=amount, **facts))
            assert again == lot.transfer_id
            self.refused(
                ReferenceConflict, credit(self.conn, wallet.account_id, amount_tokens=amount + 1, **facts)
            )

    @rule(who=WHO, amount=AMOUNTS, days=st.integers(1, 3), lasts=st.one_of(st.none(), st.integers(1, 3)))
    def promise(self, who, amount, days, lasts):
        wallet = self.wallets[who]
        starts_at = self.now + days * DAY
        lot = Lot(
            self.name("p"),
            "grant",
            amount,
            50,
            starts_at + lasts * DAY if lasts else None,
            starts_at,
            self.count,
        )
        self.run(
            schedule(
                self.conn,
                wallet.account_id,
                kind="grant",
                house="promotion:later",
                amount_tokens=amount,
                reference=lot.reference,
                starts_at=starts_at,
                terms=Terms(expires_at=lot.expires_at),
            )
        )
        wallet.lots.append(lot)

    @rule(who=WHO, amount=st.integers(-40, 40).filter(bool))
    def adjust(self, who, amount):
        wallet = self.wallets[who]
        reference = self.name("a")
        call = adjust(self.conn, wallet.account_id, amount_tokens=amount, reference=reference, reason="test")
        if amount < 0 and -amount > wallet.free:
            self.refused(InsufficientCredits, call)
            return
        transfer_id = self.run(call)
        if amount < 0:
            wallet.debit(transfer_id, "adjustment", -amount)
            return
        lot = Lot(reference, "adjustment", amount, 50, None, None, self.count, transfer_id=transfer_id)
        wallet.lots.append(lot)
        wallet.open(lot)
        wallet.moves.append(Move(transfer_id, "adjustment", amount, lot=lot))
        wallet.collect(amount)

    # -- money out ---------------------------------------------------------------------------------------------

    @rule(
        items=st.lists(
            st.tuples(WHO, AMOUNTS, st.sampled_from(TOOLS), st.integers(0, 30), st.integers(1, 2)),
            min_size=1,
            max_size=6,
        )
    )
    def spend(self, items):
        """A batch of spends of both accounts, with references that come again."""
        batch = [
            Spend(self.wallets[who].credential, tool, f"s{number}", units * 1000, amount, 1)
            for who, amount, tool, number, units in items
        ]
        outcomes = self.run(spend_many(self.conn, batch))
        for (who, amount, tool, number, units), item, outcome in zip(items, batch, outcomes, strict=True):
            wallet = self.wallets[who]
            before = wallet.spends.get((tool, f"s{number}"))
            if before:
                first, answer = before
                if first.units_milli != units * 1000:
                    assert isinstance(outcome, ReferenceConflict)
                else:
                    assert (outcome.transfer_id, outcome.charged_tokens, outcome.balance_after_tokens) == (
                        answer.transfer_id, answer.charged_tokens, answer.balance_after_tokens,
                    )  # fmt: skip
                    assert outcome.replayed
            elif wallet.stopped:
                assert outcome == AccountFrozen(wallet.debt)
            elif amount > wallet.free:
                assert outcome == InsufficientCredits(amount, wallet.free)
            else:
                wallet.debit(outcome.transfer_id, "spend", amount)
                assert (outcome.charged_tokens, outcome.balance_after_tokens, outcome.replayed) == (
                    amount,
                    wallet.free,
                    False,
                )
                wallet.spends[tool, f"s{number}"] = (item, outcome)

    @rule(who=WHO, amount=AMOUNTS)
    def hold(self, who, amount):
        wallet = self.wallets[who]
        payer = Payer(self.run(accounts.lock_one(self.conn, wallet.account_id)), None)
        request = holds.HoldRequest(new_id("hold"), payer, "image", new_id("job"), amount, 1, None)
        outcome = self.run(holds.place(self.conn, [request]))[0]
        if wallet.stopped:
            assert outcome == AccountFrozen(wallet.debt)
        elif amount > wallet.free:
            assert outcome == InsufficientCredits(amount, wallet.free)
        else:
            wallet.holds[request.id] = (amount, "pending")
            assert outcome == wallet.free

    @precondition(lambda self: any(wallet.holds for wallet in self.wallets))
    @rule(pick=PICK, how=st.sampled_from(["captured", "voided", "expired"]), part=AMOUNTS)
    def resolve(self, pick, how, part):
        # Three of four times one that is pending.
        among = (lambda each: each.holds) if pick % 4 == 0 else (lambda each: each.pending() or each.holds)
        wallet, hold_id = self.choose(pick, among)
        amount, state = wallet.holds[hold_id]
        part = min(part, amount)
        call = (
            holds.capture(self.conn, hold_id, part, datetime.now(UTC))
            if how == "captured"
            else holds.release(self.conn, hold_id, how)
        )
        if state != "pending":
            self.refused(HoldResolved, call)
            return
        result = self.run(call)
        wallet.holds[hold_id] = (amount, how)
        if how == "captured":
            wallet.debit(result, "capture", part)
            wallet.collect(amount - part)
        else:
            wallet.collect(amount)

    # -- money back --------------------------------------------------------------------------------------------

    @precondition(lambda self: any(wallet.moves for wallet in self.wallets))
    @rule(pick=PICK, amount=AMOUNTS)
    def refund(self, pick, amount):
        wallet, move = self.choose(
            pick,
            lambda each: (
                [m for m in each.moves if m.amount < 0 and (m.returned < -m.amount or not pick % 9)]
                or each.moves
            ),
        )
        amount = min(amount, -move.amount - move.returned) if pick % 3 and move.amount < 0 else amount
        amount = max(1, amount)
        reference = self.name("r")
        call = refunds.refund(
            self.conn, wallet.account_id, move.id, amount_tokens=amount, reference=reference
        )
        if move.kind not in ("spend", "capture"):
            self.refused(NotReversible, call)
        elif move.reversed or amount > -move.amount - move.returned:
            self.refused(ExceedsOriginal, call)
        else:
            self.run(call)
            wallet.give_back(move, amount)

    @precondition(lambda self: any(wallet.moves for wallet in self.wallets))
    @rule(pick=PICK)
    def reverse(self, pick):
        wallet, move = self.choose(pick, lambda each: each.moves)
        call = refunds.reverse(self.conn, wallet.account_id, move.id, reference=self.name("x"), reason="test")
        spent = move.lot is not None and (move.lot.remaining < move.amount or wallet.free < move.amount)
        if move.kind == "purchase" or move.returned or move.reversed or spent:
            self.refused(NotReversible, call)
            return
        self.run(call)
        move.reversed = True
        if move.amount < 0:
            wallet.give_back(move, -move.amount)
        else:
            move.lot.remaining -= move.amount
            wallet.balance -= move.amount
            wallet.moved += 1

    @precondition(lambda self: any(lot.purchase_id for wallet in self.wallets for lot in wallet.lots))
    @rule(pick=PICK, amount=AMOUNTS, whole=st.booleans(), repeat=st.booleans())
    def claw_back(self, pick, amount, whole, repeat):
        wallet, lot = self.choose(pick, lambda each: [lot for lot in each.lots if lot.purchase_id])
        amount = lot.amount - lot.clawed if whole and lot.clawed < lot.amount else amount
        facts = {
            "purchase_id": lot.purchase_id,
            "amount_tokens": amount,
            "reference": self.name("d"),
            "event_at": datetime.now(UTC),
        }
        if amount > lot.amount - lot.clawed:
            self.refused(ExceedsOriginal, debts.clawback(self.conn, wallet.account_id, **facts))
            return
        outcome = self.run(debts.clawback(self.conn, wallet.account_id, **facts))
        take = min(amount, lot.remaining, wallet.free)
        assert outcome == debts.Clawback(take, amount - take)
        lot.remaining -= take
        lot.clawed += amount
        lot.takes.append(take)
        wallet.balance -= take
        wallet.debt += amount - take
        wallet.moved += bool(take)
        if repeat:
            assert self.run(debts.clawback(self.conn, wallet.account_id, **facts)) == outcome

    @precondition(lambda self: any(lot.clawed for wallet in self.wallets for lot in wallet.lots))
    @rule(pick=PICK, amount=AMOUNTS, whole=st.booleans(), repeat=st.booleans())
    def reinstate(self, pick, amount, whole, repeat):
        wallet, lot = self.choose(pick, lambda each: [lot for lot in each.lots if lot.clawed])
        amount = lot.clawed if whole else amount
        facts = {
            "purchase_id": lot.purchase_id,
            "amount_tokens": amount,
            "reference": self.name("b"),
            "event_at": datetime.now(UTC),
        }
        if amount > lot.clawed:
            self.refused(ExceedsOriginal, reinstatements.reinstate(self.conn, wallet.account_id, **facts))
            return
        outcome = self.run(reinstatements.reinstate(self.conn, wallet.account_id, **facts))
        returned = wallet.reinstate(lot, amount)
        assert outcome == reinstatements.Reinstatement(returned, amount - returned)
        if repeat:
            assert self.run(reinstatements.reinstate(self.conn, wallet.account_id, **facts)) == outcome

    # -- the rest ----------------------------------------------------------------------------------------------

    @rule(who=WHO)
    def freeze(self, who):
        wallet = self.wallets[who]
        self.run(accounts.freeze(self.conn, wallet.account_id))
        item = Spend(wallet.credential, "image", self.name("frozen"), 1000, 1, 1)
        assert self.run(spend_many(self.conn, [item])) == [AccountFrozen(wallet.debt)]
        self.run(accounts.unfreeze(self.conn, wallet.account_id))

    @rule(days=st.integers(0, 2))
    def time_passes(self, days):
        self.now += days * DAY
        for wallet in self.wallets:
            purse = self.run(accounts.lock_one(self.conn, wallet.account_id))
            self.run(grants.settle(self.conn, purse, self.now))
            assert (purse.balance, purse.version) == self.run(self.stands(wallet))
            for lot in sorted(wallet.lots, key=lambda lot: (lot.starts_at or self.now, lot.age)):
                if lot.starts_at and lot.starts_at <= self.now:
                    wallet.open(lot)
            reserved = wallet.held
            for lot in wallet.open_lots():
                kept = min(reserved, lot.remaining)
                reserved -= kept
                if lot.expires_at and lot.expires_at <= self.now and lot.remaining > kept:
                    wallet.balance -= lot.remaining - kept
                    lot.remaining = kept
                    wallet.moved += 1

    @rule(who=WHO, at_most=st.integers(1, 5))
    def work_out(self, who, at_most):
        purse = self.run(accounts.lock_one(self.conn, self.wallets[who].account_id))
        self.run(grants.allocate(self.conn, purse, at_most))

    async def stands(self, wallet):
        row = (
            await self.conn.execute(
                text("SELECT balance, version FROM accounts WHERE id = :id"), {"id": wallet.account_id}
            )
        ).one()
        return row.balance, row.version

    def choose(self, pick, of):
        found = [(wallet, each) for wallet in self.wallets for each in of(wallet)]
        return found[pick % len(found)]

    @invariant()
    def the_ledger_agrees_with_the_model(self):
        if not hasattr(self, "wallets"):
            return
        for wallet in self.wallets:
            stands = self.run(balance(self.conn, wallet.account_id))
            purse = self.run(accounts.lock_one(self.conn, wallet.account_id))
            assert (stands.total_tokens, stands.held_tokens) == (wallet.balance, wallet.held)
            assert (purse.debt, purse.frozen, purse.version) == (wallet.debt, wallet.stopped, wallet.moved)
            left = self.run(self.remaining_if_worked_out(wallet))
            assert left == {lot.reference: lot.remaining for lot in wallet.lots if lot.starts_at is None}

    async def remaining_if_worked_out(self, wallet):
        nested = await self.conn.begin_nested()
        await grants.allocate(self.conn, await accounts.lock_one(self.conn, wallet.account_id))
        rows = (
            await self.conn.execute(
                text(
                    "SELECT reference, remaining FROM grants WHERE account_id = :id AND transfer_id IS NOT NULL"
                ),
                {"id": wallet.account_id},
            )
        ).all()
        await nested.rollback()
        return {row.reference: row.remaining for row in rows}

    @invariant()
    def every_invariant_of_the_books_holds(self):
        if not hasattr(self, "wallets"):
            return
        for check in LEDGER_CHECKS:
            broken = self.run(self.conn.execute(text(check.sql))).mappings().all()
            assert not broken, (check.name, broken)


@pytest.mark.timeout(600)
def test_any_interleaving_of_operations_agrees_with_the_model(fresh_url, customers):
    # Books of its own: the invariants read them whole after each step, and other tests' rows would be most of them.
    machine = type("Machine", (LedgerMachine,), {"url": fresh_url, "open_customer": staticmethod(customers)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
