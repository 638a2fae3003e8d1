"""Holds of tools: a check sets the cost aside, the spend that names the hold charges it at the price of the check.

A hold is spent once, expires by itself, and belongs to one account and one tool; any key of the account may use it.
What is held was decided when it was held: a later freeze or cap does not take it back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from sqlalchemy import func, insert, select
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import idempotency
from gateway.catalog import Price
from gateway.errors import CostExceedsHold
from gateway.tables import tool_holds
from kit.errors import AppError, AuthRequired, Forbidden, InvalidRequest, NotFound
from kit.ids import new_id
from ledger import holds, scopes, spends
from ledger.errors import HoldResolved
from ledger.keys import Credential
from ledger.payers import Payer, Use, authorise
from ledger.spends import Allowance, Spent
from ledger.tables import holds as holds_table

T = TypeVar("T")

ROUTE: Final = "tools.check"


@dataclass(frozen=True, slots=True)
class PlaceHold:
    """A check that holds what it quotes. Units: `units_milli` thousandths of the tool's unit."""

    credential: Credential
    tool: str
    units_milli: int
    price: Price
    idempotency_key: str | None
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Held:
    """What was set aside, and what is free after it. A replay carries the first answer's values. Units: tokens."""

    hold_id: str
    cost_tokens: int
    balance_after_tokens: int
    expires_at: datetime
    replayed: bool


@dataclass(frozen=True, slots=True)
class SpendHeld:
    """A spend out of a hold. `reference` is unique for the account and tool, for ever, as any spend's is."""

    credential: Credential
    tool: str
    reference: str
    units_milli: int
    hold_id: str


async def place_many(
    conn: AsyncConnection, commands: Sequence[PlaceHold], ttl: timedelta
) -> list[Held | Allowance | AppError]:
    """Hold the cost of each, one after the other, or answer why it is not allowed; one refusal touches no other.

    Outcomes: AuthRequired or Forbidden for the key; IdempotencyKeyReused, or the first answer again; Held; Allowance
    when the cost may not be spent now, with nothing held.
    """
    payers = await authorise(conn, [_use(command) for command in commands])
    return [await _caught(_place(conn, command, _payer(payers, command), ttl)) for command in commands]


async def spend_many(conn: AsyncConnection, commands: Sequence[SpendHeld]) -> list[Spent | AppError]:
    """Charge each spend to its hold, one after the other, and free what the hold had more; a refusal keeps the hold.

    Outcomes: AuthRequired or Forbidden for the key; what the reference's first use was answered, or ReferenceConflict
    if that was for something else; NotFound for a hold that is not this account's; InvalidRequest for one of another
    tool; HoldResolved; CostExceedsHold; else Spent.
    """
    payers = await authorise(conn, [_use(command) for command in commands])
    return [await _caught(_spend(conn, command, _payer(payers, command))) for command in commands]


async def _place(
    conn: AsyncConnection, command: PlaceHold, payer: Payer | AppError, ttl: timedelta
) -> Held | Allowance:
    if isinstance(payer, AppError):
        raise payer
    place = (payer.purse.account_id, command.idempotency_key or "")
    if command.idempotency_key:
        answered = (await idempotency.find(conn, ROUTE, [place])).get(place)
        if answered:
            answer = answered.replay(command.idempotency_key, command.fingerprint)
            expires_at = datetime.fromisoformat(answer["expires_at"])
            return Held(**{**answer, "expires_at": expires_at}, replayed=True)
    cost_tokens = command.price.cost_tokens(command.units_milli)
    allowance = spends.allowance(payer, cost_tokens)
    if not allowance.allowed:
        return allowance
    hold_id = new_id("hold")
    expires_at = datetime.now(UTC) + ttl
    request = holds.HoldRequest(
        hold_id, payer, command.tool, hold_id, cost_tokens, command.price.version, expires_at
    )
    [free] = await holds.place(conn, [request])
    assert isinstance(free, int), "what is allowed under the account's lock is held"
    price = {"tokens": command.price.tokens, "per_units": command.price.per_units}
    await conn.execute(insert(tool_holds).values(hold_id=hold_id, **price))
    if command.idempotency_key:
        answer = {
            "hold_id": hold_id,
            "cost_tokens": cost_tokens,
            "balance_after_tokens": free,
            "expires_at": expires_at.isoformat(),
        }
        await idempotency.remember(conn, ROUTE, [(*place, command.fingerprint, answer)])
    return Held(hold_id, cost_tokens, free, expires_at, replayed=False)


async def _spend(conn: AsyncConnection, command: SpendHeld, payer: Payer | AppError) -> Spent:
    if isinstance(payer, AppError):
        raise payer
    account_id = payer.purse.account_id
    use = (account_id, command.tool, command.reference, command.units_milli)
    if first := await spends.answered(conn, *use):
        return first
    hold = await _hold(conn, account_id, command.hold_id)
    if hold.tool != command.tool:
        raise InvalidRequest("hold_id", f"was placed for the tool {hold.tool}")
    if hold.state != "pending":
        raise HoldResolved(hold.state)
    if hold.over:  # the next sweep frees it
        raise HoldResolved("expired")
    cost_tokens = Price(hold.tokens, hold.per_units, hold.price_version).cost_tokens(command.units_milli)
    if cost_tokens > hold.amount:
        raise CostExceedsHold(cost_tokens, hold.amount)
    booked_as = holds.Use(command.reference, command.units_milli)
    await holds.capture(conn, command.hold_id, cost_tokens, datetime.now(UTC), booked_as)
    charged = await spends.answered(conn, *use)
    assert charged is not None, "it was written just now"
    return replace(charged, replayed=False)


async def _hold(conn: AsyncConnection, account_id: int, hold_id: str) -> Row[Any]:
    """Return a tool's hold of this account, which is locked. Raises: NotFound, also for the hold of a job."""
    found = (
        await conn.execute(
            select(
                holds_table, tool_holds, (holds_table.c.expires_at <= func.clock_timestamp()).label("over")
            )
            .join(tool_holds, tool_holds.c.hold_id == holds_table.c.id)
            .where(holds_table.c.id == hold_id, holds_table.c.account_id == account_id)
        )
    ).one_or_none()
    if found is None:
        raise NotFound("hold")
    return found


def _use(command: PlaceHold | SpendHeld) -> Use:
    return command.credential, scopes.tool(command.tool)


def _payer(payers: Mapping[Use, Payer | Forbidden], command: PlaceHold | SpendHeld) -> Payer | AppError:
    return payers.get(_use(command)) or AuthRequired()


async def _caught(work: Awaitable[T]) -> T | AppError:
    """Return a refusal as an outcome: it was raised before anything was written, so the batch goes on."""
    try:
        return await work
    except AppError as refusal:
        return refusal
