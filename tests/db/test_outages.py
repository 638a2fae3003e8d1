"""Postgres away: callers hear 503 with Retry-After, nothing acknowledged is lost, service resumes by itself."""

from __future__ import annotations

import asyncio
import os
import signal

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from gateway.app import create_app
from kit import migrate
from kit.db import Database
from kit.errors import Unavailable
from kit.postgres import EmbeddedPostgres
from kit.postgres.processes import POLL_S
from kit.settings import Settings
from kit.storage import ObjectStore
from ledger.spends import Spend, Spent

PATIENCE_S = 60
"""A service that does not resume would otherwise hang the test; never reached."""
QUICKLY_S = 10
"""A caller's patience with a server that is there: far above what is needed, far below a hanging call."""
JOB = {
    "task": "image.generate",
    "input": {"prompt": "cinematic fox astronaut", "aspectRatio": "1:1"},
    "creditsToConsume": 1,
}


class NoModels:
    async def states(self):
        return {}


@pytest.fixture(scope="module")
def own_postgres(scratch):
    """A Postgres that tests here may stop. With the product's own settings: what it acknowledges, it keeps."""
    server = EmbeddedPostgres(scratch / "own")
    migrate.upgrade(server.start())
    yield server
    server.remove()


@pytest.fixture
def standing(own_postgres):
    own_postgres.start()
    return own_postgres


@pytest.fixture
def settings(standing, tmp_path):
    return Settings(
        data_dir=tmp_path,
        secret="a secret of this test run alone",
        public_url="http://farebox.test",
        database_url=standing.url,
    )


@pytest_asyncio.fixture
async def own_db(standing):
    db = Database(standing.url)
    yield db
    await db.close()


@pytest_asyncio.fixture
async def server(settings):
    server = LedgerServer(settings)
    yield server
    await server.close()


@pytest_asyncio.fixture
async def customer(own_db, customers):
    async with own_db.transaction() as conn:
        return await customers(conn, 10_000)


@pytest_asyncio.fixture
async def client(settings, server, customer):
    app = create_app(settings, local_ledger(server), NoModels(), None, ObjectStore("memory://"))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://farebox.test",
        headers={"authorization": f"Bearer {customer.secret}"},
    ) as client:
        yield client


def spend_of(customer, number):
    return Spend(customer.credential, "image", f"{number}", 3_000, 3, 1)


def told(spent):
    return spent.transfer_id, spent.charged_tokens, spent.balance_after_tokens


async def stop(server):
    await asyncio.to_thread(server.stop)


async def start(server):
    await asyncio.to_thread(server.start)


async def until_answered(call, *args):
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await call(*args)
            except Unavailable:
                await asyncio.sleep(POLL_S)


async def test_while_postgres_is_away_every_caller_hears_503_and_service_resumes_by_itself(
    standing, client, own_db, assert_sound
):
    async def submit():
        return await client.post("/api/v1/media/jobs", json=JOB, headers={"idempotency-key": "job-1"})

    first = await submit()
    assert first.status_code == 202, first.text
    assert (await client.get("/api/v1/credits/balance")).json()["tokens"] == 9_900
    await stop(standing)
    async with asyncio.timeout(QUICKLY_S):
        reads = ["/api/v1/credits/balance", "/api/v1/keys", "/api/v1/media/jobs", "/api/v1/health"]
        answers = await asyncio.gather(submit(), *(client.get(path) for path in reads * 20))
    for answer in answers:
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"] == "unavailable"
    await start(standing)
    again = await submit()
    assert again.status_code == 202
    assert (again.json()["jobId"], again.headers["idempotent-replayed"]) == (first.json()["jobId"], "true")
    assert (await client.get("/api/v1/credits/balance")).json()["tokens"] == 9_900
    await assert_sound(own_db)


async def test_a_stop_amid_calls_answers_each_of_them(standing, server, own_db, customer, assert_sound):
    ledger = local_ledger(server)
    async with own_db.engine.connect() as holder:
        await holder.execute(
            text("SELECT 1 FROM accounts WHERE id = :id FOR UPDATE"), {"id": customer.account_id}
        )
        spending = asyncio.create_task(ledger.spend(spend_of(customer, "held up")))
        while not (await holder.execute(text("SELECT 1 FROM pg_locks WHERE NOT granted"))).all():
            await asyncio.sleep(0)
        await stop(standing)
        with pytest.raises(Unavailable):
            await spending
        await holder.invalidate()
    await start(standing)
    spent = await ledger.spend(spend_of(customer, "held up"))
    assert (spent.replayed, spent.balance_after_tokens) == (False, 9_997)
    await assert_sound(own_db)


async def test_what_was_acknowledged_before_a_crash_is_charged_once_after_it(
    standing, server, own_db, customer, assert_sound
):
    ledger = local_ledger(server)
    acknowledged = {}
    asked = iter(range(3_000))
    killed = False

    async def caller():
        nonlocal killed
        for number in asked:
            acknowledged[number] = await until_answered(ledger.spend, spend_of(customer, number))
            if not killed and len(acknowledged) > 100:
                killed = True
                os.kill(standing.pid, signal.SIGKILL)
                while standing.alive():
                    await asyncio.sleep(0)
                await start(standing)
            if killed and len(acknowledged) > 300:
                return

    await asyncio.gather(*(caller() for _ in range(8)))
    again = await asyncio.gather(*(ledger.spend(spend_of(customer, number)) for number in acknowledged))
    assert [told(spent) for spent in again] == [told(spent) for spent in acknowledged.values()]
    assert all(isinstance(spent, Spent) and spent.replayed for spent in again)

    async def charged(conn):
        found = await conn.execute(
            text("SELECT count(*), sum(amount) FROM transfers WHERE account_id = :id AND kind = 'spend'"),
            {"id": customer.account_id},
        )
        return tuple(found.one())

    assert await own_db.run(charged) == (len(acknowledged), -3 * len(acknowledged))
    await assert_sound(own_db)


async def test_a_standby_takes_no_money_until_it_is_promoted(
    standing, server, own_db, customer, assert_sound
):
    ledger = local_ledger(server)
    first = await ledger.spend(spend_of(customer, "before"))
    await stop(standing)
    (standing.cluster_dir / "standby.signal").touch()
    # It counts as started when it may write: its patience must outlast the whole of what is tried meanwhile.
    starting = asyncio.create_task(asyncio.to_thread(standing.start, 2 * PATIENCE_S))
    superuser = create_async_engine(standing.superuser_url, isolation_level="AUTOCOMMIT")
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not starting.done():
                try:
                    async with superuser.connect() as conn:
                        assert (await conn.execute(text("SELECT pg_is_in_recovery()"))).scalar_one()
                        break
                except OperationalError:
                    await asyncio.sleep(POLL_S)  # a busy loop here starves the thread that starts it
        for _ in range(3):
            with pytest.raises(Unavailable):
                await ledger.spend(spend_of(customer, "after"))
            with pytest.raises(Unavailable):  # what a standby knows may be old
                await ledger.balance(customer.credential)
        async with superuser.connect() as conn:
            await conn.execute(text("SELECT pg_promote()"))
    finally:
        await starting
        await superuser.dispose()
    assert told(await ledger.spend(spend_of(customer, "before"))) == told(first)
    assert (await ledger.spend(spend_of(customer, "after"))).balance_after_tokens == 10_000 - 6
    await assert_sound(own_db)


async def test_a_database_that_turns_read_only_is_unavailable_for_writes_alone(
    standing, server, own_db, customer, assert_sound
):
    ledger = local_ledger(server)
    await ledger.spend(spend_of(customer, "before"))
    superuser = create_async_engine(standing.superuser_url, isolation_level="AUTOCOMMIT")
    name = make_url(standing.url).database
    async with superuser.connect() as conn:
        await conn.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
        await conn.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'farebox'")
        )
        with pytest.raises(Unavailable):
            await ledger.spend(spend_of(customer, "after"))
        assert (await ledger.balance(customer.credential)).total_tokens == 9_997
        await conn.execute(text("SET default_transaction_read_only = off"))
        await conn.execute(text(f"ALTER DATABASE {name} RESET default_transaction_read_only"))
        await conn.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'farebox'")
        )
    await superuser.dispose()
    assert (await ledger.spend(spend_of(customer, "after"))).balance_after_tokens == 9_994
    await assert_sound(own_db)
