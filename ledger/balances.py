"""What an account holds now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import AppError, AuthRequired
from ledger.accounts import queries
from ledger.keys import suspended
from ledger.tables import accounts


@dataclass(frozen=True, slots=True)
class Balance:
    """Units: tokens. `held_tokens` is set aside for work under way and is part of the total."""

    total_tokens: int
    held_tokens: int

    @property
    def available_tokens(self) -> int:
        """What is free to spend."""
        return self.total_tokens - self.held_tokens


async def balance(conn: AsyncConnection, account_id: int) -> Balance:
    """Return an account's balance as this transaction sees it."""
    row = (
        await conn.execute(select(accounts.c.balance, accounts.c.held).where(accounts.c.id == account_id))
    ).one()
    return Balance(row.balance, row.held)


async def balances_by_key(conn: AsyncConnection, hashes: Sequence[bytes]) -> list[Balance | AppError]:
    """Check each key and read its account's balance, all in one statement; one bad key touches no other."""
    rows = await conn.execute(queries["balances_by_key"], {"hashes": list(set(hashes))})
    found: dict[bytes, Balance | AppError] = {
        bytes(row.secret_hash): suspended() if row.suspended else Balance(row.balance, row.held)
        for row in rows
    }
    return [found.get(key_hash) or AuthRequired() for key_hash in hashes]
