"""Eight writers, two replicas, a few accounts that they all want: what was answered is in the books, once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest_asyncio
from sqlalchemy import text

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from gateway.leases import Failure, LeaseLost, Settlement
from gateway.ports import CreateKey, StoredFile, SubmitJob
from kit.errors import AuthRequired
from kit.ids import new_id
from kit.settings import load_settings
from ledger import accounts, chain, grants, refunds
from ledger.audit import LEDGER_CHECKS, run_checks
from ledger.credits import adjust, credit, schedule
from ledger.debts import clawback
from ledger.errors import (
    AccountFrozen,
    ExceedsOriginal,
    InsufficientCredits,
    KeyCapReached,
    NotReversible,
    ReferenceConflict,
)
from ledger.grants import Terms
from ledger.keys import UNLIMITED, Credential, hash_key
from ledger.spends import Check, Spend, Spent
from payments.packages import Package
from payments.purchases import OpenPurchase, PaidSession

SEED = 20261125
WRITERS = 8
TURNS = 250
"""Of each writer; a turn is one operation or a burst of spends."""
ACCOUNTS = 5
CAP_TOKENS = 400
REFERENCES = 120
"""Of each account and tool: few enough that writers meet at every one."""
SMALL = Package("small", "Small", 120, 500, "usd")
EXPECTED = (
    AccountFrozen, AuthRequired, ExceedsOriginal, InsufficientCredits, KeyCapReached, NotReversible,
    ReferenceConflict,
)  # fmt: skip
"""What a writer may be refused with. A 503 or a 500 is none of it: nothing here breaks, and locks have one order."""


@dataclass
class Wallet:
    """An account that all writers share, and its keys."""

    account_id: int
    email: str
    main: bytes
    capped: bytes
    others: list[bytes] = field(default_factory=list)


@dataclass
class Journal:
    """What the writers were answered."""

    spent: dict = field(default_factory=dict)
    """(account, tool, reference) -> transfer, tokens, free after."""
    jobs: dict = field(default_factory=dict)
    """(account, idempotency key) -> job."""
    captured: dict = field(default_factory=dict)
    """Job -> tokens."""
    moved: dict = field(default_factory=dict)
    """(account, kind, reference) -> tokens."""
    purchases: list = field(default_factory=list)
    revoked: set = field(default_factory=set)
    counts: Counter = field(default_factory=Counter)

    def note(self, where, key, answer):
        """Keep an answer; the same question is never answered in two ways."""
        assert where.setdefault(key, answer) == answer, (key, where[key], answer)


class Writer:
    """Does one random operation after another on accounts that others work on too."""

    def __init__(self, number, servers, wallets, journal):
        self.random = random.Random(SEED + number)
        self.number, self.servers, self.wallets, self.journal = number, servers, wallets, journal
        self.made = 0

    async def work(self, ledgers):
        weights = {
            self.spend: 40, self.submit: 10, self.run_jobs: 8, self.cancel: 3, self.give: 9, self.promise: 3,
            self.take: 2, self.refund: 5, self.reverse: 2, self.buy: 4, self.claw_back: 1, self.keys: 2,
            self.freeze: 1, self.sweep: 2, self.seal: 2, self.look: 3, self.audit: 0.5,
        }  # fmt: skip
        for _ in range(TURNS):
            self.server = self.random.choice(self.servers)
            self.ledger = ledgers[self.servers.index(self.server)]
            self.wallet = self.random.choice(self.wallets)
            [operation] = self.random.choices(list(weights), list(weights.values()))
            self.journal.counts[operation.__name__] += 1
            try:
                await operation()
            except EXPECTED as refusal:
                self.journal.counts[type(refusal).__name__] += 1

    def name(self):
        self.made += 1
        return f"w{self.number}-{self.made}"

    async def run(self, work, *args, **kwargs):
        """Run a use case that no deployment method offers yet as one would: one transaction of a replica."""
        return await self.server._run("test", work, *args, **kwargs)

    # -- money out -------------------------------------------------------------------------------------------------

    async def spend(self):
        asked = []
        for _ in range(self.random.randint(1, 4)):
            wallet = self.random.choice(self.wallets)
            key = self.random.choice([wallet.main, wallet.main, wallet.capped, *wallet.others])
            n = self.random.randrange(REFERENCES)
            cost = 1 + n % 30 + (self.random.random() < 0.02)
            asked.append(
                (wallet, Spend(key, self.random.choice(["image", "music"]), f"s{n}", cost * 1000, cost, 1))
            )
        too_late = [spend.credential in self.journal.revoked for _, spend in asked]
        outcomes = await asyncio.gather(*(self.ledger.spend(s) for _, s in asked), return_exceptions=True)
        for (wallet, spend), late, outcome in zip(asked, too_late, outcomes, strict=True):
            assert isinstance(outcome, (Spent, *EXPECTED)), outcome
            assert isinstance(outcome, AuthRequired) or not late, "a revoked key spent"
            self.journal.counts["spends"] += 1
            self.journal.counts[type(outcome).__name__] += 1
            if isinstance(outcome, Spent):
                told = (outcome.transfer_id, outcome.charged_tokens, outcome.balance_after_tokens)
                self.journal.note(self.journal.spent, (wallet.account_id, spend.tool, spend.reference), told)
                self.journal.counts["replays"] += outcome.replayed

    async def submit(self):
        key = f"job-{self.random.randrange(60)}"
        command = SubmitJob(
            credential=self.random.choice([self.wallet.main, self.wallet.capped]),
            job_id=new_id("job"),
            task="image.generate",
            tool="image",
            application="image",
            input={},
            units_milli=1000,
            cost_tokens=10,
            price_version=1,
            idempotency_key=key,
            fingerprint="same",
        )
        receipt = await self.ledger.submit_job(command)
        self.journal.note(self.journal.jobs, (self.wallet.account_id, key), receipt.job_id)

    async def run_jobs(self):
        for job in await self.server.claim_jobs(f"run-{self.number}", {"image": 2}, 0):
            end = self.random.choice(["settle", "settle", "fail", "retry", "give back"])
            if end == "settle":
                tokens = self.random.randint(0, job.quoted_tokens)
                picture = StoredFile(
                    new_id("file"), "0.png", f"outputs/{job.id}/{job.fence}", "image/png", 1, "x",
                    datetime.now(UTC), job.id,
                )  # fmt: skip
                ended = await self.server.settle_job(Settlement(job.id, job.fence, [picture], tokens, {}))
                if ended == "succeeded" and tokens:
                    self.journal.note(self.journal.captured, job.id, tokens)
                other = self.random.choice(self.servers)
                try:
                    await other.settle_job(Settlement(job.id, job.fence, [picture], tokens, {}))
                    raise AssertionError("settled twice")
                except LeaseLost:
                    pass
            elif end == "give back":
                await self.server.give_back_job(job.id, job.fence)
            else:
                lost = Failure(job.id, job.fence, "broken", "It broke.", end == "retry", {})
                await self.server.fail_job(lost)

    async def cancel(self):
        mine = [
            job for (account_id, _), job in self.journal.jobs.items() if account_id == self.wallet.account_id
        ]
        if mine:
            await self.server.cancel_job(self.wallet.main, self.random.choice(mine))

    async def take(self):
        tokens, reference = -self.random.randint(1, 20), self.name()
        await self.run(
            adjust, self.wallet.account_id, amount_tokens=tokens, reference=reference, reason="test"
        )
        self.journal.note(self.journal.moved, (self.wallet.account_id, "adjustment", reference), tokens)

    # -- money in --------------------------------------------------------------------------------------------------

    async def give(self):
        kind, tokens, reference = (
            self.random.choice(["grant", "referral"]),
            self.random.randint(20, 120),
            self.name(),
        )
        now = datetime.now(UTC)
        lasts = self.random.choice(
            [None, timedelta(milliseconds=self.random.randint(1, 1500)), timedelta(hours=1)]
        )
        terms = Terms(
            expires_at=now + lasts if lasts else None,
            priority=self.random.choice([None, 10, 200]),
        )
        facts = {
            "kind": kind,
            "house": "promotion:test",
            "amount_tokens": tokens,
            "reference": reference,
            "event_at": now,
        }
        both = [self.server, self.random.choice(self.servers)]
        ids = await asyncio.gather(
            *(s._run("test", credit, self.wallet.account_id, terms=terms, **facts) for s in both)
        )
        assert ids[0] == ids[1]
        self.journal.note(self.journal.moved, (self.wallet.account_id, kind, reference), tokens)

    async def promise(self):
        soon = datetime.now(UTC) + timedelta(milliseconds=self.random.randint(1, 1000))
        terms = Terms(expires_at=self.random.choice([None, soon + timedelta(milliseconds=500)]))
        await self.run(
            schedule,
            self.wallet.account_id,
            kind="grant",
            house="promotion:later",
            amount_tokens=self.random.randint(10, 50),
            reference=f"later-{self.name()}",
            starts_at=soon,
            terms=terms,
        )

    async def buy(self):
        purchase_id = new_id("pur")
        credential = self.random.choice([self.wallet.main, None])
        await self.server.open_purchase(
            OpenPurchase(purchase_id, "stripe", self.wallet.email, SMALL, credential)
        )
        paid = PaidSession("stripe", f"cs_{purchase_id}", purchase_id, 500, "usd", False, False)
        done = await asyncio.gather(*(server.fulfil(paid) for server in self.servers))
        assert all(purchase.paid for purchase in done)
        self.journal.note(
            self.journal.moved, (self.wallet.account_id, "purchase", purchase_id), SMALL.credits_tokens
        )
        self.journal.purchases.append((self.wallet.account_id, purchase_id))

    # -- money back ------------------------------------------------------------------------------------------------

    async def refund(self):
        if not self.journal.spent:
            return
        (account_id, _, _), (transfer_id, charged, _) = self.random.choice(list(self.journal.spent.items()))
        facts = {"amount_tokens": self.random.randint(1, charged), "reference": self.name()}
        await self.run(refunds.refund, account_id, transfer_id, **facts)
        self.journal.note(
            self.journal.moved, (account_id, "refund", facts["reference"]), facts["amount_tokens"]
        )

    async def reverse(self):
        if not self.journal.spent:
            return
        (account_id, _, _), (transfer_id, charged, _) = self.random.choice(list(self.journal.spent.items()))
        reference = self.name()
        await self.run(refunds.reverse, account_id, transfer_id, reference=reference, reason="test")
        self.journal.note(self.journal.moved, (account_id, "reversal", reference), charged)

    async def claw_back(self):
        if not self.journal.purchases:
            return
        account_id, purchase_id = self.random.choice(self.journal.purchases)
        facts = {"purchase_id": purchase_id, "reference": self.name(), "event_at": datetime.now(UTC)}
        await self.run(clawback, account_id, amount_tokens=self.random.randint(1, 120), **facts)

    # -- the rest --------------------------------------------------------------------------------------------------

    async def keys(self):
        """Make a key, let everyone spend with it for a while, revoke it: from the answer on it is refused."""
        made = await self.server.create_key(
            CreateKey(self.wallet.main, "short-lived", UNLIMITED, self.name(), "same")
        )
        credential = Credential(hash_key(made.secret))
        self.wallet.others.append(credential)
        for _ in range(3):
            await self.spend()
        await self.server.revoke_key(self.wallet.main, made.key.prefix)
        self.journal.revoked.add(credential)
        await self.spend()
        self.wallet.others.remove(credential)

    async def freeze(self):
        await self.run(accounts.freeze, self.wallet.account_id)
        await self.spend()
        await self.run(accounts.unfreeze, self.wallet.account_id)

    async def sweep(self):
        await self.server.sweep()

    async def seal(self):
        self.journal.counts["blocks"] += await self.run(chain.seal)

    async def look(self):
        found = await self.ledger.balance(self.wallet.main)
        assert 0 <= found.held_tokens <= found.total_tokens
        await self.ledger.check(Check(self.wallet.capped, 5, "image"))

    async def audit(self):
        """The invariants hold at every moment, not only at the end."""
        findings = await self.run(run_checks, LEDGER_CHECKS)
        assert [(f.name, f.offending) for f in findings if not f.ok] == []


@pytest_asyncio.fixture
async def servers(fresh_url):
    settings = load_settings().model_copy(update={"database_url": fresh_url})
    both = [LedgerServer(settings), LedgerServer(settings)]
    yield both
    for server in both:
        await server.close()


@pytest_asyncio.fixture
async def wallets(db, servers, customers):
    wallets = []
    for _ in range(ACCOUNTS):
        async with db.transaction() as conn:
            customer = await customers(conn, 300)
        capped = await servers[0].create_key(CreateKey(customer.credential, "capped", UNLIMITED, None, ""))
        async with db.transaction() as conn:
            await conn.execute(
                text("UPDATE api_keys SET cap_tokens = :cap, cap_per = 'total' WHERE id = :id"),
                {"cap": CAP_TOKENS, "id": capped.key.id},
            )
        wallets.append(
            Wallet(
                customer.account_id, customer.email, customer.credential, Credential(hash_key(capped.secret))
            )
        )
    return wallets


async def rows(db, sql):
    async with db.transaction() as conn:
        return [tuple(row) for row in await conn.execute(text(sql))]


async def test_what_eight_writers_were_answered_is_in_the_books_once(db, servers, wallets, assert_sound):
    journal = Journal()
    ledgers = [local_ledger(server) for server in servers]
    async with asyncio.TaskGroup() as group:
        for number in range(WRITERS):
            group.create_task(Writer(number, servers, wallets, journal).work(ledgers))

    for wallet in wallets:
        await db.run(settle, wallet.account_id)
    await assert_sound(db)
    await assert_worked_out(db)
    await assert_sealed(db)
    await assert_as_answered(db, journal)
    deadlocks = await rows(db, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert deadlocks == [(0,)], "somebody locks in another order"
    met = [refusal.__name__ for refusal in EXPECTED]
    assert [what for what in ("spends", "replays", "blocks", *met) if not journal.counts[what]] == []


async def settle(conn, account_id):
    await grants.settle(conn, await accounts.lock_one(conn, account_id))


async def assert_worked_out(db):
    """Every debit is drawn on grants, and what remains of them is the balance."""
    stands = await rows(
        db,
        "SELECT a.id, a.allocated_version, a.balance, sum(g.remaining) FROM accounts a"
        " JOIN grants g ON g.account_id = a.id AND g.transfer_id IS NOT NULL WHERE a.kind = 'user' GROUP BY a.id",
    )
    versions = dict(await rows(db, "SELECT id, version FROM accounts WHERE kind = 'user'"))
    assert len(stands) == ACCOUNTS
    for account_id, allocated, balance, remaining in stands:
        assert (allocated, balance) == (versions[account_id], remaining)


async def assert_sealed(db):
    """The chain takes in every transfer and verifies."""
    [(transfers,)] = await rows(db, "SELECT count(*) FROM transfers")
    async with asyncio.timeout(30):
        while True:
            await db.run(chain.seal)
            verdict = await db.run(chain.verify)
            assert verdict.ok, verdict.broken
            if verdict.transfers == transfers:
                return


async def assert_as_answered(db, journal):
    booked = defaultdict(dict)
    for kind, account_id, tool, reference, *what in await rows(
        db, "SELECT kind, account_id, tool, reference, id, amount, free_after FROM transfers"
    ):
        booked[kind][account_id, tool, reference] = tuple(what)
    assert {
        key: (number, -amount, free) for key, (number, amount, free) in booked["spend"].items()
    } == journal.spent
    captured = {reference: -amount for (_, _, reference), (_, amount, _) in booked["capture"].items()}
    assert captured == journal.captured
    moved = {
        (account_id, kind, reference): amount
        for kind in ("grant", "referral", "purchase", "adjustment", "refund", "reversal")
        for (account_id, _, reference), (_, amount, _) in booked[kind].items()
        if reference != "start" and not reference.startswith("later-")
    }
    assert moved == journal.moved
    jobs = await rows(
        db,
        "SELECT account_id, idempotency.key, answer->>'job_id' FROM idempotency WHERE route = 'media.jobs'",
    )
    assert {(account_id, key): job_id for account_id, key, job_id in jobs} == journal.jobs
    assert {(job_id,) for job_id in journal.jobs.values()} == set(await rows(db, "SELECT id FROM jobs"))
    used = await rows(
        db,
        "SELECT k.id, (SELECT -coalesce(sum(amount), 0) FROM transfers WHERE key_id = k.id AND amount < 0)"
        " + (SELECT coalesce(sum(amount), 0) FROM holds WHERE key_id = k.id AND state = 'pending')"
        " FROM api_keys k WHERE label = 'capped'",
    )
    assert len(used) == ACCOUNTS
    assert all(0 < tokens <= CAP_TOKENS for _, tokens in used), used
