"""The database seam: whole or not at all, again where that is harmless, 503 where it is away."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import text

from kit.db import RETRIES, Database
from kit.errors import Unavailable


async def count(db):
    async with db.transaction() as conn:
        return (await conn.execute(text("SELECT count(*) FROM users"))).scalar_one()


async def add_user(conn, name):
    await conn.execute(
        text("INSERT INTO users (id, email) VALUES (:id, :email)"), {"id": name, "email": f"{name}@x.y"}
    )


async def test_an_exception_leaves_nothing_written(db):
    async def work(conn):
        await add_user(conn, "a")
        raise LookupError

    with pytest.raises(LookupError):
        await db.run(work)
    assert await count(db) == 0


async def test_a_serialization_failure_is_tried_again_and_takes_effect_once(db):
    tries = 0

    async def work(conn):
        nonlocal tries
        tries += 1
        await add_user(conn, "a")
        if tries < RETRIES:
            await conn.execute(text("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$"))
        return "done"

    assert await db.run(work) == "done"
    assert (tries, await count(db)) == (RETRIES, 1)


async def test_retries_are_bounded(db):
    tries = 0

    async def work(conn):
        nonlocal tries
        tries += 1
        await conn.execute(text("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40P01'; END $$"))

    with pytest.raises(Unavailable):
        await db.run(work)
    assert tries == RETRIES


async def test_a_deadlock_is_resolved_by_running_one_side_again(db):
    async with db.transaction() as conn:
        await add_user(conn, "a")
        await add_user(conn, "b")
    both = asyncio.Barrier(2)
    met = set()

    async def work(conn, first, second):
        touch = text("UPDATE users SET created_at = now() WHERE id = :id")
        await conn.execute(touch, {"id": first})
        if first not in met:
            met.add(first)
            await both.wait()
        await conn.execute(touch, {"id": second})
        return first

    assert await asyncio.gather(db.run(work, "a", "b"), db.run(work, "b", "a")) == ["a", "b"]


@pytest.mark.parametrize("way", ["run", "read"])
async def test_connections_that_the_server_cut_are_replaced_without_the_caller_noticing(db, way):
    async def pid(conn):
        return (await conn.execute(text("SELECT pg_backend_pid()"))).scalar_one()

    before = await asyncio.gather(*(db.run(pid) for _ in range(4)))
    other = Database(db.engine.url.render_as_string(hide_password=False), pool_size=1)
    async with other.transaction() as conn:
        for each in set(before):
            await conn.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": each})
    await other.close()
    after = await getattr(db, way)(pid)
    assert after not in before


async def test_a_server_that_is_not_there_is_unavailable_quickly():
    away = Database("postgresql+psycopg://farebox@/farebox?host=/nowhere")

    async def work(conn):
        raise AssertionError("never reached")

    began = time.monotonic()
    with pytest.raises(Unavailable) as refused:
        await away.run(work)
    assert (refused.value.status, refused.value.retry_after_s) == (503, 2)
    assert time.monotonic() - began < 5
    await away.close()


async def test_a_lock_that_is_not_had_in_time_is_unavailable(db):
    async with db.transaction() as conn:
        await add_user(conn, "a")

    async def work(conn):
        await conn.execute(text("SET LOCAL lock_timeout = '50ms'"))
        await conn.execute(text("SELECT 1 FROM users FOR UPDATE"))

    async with db.transaction() as holder:
        await holder.execute(text("SELECT 1 FROM users FOR UPDATE"))
        with pytest.raises(Unavailable):
            await db.run(work)
