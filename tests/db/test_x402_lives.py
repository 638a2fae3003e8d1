"""Wallets' payments over a wire that drops, doubles, holds and reorders, with crashes in between.

Whatever was heard of them, in whatever order: what the chain moved is granted once, and nothing else is. What nobody
can know is shown by the reconciliation, and nothing beside it. The facilitator is its twin behind the real client.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from deployments.ledger import LedgerServer
from kit.db import Database
from kit.settings import Settings
from payments.errors import PaymentRequired, PaymentsUnavailable, SettlementPending, SettlementUnclear
from payments.reconciler import Reconciler
from payments.reconciliations import Span
from payments.x402 import X402Checkout, x402_for
from payments.x402_facilitator import UNANSWERED, Facilitator, Settlement, Verdict
from payments.x402_payments import Paid
from payments.x402_wire import Call
from sandbox.testing import running
from sandbox.x402_facilitator import Chain, create_facilitator

PAY_TO: Final = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
URL: Final = "http://farebox.test/api/v1/media/jobs"
TOKENS: Final = 100
TRIES: Final = 6
"""From whatever state, a facilitator that is well is asked once, and a second time for what was pending."""

WIRE: Final = ("request lost", "answer lost", "doubled", "request held", "answer held", "request late")
FACILITATOR: Final = ("down", "lost", "fail", "pending", "verify:down")
KILLS: Final = (
    ("begin_x402", "after"),
    ("conclude_x402", "before"),
    ("conclude_x402", "after"),
    ("due_x402", "after"),
)
FATES: Final = {"verify": WIRE, "settle": WIRE, "facilitator": FACILITATOR, "kill": KILLS}
STEPS: Final = (
    *("send", "send", "send twice at once", "settle", "settle", "let go", "let go"),
    *("sign", "verify", "facilitator", "kill", "time passes", "upkeep"),
)
"""The frequent ones are those that make the others matter."""


class Killed(Exception):
    """The process that asked is gone."""


class Mortal:
    """The books as a process has them that is killed before or after a certain call of its."""

    def __init__(self, server: LedgerServer) -> None:
        self._server = server
        self.doom: tuple[str, str] | None = None

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any) -> Any:
            if self._dies(name, "before"):
                raise Killed
            answer = await getattr(self._server, name)(*args)
            if self._dies(name, "after"):
                raise Killed
            return answer

        return call

    def _dies(self, name: str, when: str) -> bool:
        dies = self.doom == (name, when)
        if dies:
            self.doom = None
        return dies


class Wire:
    """The way to the facilitator and back. It does with the next message of a kind as it was told."""

    def __init__(self, facilitator: Facilitator) -> None:
        self._facilitator = facilitator
        self.fates: dict[str, deque[str]] = {"verify": deque(), "settle": deque()}
        self.held: list[asyncio.Event] = []
        self.late: list[asyncio.Task[Any]] = []
        self.happened: Counter[str] = Counter()
        self._holds = asyncio.Event()

    async def verify(self, payload: Mapping[str, Any]) -> Verdict:
        verdict: Verdict | None = await self._carried(self._facilitator.verify, payload)
        if verdict is None:
            raise PaymentsUnavailable("no answer")
        return verdict

    async def settle(self, payload: Mapping[str, Any]) -> Settlement:
        said: Settlement | None = await self._carried(self._facilitator.settle, payload)
        return UNANSWERED if said is None else said

    async def close(self) -> None:
        await self._facilitator.close()

    async def quiet(self, task: asyncio.Task[Any]) -> None:
        """Return when a task has ended, or the wire holds what it waits for."""
        self._holds.clear()
        holds = asyncio.create_task(self._holds.wait())
        await asyncio.wait({task, holds}, return_when=asyncio.FIRST_COMPLETED)
        holds.cancel()

    async def _carried(self, ask: Callable[[Mapping[str, Any]], Awaitable[Any]], payload: Any) -> Any:
        """Return the answer that came through, or None."""
        fates = self.fates[ask.__name__]
        fate = fates.popleft() if fates else "through"
        self.happened[f"{ask.__name__}: {fate}"] += 1
        if fate == "request lost":
            return None
        if fate == "request late":  # its sender has given up; it arrives all the same
            self.late.append(asyncio.create_task(self._arrives_late(ask, payload)))
            return None
        if fate == "request held":
            await self._hold()
        answer = await ask(payload)
        if fate == "doubled":
            answer = await ask(payload)
        if fate == "answer held":
            await self._hold()
        return None if fate == "answer lost" else answer

    async def _arrives_late(self, ask: Callable[[Any], Awaitable[Any]], payload: Any) -> None:
        await self._hold()
        await ask(payload)

    async def _hold(self) -> None:
        let_go = asyncio.Event()
        self.held.append(let_go)
        self._holds.set()
        await let_go.wait()


@dataclass
class Street:
    """A shop, a facilitator across the road, and the wire between them."""

    server: LedgerServer
    chain: Chain
    checkout: X402Checkout
    books: Mortal
    wire: Wire
    orders: int = 0


@dataclass
class Life:
    """One call that a wallet wants to buy, under one idempotency key; it may sign several payments of it."""

    street: Street
    number: int
    headers: list[str] = field(default_factory=list)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set)

    @property
    def call(self) -> Call:
        price_minor = self.street.checkout.price_minor(TOKENS)
        return Call(
            "POST /api/v1/media/jobs", "a fox", f"{self.number:064x}", "image", 1, TOKENS, price_minor
        )

    async def pay(self, header: str | None) -> Paid:
        async def admit(payer: str) -> None:
            assert header is not None
            assert payer, "none is let in before a signature holds"

        paid = await self.street.checkout.pay(
            self.call, URL, header, f"order-{self.number}", key_label="fox", key_days=1, admit=admit
        )
        self.secrets.add(paid.secret)
        return paid

    async def sign(self) -> None:
        try:
            await self.pay(None)
        except PaymentRequired as refusal:
            payment = self.street.chain.sign(refusal.details)
        self.headers.append(base64.b64encode(json.dumps(payment).encode()).decode())

    async def step(self, what: str, chance: random.Random) -> None:
        pick: Any = chance.choice(FATES[what]) if what in FATES else None
        if what == "sign":
            await self.sign()
        elif what.startswith("send"):
            header = chance.choice(self.headers)
            for _ in range(2 if what == "send twice at once" else 1):
                self.begin(self.pay(header))
            await self.street.wire.quiet(self.tasks[-1])
        elif what == "time passes":
            await leases_end(self.street.server)
        elif what == "upkeep":
            await leases_end(self.street.server)
            self.begin(self.street.checkout.settle_due(3))
            await self.street.wire.quiet(self.tasks[-1])
        elif what == "let go" and self.street.wire.held:
            self.street.wire.held.pop(chance.randrange(len(self.street.wire.held))).set()
        elif what in self.street.wire.fates:
            self.street.wire.fates[what].append(pick)
        elif what == "facilitator":
            self.street.chain.arranged.append(pick)
        elif what == "kill":
            self.street.books.doom = pick

    def begin(self, work: Any) -> None:
        self.tasks.append(asyncio.create_task(work))

    async def all_is_well(self) -> None:
        """Let everything through that is still on its way, and nothing more go wrong."""
        wire = self.street.wire
        for fates in wire.fates.values():
            fates.clear()
        self.street.chain.arranged.clear()
        self.street.books.doom = None
        while wire.held or not all(task.done() for task in (*self.tasks, *wire.late)):
            while wire.held:
                wire.held.pop().set()
            await asyncio.wait((*self.tasks, *wire.late), timeout=0.01)  # some will hold again
        wire.late.clear()
        for outcome in await asyncio.gather(*self.tasks, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, UNKNOWN):
                raise outcome

    async def end(self, header: str) -> str:
        """Send a payment until it is known what became of it; returns that."""
        for _ in range(TRIES):
            await leases_end(self.street.server)
            try:
                await self.pay(header)
            except SettlementPending:
                continue
            except PaymentRequired:
                return "refused"
            except SettlementUnclear:
                return "unclear"
            return "paid"
        raise AssertionError("nobody knows, although nothing goes wrong any more")


UNKNOWN: Final = (Killed, PaymentRequired, PaymentsUnavailable, SettlementPending, SettlementUnclear)


async def leases_end(server: LedgerServer) -> None:
    async with server._db.transaction() as conn:
        await conn.execute(text("UPDATE x402_payments SET due_at = now() WHERE state = 'settling'"))


async def booked(server: LedgerServer, nonces: list[str]) -> dict[str, Any]:
    """What the books have of payments, by nonce, with how often and how much each was granted."""
    async with server._db.transaction() as conn:
        rows = await conn.execute(
            text(
                "SELECT x.*, (SELECT count(*) FROM transfers t WHERE t.reference = x.purchase_id) AS grants,"
                " (SELECT coalesce(sum(amount), 0) FROM transfers t WHERE t.reference = x.purchase_id) AS granted"
                " FROM x402_payments x WHERE nonce = ANY(:nonces)"
            ),
            {"nonces": nonces},
        )
        return {row.nonce: row for row in rows}


async def live(street: Street, chance: random.Random) -> None:
    street.orders += 1
    life = Life(street, street.orders)
    await life.sign()
    for _ in range(chance.randrange(3, 20)):
        await life.step(chance.choice(STEPS), chance)
    await life.all_is_well()
    ends = [await life.end(header) for header in life.headers]
    nonces = [nonce_of(header) for header in life.headers]
    moved = {nonce: paid for (_, nonce), paid in street.chain.transactions.items() if nonce in nonces}
    rows = await booked(street.server, nonces)
    settled = {nonce: row.transaction_hash for nonce, row in rows.items() if row.state == "settled"}
    unclear = {nonce for nonce, row in rows.items() if row.state == "unclear"}
    assert {row.state for row in rows.values()} <= {"settled", "refused", "unclear"}
    assert settled.items() <= moved.items(), "granted what never moved"
    assert moved.keys() - settled.keys() <= unclear, "moved, and nobody will look at it"
    assert [(rows[nonce].grants, rows[nonce].granted) for nonce in settled] == [(1, TOKENS)] * len(settled)
    assert len(moved) <= 1, "one order was paid twice"
    assert len(life.secrets) == len(settled), "a key without a payment, or another one at each repeat"
    assert ("paid" in ends) == bool(settled)
    assert not settled or set(ends) <= {"paid", "refused"}
    street.wire.happened["settled"] += len(settled)
    street.wire.happened["unclear"] += len(unclear)


def nonce_of(header: str) -> str:
    payment = json.loads(base64.b64decode(header))
    return str(payment["payload"]["authorization"]["nonce"])


async def opened(url: str, server: LedgerServer, chain: Chain, tmp_path: Path) -> Street:
    configured = Settings(
        data_dir=tmp_path, secret="of this test alone", x402_facilitator=url, x402_pay_to=PAY_TO
    )
    books = Mortal(server)
    checkout = x402_for(configured, books)
    assert checkout
    wire = Wire(checkout._facilitator)
    checkout._facilitator = wire
    return Street(server, chain, checkout, books, wire)


async def reconciled(street: Street) -> None:
    """The books and the chain are equal but for what is shown."""
    now = datetime.now(UTC)
    span = Span(now - timedelta(days=1), now + timedelta(minutes=1))
    seen = await Reconciler(street.server, [], wallets=True).run(span, repairs=True)
    async with street.server._db.transaction() as conn:
        rows = (
            await conn.execute(text("SELECT id, payer, nonce, state, amount_minor FROM x402_payments"))
        ).all()
    assert seen.silent == {}
    assert {(each.kind, each.session_id) for each in seen.differences} == {
        ("unsettled", row.id) for row in rows if row.state == "unclear"
    }
    earned = sum(
        row.amount_minor
        for row in rows
        if row.state == "settled"
        or (row.state == "unclear" and (row.payer, row.nonce) in street.chain.transactions)
    )
    assert street.chain.balances[PAY_TO.lower()] == earned


def test_whatever_becomes_of_its_messages_a_payment_is_granted_if_the_chain_moved_it(
    fresh_url: str, tmp_path: Path, assert_sound: Callable[[Database], Awaitable[None]]
) -> None:
    chain = Chain()
    server = LedgerServer(Settings(database_url=fresh_url, data_dir=tmp_path, secret="of this test alone"))
    with asyncio.Runner() as loop, running(create_facilitator(chain)) as url:
        street = loop.run(opened(url, server, chain, tmp_path))

        @settings(
            max_examples=150,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
            phases=[Phase.generate],  # a smaller seed is no simpler life
        )
        @given(st.integers(0, 2**32))
        def lived(seed: int) -> None:
            loop.run(live(street, random.Random(seed)))

        try:
            lived()
            loop.run(reconciled(street))
            loop.run(assert_sound(server._db))
            happened = street.wire.happened
            assert happened["settled"] >= 60
            assert [fate for fate in WIRE if not happened[f"settle: {fate}"]] == [], (
                "a fate that befell nobody"
            )
        finally:
            loop.run(street.checkout.close())
            loop.run(server.close())
