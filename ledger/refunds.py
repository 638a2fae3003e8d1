"""Money back to a user: whole or in part, to the grants that it came from; and an operator's reversal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Literal

from sqlalchemy import func, select
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import NotFound
from ledger import debts, grants
from ledger.accounts import Purse, lock_one
from ledger.errors import ExceedsOriginal, NotReversible, ReferenceConflict
from ledger.tables import accounts, entries, transfers
from ledger.tables import grants as grants_table
from ledger.transfers import Posting, find

CHARGES: Final = ("spend", "capture")


async def refund(  # noqa: PLR0913  # the facts of a transfer
    conn: AsyncConnection,
    account_id: int,
    transfer_id: int,
    *,
    amount_tokens: int,
    reference: str,
    reason: str | None = None,
) -> int:
    """Give back a charge or a part of it, once for each reference, to the grants that it was drawn from.

    What was drawn last goes back first; a grant that has expired meanwhile loses it again at once. A debt is paid
    out of it. Returns the refund's transfer id.
    Raises: NotFound; NotReversible for what is no charge; ExceedsOriginal for more than is left of it;
    ReferenceConflict when the reference was used for something else.
    """
    purse = await lock_one(conn, account_id)
    found = await find(conn, account_id, "refund", reference)
    if found:
        if (found.amount, found.reverses_id) != (amount_tokens, transfer_id):
            raise ReferenceConflict(reference)
        return found.id
    refundable = await left(conn, account_id, transfer_id)
    if not 0 < amount_tokens <= refundable:
        raise ExceedsOriginal(amount_tokens, refundable)
    original = await _original(conn, account_id, transfer_id)
    return await _give_back(conn, purse, original, "refund", amount_tokens, reference, reason)


async def left(conn: AsyncConnection, account_id: int, transfer_id: int) -> int:
    """Return what could still be refunded of a charge. The account is locked. Raises: NotFound, NotReversible."""
    original = await _original(conn, account_id, transfer_id)
    if original.kind not in CHARGES:
        raise NotReversible(original.kind, "only a charge can be refunded")
    return -int(original.amount) - await _returned(conn, transfer_id)


async def reverse(
    conn: AsyncConnection, account_id: int, transfer_id: int, *, reference: str, reason: str
) -> int:
    """Undo a whole transfer by its opposite, once; returns the reversal's transfer id.

    A charge or a negative adjustment goes back to its grants. Credits that were given leave again, as long as none
    of them was spent. A payment is taken back by a clawback instead.
    Raises: NotFound, NotReversible, ReferenceConflict.
    """
    purse = await lock_one(conn, account_id)
    found = await find(conn, account_id, "reversal", reference)
    if found:
        if found.reverses_id != transfer_id:
            raise ReferenceConflict(reference)
        return found.id
    original = await _original(conn, account_id, transfer_id)
    if original.kind not in (*CHARGES, "grant", "referral", "adjustment"):
        raise NotReversible(original.kind, "it has a way of its own to be taken back")
    if await _returned(conn, transfer_id):
        raise NotReversible(original.kind, "it was refunded or reversed before")
    if original.amount < 0:
        return await _give_back(conn, purse, original, "reversal", -original.amount, reference, reason)
    await grants.allocate(conn, purse)
    grant = (await conn.execute(select(grants_table).where(grants_table.c.transfer_id == transfer_id))).one()
    if grant.remaining < grant.amount or purse.free < grant.amount:
        raise NotReversible(original.kind, "a part of its credits is spent or held")
    return await grants.post_drawn(
        conn,
        purse,
        _posting(original, grant.house, "reversal", -grant.amount, reference, reason),
        {grant.id: grant.amount},
    )


async def _give_back(  # noqa: PLR0913, PLR0917  # one step of the two above
    conn: AsyncConnection,
    purse: Purse,
    original: Row[tuple[object, ...]],
    kind: Literal["refund", "reversal"],
    amount_tokens: int,
    reference: str,
    reason: str | None,
) -> int:
    await grants.allocate(conn, purse)
    by_grant = await grants.give_back(conn, purse.account_id, original.id, amount_tokens)
    posting = _posting(original, original.house, kind, amount_tokens, reference, reason)
    transfer_id = await grants.post_drawn(conn, purse, posting, by_grant)
    await conn.execute(grants.queries["set_due"], {"account_id": purse.account_id, "now": posting.event_at})
    await debts.collect(conn, purse, amount_tokens, posting.event_at)
    return transfer_id


def _posting(  # noqa: PLR0913, PLR0917  # one step of the two above
    original: Row[tuple[object, ...]],
    house: str,
    kind: Literal["refund", "reversal"],
    amount_tokens: int,
    reference: str,
    reason: str | None,
) -> Posting:
    return Posting(
        kind=kind,
        account_id=original.account_id,
        house=house,
        amount_tokens=amount_tokens,
        tool=kind,
        reference=reference,
        event_at=datetime.now(UTC),
        price_version=original.price_version,
        reason=reason,
        reverses_id=original.id,
        key_id=original.key_id,
    )


async def _original(conn: AsyncConnection, account_id: int, transfer_id: int) -> Row[tuple[object, ...]]:
    """Return a transfer of the account with the house on its other side. Raises: NotFound."""
    other = entries.alias()
    row = (
        await conn.execute(
            select(transfers, accounts.c.code.label("house"))
            .join(
                other,
                (other.c.transfer_id == transfers.c.id) & (other.c.account_id != transfers.c.account_id),
            )
            .join(accounts, accounts.c.id == other.c.account_id)
            .where(transfers.c.id == transfer_id, transfers.c.account_id == account_id)
        )
    ).one_or_none()
    if row is None:
        raise NotFound("transfer")
    return row


async def _returned(conn: AsyncConnection, transfer_id: int) -> int:
    """Return what refunds and a reversal have moved back of a transfer."""
    total = (
        await conn.execute(
            select(func.coalesce(func.sum(func.abs(transfers.c.amount)), 0)).where(
                transfers.c.reverses_id == transfer_id
            )
        )
    ).scalar_one()
    return int(total)
