"""The money of chat turns: held before the model works, captured once when the turn ends, freed when it fails.

The hold's own end bounds it all: where the surface dies in the middle, the hold expires and nothing is charged. An
idempotency key is kept with its hold. While that is open the key is busy; when it was captured, the key has the answer;
when it was freed, the key is free too. What a turn took is written down with its charge or its release.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import idempotency
from gateway.conversations import BeginTurn, MeteredTurn, TurnBegun, TurnCharged, TurnUnderWay
from gateway.metering import note_turn
from gateway.quantities import MILLI
from gateway.tables import idempotency as kept
from kit.errors import AppError, AuthRequired, NotFound
from kit.ids import new_id
from ledger import holds, scopes, spends
from ledger.accounts import lock_one
from ledger.errors import HoldResolved
from ledger.payers import authorise
from ledger.tables import holds as holds_table

TOOL: Final = "chat"
ROUTE: Final = "chat.completions"


async def begin(conn: AsyncConnection, command: BeginTurn, ttl: timedelta) -> TurnBegun:
    """Hold a turn's cost, once for its idempotency key. Raises: as `TurnBooks.begin_turn`."""
    use = command.credential, scopes.tool(TOOL)
    payer = (await authorise(conn, [use])).get(use) or AuthRequired()
    if isinstance(payer, AppError):
        raise payer
    place = (payer.purse.account_id, command.idempotency_key or "")
    if command.idempotency_key:
        answered = await _answered(conn, place, command.fingerprint)
        if answered is not None:
            return answered
    if command.refusal is not None:
        raise command.refusal
    cost_tokens = command.price.cost_tokens(MILLI)
    hold_id = new_id("hold")
    [outcome] = await holds.place(
        conn,
        [
            holds.HoldRequest(
                hold_id,
                payer,
                TOOL,
                hold_id,
                cost_tokens,
                command.price.version,
                datetime.now(UTC) + ttl,
            )
        ],
    )
    if isinstance(outcome, AppError):
        raise outcome
    if command.idempotency_key:
        under_way = {"hold_id": hold_id, "answer": None}
        await idempotency.remember(conn, ROUTE, [(*place, command.fingerprint, under_way)])
    return TurnBegun(hold_id, None)


async def finish(
    conn: AsyncConnection, hold_id: str, turn: MeteredTurn, answer: dict[str, Any] | None
) -> TurnCharged:
    """Charge a turn out of its hold and keep an answer for its key; a repeat is told the same. Raises: HoldResolved."""
    account_id = await _account(conn, hold_id)
    await lock_one(conn, account_id)
    use = (account_id, TOOL, turn.id, MILLI)
    charged = await spends.answered(conn, *use)
    if charged is None:
        hold = (
            await conn.execute(
                select(
                    holds_table.c.amount, (holds_table.c.expires_at <= func.clock_timestamp()).label("over")
                ).where(holds_table.c.id == hold_id)
            )
        ).one()
        if hold.over:  # the next sweep frees it
            raise HoldResolved("expired")
        await holds.capture(conn, hold_id, hold.amount, datetime.now(UTC), holds.Use(turn.id, MILLI))
        await note_turn(conn, hold_id, turn)
        charged = await spends.answered(conn, *use)
        assert charged is not None, "it was written just now"
        if answer is None:
            return TurnCharged(charged.charged_tokens, charged.balance_after_tokens)
        await conn.execute(
            update(kept)
            .where(
                kept.c.account_id == account_id,
                kept.c.route == ROUTE,
                kept.c.answer["hold_id"].astext == hold_id,
            )
            .values(answer={"hold_id": hold_id, "answer": answer | {"charged": charged.charged_tokens}})
        )
    return TurnCharged(charged.charged_tokens, charged.balance_after_tokens)


async def abandon(conn: AsyncConnection, hold_id: str, turn: MeteredTurn | None) -> None:
    """Free a turn's hold, unless it is resolved, and write down what the turn took, unless that was done."""
    with suppress(HoldResolved):
        await holds.release(conn, hold_id, "voided")
    if turn is not None:
        await note_turn(conn, hold_id, turn)


async def _answered(conn: AsyncConnection, place: tuple[int, str], fingerprint: str) -> TurnBegun | None:
    """Return the answer under a key; None when the key is free. Raises: TurnUnderWay, IdempotencyKeyReused."""
    found = (await idempotency.find(conn, ROUTE, [place])).get(place)
    if found is None:
        return None
    hold_id: str = found.answer["hold_id"]
    state = (
        await conn.execute(
            select(
                holds_table.c.state, (holds_table.c.expires_at <= func.clock_timestamp()).label("over")
            ).where(holds_table.c.id == hold_id)
        )
    ).one()
    if state.state in ("voided", "expired") or (state.state == "pending" and state.over):
        account_id, key = place
        await conn.execute(
            delete(kept).where(kept.c.account_id == account_id, kept.c.route == ROUTE, kept.c.key == key)
        )
        return None
    answer = found.replay(place[1], fingerprint)
    if state.state == "pending":
        raise TurnUnderWay(place[1])
    return TurnBegun(hold_id, answer["answer"])


async def _account(conn: AsyncConnection, hold_id: str) -> int:
    found = await conn.scalar(select(holds_table.c.account_id).where(holds_table.c.id == hold_id))
    if found is None:
        raise NotFound("hold")
    return int(found)
