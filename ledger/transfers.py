"""Movements of money: each has two sides that sum to zero, and a reference that makes it happen once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.accounts import lock, queries
from ledger.errors import ReferenceConflict
from ledger.tables import transfers

Kind = Literal["purchase", "grant", "capture"]


@dataclass(frozen=True, slots=True)
class Posting:
    """One transfer between a user's account and a house account.

    `amount_tokens` is seen from the user: positive credits the user. `house` is `kind:name` (`revenue:image`).
    `released_tokens` is the part of the user's held amount that this transfer sets free.
    """

    kind: Kind
    account_id: int
    house: str
    amount_tokens: int
    tool: str
    reference: str
    event_at: datetime
    hold_id: str | None = None
    released_tokens: int = 0
    price_version: int | None = None
    reason: str | None = None


async def post(conn: AsyncConnection, postings: Sequence[Posting]) -> list[int]:
    """Write transfers with both sides and move the balances; returns the transfer ids in the order given.

    The caller holds the accounts' locks (`accounts.lock`) and has decided that the balances allow it; the
    database's CHECKs refuse the whole batch otherwise.
    """
    if not postings:
        return []
    await conn.execute(queries["ensure_house_accounts"], {"codes": sorted({p.house for p in postings})})
    rows = await conn.execute(
        queries["post"],
        {
            "kinds": [p.kind for p in postings],
            "account_ids": [p.account_id for p in postings],
            "houses": [p.house for p in postings],
            "amounts": [p.amount_tokens for p in postings],
            "tools": [p.tool for p in postings],
            "references": [p.reference for p in postings],
            "hold_ids": [p.hold_id for p in postings],
            "released": [p.released_tokens for p in postings],
            "price_versions": [p.price_version for p in postings],
            "reasons": [p.reason for p in postings],
            "event_ats": [p.event_at for p in postings],
        },
    )
    ids = [int(row.transfer_id) for row in rows]
    assert len(ids) == len(postings), "a posting named an account that is not there"
    return ids


async def credit(  # noqa: PLR0913  # the facts of a transfer; a record type would only rename them
    conn: AsyncConnection,
    account_id: int,
    *,
    kind: Literal["purchase", "grant"],
    house: str,
    amount_tokens: int,
    reference: str,
    reason: str | None = None,
) -> int:
    """Add money to a user's account once for each `(kind, reference)`; a repeat returns the first transfer's id.

    Raises: ReferenceConflict when the reference was used for another amount.
    """
    await lock(conn, [account_id])
    found = (
        await conn.execute(
            select(transfers.c.id, transfers.c.amount).where(
                and_(
                    transfers.c.account_id == account_id,
                    transfers.c.tool == kind,
                    transfers.c.reference == reference,
                )
            )
        )
    ).one_or_none()
    if found:
        if found.amount != amount_tokens:
            raise ReferenceConflict(reference)
        return int(found.id)
    posting = Posting(
        kind=kind,
        account_id=account_id,
        house=house,
        amount_tokens=amount_tokens,
        tool=kind,
        reference=reference,
        event_at=datetime.now(UTC),
        reason=reason,
    )
    return (await post(conn, [posting]))[0]
