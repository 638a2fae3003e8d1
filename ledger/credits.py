"""Credits that come in: bought, given, earned, or put right by an operator. Each opens a grant and pays debts first."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Literal

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import InvalidRequest
from ledger import debts, grants
from ledger.accounts import lock_one
from ledger.errors import InsufficientCredits, ReferenceConflict
from ledger.grants import NewGrant, Terms
from ledger.tables import grants as grants_table
from ledger.transfers import Posting, find, post

ADJUSTMENTS: Final = "mint:adjustment"
"""Where an operator's corrections come from and go to."""
AT_ONCE: Final = Terms()


async def credit(  # noqa: PLR0913  # the facts of a transfer; a record type would only rename them
    conn: AsyncConnection,
    account_id: int,
    *,
    kind: grants.Source,
    house: str,
    amount_tokens: int,
    reference: str,
    reason: str | None = None,
    event_at: datetime | None = None,
    terms: Terms = AT_ONCE,
) -> int:
    """Add money to a user's account once for each `(kind, reference)`; a repeat returns the first transfer's id.

    A debt is paid out of it first. Raises: ReferenceConflict when the reference was used for another amount;
    InvalidRequest for credits that would end before they begin.
    """
    purse = await lock_one(conn, account_id)
    found = await find(conn, account_id, kind, reference)
    if found:
        if found.amount != amount_tokens:
            raise ReferenceConflict(reference)
        return found.id
    if await _scheduled(conn, account_id, kind, reference) is not None:
        raise ReferenceConflict(reference)
    now = event_at or datetime.now(UTC)
    new = NewGrant(account_id, kind, house, amount_tokens, reference, reason, _lasting(terms, now))
    transfer_id = await grants.open_grant(conn, new, now)
    if purse.debt:
        await debts.collect(conn, await lock_one(conn, account_id), amount_tokens, now)
    return transfer_id


async def schedule(  # noqa: PLR0913  # as above
    conn: AsyncConnection,
    account_id: int,
    *,
    kind: Literal["grant", "referral"],
    house: str,
    amount_tokens: int,
    reference: str,
    starts_at: datetime,
    reason: str | None = None,
    terms: Terms = AT_ONCE,
) -> None:
    """Promise credits that enter the balance when their time comes, once for each `(kind, reference)`.

    Raises: ReferenceConflict when the reference was used for another amount; InvalidRequest for credits that would end
    before they begin.
    """
    await lock_one(conn, account_id)
    before = await _scheduled(conn, account_id, kind, reference)
    if before is not None:
        if before != amount_tokens:
            raise ReferenceConflict(reference)
        return
    new = NewGrant(account_id, kind, house, amount_tokens, reference, reason, _lasting(terms, starts_at))
    await grants.schedule_grant(conn, new, starts_at)


async def adjust(
    conn: AsyncConnection, account_id: int, *, amount_tokens: int, reference: str, reason: str
) -> int:
    """Put an account right by an operator's hand, up or down, once for each reference; returns the transfer's id.

    Raises: InsufficientCredits for more than is free; ReferenceConflict.
    """
    if amount_tokens > 0:
        return await credit(
            conn,
            account_id,
            kind="adjustment",
            house=ADJUSTMENTS,
            amount_tokens=amount_tokens,
            reference=reference,
            reason=reason,
        )
    purse = await lock_one(conn, account_id)
    found = await find(conn, account_id, "adjustment", reference)
    if found:
        if found.amount != amount_tokens:
            raise ReferenceConflict(reference)
        return found.id
    if -amount_tokens > purse.free:
        raise InsufficientCredits(-amount_tokens, purse.free)
    posting = Posting(
        "adjustment", account_id, ADJUSTMENTS, amount_tokens, "adjustment", reference, datetime.now(UTC),
        reason=reason,
    )  # fmt: skip
    return (await post(conn, [posting]))[0].transfer_id


def _lasting(terms: Terms, starts_at: datetime) -> Terms:
    """Return terms under which credits can be used at all. Raises: InvalidRequest."""
    if terms.expires_at is not None and terms.expires_at <= starts_at:
        raise InvalidRequest("expiresAt", "must be later than the credits' start")
    return terms


async def _scheduled(conn: AsyncConnection, account_id: int, source: str, reference: str) -> int | None:
    """Return the amount of the grant with this reference, if there is one."""
    found: int | None = (
        await conn.execute(
            select(grants_table.c.amount).where(
                grants_table.c.account_id == account_id,
                grants_table.c.source == source,
                grants_table.c.reference == reference,
            )
        )
    ).scalar_one_or_none()
    return found
