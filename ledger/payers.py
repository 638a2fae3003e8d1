"""Who pays and under which limits: the one decision that a key, its cap, a freeze and a balance make together.

Accounts are locked first; keys, caps and freezes are read by later statements, so that the answer is the newest
committed one and stays true until the transaction ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date

from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import AppError, Forbidden
from ledger import grants
from ledger.accounts import Purse, lock_by_keys, queries, see_by_keys
from ledger.errors import AccountFrozen, InsufficientCredits, KeyCapReached
from ledger.keys import Caller, Credential, authenticate, out_of_scope


@dataclass(slots=True)
class Cap:
    """The most that a key and its descendants may spend in a window, and what they have spent of that.

    Windows are UTC days and months, or for ever. Units: tokens. A hold counts from its placing; what it did not
    cost counts no more.
    """

    key_id: str
    per: str
    limit: int
    used: int
    window: date
    today: date
    touched: bool = False

    @property
    def left(self) -> int:
        """What the key may still spend in this window."""
        return max(0, self.limit - self.used)


@dataclass(slots=True)
class Payer:
    """A locked purse with whoever spends from it.

    Keys of one account share the purse, and `caps` of one ancestor are one cap: siblings reduce it together.
    """

    purse: Purse
    caller: Caller | None
    caps: tuple[Cap, ...] = ()

    @property
    def capped_on(self) -> date | None:
        """The UTC day on which caps were counted, if there are any."""
        return self.caps[0].today if self.caps else None

    def refusal(self, amount_tokens: int) -> AppError | None:
        """Return why this amount may not be taken now, or None."""
        if self.purse.frozen:
            return AccountFrozen(self.purse.debt)
        if amount_tokens > self.purse.free:
            return InsufficientCredits(amount_tokens, self.purse.free)
        tightest = min(self.caps, key=lambda cap: cap.left, default=None)
        if tightest and amount_tokens > tightest.left:
            return KeyCapReached(amount_tokens, tightest.left, tightest.per)
        return None

    def hold(self, amount_tokens: int) -> None:
        """Count an accepted hold, for the decisions after it."""
        self.purse.held += amount_tokens
        for cap in self.caps:
            cap.used += amount_tokens
            cap.touched = True


Use = tuple[Credential, str]
"""A key, and the scope that it needs for what it is to pay."""


async def authorise(conn: AsyncConnection, uses: Iterable[Use]) -> dict[Use, Payer | Forbidden]:
    """Lock the accounts behind keys and return who pays; what is missing has an unknown, expired or revoked key."""
    wanted = list(set(uses))
    purses = await lock_by_keys(conn, [credential.hash for credential, _ in wanted])
    for purse in purses.values():
        if purse.due:
            await grants.settle(conn, purse)
    return await _payers(conn, wanted, purses)


async def look(conn: AsyncConnection, uses: Iterable[Use]) -> dict[Use, Payer | Forbidden]:
    """Return who would pay, by what is committed now; nothing is locked, so nothing may be decided on it."""
    wanted = list(set(uses))
    return await _payers(conn, wanted, await see_by_keys(conn, [credential.hash for credential, _ in wanted]))


async def _payers(
    conn: AsyncConnection, wanted: list[Use], purses: Mapping[int, Purse]
) -> dict[Use, Payer | Forbidden]:
    """Join purses with the keys that are valid now and may be used so."""
    callers = await authenticate(conn, [credential for credential, _ in wanted])
    caps = await _caps(
        conn, {caller.key_id for caller in callers.values() if isinstance(caller, Caller) and caller.capped}
    )
    payers: dict[Use, Payer | Forbidden] = {}
    for use in wanted:
        credential, need = use
        caller = callers.get(credential)
        if isinstance(caller, Caller):
            allowed = caller.may(need)
            purse = purses[caller.account_id]
            payers[use] = Payer(purse, caller, caps[caller.key_id]) if allowed else out_of_scope(need)
        elif caller is not None:
            payers[use] = caller
    return payers


async def _caps(conn: AsyncConnection, key_ids: set[str]) -> Mapping[str, tuple[Cap, ...]]:
    """Return the caps over each of these keys, one object for each cap."""
    over: dict[str, tuple[Cap, ...]] = defaultdict(tuple)
    if key_ids:
        caps: dict[str, Cap] = {}
        for row in await conn.execute(queries["caps"], {"key_ids": list(key_ids)}):
            cap = caps.setdefault(
                row.key_id, Cap(row.key_id, row.per, row.tokens, row.used, row.started, row.today)
            )
            over[row.spender] += (cap,)
    return over


async def save_caps(conn: AsyncConnection, payers: Iterable[Payer]) -> None:
    """Write what capped keys have used, in the transaction of the use."""
    caps = {cap.key_id: cap for payer in payers for cap in payer.caps if cap.touched}
    if caps:
        await conn.execute(
            queries["save_caps"],
            {
                "ids": list(caps),
                "used": [cap.used for cap in caps.values()],
                "windows": [cap.window for cap in caps.values()],
            },
        )
