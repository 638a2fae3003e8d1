"""Movements of money: each has two sides that sum to zero, and a reference that makes it happen once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.accounts import queries
from ledger.tables import transfers

Kind = Literal[
    "purchase", "grant", "referral", "refund", "spend", "capture", "expiry", "clawback", "debt", "debt_payment",
    "adjustment", "reversal", "reinstatement",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Posting:
    """One transfer between an account, a user's unless it is a debt, and a house account of the same world.

    `amount_tokens` is seen from the account: positive credits it. `house` is `kind:name` (`revenue:image`).
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
    reverses_id: int | None = None
    key_id: str | None = None
    units_milli: int | None = None
    free_after_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Posted:
    """Where a transfer stands. `version` numbers the entry among its account's own."""

    transfer_id: int
    version: int


async def post(conn: AsyncConnection, postings: Sequence[Posting]) -> list[Posted]:
    """Write transfers with both sides and move the balances; returns where they stand, in the order given.

    The caller holds the accounts' locks (`accounts.lock`) and has decided that the balances allow it; the
    database's CHECKs refuse the whole batch otherwise.
    """
    if not postings:
        return []
    wanted = sorted({(p.house, p.account_id) for p in postings})
    await conn.execute(
        queries["ensure_house_accounts"],
        {"codes": [house for house, _ in wanted], "account_ids": [account for _, account in wanted]},
    )
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
            "reverses_ids": [p.reverses_id for p in postings],
            "key_ids": [p.key_id for p in postings],
            "units": [p.units_milli for p in postings],
            "frees": [p.free_after_tokens for p in postings],
        },
    )
    posted = [Posted(row.transfer_id, row.version) for row in rows]
    assert len(posted) == len(postings), "a posting named an account that is not there"
    return posted


@dataclass(frozen=True, slots=True)
class Found:
    """An earlier transfer under the same reference. Units: tokens."""

    id: int
    amount: int
    reverses_id: int | None


async def find(conn: AsyncConnection, account_id: int, tool: str, reference: str) -> Found | None:
    """Return the transfer with this reference, if there is one. The account is locked, so the answer stays true."""
    row = (
        await conn.execute(
            select(transfers.c.id, transfers.c.amount, transfers.c.reverses_id).where(
                transfers.c.account_id == account_id,
                transfers.c.tool == tool,
                transfers.c.reference == reference,
            )
        )
    ).one_or_none()
    return Found(row.id, row.amount, row.reverses_id) if row else None
