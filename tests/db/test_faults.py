"""Lost connections, lock time-outs, deadlocks and lost answers: a repeat gets the same answer and charges once."""

from __future__ import annotations

import asyncio
import random
import socket
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from gateway.leases import LeaseLost, Settlement
from gateway.ports import CreateKey, StoredFile, SubmitJob
from kit import db as kit_db
from kit.errors import Unavailable
from kit.ids import new_id
from kit.settings import load_settings
from ledger.balances import balance
from ledger.spends import Spend, Spent
from payments.packages import Package
from payments.purchases import OpenPurchase, PaidSession

PATIENCE_S = 60
"""A fault that is not survived would otherwise hang the test; never reached."""
BUILDER = Package("builder_600", "Builder", 60_000, 5_000, "usd")


def spend_of(customer, reference, cost=3):
    return Spend(customer.credential, "image", reference, cost * 1000, cost, 1)


def submit_of(customer, key, cost=5):
    """Another attempt of the same submit: its job id is new each time, its idempotency key is not."""
    return SubmitJob(
        credential=customer.credential,
        job_id=new_id("job"),
        task="image.generate",
        tool="image",
        application="image",
        input={"prompt": "fox"},
        cost_tokens=cost,
        price_version=1,
        idempotency_key=key,
        fingerprint=key,
    )


def told(spent):
    """What a spend's answer says, however often it was given."""
    return spent.transfer_id, spent.charged_tokens, spent.balance_after_tokens


async def until_answered(call, *args):
    """Do what a caller does: try again after a 503. Returns the answer and how many 503 came before it."""
    refused = 0
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await call(*args), refused
            except Unavailable as away:
                assert away.retry_after_s
                refused += 1


async def rows(db, sql, **values):
    async with db.transaction() as conn:
        return (await conn.execute(text(sql), values)).all()


async def one(db, sql, **values):
    return (await rows(db, sql, **values))[0][0]


async def stands(db, customer):
    async with db.transaction() as conn:
        found = await balance(conn, customer.account_id)
        return found.total_tokens, found.held_tokens


def serve(url, **changes):
    return LedgerServer(load_settings().model_copy(update={"database_url": url, **changes}))


@pytest_asyncio.fixture
async def servers(fresh_url):
    """Two replicas, each with connections of its own."""
    both = [serve(fresh_url), serve(fresh_url)]
    yield both
    for server in both:
        await server.close()


@pytest_asyncio.fixture
async def shaky(line):
    """A replica whose line to Postgres can be cut, with its connections open."""
    server = serve(line.url, database_pool=2)
    yield server
    await server.close()


@pytest_asyncio.fixture
async def customer(db, customers):
    async with db.transaction() as conn:
        return await customers(conn, 100_000)


@pytest_asyncio.fixture
async def superuser(postgres, fresh_url):
    engine = create_async_engine(
        make_url(postgres.superuser_url).set(database=make_url(fresh_url).database),
        isolation_level="AUTOCOMMIT",
    )
    yield engine
    await engine.dispose()


# -- a line that is cut -------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A use case as its caller repeats it: what a repeat must answer alike, and what it does to the account."""

    server: LedgerServer
    customer: object
    name: str

    @property
    def ledger(self):
        return local_ledger(self.server)


async def spends(case):
    return told(await case.ledger.spend(spend_of(case.customer, case.name)))


async def submits(case):
    receipt = await case.ledger.submit_job(submit_of(case.customer, case.name))
    return receipt.job_id, receipt.cost_tokens, receipt.balance_after_tokens, receipt.created_at


async def makes_a_key(case):
    made = await case.server.create_key(CreateKey(case.customer.credential, "app", None, case.name, "same"))
    return made.key.id, made.secret


async def fulfils(case):
    paid = PaidSession("stripe", f"cs_{case.name}", case.name, 5_000, "usd", False, False)
    return (await case.server.fulfil(paid)).id


async def settles(case):
    picture = StoredFile(
        new_id("file"), "0.png", f"outputs/{case.name}", "image/png", 3, "x", datetime.now(UTC), case.name
    )
    done = Settlement(case.name, 1, [picture], 5, {})
    try:
        await case.server.settle_job(done)
    except LeaseLost:  # it took effect before, as the fence tells
        pass
    job = await case.ledger.job(case.customer.credential, case.name)
    return job.charged_tokens, [file.id for file in job.output]


async def nothing(case):
    """Need no preparation."""


async def opens_a_purchase(case):
    command = OpenPurchase(case.name, "stripe", case.customer.email, BUILDER, case.customer.credential)
    await case.server.open_purchase(command)


async def starts_a_job(case):
    case.name = (await case.ledger.submit_job(submit_of(case.customer, case.name))).job_id
    assert [job.id for job in await case.server.claim_jobs("run_a", {"image": 1}, 0)] == [case.name]


CASES = {
    "spend": (nothing, spends, (-3, 0)),
    "submit a job": (nothing, submits, (0, 5)),
    "settle a job": (starts_a_job, settles, (-5, -5)),
    "fulfil a payment": (opens_a_purchase, fulfils, (60_000, 0)),
    "create a key": (nothing, makes_a_key, (0, 0)),
}


@pytest.mark.parametrize("delivered", [True, False], ids=["answer lost", "message lost"])
@pytest.mark.parametrize("what", CASES)
async def test_wherever_the_line_is_cut_a_repeat_takes_effect_once(  # noqa: PLR0917
    line, shaky, db, customer, assert_sound, what, delivered
):
    prepare, act, (moved, held) = CASES[what]
    refusals = []
    while True:
        case = Case(shaky, customer, f"{len(refusals)}")
        await shaky.ping()
        await prepare(case)
        before, cuts = await stands(db, customer), line.cuts
        line.cut(len(refusals) + 1, delivered=delivered)
        answer, refused = await until_answered(act, case)
        line.mend()
        assert await act(case) == answer
        after = await stands(db, customer)
        assert (after[0] - before[0], after[1] - before[1]) == (moved, held)
        refusals.append(refused)
        if line.cuts == cuts:
            break  # the use case has fewer messages than that
    assert len(refusals) > 3
    assert sum(refusals) > 0, "a COMMIT without an answer is never repeated unasked"
    await assert_sound(db)
