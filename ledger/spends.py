"""Spends: many small charges decided one by one and written together.

A batch changes no decision: each item is decided as if it came alone after those before it. A poor, frozen, capped or
unknown one fails by itself and leaves its credits to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from kit.db import Asked, as_json, pipelined
from kit.errors import AppError, AuthRequired, Forbidden
from kit.queries import load_queries
from ledger import accounts
from ledger.errors import ReferenceConflict
from ledger.payers import Payer, asked_of, asked_to_save, look, payers_of

queries: Final = load_queries(Path(__file__).with_name("spends.sql"))

_Place = tuple[int, str, str]
"""Account, tool and reference."""


@dataclass(frozen=True, slots=True)
class Spend:
    """A charge for a tool. `reference` is unique for the account and tool, for ever: a repeat is answered alike.

    Units: `units_milli` thousandths of the tool's unit, `cost_tokens` what they cost at `price_version`; both > 0.
    """

    credential: bytes
    tool: str
    reference: str
    units_milli: int
    cost_tokens: int
    price_version: int


@dataclass(frozen=True, slots=True)
class Spent:
    """What a spend charged and left free to spend, as it was answered the first time. Units: tokens."""

    transfer_id: int
    charged_tokens: int
    balance_after_tokens: int
    replayed: bool


@dataclass(slots=True)
class _Accepted:
    """A spend with the state that it leaves its account in; `transfer_id` once it is written."""

    at: int
    spend: Spend
    payer: Payer
    free_after: int
    version: int
    balance_after: int
    transfer_id: int = 0

    def answer(self, at: int, spend: Spend) -> Spent | AppError:
        """Answer the spend itself, or a repeat of it in the same batch."""
        if spend.units_milli != self.spend.units_milli:
            return ReferenceConflict(spend.reference)
        return Spent(self.transfer_id, self.spend.cost_tokens, self.free_after, replayed=at != self.at)


async def spend_many(conn: AsyncConnection, spends: Sequence[Spend]) -> list[Spent | AppError]:
    """Decide each spend in the order given and write the accepted ones, all in the caller's transaction.

    Outcomes, in this order: AuthRequired or Forbidden for the key; what the reference's first use was answered, or
    ReferenceConflict if that was for other units, a hold or a job; AccountFrozen, InsufficientCredits, KeyCapReached;
    else Spent. Keys, caps and freezes are read under the accounts' locks, so that no race overruns them.
    """
    locked, keys, used_rows = await pipelined(
        conn, *asked_of(s.credential for s in spends), _asked_about(spends)
    )
    payers = await payers_of(conn, locked, keys)
    used = {row.at: row for row in used_rows}
    accepted: dict[_Place, _Accepted] = {}
    decided: list[Spent | AppError | _Accepted] = []
    for at, spend in enumerate(spends):
        payer = payers.get(spend.credential)
        if not isinstance(payer, Payer):
            decided.append(payer or AuthRequired())
            continue
        purse = payer.purse
        place = (purse.account_id, spend.tool, spend.reference)
        if earlier := used.get(at):
            decided.append(_replay(earlier, spend))
        elif place in accepted:
            decided.append(accepted[place])
        elif refusal := payer.refusal(spend.cost_tokens):
            decided.append(refusal)
        else:
            payer.spend(spend.cost_tokens)
            accepted[place] = _Accepted(at, spend, payer, purse.free, purse.version, purse.balance)
            decided.append(accepted[place])
    await _write(conn, list(accepted.values()))
    return [
        one.answer(at, spend) if isinstance(one, _Accepted) else one
        for at, (spend, one) in enumerate(zip(spends, decided, strict=True))
    ]


def _asked_about(spends: Sequence[Spend]) -> Asked:
    """Return what finds the earlier uses of the references, by their places in the batch."""
    asked = [
        {"at": at, "hash": spend.credential.hex(), "tool": spend.tool, "reference": spend.reference}
        for at, spend in enumerate(spends)
    ]
    return Asked(queries["find_references"], {"spends": as_json(asked)})


def _replay(earlier: Any, spend: Spend) -> Spent | AppError:
    """Answer from the books, whatever the account could afford or the tool would cost by now."""
    if earlier.kind != "spend" or earlier.units_milli != spend.units_milli:
        return ReferenceConflict(spend.reference)
    return Spent(earlier.id, -earlier.amount, earlier.free_after, replayed=True)


async def _write(conn: AsyncConnection, accepted: Sequence[_Accepted]) -> None:
    """Write both sides of each spend and the balances that they leave; fills in the transfers' ids."""
    if not accepted:
        return
    rows = [
        {
            "account_id": one.payer.purse.account_id,
            "tool": one.spend.tool,
            "reference": one.spend.reference,
            "cost": one.spend.cost_tokens,
            "units_milli": one.spend.units_milli,
            "price_version": one.spend.price_version,
            "key_id": one.payer.caller.key_id if one.payer.caller else None,
            "free_after": one.free_after,
            "version": one.version,
            "balance_after": one.balance_after,
        }
        for one in accepted
    ]
    purses = [
        {"id": purse.account_id, "balance": purse.balance, "version": purse.version}
        for purse in {one.payer.purse.account_id: one.payer.purse for one in accepted}.values()
    ]
    houses = {"codes": sorted({f"revenue:{one.spend.tool}" for one in accepted})}
    _, ids, *_ = await pipelined(
        conn,
        Asked(accounts.queries["ensure_house_accounts"], houses),
        Asked(queries["write_spends"], {"spends": as_json(rows), "purses": as_json(purses)}),
        *asked_to_save(one.payer for one in accepted),
    )
    written = {(row.account_id, row.version): row.id for row in ids}
    for one in accepted:
        one.transfer_id = written[one.payer.purse.account_id, one.version]


@dataclass(frozen=True, slots=True)
class Check:
    """A question: could this key spend so much now? Units: tokens."""

    credential: bytes
    cost_tokens: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """The answer to a check. Not allowed: `balance_after_tokens` is what is free now. Units: tokens.

    `reason` is the code of the error that a spend would meet.
    """

    allowed: bool
    cost_tokens: int
    balance_after_tokens: int
    reason: str | None


async def check_many(conn: AsyncConnection, checks: Sequence[Check]) -> list[Allowance | AppError]:
    """Answer each check by what is committed now, each on its own; nothing is locked, held or charged.

    Outcomes: AuthRequired or Forbidden for the key, else Allowance. Only a spend or a hold decides.
    """
    payers = await look(conn, [c.credential for c in checks])
    return [_allowance(check, payers.get(check.credential)) for check in checks]


def _allowance(check: Check, payer: Payer | Forbidden | None) -> Allowance | AppError:
    if not isinstance(payer, Payer):
        return payer or AuthRequired()
    refusal = payer.refusal(check.cost_tokens)
    free = payer.purse.free
    if refusal:
        return Allowance(
            allowed=False, cost_tokens=check.cost_tokens, balance_after_tokens=free, reason=refusal.code
        )
    after = free - check.cost_tokens
    return Allowance(allowed=True, cost_tokens=check.cost_tokens, balance_after_tokens=after, reason=None)
