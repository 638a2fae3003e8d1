"""Purses: the locked state that every decision about money is made on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import NotFound
from kit.queries import load_queries
from ledger.tables import accounts

queries: Final = load_queries(Path(__file__).with_name("queries.sql"))

World = Literal["live", "test"]
"""Whose money it is: real, or play. An account is of one world for ever; what a world holds stays in it."""


@dataclass(slots=True)
class Purse:
    """A user account as it stands under our lock; decisions of one batch reduce it as they are made.

    Units: tokens. `due`: a grant of it starts or expires by now and must be settled before a decision
    (`grants.settle`). `stopped`: an operator froze it.
    """

    account_id: int
    balance: int
    held: int
    version: int
    allocated_version: int
    debt: int
    stopped: bool
    due: bool
    world: World

    @property
    def free(self) -> int:
        """What is neither spent nor held."""
        return self.balance - self.held

    @property
    def frozen(self) -> bool:
        """Whether nothing may be spent or held: a debt is open, or an operator said so."""
        return self.stopped or self.debt > 0


async def open_account(conn: AsyncConnection, user_id: str, world: World = "live") -> int:
    """Return the id of a user's one account in a world, opening it the first time; safe in a race."""
    await conn.execute(
        insert(accounts)
        .values(kind="user", user_id=user_id, world=world)
        .on_conflict_do_nothing(index_elements=[accounts.c.user_id, accounts.c.world])
    )
    return await account_in(conn, user_id, world)


async def account_in(conn: AsyncConnection, user_id: str, world: World) -> int:
    """Return the id of a user's account in a world, which is there."""
    found = select(accounts.c.id).where(accounts.c.user_id == user_id, accounts.c.world == world)
    return int((await conn.execute(found)).scalar_one())


async def lock(conn: AsyncConnection, account_ids: Iterable[int]) -> dict[int, Purse]:
    """Lock user accounts in ascending order until the transaction ends, and return them as they stand."""
    return _purses(await conn.execute(queries["lock_accounts"], {"ids": sorted(set(account_ids))}))


async def lock_one(conn: AsyncConnection, account_id: int) -> Purse:
    """Lock one user account. Raises: NotFound."""
    purse = (await lock(conn, [account_id])).get(account_id)
    if purse is None:
        raise NotFound("account")
    return purse


async def lock_by_keys(conn: AsyncConnection, hashes: Iterable[bytes]) -> dict[int, Purse]:
    """Lock the accounts behind keys, valid or not, in ascending order; what a key may do is read afterwards."""
    return _purses(await conn.execute(queries["lock_accounts_of_keys"], {"hashes": list(set(hashes))}))


async def see_by_keys(conn: AsyncConnection, hashes: Iterable[bytes]) -> dict[int, Purse]:
    """Return the accounts behind keys as committed, without a lock: for questions, never for a decision."""
    return _purses(await conn.execute(queries["accounts_of_keys"], {"hashes": list(set(hashes))}))


async def lock_by_user(conn: AsyncConnection, user_id: str) -> dict[int, Purse]:
    """Lock a user's accounts, in both worlds, and return them as they stand."""
    theirs = await conn.scalars(select(accounts.c.id).where(accounts.c.user_id == user_id))
    return await lock(conn, theirs)


async def ensure_house(conn: AsyncConnection, code: str, world: World = "live") -> int:
    """Return the id of a house account (`kind:name`) of a world, opening it the first time."""
    await conn.execute(
        insert(accounts)
        .values(kind=code.partition(":")[0], code=code, world=world)
        .on_conflict_do_nothing(index_elements=[accounts.c.code, accounts.c.world])
    )
    found = select(accounts.c.id).where(accounts.c.code == code, accounts.c.world == world)
    return int((await conn.execute(found)).scalar_one())


async def freeze(conn: AsyncConnection, account_id: int) -> None:
    """Stop all spending of an account, from the next decision on; a repeat changes nothing."""
    await lock_one(conn, account_id)
    await conn.execute(
        update(accounts)
        .where(accounts.c.id == account_id, accounts.c.frozen_at.is_(None))
        .values(frozen_at=func.clock_timestamp())
    )


async def unfreeze(conn: AsyncConnection, account_id: int) -> None:
    """Take a freeze back. A debt goes on to freeze until it is paid."""
    await lock_one(conn, account_id)
    await conn.execute(update(accounts).where(accounts.c.id == account_id).values(frozen_at=None))


def _purses(rows: Iterable[Row[Any]]) -> dict[int, Purse]:
    return {
        row.id: Purse(
            row.id,
            row.balance,
            row.held,
            row.version,
            row.allocated_version,
            row.debt,
            row.stopped,
            bool(row.due),
            row.world,
        )
        for row in rows
    }
