"""Spends: many small charges decided one by one and written together.

A batch changes no decision: each item is decided as if it came alone after those before it. A poor, frozen, capped or
unknown one fails by itself and leaves its credits to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import text
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import AppError, AuthRequired
from ledger import grants, scopes
from ledger.accounts import queries
from ledger.errors import AccountFrozen, InsufficientCredits, KeyCapReached, ReferenceConflict
from ledger.keys import Credential, out_of_place, out_of_scope, suspended
from ledger.payers import Payer, look

_SPEND_MANY: Final = text(
    "SELECT at, outcome, transfer_id, tokens, free, cap_per FROM spend_many(CAST(:asked AS json))"
)


@dataclass(frozen=True, slots=True)
class Spend:
    """A charge for a tool. `reference` is unique for the account and tool, for ever: a repeat is answered alike.

    A repeat has the same units and the same `reason`, which statements show.
    Units: `units_milli` thousandths of the tool's unit, `cost_tokens` what they cost at `price_version`; both > 0.
    """

    credential: Credential
    tool: str
    reference: str
    units_milli: int
    cost_tokens: int
    price_version: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What a spend charged and left free to spend, as it was answered the first time. Units: tokens."""

    transfer_id: int
    charged_tokens: int
    balance_after_tokens: int
    replayed: bool


async def spend_many(conn: AsyncConnection, spends: Sequence[Spend]) -> list[Spent | AppError]:
    """Decide each spend in the order given and write the accepted ones, all in the caller's transaction.

    Outcomes, in this order: AuthRequired or Forbidden for the key, its address and its scopes; what the reference's
    first use was answered, or ReferenceConflict if that was for other units, another reason, a hold or a job;
    AccountFrozen, InsufficientCredits, KeyCapReached; else Spent. Keys, caps and freezes are read under the accounts'
    locks, so that no race overruns them.
    """
    asked = [
        {
            "at": at,
            "hash": spend.credential.hash.hex(),
            "ip": spend.credential.ip,
            "tool": spend.tool,
            "reference": spend.reference,
            "units": spend.units_milli,
            "cost": spend.cost_tokens,
            "price_version": spend.price_version,
            "reason": spend.reason,
        }
        for at, spend in enumerate(spends)
    ]
    outcomes: dict[int, Spent | AppError] = {}
    while asked:
        rows = (await conn.execute(_SPEND_MANY, {"asked": orjson.dumps(asked).decode()})).all()
        due = {row.at: row.tokens for row in rows if row.outcome == "due"}
        for account_id in sorted(set(due.values())):
            await grants.settle_due(conn, account_id)
        outcomes.update((row.at, _outcome(row, spends[row.at])) for row in rows if row.at not in due)
        asked = [item for item in asked if item["at"] in due]
    return [outcomes[at] for at in range(len(spends))]


async def answered(
    conn: AsyncConnection, account_id: int, tool: str, reference: str, units_milli: int
) -> Spent | None:
    """Return what the first spend under a reference was answered, None if there was none; the account is locked.

    Raises: ReferenceConflict when the reference was used for something else.
    """
    found = (
        await conn.execute(
            queries["use_of_reference"], {"account_id": account_id, "tool": tool, "reference": reference}
        )
    ).one_or_none()
    if found is None:
        return None
    if found.units_milli != units_milli:
        raise ReferenceConflict(reference)
    return Spent(found.id, found.charged, found.free_after, replayed=True)


def _outcome(row: Row[Any], spend: Spend) -> Spent | AppError:
    """Put a row of the database's `spend_many` into our words."""
    if row.outcome in ("charged", "replayed"):
        return Spent(row.transfer_id, row.tokens, row.free, replayed=row.outcome == "replayed")
    refusals: dict[str, AppError] = {
        "unknown": AuthRequired(),
        "suspended": suspended(),
        "elsewhere": out_of_place(),
        "scope": out_of_scope(scopes.tool(spend.tool)),
        "conflict": ReferenceConflict(spend.reference),
        "frozen": AccountFrozen(row.tokens),
        "poor": InsufficientCredits(spend.cost_tokens, row.free),
        "capped": KeyCapReached(spend.cost_tokens, row.tokens, row.cap_per),
    }
    return refusals[row.outcome]


@dataclass(frozen=True, slots=True)
class Check:
    """A question: could this key spend so much on this tool now? Units: tokens."""

    credential: Credential
    cost_tokens: int
    tool: str


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
    uses = [(check.credential, scopes.tool(check.tool)) for check in checks]
    payers = await look(conn, uses)
    found = [payers.get(use) for use in uses]
    return [
        allowance(payer, check.cost_tokens) if isinstance(payer, Payer) else payer or AuthRequired()
        for check, payer in zip(checks, found, strict=True)
    ]


def allowance(payer: Payer, cost_tokens: int) -> Allowance:
    """Return whether a payer may take so much, and what would be left."""
    refusal = payer.refusal(cost_tokens)
    free = payer.purse.free
    if refusal:
        return Allowance(
            allowed=False, cost_tokens=cost_tokens, balance_after_tokens=free, reason=refusal.code
        )
    return Allowance(
        allowed=True, cost_tokens=cost_tokens, balance_after_tokens=free - cost_tokens, reason=None
    )
