"""Payments that were taken back: what remains of their grant goes with them, the rest is owed and freezes spending.

What a user owes is kept by a house account of its own, `debt:<account id>`, whose entries sum to minus the debt;
`accounts.debt` repeats it under the account's lock, where every spend looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import NotFound
from ledger import grants
from ledger.accounts import Purse, ensure_house, lock_one
from ledger.errors import ExceedsOriginal, ReferenceConflict
from ledger.tables import accounts
from ledger.tables import grants as grants_table
from ledger.transfers import Posting, find, post


@dataclass(frozen=True, slots=True)
class Clawback:
    """What a payment that was taken back took along. Units: tokens."""

    taken_tokens: int
    debt_tokens: int


async def clawback(  # noqa: PLR0913  # the facts of a transfer
    conn: AsyncConnection,
    account_id: int,
    *,
    purchase_id: str,
    amount_tokens: int,
    reference: str,
    event_at: datetime,
    reason: str | None = None,
) -> Clawback:
    """Take back credits of a payment, once for each reference: first what remains of its grant, the rest as a debt.

    What a hold has set aside is not taken: the work under way ends, and its price is owed.
    Raises: NotFound for a payment without a grant here; ExceedsOriginal for more than was granted and not yet taken
    back; ReferenceConflict when the reference was used for another amount.
    """
    purse = await lock_one(conn, account_id)
    owed_by = await ensure_house(conn, f"debt:{account_id}", purse.world)
    taken = await find(conn, account_id, "clawback", reference)
    owed = await find(conn, owed_by, "clawback", reference)
    if taken or owed:
        before = Clawback(-taken.amount if taken else 0, -owed.amount if owed else 0)
        if before.taken_tokens + before.debt_tokens != amount_tokens:
            raise ReferenceConflict(reference)
        return before
    now = await grants.clock(conn)
    await grants.settle(conn, purse, now)  # also works the draws out
    grant = (
        await conn.execute(
            select(grants_table).where(
                grants_table.c.account_id == account_id, grants_table.c.purchase_id == purchase_id
            )
        )
    ).one_or_none()
    if grant is None:
        raise NotFound("grant of this payment")
    if amount_tokens > grant.amount - grant.clawed:
        raise ExceedsOriginal(amount_tokens, grant.amount - grant.clawed)
    if grant.transfer_id is None:  # promised for later: it begins now, only to be taken
        await grants.start(conn, purse, grant, now)
        await grants.allocate(conn, purse)
    take = min(amount_tokens, grant.remaining, purse.free)
    outcome = Clawback(take, amount_tokens - take)
    await conn.execute(
        update(grants_table)
        .where(grants_table.c.id == grant.id)
        .values(clawed=grants_table.c.clawed + amount_tokens)
    )
    if take:
        posting = Posting(
            "clawback", account_id, grant.house, -take, "clawback", reference, event_at, reason=reason
        )
        await grants.post_drawn(conn, purse, posting, {grant.id: take})
    if outcome.debt_tokens:
        await post(
            conn,
            [
                Posting(
                    "debt", owed_by, grant.house, -outcome.debt_tokens, "clawback", reference, event_at,
                    reason=reason,
                )
            ],
        )  # fmt: skip
        await add_debt(conn, purse, outcome.debt_tokens)
    return outcome


async def collect(conn: AsyncConnection, purse: Purse, incoming_tokens: int, event_at: datetime) -> int:
    """Pay a debt out of what has just come in or come free; returns the tokens paid. The purse is up to date."""
    pay = min(purse.debt, incoming_tokens, purse.free)
    if pay <= 0:
        return 0
    posting = Posting(
        kind="debt_payment",
        account_id=purse.account_id,
        house=f"debt:{purse.account_id}",
        amount_tokens=-pay,
        tool="debt",
        reference=str(purse.version),
        event_at=event_at,
    )
    posted = (await post(conn, [posting]))[0]
    purse.balance -= pay
    purse.version = posted.version
    await add_debt(conn, purse, -pay)
    return pay


async def add_debt(conn: AsyncConnection, purse: Purse, amount_tokens: int) -> None:
    """Repeat in the account what its debt account has just been told."""
    purse.debt += amount_tokens
    await conn.execute(
        update(accounts).where(accounts.c.id == purse.account_id).values(debt=accounts.c.debt + amount_tokens)
    )
