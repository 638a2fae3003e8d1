"""Purses: the locked state that every decision about money is made on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.queries import load_queries
from ledger.tables import accounts

queries: Final = load_queries(Path(__file__).with_name("queries.sql"))


@dataclass(slots=True)
class Purse:
    """A user account as it stands under our lock; decisions of one batch reduce it as they are made.

    Units: tokens.
    """

    account_id: int
    balance: int
    held: int

    @property
    def free(self) -> int:
        """What may still be held or spent."""
        return self.balance - self.held


async def open_account(conn: AsyncConnection, user_id: str) -> int:
    """Open the one account of a new user and return its id."""
    result = await conn.execute(
        insert(accounts).values(kind="user", user_id=user_id).returning(accounts.c.id)
    )
    return int(result.scalar_one())


async def lock(conn: AsyncConnection, account_ids: Iterable[int]) -> dict[int, Purse]:
    """Lock user accounts in ascending order until the transaction ends, and return them as they stand."""
    rows = await conn.execute(queries["lock_accounts"], {"ids": sorted(set(account_ids))})
    return {row.id: Purse(row.id, row.balance, row.held) for row in rows}
