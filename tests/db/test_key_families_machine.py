"""Random families of keys that spend, hold, rotate and end, against a model: no line of caps is ever overrun."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

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
from kit.errors import AuthRequired, Forbidden
from kit.ids import new_id
from ledger import families, holds, keys, scopes
from ledger.errors import KeyCapReached
from ledger.keys import Credential, Limits
from ledger.payers import authorise
from ledger.spends import Spend, Spent, spend_many

CAPS = st.one_of(st.none(), st.integers(0, 60))
AMOUNTS = st.integers(1, 12)
PICK = st.integers(0, 10**6)


@dataclass(eq=False)
class Key:
    """`used` is what the cap counts; `spent` what this key itself spent or holds, whatever any cap says."""

    id: str
    secret: str
    cap: int | None
    parent: Key | None
    root: bool = False
    alive: bool = True
    used: int = 0
    spent: int = 0

    @property
    def credential(self):
        return Credential(keys.hash_key(self.secret))

    @property
    def prefix(self):
        return self.secret.removeprefix("amai_live_")[:10]

    @property
    def line(self):
        return [self, *(self.parent.line if self.parent else [])]

    @property
    def left(self):
        return min((key.cap - key.used for key in self.line if key.cap is not None), default=10**9)

    def count(self, amount):
        for key in self.line:
            key.used += amount if key.cap is not None else 0
        self.spent += amount

    def give_back(self, amount):
        for key in self.line:
            key.used = max(0, key.used - amount)
        self.spent -= amount


class FamilyMachine(RuleBasedStateMachine):
    url: str
    open_customer: Callable[..., Awaitable[Any]]

    @initialize()
    def begin(self):
        self.loop = asyncio.new_event_loop()
        self.database = Database(self.url, pool_size=1)
        self.conn = self.run(self.database.engine.connect())
        customer = self.run(self.open_customer(self.conn, 10**9))
        self.user_id, self.account_id = customer.user_id, customer.account_id
        self.keys = [Key(customer.key_id, customer.secret, None, None, root=True)]
        self.holds = {}
        self.make(which=0, cap=60)  # a family to begin with: most of what can go wrong needs one
        self.make(which=1, cap=None)

    def teardown(self):
        if hasattr(self, "conn"):
            self.run(self.conn.rollback())
            self.run(self.conn.close())
            self.run(self.database.close())
            self.loop.close()

    def run(self, work):
        return self.loop.run_until_complete(work)

    def pick(self, number, *, alive=False):
        among = [key for key in self.keys if key.alive or not alive]
        return among[number % len(among)]

    def caller(self, key):
        return self.run(keys.caller_of(self.conn, key.credential, scopes.KEYS))

    def end(self, key):
        key.alive = False
        for child in self.keys:
            if child.parent is key:
                self.end(child)

    @rule(which=PICK, cap=CAPS)
    def make(self, which, cap):
        maker = self.pick(which, alive=True)
        limits = Limits(cap_tokens=cap, cap_per=None if cap is None else "total")
        made = families.make(self.conn, self.caller(maker), "x", limits, brand="amai")
        if len(maker.line) > families.DEPTH:
            try:
                self.run(made)
            except Forbidden:
                return
            raise AssertionError("handed on too often")
        new = self.run(made)
        limited = self.caller(maker).limited
        assert limited == (not maker.root)
        parent = maker if limited else None
        root = parent is None and cap is None
        self.keys.append(Key(new.key.id, new.secret, cap, parent, root))

    @rule(items=st.lists(st.tuples(PICK, AMOUNTS), min_size=1, max_size=6))
    def spend(self, items):
        chosen = [(self.pick(which), amount) for which, amount in items]
        batch = [
            Spend(key.credential, "image", new_id("job"), 1000 * amount, amount, 1) for key, amount in chosen
        ]
        for (key, amount), outcome in zip(chosen, self.run(spend_many(self.conn, batch)), strict=True):
            if not key.alive:
                assert outcome == AuthRequired()
            elif amount > key.left:
                assert isinstance(outcome, KeyCapReached)
                assert outcome.left_tokens == key.left
            else:
                assert isinstance(outcome, Spent)
                key.count(amount)

    @rule(items=st.lists(st.tuples(PICK, AMOUNTS), min_size=1, max_size=4))
    def hold(self, items):
        chosen = [(self.pick(which, alive=True), amount) for which, amount in items]
        uses = [(key.credential, scopes.tool("image")) for key, _ in chosen]
        payers = self.run(authorise(self.conn, uses))
        requests = [
            holds.HoldRequest(new_id("hold"), payers[use], "image", new_id("job"), amount, 1, None)
            for use, (_, amount) in zip(uses, chosen, strict=True)
        ]
        outcomes = self.run(holds.place(self.conn, requests))
        for (key, amount), request, outcome in zip(chosen, requests, outcomes, strict=True):
            if amount > key.left:
                assert outcome == KeyCapReached(amount, key.left, "total")
            else:
                assert isinstance(outcome, int)
                key.count(amount)
                self.holds[request.id] = (key, amount)

    @precondition(lambda self: getattr(self, "holds", None))
    @rule(which=PICK, part=st.integers(0, 12))
    def resolve(self, which, part):
        hold_id = sorted(self.holds)[which % len(self.holds)]
        key, amount = self.holds.pop(hold_id)
        taken = min(part, amount)
        if taken:
            self.run(holds.capture(self.conn, hold_id, taken, datetime.now(UTC)))
        else:
            self.run(holds.release(self.conn, hold_id, "voided"))
        key.give_back(amount - taken)

    @rule(which=PICK, overlap=st.sampled_from([timedelta(0), timedelta(hours=1)]))
    def rotate(self, which, overlap):
        old = self.pick(which, alive=True)
        made = self.run(families.rotate(self.conn, self.caller(old), old.prefix, overlap, brand="amai"))
        new = Key(made.key.id, made.secret, old.cap, old.parent, old.root, used=old.used)
        for child in self.keys:
            if child.parent is old:
                child.parent = new
        self.keys.append(new)
        old.parent, old.root, old.alive = new, False, bool(overlap)

    @precondition(lambda self: sum(key.alive for key in getattr(self, "keys", [])) > 2)
    @rule(which=PICK)
    def revoke(self, which):
        key = self.pick(which, alive=True)
        if key.root:  # somebody must be left to go on
            return
        self.run(keys.revoke(self.conn, self.user_id, key.prefix))
        self.end(key)

    @invariant()
    def caps_count_what_the_model_counts(self):
        if not hasattr(self, "keys"):
            return
        rows = self.run(
            self.conn.execute(
                text("SELECT id, cap_used FROM api_keys WHERE user_id = :user"), {"user": self.user_id}
            )
        ).all()
        assert {row.id: row.cap_used for row in rows} == {key.id: key.used for key in self.keys}

    @invariant()
    def a_family_never_spends_more_than_its_cap(self):
        for head in getattr(self, "keys", []):
            if head.cap is not None:
                assert sum(key.spent for key in self.keys if head in key.line) <= head.used <= head.cap

    @invariant()
    def everybody_sees_their_family_alone(self):
        for key in getattr(self, "keys", []):
            if key.alive and not key.root:
                seen = self.run(keys.list_keys(self.conn, self.user_id, key.id))
                assert {one.id for one in seen} == {other.id for other in self.keys if key in other.line}


def test_any_life_of_a_family_agrees_with_the_model(shared_url, customers):
    machine = type("Machine", (FamilyMachine,), {"url": shared_url, "open_customer": staticmethod(customers)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
