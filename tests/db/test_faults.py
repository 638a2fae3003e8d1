"""Lost connections, lock time-outs, deadlocks and lost answers: a repeat gets the same answer and charges once."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import suppress
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
from ledger.keys import UNLIMITED
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
        units_milli=1000,
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
            except Unavailable:
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
    made = await case.server.create_key(
        CreateKey(case.customer.credential, "app", UNLIMITED, case.name, "same")
    )
    return made.key.id, made.secret


async def fulfils(case):
    paid = PaidSession("stripe", f"cs_{case.name}", case.name, 5_000, "usd", False, False)
    return (await case.server.fulfil(paid)).id


async def settles(case):
    picture = StoredFile(
        new_id("file"), "0.png", f"outputs/{case.name}", "image/png", 3, "x", datetime.now(UTC), case.name
    )
    done = Settlement(case.name, 1, [picture], 5, {})
    with suppress(LeaseLost):  # a repeat of what took effect: the fence tells
        await case.server.settle_job(done)
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
    assert sum(refusals) == 1, "a COMMIT without an answer is never repeated unasked, the rest always"
    await assert_sound(db)


@pytest.mark.parametrize("delivered", [True, False], ids=["answer lost", "message lost"])
async def test_a_batch_whose_commit_got_lost_is_answered_alike_when_it_comes_again(  # noqa: PLR0917
    line, shaky, db, customer, assert_sound, delivered
):
    ledger = local_ledger(shaky)
    line.cut_at(b"COMMIT", delivered=delivered)
    asked = [spend_of(customer, f"{n}") for n in range(20)]
    lost = await asyncio.gather(*(ledger.spend(s) for s in asked), return_exceptions=True)
    unheard = [s for s, outcome in zip(asked, lost, strict=True) if isinstance(outcome, Unavailable)]
    assert unheard
    charged = await one(db, "SELECT count(*) FROM transfers WHERE kind = 'spend'")
    assert charged == (20 if delivered else 20 - len(unheard))
    again = await asyncio.gather(*(ledger.spend(s) for s in asked))
    assert [o.replayed for o in again] == [delivered or s not in unheard for s in asked]
    assert await stands(db, customer) == (100_000 - 60, 0)
    await assert_sound(db)


async def test_a_server_that_takes_the_connection_and_says_nothing_is_unavailable(line):
    line.mute = True
    server = serve(line.url)
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(Unavailable):
            await server.ping()
    line.mute = False
    await server.ping()
    await server.close()


async def test_a_connection_tells_when_the_other_host_vanished(line):
    database = kit_db.Database(line.url)
    async with database.engine.connect() as conn:
        driver = (await conn.get_raw_connection()).driver_connection
        with socket.socket(fileno=socket.dup(driver.pgconn.socket)) as wire:
            assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == kit_db.UNREACHABLE_MS
            probes = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
            assert [wire.getsockopt(socket.IPPROTO_TCP, probe) for probe in probes] == [4, 2, 3]
    await database.close()


async def test_after_a_failover_the_other_address_is_used(line, second_line, db, customer, assert_sound):
    url = make_url(line.url)
    hosts = [f"127.0.0.1:{line.port}", f"127.0.0.1:{second_line.port}"]
    both = url.set(host=None, port=None, query={"host": hosts}).render_as_string(hide_password=False)
    server = serve(both)
    ledger = local_ledger(server)
    first = await ledger.spend(spend_of(customer, "a"))
    await line.close()
    assert told(await ledger.spend(spend_of(customer, "a"))) == told(first)
    assert (await ledger.spend(spend_of(customer, "b"))).balance_after_tokens == 100_000 - 6
    await server.close()
    await assert_sound(db)


# -- what Postgres itself refuses ---------------------------------------------------------------------------------


async def waiting(db):
    """Return the backend that waits for a lock, once there is one."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await rows(
                db,
                "SELECT pid FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND datname = current_database()",
            )
            if found:
                return found[0].pid


async def lock_row(conn, customer):
    await conn.execute(text("SELECT 1 FROM accounts WHERE id = :id FOR UPDATE"), {"id": customer.account_id})


async def test_a_spend_whose_backend_is_terminated_is_charged_once(servers, db, customer, assert_sound):
    ledger = local_ledger(servers[0])
    async with db.transaction() as holder:
        await lock_row(holder, customer)
        spending = asyncio.create_task(ledger.spend(spend_of(customer, "a")))
        for _ in range(2):
            pid = await waiting(db)
            assert await one(db, "SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
    first = await spending
    assert not first.replayed
    assert told(await ledger.spend(spend_of(customer, "a"))) == told(first)
    assert await stands(db, customer) == (100_000 - 3, 0)
    await assert_sound(db)


async def test_a_lock_that_is_not_had_in_time_is_a_503_and_the_repeat_charges_once(  # noqa: PLR0917
    fresh_url, db, customer, customers, assert_sound, monkeypatch
):
    monkeypatch.setattr(kit_db, "LOCK_TIMEOUT_MS", 100)
    server = serve(fresh_url)
    ledger = local_ledger(server)
    async with db.transaction() as conn:
        other = await customers(conn, 10)
    async with db.transaction() as holder:
        await lock_row(holder, customer)
        for _ in range(2):
            with pytest.raises(Unavailable) as away:
                await ledger.spend(spend_of(customer, "a"))
            assert away.value.retry_after_s
        with pytest.raises(Unavailable):
            await ledger.submit_job(submit_of(customer, "job"))
        assert (await ledger.spend(spend_of(other, "a"))).balance_after_tokens == 7
    first, _ = await until_answered(ledger.spend, spend_of(customer, "a"))
    assert (first.replayed, first.balance_after_tokens) == (False, 100_000 - 3)
    assert await stands(db, customer) == (100_000 - 3, 0)
    await server.close()
    await assert_sound(db)


async def test_a_deadlock_is_resolved_and_each_spend_of_the_batch_is_charged_once(
    servers, db, superuser, customers, assert_sound
):
    async with db.transaction() as conn:
        low, high = await customers(conn, 100), await customers(conn, 100)
    batch = [spend_of(low, "a"), spend_of(high, "a")]
    async with superuser.connect() as rival:
        await rival.execute(text("SET deadlock_timeout = '60s'"))  # the other side is the one that gives way
        await rival.execute(text("BEGIN"))
        await lock_row(rival, high)
        spending = asyncio.create_task(servers[0].spend_many(batch))
        await waiting(db)  # it holds the low account and wants the high one
        await lock_row(rival, low)
        assert not spending.done()
        await rival.execute(text("COMMIT"))
    outcomes = await spending
    assert [(o.charged_tokens, o.replayed) for o in outcomes] == [(3, False)] * 2
    assert await servers[1].spend_many(batch) == [
        Spent(o.transfer_id, 3, o.balance_after_tokens, replayed=True) for o in outcomes
    ]
    assert [await stands(db, c) for c in (low, high)] == [(97, 0)] * 2
    await assert_sound(db)


async def test_a_writer_that_froze_in_its_transaction_does_not_keep_the_account(  # noqa: PLR0917
    fresh_url, servers, db, customer, monkeypatch, assert_sound
):
    monkeypatch.setattr(kit_db, "IDLE_TIMEOUT_MS", 100)
    frozen = kit_db.Database(fresh_url)
    async with frozen.engine.connect() as conn:
        await lock_row(conn, customer)
        # The lock is had before its own time-out: Postgres ended the transaction that sits on it.
        spent = await local_ledger(servers[0]).spend(spend_of(customer, "a"))
        assert spent.balance_after_tokens == 100_000 - 3
        await conn.invalidate()
    await frozen.close()
    await assert_sound(db)


async def test_a_migration_under_prepared_statements_is_not_noticed(servers, superuser, customer):
    server = servers[0]
    for _ in range(8):  # psycopg prepares what it met five times
        before = await server.keys(customer.credential)
    async with superuser.connect() as conn:
        await conn.execute(text("ALTER TABLE api_keys ALTER COLUMN label TYPE varchar(300)"))
    for _ in range(8):
        assert await server.keys(customer.credential) == before


# -- two replicas -------------------------------------------------------------------------------------------------


async def test_two_replicas_with_the_same_references_at_once_charge_once(
    servers, db, customers, assert_sound
):
    async with db.transaction() as conn:
        few = [await customers(conn, 10_000) for _ in range(4)]
    spends = [spend_of(customer, f"{n}") for customer in few for n in range(60)]
    submits = [(customer, f"job-{n}") for customer in few for n in range(10)]

    async def replica(server, seed):
        ledger, order = local_ledger(server), random.Random(seed)
        asked = order.sample(range(len(spends)), len(spends))
        charged = await asyncio.gather(*(ledger.spend(spends[n]) for n in asked))
        wanted = order.sample(range(len(submits)), len(submits))
        queued = await asyncio.gather(*(ledger.submit_job(submit_of(*submits[n])) for n in wanted))
        return dict(zip(asked, charged, strict=True)), dict(zip(wanted, queued, strict=True))

    (one_spent, one_queued), (other_spent, other_queued) = await asyncio.gather(
        replica(servers[0], 1), replica(servers[1], 2)
    )
    for n in range(len(spends)):
        assert told(one_spent[n]) == told(other_spent[n])
        assert sorted([one_spent[n].replayed, other_spent[n].replayed]) == [False, True]
    for n in range(len(submits)):
        assert one_queued[n].job_id == other_queued[n].job_id
        assert sorted([one_queued[n].replayed, other_queued[n].replayed]) == [False, True]
    assert [await stands(db, customer) for customer in few] == [(10_000 - 60 * 3, 10 * 5)] * 4
    await assert_sound(db)
