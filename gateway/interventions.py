"""What an operator does to accounts, by HTTP or at the command line. Each function is one step of one transaction.

Whatever changes something writes its line of the log with how it stood before and after; a repeat that changes
nothing writes none, so that the log tells what happened and not how often somebody asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import jobs as owners_jobs
from gateway import lookups
from gateway.errors import HoldOfJob
from gateway.operator_ports import (
    Adjust,
    GiveBack,
    GiveCredits,
    HoldFound,
    JobFound,
    Movement,
    Undo,
    UserFound,
)
from gateway.tables import jobs
from kit.errors import NotFound
from ledger import accounts, holds, refunds
from ledger.accounts import Purse
from ledger.actions import Action, Actor, record
from ledger.credits import adjust as correct_balance
from ledger.credits import credit
from ledger.errors import ReferenceConflict
from ledger.grants import PRIORITY, Terms
from ledger.tables import accounts as accounts_table
from ledger.tables import grants as grants_table
from ledger.tables import transfers, users
from ledger.transfers import find
from payments import reconciliations, vouchers
from payments.reconciliations import Reconciliation, Span
from payments.vouchers import NewVoucher, Voucher, VoucherTerms

HOUSE: Final = "promotion:operator"
"""What operators give away is booked here."""


async def set_suspended(
    conn: AsyncConnection, actor: Actor, user_id: str, suspended: bool, reason: str
) -> UserFound:
    """Refuse all of a user's keys, or accept them again, from the next request on. Raises: NotFound.

    The accounts' locks order this among their spends: none that begins after the commit is accepted.
    """
    await accounts.lock_by_user(conn, user_id)
    before = await lookups.user(conn, user_id)
    is_so = users.c.suspended_at.is_not(None)
    changed = await conn.execute(
        update(users)
        .where(users.c.id == user_id, is_so != suspended)
        .values(suspended_at=func.clock_timestamp() if suspended else None)
    )
    after = await lookups.user(conn, user_id)
    if changed.rowcount:
        what = "user.suspend" if suspended else "user.unsuspend"
        await _log_user(conn, actor, what, before, after, "suspended_at", reason)
    return after


async def set_frozen(
    conn: AsyncConnection, actor: Actor, user_id: str, frozen: bool, reason: str
) -> UserFound:
    """Stop all spending of a user's live account, or let it go on. A debt goes on to freeze. Raises: NotFound."""
    account_id = (await lookups.user(conn, user_id)).account_id
    await accounts.lock_one(conn, account_id)
    before = await lookups.user(conn, user_id)
    await (accounts.freeze if frozen else accounts.unfreeze)(conn, account_id)
    after = await lookups.user(conn, user_id)
    if after.frozen_at != before.frozen_at:
        what = "account.freeze" if frozen else "account.unfreeze"
        await _log_user(conn, actor, what, before, after, "frozen_at", reason)
    return after


async def give_credits(conn: AsyncConnection, actor: Actor, command: GiveCredits) -> Movement:
    """Grant credits, once for each reference.

    Raises: NotFound; ReferenceConflict when it was used for another amount, expiry or priority.
    """
    owner = await lookups.user(conn, command.user_id)
    terms = Terms(expires_at=command.expires_at, priority=command.priority)

    async def give() -> int:
        if not await _is_same_grant(conn, owner.account_id, command):
            raise ReferenceConflict(command.reference)
        return await credit(
            conn,
            owner.account_id,
            kind="grant",
            house=HOUSE,
            amount_tokens=command.amount_tokens,
            reference=command.reference,
            reason=command.reason,
            terms=terms,
        )

    return await _move(conn, actor, "credits.grant", owner.account_id, command.reason, give)


async def adjust(conn: AsyncConnection, actor: Actor, command: Adjust) -> Movement:
    """Put a balance right, up or down. Raises: NotFound, InsufficientCredits, ReferenceConflict."""
    owner = await lookups.user(conn, command.user_id)

    async def correct() -> int:
        return await correct_balance(
            conn,
            owner.account_id,
            amount_tokens=command.amount_tokens,
            reference=command.reference,
            reason=command.reason,
        )

    return await _move(conn, actor, "credits.adjust", owner.account_id, command.reason, correct)


async def refund(conn: AsyncConnection, actor: Actor, command: GiveBack) -> Movement:
    """Give back a charge, or a part of it. Raises: NotFound, NotReversible, ExceedsOriginal, ReferenceConflict."""
    account_id = await _account_of(conn, command.transfer_id)

    async def give_back() -> int:
        amount_tokens = command.amount_tokens
        if amount_tokens is None:
            # The whole of it: what an earlier refund of this reference gave, or else what is left.
            found = await find(conn, account_id, "refund", command.reference)
            amount_tokens = (
                found.amount if found else await refunds.left(conn, account_id, command.transfer_id)
            )
        return await refunds.refund(
            conn,
            account_id,
            command.transfer_id,
            amount_tokens=amount_tokens,
            reference=command.reference,
            reason=command.reason,
        )

    return await _move(conn, actor, "transfer.refund", account_id, command.reason, give_back)


async def reverse(conn: AsyncConnection, actor: Actor, command: Undo) -> Movement:
    """Undo a whole transfer. Raises: NotFound, NotReversible, ReferenceConflict."""
    account_id = await _account_of(conn, command.transfer_id)

    async def undo() -> int:
        return await refunds.reverse(
            conn, account_id, command.transfer_id, reference=command.reference, reason=command.reason
        )

    return await _move(conn, actor, "transfer.reverse", account_id, command.reason, undo)


async def void_hold(conn: AsyncConnection, actor: Actor, hold_id: str, reason: str) -> HoldFound:
    """Free a pending hold. Raises: NotFound, HoldResolved; HoldOfJob, since a job ends together with its hold."""
    before = await lookups.hold(conn, hold_id)
    if before.job_id is not None:
        raise HoldOfJob(before.job_id)
    await holds.release(conn, hold_id, "voided")
    await record(
        conn,
        actor,
        Action(
            "hold.void",
            hold_id,
            user_id=before.user_id,
            before={"state": "pending", "tokens": before.amount_tokens},
            after={"state": "voided"},
            reason=reason,
        ),
    )
    return await lookups.hold(conn, hold_id)


async def end_job(conn: AsyncConnection, actor: Actor, job_id: str, reason: str) -> JobFound:
    """End a queued job and free its hold, ask a running one to stop, leave an ended one. Raises: NotFound."""
    found = await lookups.job(conn, job_id)
    account_id = (await conn.execute(select(jobs.c.account_id).where(jobs.c.id == job_id))).scalar_one()
    await accounts.lock_one(conn, account_id)
    before = _job_state(await lookups.job(conn, job_id))
    await owners_jobs.cancel(conn, account_id, job_id)
    ended = await lookups.job(conn, job_id)
    after = _job_state(ended)
    if after != before:
        await record(
            conn,
            actor,
            Action("job.cancel", job_id, found.user_id, before=before, after=after, reason=reason),
        )
    return ended


async def make_vouchers(
    conn: AsyncConnection, actor: Actor, terms: VoucherTerms, count: int, reason: str | None
) -> list[NewVoucher]:
    """Make vouchers; each is a line of the log, without its code."""
    made = await vouchers.make(conn, terms, count)
    for new in made:
        after = {
            "label": terms.label,
            "tokens": terms.amount_tokens,
            "maxRedemptions": terms.max_redemptions,
            "expiresAt": terms.expires_at,
            "creditsDays": terms.credits_days,
        }
        await record(conn, actor, Action("voucher.make", new.voucher.id, after=after, reason=reason))
    return made


async def disable_voucher(conn: AsyncConnection, actor: Actor, voucher_id: str, reason: str) -> Voucher:
    """Close a voucher; what was redeemed stays. Raises: NotFound."""
    await vouchers.voucher(conn, voucher_id)
    was_open = await vouchers.disable(conn, voucher_id)
    after = await vouchers.voucher(conn, voucher_id)
    if was_open:
        stood = {"redemptions": after.redemptions}
        await record(conn, actor, Action("voucher.disable", voucher_id, before=stood, reason=reason))
    return after


async def _move(  # noqa: PLR0913, PLR0917  # one step of the four above
    conn: AsyncConnection,
    actor: Actor,
    what: str,
    account_id: int,
    reason: str,
    move: Callable[[], Awaitable[int]],
) -> Movement:
    """Run a movement of money under the account's lock and log it, unless it was a repeat: that moved nothing."""
    before = await accounts.lock_one(conn, account_id)
    transfer_id = await move()
    after = await accounts.lock_one(conn, account_id)
    row = (
        await conn.execute(
            select(transfers.c.amount, transfers.c.reference, accounts_table.c.user_id)
            .join(accounts_table, accounts_table.c.id == transfers.c.account_id)
            .where(transfers.c.id == transfer_id)
        )
    ).one()
    replayed = after.version == before.version
    if not replayed:
        moved = {"transferId": transfer_id, "tokens": row.amount, "reference": row.reference}
        await record(
            conn,
            actor,
            Action(what, str(transfer_id), row.user_id, _purse(before), _purse(after) | moved, reason),
        )
    return Movement(transfer_id, row.user_id, row.amount, after.free, replayed)


async def _is_same_grant(conn: AsyncConnection, account_id: int, command: GiveCredits) -> bool:
    """Tell whether the reference is new, or was used for a grant on the same terms (the amount is looked at later)."""
    row = (
        await conn.execute(
            select(grants_table.c.expires_at, grants_table.c.priority).where(
                grants_table.c.account_id == account_id,
                grants_table.c.source == "grant",
                grants_table.c.reference == command.reference,
            )
        )
    ).one_or_none()
    priority = PRIORITY["grant"] if command.priority is None else command.priority
    return row is None or (row.expires_at, row.priority) == (command.expires_at, priority)


async def _account_of(conn: AsyncConnection, transfer_id: int) -> int:
    """Return the user account that a transfer moved. Raises: NotFound."""
    account_id = (
        await conn.execute(
            select(transfers.c.account_id)
            .join(accounts_table, accounts_table.c.id == transfers.c.account_id)
            .where(transfers.c.id == transfer_id, accounts_table.c.kind == "user")
        )
    ).scalar_one_or_none()
    if account_id is None:
        raise NotFound("transfer of a user")
    return int(account_id)


async def order_reconciliation(  # noqa: PLR0913, PLR0917  # what is compared, and for whom
    conn: AsyncConnection, actor: Actor, span: Span, provider: str | None, repairs: bool, reason: str
) -> Reconciliation:
    """Write down that an operator's comparison of providers with the books begins."""
    begun = await reconciliations.begin(conn, span, repairs=repairs)
    facts = {
        "since": span.since.isoformat(),
        "until": span.until.isoformat(),
        "provider": provider,
        "repairs": repairs,
    }
    await record(conn, actor, Action("reconciliation.begin", begun.id, after=facts, reason=reason))
    return await reconciliations.by_id(conn, begun.id)


async def _log_user(  # noqa: PLR0913, PLR0917  # one step of the two above
    conn: AsyncConnection,
    actor: Actor,
    what: str,
    before: UserFound,
    after: UserFound,
    fact: str,
    reason: str,
) -> None:
    action = Action(
        what, after.id, after.id, {fact: getattr(before, fact)}, {fact: getattr(after, fact)}, reason
    )
    await record(conn, actor, action)


def _purse(purse: Purse) -> dict[str, Any]:
    return {"balanceTokens": purse.balance, "heldTokens": purse.held, "debtTokens": purse.debt}


def _job_state(job: JobFound) -> dict[str, Any]:
    return {"status": job.status, "cancelRequested": job.cancel_requested}
