"""The laws of the hash chain: what is sealed, when, and that no change of it goes unseen."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from ledger import chain
from ledger.audit import trial_balance
from ledger.credits import credit

PATIENCE_S = 30.0
"""Postgres's own housekeeping may hold a transaction id for a moment, and what it holds up is not sealed meanwhile."""


async def give(conn, account_id, reference, amount=10):
    await credit(
        conn,
        account_id,
        kind="grant",
        house="promotion:test",
        amount_tokens=amount,
        reference=reference,
        reason="a gift",
    )


async def newest_transfer(db):
    async with db.transaction() as conn:
        return (await conn.execute(text("SELECT coalesce(max(id), 0) FROM transfers"))).scalar_one()


async def seal_all(db):
    """Seal until every transfer is; returns the number of blocks made."""
    made, newest, deadline = 0, await newest_transfer(db), time.monotonic() + PATIENCE_S
    while True:
        made += await db.run(chain.seal)
        last = await db.run(chain.last_block)
        if (last.to_id if last else 0) == newest:
            return made
        assert time.monotonic() < deadline, "nobody holds a number, and still it is not sealed"


async def rows(db, sql, **values):
    async with db.transaction() as conn:
        return (await conn.execute(text(sql), values)).all()


@pytest.fixture
async def account(db, customers):
    """An account with six transfers, sealed in three blocks of two."""
    async with db.transaction() as conn:
        customer = await customers(conn, 100)
        for number in range(5):
            await give(conn, customer.account_id, f"gift-{number}")
    return customer.account_id


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(chain, "BLOCK_TRANSFERS", 2)


@pytest.fixture
async def sealed(db, account, small_blocks):
    assert await seal_all(db) == 3
    assert (await db.run(chain.verify)).ok
    return account


@pytest.fixture
async def forge(postgres, fresh_url):
    """`await forge(sql)` as the superuser, without triggers and foreign keys."""
    url = make_url(postgres.superuser_url).set(database=make_url(fresh_url).database)
    engine = create_async_engine(url)

    async def run(sql, **values):
        async with engine.begin() as conn:
            await conn.execute(text("SET LOCAL session_replication_role = replica"))
            assert (await conn.execute(text(sql), values)).rowcount > 0, "the forgery changed nothing"

    yield run
    await engine.dispose()


async def test_hash_chain_verifies(db, account, small_blocks):
    made = await seal_all(db)
    verdict = await db.run(chain.verify)
    last = await db.run(chain.last_block)
    assert (made, verdict.ok, verdict.blocks, verdict.transfers) == (3, True, 3, 6)
    assert verdict.last == last
    assert last.to_id == await newest_transfer(db)
    blocks = await rows(db, "SELECT * FROM chain_blocks ORDER BY number")
    assert blocks[0].prev_hash == chain.GENESIS
    assert [b.prev_hash for b in blocks[1:]] == [b.hash for b in blocks[:-1]]
    assert [b.after_id for b in blocks[1:]] == [b.to_id for b in blocks[:-1]]
    assert [(b.transfers, b.entries) for b in blocks] == [(2, 4)] * 3
    assert (await db.run(trial_balance)).last_block == last


async def test_an_empty_chain_verifies(db):
    verdict = await db.run(chain.verify)
    assert (verdict.ok, verdict.blocks, verdict.last) == (True, 0, None)
    assert (await db.run(trial_balance)).last_block is None


async def test_an_idle_book_seals_nothing_and_writes_nothing(db, sealed):
    before = await rows(db, "SELECT up_to, xid FROM chain_mark")
    assert [await db.run(chain.seal) for _ in range(3)] == [0, 0, 0]
    after = await rows(db, "SELECT up_to, xid FROM chain_mark")
    assert after == before
    assert len(await rows(db, "SELECT 1 FROM chain_blocks")) == 3


async def test_a_book_without_transfers_seals_nothing(db):
    assert [await db.run(chain.seal) for _ in range(3)] == [0, 0, 0]
    assert await rows(db, "SELECT 1 FROM chain_mark") == []


async def test_a_number_that_an_open_transaction_holds_is_never_sealed_past(db, account, small_blocks):
    await seal_all(db)
    before = await db.run(chain.last_block)
    async with db.engine.connect() as slow:
        await give(slow, account, "slow")  # takes a number and does not commit yet
        async with db.transaction() as conn:
            quick = await conn.execute(
                text(
                    "INSERT INTO transfers (kind, account_id, tool, reference, amount, event_at)"
                    " SELECT 'debt', id, 'debt', 'quick', 1, now() FROM accounts WHERE code = 'promotion:test'"
                    " RETURNING id"
                )
            )
            quick_id = quick.scalar_one()
        for _ in range(4):
            await db.run(chain.seal)
        assert await db.run(chain.last_block) == before
        await slow.commit()
    assert await newest_transfer(db) == quick_id, "the open transaction's number is the lower one"
    await seal_all(db)
    assert (await db.run(chain.verify)).ok
    assert (await db.run(chain.last_block)).to_id == quick_id


async def test_sealing_among_many_writers_leaves_none_of_them_out(db, customers, small_blocks):
    async with db.transaction() as conn:
        accounts = [(await customers(conn, 1)).account_id for _ in range(4)]

    async def write(account_id):
        for number in range(15):
            async with db.engine.connect() as conn:
                await give(conn, account_id, f"{number}")
                await (conn.rollback() if number % 5 == 4 else conn.commit())

    writing = asyncio.gather(*map(write, accounts))
    sealed_meanwhile = 0
    while not writing.done():
        sealed_meanwhile += await db.run(chain.seal)
    await writing
    await seal_all(db)
    verdict = await db.run(chain.verify)
    assert (verdict.broken, verdict.transfers) == (None, 4 + 4 * 12)
    assert sealed_meanwhile > 0, "the race was run"


async def test_a_writer_holds_a_transaction_id_before_it_takes_a_number(conn):
    held = text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
    assert not (await conn.execute(held)).scalar_one()
    await conn.execute(
        text(
            "INSERT INTO transfers (kind, account_id, tool, reference, amount, event_at)"
            " SELECT kind, account_id, tool, reference, amount, event_at FROM transfers WHERE false"
        )
    )
    assert (await conn.execute(held)).scalar_one()


async def test_two_chainers_at_once_seal_once(db, account):
    await db.run(chain.seal)  # the mark
    async with db.engine.connect() as first:
        deadline = time.monotonic() + PATIENCE_S
        while not (made := await chain.seal(first)):
            await first.rollback()
            assert time.monotonic() < deadline
        assert made == 1
        assert await db.run(chain.seal) == 0, "the second returns at once"
        await first.commit()
    assert await db.run(chain.seal) == 0
    verdict = await db.run(chain.verify)
    assert (verdict.ok, verdict.blocks, verdict.transfers) == (True, 1, 6)


async def test_sealing_refuses_a_transaction_that_has_written(db, account):
    async with db.engine.connect() as conn:
        await give(conn, account, "before sealing")
        with pytest.raises(AssertionError):
            await chain.seal(conn)


async def test_a_backlog_is_sealed_over_several_calls(db, account, small_blocks, monkeypatch):
    monkeypatch.setattr(chain, "BLOCKS_AT_ONCE", 2)
    calls, deadline = [], time.monotonic() + PATIENCE_S
    while sum(calls) < 3 and time.monotonic() < deadline:
        calls.append(await db.run(chain.seal))
    assert [made for made in calls if made] == [2, 1]
    assert (await db.run(chain.verify)).ok


async def test_a_block_that_is_not_full_waits_for_the_pause_and_a_full_one_does_not(db, sealed):
    async with db.transaction() as conn:
        await give(conn, sealed, "alone")
    newest, deadline = await newest_transfer(db), time.monotonic() + PATIENCE_S
    while True:
        assert await db.run(chain.seal, pause_s=3_600) == 0
        async with db.transaction() as conn:
            mark = (await conn.execute(chain.queries["mark"])).one()
        if mark.ripe and mark.up_to == newest:
            break
        assert time.monotonic() < deadline
    assert await db.run(chain.seal, pause_s=3_600) == 0, "it could be sealed, and waits"
    assert await seal_all(db) == 1
    async with db.transaction() as conn:
        await give(conn, sealed, "one")
        await give(conn, sealed, "two")
    while not await db.run(chain.seal, pause_s=3_600):
        assert time.monotonic() < deadline, "two transfers are a full block here"
    assert (await db.run(chain.verify)).blocks == 5


async def test_numbers_that_were_rolled_back_leave_the_chain_whole(db, sealed):
    async with db.engine.connect() as conn:
        await give(conn, sealed, "never")
        await conn.rollback()
    assert [await db.run(chain.seal) for _ in range(3)] == [0, 0, 0]
    async with db.transaction() as conn:
        await give(conn, sealed, "after the gap")
    assert await seal_all(db) == 1
    assert (await db.run(chain.verify)).ok


@pytest.mark.parametrize("forged", ["xid = 9223372036854775807", "up_to = up_to + 1000000"])
async def test_a_mark_of_another_counter_is_made_again(db, account, forged):
    await db.run(chain.seal)
    await rows(db, f"UPDATE chain_mark SET {forged} RETURNING 1")
    assert await db.run(chain.seal) == 0
    mark = (await rows(db, "SELECT up_to, xid FROM chain_mark"))[0]
    assert mark.up_to == await newest_transfer(db)
    assert mark.xid < 2**40
    assert await seal_all(db) == 1


_USERS_ENTRY = "transfer_id = :id AND amount > 0"
FORGERIES = {
    "an entry's amount": (f"UPDATE entries SET amount = amount + 1 WHERE {_USERS_ENTRY}", "changed"),
    "an entry's balance": (f"UPDATE entries SET balance_after = 7 WHERE {_USERS_ENTRY}", "changed"),
    "both sides": ("UPDATE entries SET amount = amount * 2 WHERE transfer_id = :id", "changed"),
    "a transfer's amount": ("UPDATE transfers SET amount = amount + 1 WHERE id = :id", "changed"),
    "an entry removed": (f"DELETE FROM entries WHERE {_USERS_ENTRY}", "entries were removed"),
    "a transfer removed": ("DELETE FROM transfers WHERE id = :id", "transfers were removed"),
    "an entry put in": (
        f"INSERT INTO entries SELECT account_id, 1000, :id, amount, 7 FROM entries WHERE {_USERS_ENTRY}",
        "entries were put in",
    ),
}


@pytest.mark.parametrize("what", FORGERIES)
async def test_a_forgery_is_found_with_its_block_and_its_transfer(db, sealed, forge, what):
    sql, says = FORGERIES[what]
    block = (await rows(db, "SELECT * FROM chain_blocks WHERE number = 2"))[0]
    await forge(sql, id=block.to_id)
    verdict = await db.run(chain.verify)
    assert (verdict.ok, verdict.blocks, verdict.transfers) == (False, 1, 2)
    assert verdict.broken.number == 2
    assert says in verdict.broken.problem
    assert verdict.broken.suspects[0]["transfer_id"] == block.to_id, verdict.broken.suspects


async def test_a_forgery_whose_rows_agree_is_found_with_its_block(db, sealed, forge):
    block = (await rows(db, "SELECT * FROM chain_blocks WHERE number = 2"))[0]
    await forge("UPDATE transfers SET reason = 'a bribe' WHERE id = :id", id=block.to_id)
    broken = (await db.run(chain.verify)).broken
    assert (broken.number, broken.suspects) == (2, [])


async def test_the_first_of_several_broken_blocks_is_named(db, sealed, forge):
    await forge(
        "UPDATE transfers SET reason = 'x' WHERE id > (SELECT to_id FROM chain_blocks WHERE number = 1)"
    )
    await forge("UPDATE chain_blocks SET hash = sha256('x') WHERE number = 3")
    assert (await db.run(chain.verify)).broken.number == 2


@pytest.mark.parametrize("number", [-1000, 0, 1])
async def test_a_transfer_put_in_before_the_chain_or_into_a_gap_is_found(db, customers, forge, number):
    async with db.engine.connect() as conn:
        await customers(conn, 1)
        await conn.rollback()  # number 1 is free
    async with db.transaction() as conn:
        await customers(conn, 1)
    await seal_all(db)
    await forge(
        f"INSERT INTO transfers (id, kind, account_id, tool, reference, amount, event_at) OVERRIDING SYSTEM VALUE"
        f" SELECT {number}, 'debt', account_id, 'debt', 'forged', 1, now() FROM transfers"
    )
    broken = (await db.run(chain.verify)).broken
    assert broken.number == 1
    assert "transfers were put in" in broken.problem


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("UPDATE chain_blocks SET hash = sha256('x') WHERE number = 2", (2, "not that of its fields")),
        ("UPDATE chain_blocks SET content = sha256('x') WHERE number = 2", (2, "not that of its fields")),
        ("UPDATE chain_blocks SET sealed_at = now() WHERE number = 2", (2, "not that of its fields")),
        ("UPDATE chain_blocks SET prev_hash = sha256('x') WHERE number = 1", (1, "not that of its fields")),
        ("DELETE FROM chain_blocks WHERE number = 2", (2, "missing")),
        ("DELETE FROM chain_blocks WHERE number = 1", (1, "missing")),
    ],
)
async def test_a_changed_or_missing_block_is_named(db, sealed, forge, change, found):
    await forge(change)
    broken = (await db.run(chain.verify)).broken
    assert broken.number == found[0]
    assert found[1] in broken.problem


async def test_a_block_rewritten_with_its_hash_breaks_the_link_of_the_next(db, sealed, forge):
    block = chain.Block(*(await rows(db, "SELECT * FROM chain_blocks WHERE number = 2"))[0])
    await forge("UPDATE transfers SET reason = 'a bribe' WHERE id = :id", id=block.to_id)
    async with db.transaction() as conn:
        content = (await chain._digests(conn, [(2, block.after_id, block.to_id)]))[0].content
    rewritten = chain.replace(block, content=content)
    await forge(
        "UPDATE chain_blocks SET content = :content, hash = :hash WHERE number = 2",
        content=content,
        hash=chain.hash_of(rewritten),
    )
    broken = (await db.run(chain.verify)).broken
    assert broken.number == 3
    assert "after block 2" in broken.problem


async def test_a_tail_that_was_cut_off_is_found_by_a_head_kept_elsewhere(db, sealed, forge):
    head = (await db.run(chain.last_block)).hash
    assert (await db.run(chain.verify, head)).ok
    await forge("DELETE FROM chain_blocks WHERE number = 3")
    assert (await db.run(chain.verify)).ok, "alone, a shorter chain looks whole"
    verdict = await db.run(chain.verify, head)
    assert (verdict.ok, verdict.broken.number) == (False, None)
    assert "ends at block 2" in verdict.broken.problem


async def test_an_older_head_still_verifies(db, sealed):
    head = (await db.run(chain.last_block)).hash
    async with db.transaction() as conn:
        await give(conn, sealed, "later")
    await seal_all(db)
    assert (await db.run(chain.verify, head)).ok


async def test_a_sessions_time_zone_does_not_change_the_digest(db, fresh_url, account):
    async with db.transaction() as conn:
        name = make_url(fresh_url).database
        await conn.execute(text(f"ALTER DATABASE {name} SET timezone = 'Asia/Kathmandu'"))
    elsewhere = create_async_engine(fresh_url)  # without our connection's settings
    async with elsewhere.begin() as conn:
        assert (await conn.execute(text("SHOW timezone"))).scalar_one() == "Asia/Kathmandu"
    deadline = time.monotonic() + PATIENCE_S
    made = 0
    while not made:
        async with elsewhere.begin() as conn:
            made = await chain.seal(conn)
        assert time.monotonic() < deadline
    async with elsewhere.begin() as conn:
        assert (await chain.verify(conn)).ok
    await elsewhere.dispose()
    assert (await db.run(chain.verify)).ok


async def test_a_column_that_is_added_later_leaves_old_blocks_whole(db, sealed):
    async with db.transaction() as conn:
        await conn.execute(text("ALTER TABLE transfers ADD COLUMN later TEXT"))
    assert (await db.run(chain.verify)).ok


async def test_verifying_reads_the_chain_in_pages_and_tells_how_far_it_is(db, sealed, monkeypatch):
    monkeypatch.setattr(chain, "PAGE_BLOCKS", 2)
    told = []
    verdict = await db.run(chain.verify, None, lambda done, blocks: told.append((done, blocks)))
    assert (verdict.ok, verdict.blocks) == (True, 3)
    assert told == [(1, 3), (2, 3), (3, 3)]


async def test_the_ledgers_owner_cannot_change_a_sealed_block_by_mistake(db, sealed):
    for change in ("UPDATE chain_blocks SET number = number", "DELETE FROM chain_blocks"):
        with pytest.raises(Exception, match="append-only"):
            await rows(db, change)
