"""Test credits: what a test account spends. They cost nothing and come from the test world's own mint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from ledger import grants
from ledger.accounts import lock_one
from ledger.balances import Balance, balance
from ledger.credits import credit

TEST_CREDITS: Final = "mint:test"
"""Where test credits come from. A house account is of its account's world: real ones cannot come from here."""


@dataclass(frozen=True, slots=True)
class Refilled:
    """What a refill gave, 0 for none, and how the account then stands. Units: tokens."""

    granted_tokens: int
    balance: Balance


async def refill(conn: AsyncConnection, account_id: int, up_to_tokens: int) -> Refilled:
    """Bring what is free on a test account up to an amount; a repeat finds it full.

    The caller knows that the account is of the test world.
    """
    purse = await lock_one(conn, account_id)
    if purse.due:
        await grants.settle(conn, purse)
    missing = max(0, up_to_tokens - purse.free)
    if missing:
        # The version rises with each movement, so under the lock no other refill has this reference.
        reference = f"refill:{purse.version}"
        await credit(
            conn, account_id, kind="grant", house=TEST_CREDITS, amount_tokens=missing, reference=reference
        )
    return Refilled(missing, await balance(conn, account_id))
