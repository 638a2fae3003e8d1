"""The hash chain: transfers and their entries in blocks, each sealed with the SHA-256 of the one before.

What is sealed cannot be changed, removed or added to without `verify` naming the first block that is broken. Sealing
runs off the hot path and takes no lock that a writer of money waits for: numbers up to a mark are sealed once every
transaction that could still bring one of them has ended. Whoever can rewrite the whole table can rebuild the chain:
only a head that is kept elsewhere tells.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from sqlalchemy import insert, select, text
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.queries import load_queries
from ledger.tables import chain_blocks

queries: Final = load_queries(Path(__file__).with_name("chain.sql"))

BLOCK_TRANSFERS: Final = 10_000
"""Some tenths of a second to seal and to verify: the finest place that a broken chain can be traced to is a block."""
BLOCKS_AT_ONCE: Final = 5
"""A backlog is sealed over several calls, so that none is a long transaction."""
PAGE_BLOCKS: Final = 500
"""Headers that a verification reads at a time: 100 kB."""
VERIFY_TIMEOUT_MS: Final = 120_000
"""For one statement of a verification, which reads one full block or many small ones."""
SHOWN_SUSPECTS: Final = 5
"""Enough to see a pattern; the audit's own checks find the rest."""

GENESIS: Final = bytes(32)
"""What the first block follows."""
_BEFORE_ALL: Final = -(2**63)
"""The first block also covers numbers below 1: nothing can be put before the chain."""
_DOMAIN: Final = b"farebox chain 1\n"
"""Begins what a block's hash is made of, so that no other digest of ours can stand for one. The 1 is the format."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Block:
    """A sealed range of transfers: those numbered above `after_id`, up to and with `to_id`, and their entries."""

    number: int
    after_id: int
    to_id: int
    transfers: int
    entries: int
    content: bytes
    prev_hash: bytes
    hash: bytes
    sealed_at: datetime


@dataclass(frozen=True, slots=True)
class Break:
    """The first block that does not hold. `number` is None if no block could be named, only that the head is gone."""

    number: int | None
    problem: str
    suspects: list[dict[str, Any]]
    """Transfers in its range whose rows contradict each other; none if whoever changed them kept them in tune."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification saw: all blocks held (`broken` is None), or those before the broken one did."""

    blocks: int
    transfers: int
    last: Block | None
    """The last block that holds; its hash vouches for everything before it."""
    broken: Break | None

    @property
    def ok(self) -> bool:
        """Whether the whole chain holds."""
        return self.broken is None


async def last_block(conn: AsyncConnection) -> Block | None:
    """Return the newest sealed block, or None while none is."""
    newest = select(chain_blocks).order_by(chain_blocks.c.number.desc()).limit(1)
    row = (await conn.execute(newest)).one_or_none()
    return _block(row) if row else None


async def seal(conn: AsyncConnection, *, pause_s: float = 0) -> int:
    """Seal what has been decided since the last block; returns how many blocks that made, most often 0 or 1.

    Runs in a READ COMMITTED transaction that has written nothing yet. A block that would not be full waits until the
    last one is `pause_s` old. What a call marks, a later one seals.
    """
    if not (await conn.execute(queries["try_lock"])).scalar_one():
        return 0
    # In this order: first the numbers given out so far, then our own transaction id. Every transaction that holds
    # such a number took its id before (trigger `number_under_transaction_id`), so its id is below ours.
    issued = (await conn.execute(queries["issued"])).one()
    assert issued.early, "seal() must be the first to write in its transaction"
    mark = (await conn.execute(queries["mark"])).one_or_none()
    if mark is None or mark.stale or mark.up_to > issued.up_to:
        if issued.up_to > 0:
            await conn.execute(queries["set_mark"], {"up_to": issued.up_to})
        return 0
    if not mark.ripe:
        return 0
    await conn.execute(queries["read_alike"])
    last, sealed = await last_block(conn), 0
    while sealed < BLOCKS_AT_ONCE:
        block = await _next_block(conn, last, mark.up_to, timedelta(seconds=pause_s))
        if block is None:
            break
        await conn.execute(insert(chain_blocks).values(_values(block)))
        last, sealed = block, sealed + 1
    if sealed < BLOCKS_AT_ONCE and issued.up_to > mark.up_to:
        await conn.execute(queries["set_mark"], {"up_to": issued.up_to})
    return sealed


async def _next_block(
    conn: AsyncConnection, last: Block | None, up_to: int, pause: timedelta
) -> Block | None:
    after_id = last.to_id if last else 0
    span = {"after_id": after_id, "up_to": up_to, "limit": BLOCK_TRANSFERS}
    found = (await conn.execute(queries["next_range"], span)).one()
    if not found.transfers:
        return None
    if last and pause and found.transfers < BLOCK_TRANSFERS:
        now = (await conn.execute(text("SELECT clock_timestamp()"))).scalar_one()
        if now - last.sealed_at < pause:
            return None
    number = last.number + 1 if last else 1
    digest = (await _digests(conn, [(number, after_id, found.to_id)]))[0]
    draft = Block(
        number=number,
        after_id=after_id,
        to_id=found.to_id,
        transfers=digest.transfers,
        entries=digest.entries,
        content=bytes(digest.content),
        prev_hash=last.hash if last else GENESIS,
        hash=b"",
        sealed_at=digest.made_at,
    )
    return replace(draft, hash=hash_of(draft))


def hash_of(block: Block) -> bytes:
    """Return the hash that belongs to a block: SHA-256 over every other field of it."""
    sealed_us = (block.sealed_at - _EPOCH) // timedelta(microseconds=1)
    numbers = (block.number, block.after_id, block.to_id, block.transfers, block.entries, sealed_us)
    return sha256(_DOMAIN + struct.pack(">6q", *numbers) + block.prev_hash + block.content).digest()


async def verify(
    conn: AsyncConnection,
    head: bytes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Read the whole chain and what it seals, on one snapshot; names the first block that does not hold.

    `head` is the hash of a block that was kept elsewhere: the chain must still contain it. `progress` hears how many
    blocks of how many are done. Memory stays that of one page of headers.
    """
    await conn.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
    await conn.execute(text(f"SET LOCAL statement_timeout = {VERIFY_TIMEOUT_MS}"))
    await conn.execute(queries["read_alike"])
    newest = await last_block(conn)
    last: Block | None = None
    transfers, head_seen = 0, head is None
    while page := await _page(conn, last):
        linked, wrong = _linked(page, last)
        for batch in _batches(linked):
            for block, problem in zip(batch, await _contents(conn, batch), strict=True):
                if problem:
                    return Verdict(
                        last.number if last else 0, transfers, last, await _broken(conn, block, problem)
                    )
                last, transfers = block, transfers + block.transfers
                head_seen = head_seen or block.hash == head
            if progress:
                progress(batch[-1].number, newest.number if newest else 0)
        if wrong:
            return Verdict(last.number if last else 0, transfers, last, wrong)
    blocks = last.number if last else 0
    gone = (
        f"no block has the given head; the chain ends at block {blocks}, so its end was cut off or rewritten"
    )
    return Verdict(blocks, transfers, last, None if head_seen else Break(None, gone, []))


async def _page(conn: AsyncConnection, last: Block | None) -> list[Block]:
    after = last.number if last else 0
    page = (
        select(chain_blocks)
        .where(chain_blocks.c.number > after)
        .order_by(chain_blocks.c.number)
        .limit(PAGE_BLOCKS)
    )
    return [_block(row) for row in await conn.execute(page)]


def _linked(page: Sequence[Block], last: Block | None) -> tuple[list[Block], Break | None]:
    """Return the blocks that follow from `last` one by one, and what is wrong with the one after them."""
    linked: list[Block] = []
    for block in page:
        number = last.number + 1 if last else 1
        problem = None
        if block.number != number:
            problem = f"the block is missing; the next one is {block.number}"
        elif hash_of(block) != block.hash:
            problem = "its hash is not that of its fields"
        elif block.prev_hash != (last.hash if last else GENESIS):
            problem = (
                f"it was not sealed after block {number - 1} as that is now: one of the two was rewritten"
            )
        elif block.after_id != (last.to_id if last else 0):
            problem = "it does not begin where the block before ends"
        if problem:
            return linked, Break(number, problem, [])
        linked.append(block)
        last = block
    return linked, None


def _batches(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Group small blocks, so that one statement looks at about as much as one full block holds."""
    batch: list[Block] = []
    for block in blocks:
        if batch and sum(b.transfers for b in batch) + block.transfers > BLOCK_TRANSFERS:
            yield batch
            batch = []
        batch.append(block)
    if batch:
        yield batch


async def _contents(conn: AsyncConnection, batch: Sequence[Block]) -> list[str | None]:
    """Say of each block what is wrong with its transfers and entries, or None."""
    found = await _digests(conn, [(b.number, b.after_id, b.to_id) for b in batch])
    return [_difference(block, digest) for block, digest in zip(batch, found, strict=True)]


def _difference(block: Block, digest: Row[Any]) -> str | None:
    for name, sealed, there in (
        ("transfers", block.transfers, digest.transfers),
        ("entries", block.entries, digest.entries),
    ):
        if there != sealed:
            done = "were removed" if there < sealed else "were put in"
            return f"{name} {done} after it was sealed: {sealed} then, {there} now"
    if bytes(digest.content) != block.content:
        return "a transfer or an entry was changed after it was sealed"
    return None


async def _broken(conn: AsyncConnection, block: Block, problem: str) -> Break:
    after_id = block.after_id if block.number > 1 else _BEFORE_ALL
    span = {"after_id": after_id, "to_id": block.to_id, "limit": SHOWN_SUSPECTS}
    rows = (await conn.execute(queries["suspects"], span)).mappings()
    return Break(block.number, problem, [dict(row) for row in rows])


async def _digests(conn: AsyncConnection, ranges: Sequence[tuple[int, int, int]]) -> Sequence[Row[Any]]:
    """Return what lies in each range (number, after, to): how many rows, and their digest. In order of number."""
    given = {
        "numbers": [number for number, _, _ in ranges],
        "after_ids": [after if number > 1 else _BEFORE_ALL for number, after, _ in ranges],
        "to_ids": [to for _, _, to in ranges],
    }
    return (await conn.execute(queries["digests"], given)).all()


def _block(row: Row[Any]) -> Block:
    return Block(
        number=row.number,
        after_id=row.after_id,
        to_id=row.to_id,
        transfers=row.transfers,
        entries=row.entries,
        content=bytes(row.content),
        prev_hash=bytes(row.prev_hash),
        hash=bytes(row.hash),
        sealed_at=row.sealed_at,
    )


def _values(block: Block) -> dict[str, Any]:
    return {column.name: getattr(block, column.name) for column in chain_blocks.columns}
