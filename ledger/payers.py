"""Who pays and under which limits: the one decision that a key, its cap, a freeze and a balance make together.

Accounts are locked first; keys, caps and freezes are read by later statements, so that the answer is the newest
committed one and stays true until the transaction ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date

from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import AppError, Forbidden
from ledger import grants
from ledger.accounts import Purse, lock_by_keys, queries, see_by_keys
from ledger.errors import AccountFrozen, InsufficientCredits, KeyCapReached
from ledger.keys import Caller, speaks_for


@dataclass(slots=True)
class Cap:
    """The most that a key may spend in a window (UTC day or month, or for ever), and what it has spent of that.

    Units: tokens. A hold counts from its placing; what it did not cost counts no more.
    """

    key_id: str
    per: str
    limit: int
    used: int
    window: date
    touched: bool = False

    @property
    def left(self) -> int:
        """What the key may still spend in this window."""
        return max(0, self.limit - self.used)


@dataclass(slots=True)
class Payer:
    """A locked purse with whoever spends from it. Keys of one account share the purse, uses of one key its cap."""

    purse: Purse
    caller: Caller | None
    cap: Cap | None

    def refusal(self, amount_tokens: int) -> AppError | None:
        """Return why this amount may not be taken now, or None."""
        if self.purse.frozen:
            return AccountFrozen(self.purse.debt)
        if amount_tokens > self.purse.free:
            return InsufficientCredits(amount_tokens, self.purse.free)
        if self.cap and amount_tokens > self.cap.left:
            return KeyCapReached(amount_tokens, self.cap.left, self.cap.per)
        return None

    def hold(self, amount_tokens: int) -> None:
        """Count an accepted hold, for the decisions after it."""
        self.purse.held += amount_tokens
        if self.cap:
            self.cap.used += amount_tokens
            self.cap.touched = True


async def authorise(conn: AsyncConnection, hashes: Iterable[bytes]) -> dict[bytes, Payer | Forbidden]:
    """Lock the accounts behind keys and return who pays; a hash that is missing is unknown, expired or revoked."""
    wanted = list(set(hashes))
    purses = await lock_by_keys(conn, wanted)
    for purse in purses.values():
        if purse.due:
            await grants.settle(conn, purse)
    return await _payers(conn, wanted, purses)


async def look(conn: AsyncConnection, hashes: Iterable[bytes]) -> dict[bytes, Payer | Forbidden]:
    """Return who would pay, by what is committed now; nothing is locked, so nothing may be decided on it."""
    wanted = list(set(hashes))
    return await _payers(conn, wanted, await see_by_keys(conn, wanted))


async def _payers(
    conn: AsyncConnection, wanted: list[bytes], purses: Mapping[int, Purse]
) -> dict[bytes, Payer | Forbidden]:
    """Join purses with the keys that are valid now."""
    rows = await conn.execute(queries["authenticate"], {"hashes": wanted})
    payers: dict[bytes, Payer | Forbidden] = {}
    for row in rows:
        caller = speaks_for(row)
        if isinstance(caller, Forbidden):
            payers[bytes(row.secret_hash)] = caller
            continue
        cap = None
        if row.cap_per is not None:
            used = row.cap_used if row.cap_window == row.window_now else 0
            cap = Cap(row.key_id, row.cap_per, row.cap_tokens, used, row.window_now)
        payers[bytes(row.secret_hash)] = Payer(purses[caller.account_id], caller, cap)
    return payers


async def save_caps(conn: AsyncConnection, payers: Iterable[Payer]) -> None:
    """Write what capped keys have used, in the transaction of the use."""
    caps = {payer.cap.key_id: payer.cap for payer in payers if payer.cap and payer.cap.touched}
    if caps:
        await conn.execute(
            queries["save_caps"],
            {
                "ids": list(caps),
                "used": [cap.used for cap in caps.values()],
                "windows": [cap.window for cap in caps.values()],
            },
        )
