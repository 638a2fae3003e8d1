"""`kill -9` on Ledgers and on Postgres under load: what was acknowledged is in the books once, and nothing else is.

Two Ledgers serve one Postgres, as during an upgrade. Callers spend, submit jobs and pay, with references of their
own, and repeat each call until it is answered; some are sent by several callers at once, through both Ledgers.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import text

from gateway.leases import ClaimedJob, LeaseLost, Settlement
from gateway.ports import JobReceipt, Ledger, StoredFile, SubmitJob
from kit.db import Database
from kit.errors import Unavailable
from kit.ids import new_id
from kit.postgres.processes import recorded_pid, server_pids
from ledger import chain
from ledger.errors import InsufficientCredits
from ledger.spends import Spend, Spent
from payments import purchases
from payments.packages import Package
from payments.purchases import OpenPurchase, PaidSession

pytestmark = pytest.mark.timeout(400)  # a storm takes a minute; a machine may be slow

SEED: Final = 9
PLAN: Final = (
    ["ledger"] * 15 + ["ledger before its answer"] * 6 + ["postmaster"] * 9 + ["backend"] * 3 + ["both"]
)
ACKS_BETWEEN: Final = (10, 100)  # so many answers, from nothing to some batches, lie between two kills
RICH_TOKENS, POOR_TOKENS = 10**9, 200
RICH, POOR = 16, 4
SPENDERS, SUBMITTERS, RUNNERS, PAYERS = 16, 4, 2, 2
PACKAGE: Final = Package("small", "Small", 30, 500, "usd")  # keeps a poor account poor
PAYMENTS: Final = 400  # more than a storm gets through
PLACES: Final = {"image": 8}
SWEEPS: Final = 0.1  # to a claim: a sweep takes ten times as long
START_S: Final = 120.0  # a recovery takes a second; a machine may be slow

T = TypeVar("T")
Use = tuple[int, str]  # an account and a reference


@dataclass
class Receipts:
    """What the callers were told, by reference: every answer, in the order in which they came."""

    spends: dict[Use, list[Spent | InsufficientCredits]] = field(default_factory=lambda: defaultdict(list))
    jobs: dict[Use, list[JobReceipt | InsufficientCredits]] = field(default_factory=lambda: defaultdict(list))
    settled: dict[str, int] = field(default_factory=dict)
    paid: set[str] = field(default_factory=set)
    kills: Counter[str] = field(default_factory=Counter)


class Storm:
    """The load and the kills; what the callers heard is in `receipts`."""

    def __init__(self, server, ledgers, accounts, payments) -> None:
        self.receipts = Receipts()
        self._server, self._ledgers = server, ledgers
        self._accounts, self._payments = accounts, payments
        self._books: list[Ledger] = [ledger.books for ledger in ledgers]
        self._answers = [0] * len(ledgers)
        self._answered = asyncio.Event()
        self._over = False

    async def rage(self) -> None:
        """Load until the last kill, then until every caller has an answer."""
        async with asyncio.TaskGroup() as group:
            for load, count in (
                (self._spend, SPENDERS),
                (self._submit, SUBMITTERS),
                (self._run_jobs, RUNNERS),
                (self._pay, PAYERS),
            ):
                for number in range(count):
                    name = f"{load.__name__}-{number}"
                    group.create_task(load(name, random.Random(f"{SEED}-{name}")))
            group.create_task(self._kill_all(random.Random(SEED)))

    # -- callers -------------------------------------------------------------------------------------------

    async def _until_answered(self, rng: random.Random, ask: Callable[[Ledger], Awaitable[T]]) -> T:
        """Ask either Ledger, again while they are away; money that lacks is an answer too."""
        while True:
            place = rng.randrange(len(self._books))
            try:
                answer = await ask(self._books[place])
            except Unavailable:
                await asyncio.sleep(rng.uniform(0.01, 0.05))  # a caller's pause before it tries again
                continue
            except (InsufficientCredits, LeaseLost) as refusal:
                answer = refusal  # type: ignore[assignment]
            self._answers[place] += 1
            self._answered.set()
            return answer

    async def _race(self, rng: random.Random, ask: Callable[[Ledger], Awaitable[T]]) -> list[T]:
        """Send the same by one caller or by several at once."""
        callers = rng.choice((1, 1, 1, 2, 3))
        return list(await asyncio.gather(*(self._until_answered(rng, ask) for _ in range(callers))))

    async def _spend(self, name: str, rng: random.Random) -> None:
        sent: list[tuple[Use, Spend]] = []
        while not self._over:
            if sent and rng.random() < 0.1:
                use, spend = rng.choice(sent)
            else:
                customer, cost = rng.choice(self._accounts), rng.randint(1, 50)
                spend = Spend(customer.credential, "chat", f"{name}-{len(sent)}", cost * 1000, cost, 1)
                use = (customer.account_id, spend.reference)
                sent.append((use, spend))
            self.receipts.spends[use] += await self._race(rng, lambda books, s=spend: books.spend(s))

    async def _submit(self, name: str, rng: random.Random) -> None:
        serial = 0
        while not self._over:
            serial += 1
            customer, cost = rng.choice(self._accounts), rng.randint(2, 50)
            job = SubmitJob(
                credential=customer.credential, job_id="", task="image.generate", tool="image", application="image",
                input={"prompt": "fox"}, units_milli=1000, cost_tokens=cost, price_version=1,
                idempotency_key=f"{name}-{serial}", fingerprint=str(cost),
            )  # fmt: skip
            # As at the front door: every attempt brings a new id, and the key makes them one job.
            receipts = await self._race(
                rng, lambda books, j=job: books.submit_job(replace(j, job_id=new_id("job")))
            )
            self.receipts.jobs[customer.account_id, job.idempotency_key] += receipts

    async def _run_jobs(self, name: str, rng: random.Random) -> None:
        while not self._over or await self._jobs_left():
            for job in await self._until_answered(rng, lambda b: b.claim_jobs(name, PLACES, 0.2)):
                charge = rng.choice((0, job.quoted_tokens // 2, job.quoted_tokens))
                done = Settlement(job.id, job.fence, [output_of(job)], charge, {})
                if await self._until_answered(rng, lambda b, d=done: b.settle_job(d)) == "succeeded":
                    self.receipts.settled[job.id] = charge
            if rng.random() < SWEEPS:
                await self._until_answered(rng, lambda b: b.sweep())

    async def _jobs_left(self) -> bool:
        with psycopg.connect(self._server.dsn) as conn:
            return bool(
                conn.execute("SELECT 1 FROM jobs WHERE status IN ('queued', 'running') LIMIT 1").fetchone()
            )

    async def _pay(self, _name: str, rng: random.Random) -> None:
        while not self._over and self._payments:
            paid = self._payments.pop()
            await self._race(rng, lambda books, p=paid: books.fulfil(p))
            self.receipts.paid.add(paid.purchase_id)
            await self._more(rng.randint(*ACKS_BETWEEN), sum)

    # -- kills -----------------------------------------------------------------------------------------------

    async def _kill_all(self, rng: random.Random) -> None:
        for victim in rng.sample(PLAN, len(PLAN)):
            place = rng.randrange(len(self._ledgers))
            of_victim = (lambda answers, p=place: answers[p]) if "ledger" in victim else sum
            await self._more(rng.randint(*ACKS_BETWEEN), of_victim)
            # An answer ends a batch: strike anywhere in the next one.
            await asyncio.sleep(rng.uniform(0, 0.02))
            match victim:
                case "ledger":
                    await self._kill_ledger(place)
                case "ledger before its answer":
                    await self._doom_ledger(place)
                case "postmaster":
                    await self._kill_postmaster()
                case "backend":
                    await self._kill_backend(rng)
                case "both":
                    await asyncio.gather(self._kill_ledger(place), self._kill_postmaster())
        await self._more(ACKS_BETWEEN[1], sum)
        self._over = True

    async def _more(self, count: int, of: Callable[[list[int]], int]) -> None:
        """Return after so many further answers."""
        goal = of(self._answers) + count
        while of(self._answers) < goal:
            self._answered.clear()
            await self._answered.wait()

    async def _kill_ledger(self, place: int) -> None:
        await self._ledgers[place].kill()
        self.receipts.kills["ledger"] += 1
        self._ledgers[place].start()

    async def _doom_ledger(self, place: int) -> None:
        """The worst moment: a batch is committed and nobody has heard of it."""
        await self._ledgers[place].call("doom", "spend_many", "after")
        await self._ledgers[place].died()
        self.receipts.kills["ledger"] += 1
        self._ledgers[place].start()

    async def _kill_postmaster(self) -> None:
        pid = recorded_pid(self._server.cluster_dir)
        assert pid == self._server.pid
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self.receipts.kills["postgres"] += 1
        await asyncio.to_thread(self._server.start, START_S)

    async def _kill_backend(self, rng: random.Random) -> None:
        """One of a Ledger's, at work if any is; Postgres then ends them all and recovers by itself."""
        pid = rng.choice(await self._backends())
        if pid in server_pids(self._server.cluster_dir):
            os.kill(pid, signal.SIGKILL)
            self.receipts.kills["postgres"] += 1

    async def _backends(self) -> list[int]:
        while True:
            with suppress(psycopg.OperationalError):  # it may still recover from the last kill
                async with await psycopg.AsyncConnection.connect(self._server.dsn, autocommit=True) as conn:
                    found = await conn.execute(
                        "SELECT pid, state <> 'idle' FROM pg_stat_activity"
                        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                    )
                    backends = await found.fetchall()
                if backends:
                    return [pid for pid, busy in backends if busy] or [pid for pid, _ in backends]
            await asyncio.sleep(0.02)


def output_of(job: ClaimedJob) -> StoredFile:
    return StoredFile(
        new_id("file"), "0.png", f"outputs/{job.id}/{job.fence}-0.png", "image/png", 3, "x", job.started_at, job.id
    )  # fmt: skip


async def open_accounts(db: Database, customers) -> tuple[list[Any], list[PaidSession]]:
    """Rich and poor accounts, and sessions that will be paid for the poor ones."""
    async with db.transaction() as conn:
        rich = [await customers(conn, RICH_TOKENS) for _ in range(RICH)]
        poor = [await customers(conn, POOR_TOKENS) for _ in range(POOR)]
        payments = []
        for number in range(PAYMENTS):
            owner = poor[number % POOR]
            command = OpenPurchase(new_id("pur"), "stripe", owner.email, PACKAGE, None)
            await purchases.open_purchase(conn, command, owner.user_id)
            payments.append(
                PaidSession(
                    "stripe", f"cs_test_{number}", command.purchase_id, PACKAGE.price_minor, PACKAGE.currency,
                    livemode=False, expect_livemode=False,
                )
            )  # fmt: skip
    return rich + poor, payments


@pytest.fixture(scope="module")
def receipts(durable, replicas, customers) -> Receipts:
    """What the callers of one storm were told."""

    async def rage() -> Receipts:
        db = Database(durable.url, pool_size=1)
        accounts, payments = await open_accounts(db, customers)
        await db.close()
        async with replicas(2) as ledgers:
            storm = Storm(durable, ledgers, accounts, payments)
            await storm.rage()
        return storm.receipts

    return asyncio.run(rage())


@pytest_asyncio.fixture
async def books(durable, receipts) -> AsyncIterator[Database]:
    """The books after the storm."""
    db = Database(durable.url, pool_size=1)
    yield db
    await db.close()


async def rows(books: Database, query: str) -> list[Any]:
    async with books.transaction() as conn:
        return [tuple(row) for row in await conn.execute(text(query))]


def told(answers: list[Any], kind: type[T]) -> list[T]:
    return [answer for answer in answers if isinstance(answer, kind)]


def test_at_least_thirty_processes_were_killed_under_load(receipts):
    assert receipts.kills["ledger"] >= 20
    assert receipts.kills["postgres"] >= 10
    assert len(receipts.spends) > 10 * receipts.kills.total()


async def test_every_acknowledged_spend_is_in_the_books_once_and_no_other_is(books, receipts):
    written = await rows(
        books, "SELECT account_id, reference, id, -amount, free_after FROM transfers WHERE kind = 'spend'"
    )
    acknowledged = sorted(
        (*use, spent.transfer_id, spent.charged_tokens, spent.balance_after_tokens)
        for use, answers in receipts.spends.items()
        for spent in told(answers, Spent)[:1]
    )
    assert sorted(written) == acknowledged


def test_a_repeat_is_told_what_the_first_was_told(receipts):
    for use, answers in receipts.spends.items():
        assert len({replace(spent, replayed=True) for spent in told(answers, Spent)}) <= 1, use
        assert sum(not spent.replayed for spent in told(answers, Spent)) <= 1, use
    for use, answers in receipts.jobs.items():
        assert len({replace(receipt, replayed=True) for receipt in told(answers, JobReceipt)}) <= 1, use
        assert sum(not receipt.replayed for receipt in told(answers, JobReceipt)) <= 1, use


def test_answers_were_lost_and_the_repeats_charged_nothing(receipts):
    """Else the storm was a breeze: nobody heard of these spends when they were made."""
    unheard = [
        use
        for use, answers in receipts.spends.items()
        if (spents := told(answers, Spent)) and all(spent.replayed for spent in spents)
    ]
    assert len(unheard) >= PLAN.count("ledger before its answer")


def test_poor_accounts_were_refused(receipts):
    assert any(told(answers, InsufficientCredits) for answers in receipts.spends.values())
    assert any(told(answers, InsufficientCredits) for answers in receipts.jobs.values())


async def test_every_acknowledged_job_is_in_the_books_once_and_no_other_is(books, receipts):
    written = sorted(job_id for (job_id,) in await rows(books, "SELECT id FROM jobs"))
    acknowledged = sorted(
        told(answers, JobReceipt)[0].job_id for answers in receipts.jobs.values() if told(answers, JobReceipt)
    )
    assert written == acknowledged


async def test_every_acknowledged_settlement_charged_its_job_once(books, receipts):
    charged = defaultdict(list)
    for job_id, *charge in await rows(
        books,
        "SELECT j.id, j.status, j.charged, coalesce(-t.amount, 0)"
        " FROM jobs j LEFT JOIN transfers t ON t.hold_id = j.hold_id",
    ):
        charged[job_id].append(tuple(charge))
    assert receipts.settled
    for job_id, tokens in receipts.settled.items():
        assert charged[job_id] == [("succeeded", tokens, tokens)]


async def test_every_acknowledged_payment_is_granted_once_and_no_other_is(books, receipts):
    granted = await rows(books, "SELECT reference, amount FROM transfers WHERE kind = 'purchase'")
    assert sorted(granted) == sorted((paid, PACKAGE.credits_tokens) for paid in receipts.paid)
    assert receipts.paid


async def test_the_books_are_sound_and_no_account_is_overdrawn(books, assert_sound):
    await assert_sound(books)
    # Every job has ended, so that nothing is held.
    assert await rows(books, "SELECT id FROM accounts WHERE balance < 0 OR held <> 0") == []


async def test_the_chain_seals_all_that_is_left_and_verifies(books):
    ((transfers,),) = await rows(books, "SELECT count(*) FROM transfers")
    while (verdict := await books.run(chain.verify)).ok and verdict.transfers < transfers:
        await books.run(chain.seal)
    assert verdict.ok, verdict.broken
    assert verdict.transfers == transfers
