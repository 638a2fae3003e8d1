"""What an account holds now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import AppError, AuthRequired
from ledger import scopes
from ledger.accounts import queries
from ledger.keys import Credential, note_use, out_of_place, out_of_scope, pairs, suspended
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


async def balances_by_key(
    conn: AsyncConnection, credentials: Sequence[Credential]
) -> list[Balance | AppError]:
    """Check each key and read its account's balance, all in one statement; one bad key touches no other."""
    wanted = list(set(credentials))
    rows = (await conn.execute(queries["balances_by_key"], pairs(wanted))).all()
    await note_use(conn, rows)
    found = {wanted[row.place - 1]: _balance(row) for row in rows}
    return [found.get(credential) or AuthRequired() for credential in credentials]


def _balance(row: Row[Any]) -> Balance | AppError:
    if row.suspended:
        return suspended()
    if not row.admitted:
        return out_of_place()
    return (
        Balance(row.balance, row.held) if scopes.allow(row.scopes, scopes.READ) else out_of_scope(scopes.READ)
    )
