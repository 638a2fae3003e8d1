"""Credits that come back after a clawback: a dispute that was won, a refund that failed.

The reverse of `debts.clawback`: what was owed for the payment is forgiven, what was paid on that debt meanwhile comes
back, and so does what was taken. Each part returns to the grant that it was drawn from, so that every grant stands
as if the payment had never been questioned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import NotFound
from kit.queries import load_queries
from ledger import debts, grants
from ledger.accounts import Purse, ensure_house, lock_one
from ledger.errors import ExceedsOriginal, ReferenceConflict
from ledger.tables import grants as grants_table
from ledger.transfers import Posting, post

queries: Final = load_queries(Path(__file__).with_name("reinstatements.sql"))


@dataclass(frozen=True, slots=True)
class Reinstatement:
    """What came back. Units: tokens. `forgiven_tokens` was owed and is not any more."""

    returned_tokens: int
    forgiven_tokens: int


@dataclass(frozen=True, slots=True)
class _Back:
    """What every movement of one reinstatement shares."""

    reference: str
    event_at: datetime
    reason: str | None

    def posting(self, account_id: int, house: str, amount_tokens: int, reverses_id: int) -> Posting:
        return Posting(
            kind="reinstatement",
            account_id=account_id,
            house=house,
            amount_tokens=amount_tokens,
            tool="reinstatement",
            reference=f"{self.reference}/{reverses_id}",
            event_at=self.event_at,
            reason=self.reason,
            reverses_id=reverses_id,
        )


async def reinstate(  # noqa: PLR0913  # the facts of a transfer
    conn: AsyncConnection,
    account_id: int,
    *,
    purchase_id: str,
    amount_tokens: int,
    reference: str,
    event_at: datetime,
    reason: str | None = None,
) -> Reinstatement:
    """Give back what a clawback of a payment took or made the user owe, once for each reference.

    A grant that has expired meanwhile loses what comes back to it at once; a debt for another payment is paid first.
    Raises: NotFound for a payment without a grant here; ExceedsOriginal for more than was clawed back;
    ReferenceConflict when the reference was used for another amount.
    """
    purse = await lock_one(conn, account_id)
    owed_by = await ensure_house(conn, f"debt:{account_id}", purse.world)
    before = (
        await conn.execute(
            queries["reinstated"], {"account_id": account_id, "owed_by": owed_by, "prefix": f"{reference}/"}
        )
    ).one()
    if before.amount is not None:
        if before.amount != amount_tokens:
            raise ReferenceConflict(reference)
        return Reinstatement(before.returned, amount_tokens - before.returned)
    await grants.settle(conn, purse)  # also works the draws out
    grant = (
        await conn.execute(
            select(grants_table).where(
                grants_table.c.account_id == account_id, grants_table.c.purchase_id == purchase_id
            )
        )
    ).one_or_none()
    if grant is None:
        raise NotFound("grant of this payment")
    if amount_tokens > grant.clawed:
        raise ExceedsOriginal(amount_tokens, grant.clawed)
    await conn.execute(
        update(grants_table)
        .where(grants_table.c.id == grant.id)
        .values(clawed=grants_table.c.clawed - amount_tokens)
    )
    back = _Back(reference, event_at, reason)
    taken = (await conn.execute(queries["taken"], {"account_id": account_id, "grant_id": grant.id})).all()
    owed_tokens = min(amount_tokens, grant.clawed - sum(row.left_tokens for row in taken))
    forgiven = await _forgive(conn, purse, owed_by, grant.house, owed_tokens, back)
    for row, part in _parts(taken, amount_tokens - owed_tokens):
        await grants.post_drawn(
            conn, purse, back.posting(account_id, grant.house, part, row.id), {grant.id: -part}
        )
    await conn.execute(grants.queries["set_due"], {"account_id": account_id, "now": event_at})
    returned = amount_tokens - forgiven
    await debts.collect(conn, purse, returned, event_at)
    return Reinstatement(returned, forgiven)


async def _forgive(  # noqa: PLR0913, PLR0917  # one step of the above
    conn: AsyncConnection, purse: Purse, owed_by: int, house: str, amount_tokens: int, back: _Back
) -> int:
    """Take back a debt; what was paid on it comes back to the grants that paid. Returns what was still owed of it."""
    debts_made = await conn.execute(queries["unreturned"], {"account_id": owed_by, "kind": "debt"})
    await post(
        conn,
        [back.posting(owed_by, house, part, row.id) for row, part in _parts(debts_made.all(), amount_tokens)],
    )
    forgiven = min(amount_tokens, purse.debt)
    await debts.add_debt(conn, purse, -forgiven)
    payments = await conn.execute(
        queries["unreturned"], {"account_id": purse.account_id, "kind": "debt_payment"}
    )
    for row, part in _parts(payments.all(), amount_tokens - forgiven):
        drawn = await grants.give_back(conn, purse.account_id, row.id, part)
        posting = back.posting(purse.account_id, f"debt:{purse.account_id}", part, row.id)
        await grants.post_drawn(conn, purse, posting, drawn)
    return forgiven


def _parts(rows: Sequence[Row[Any]], amount_tokens: int) -> Iterator[tuple[Row[Any], int]]:
    """Spread an amount over what is left of transfers, in their order."""
    left = amount_tokens
    for row in rows:
        part = min(left, row.left_tokens)
        if not part:
            return
        left -= part
        yield row, part
    assert not left, "what came back was clawed back before"
