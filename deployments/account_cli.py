"""Users and their money at the command line, on the books of this machine; each change is a line of the log."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import Annotated

import typer
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.command_line import (
    AsJson,
    Limit,
    Moment,
    Reason,
    Reference,
    User,
    by_hand,
    moment,
    on_books,
    user_id_of,
    user_of_email,
)
from deployments.listing import show
from gateway import interventions, lookups
from gateway.catalog import TOKENS_PER_CREDIT
from gateway.operator_ports import (
    GiveBack,
    GiveCredits,
    HoldFound,
    HoldQuery,
    JobFound,
    JobsQuery,
    Share,
    UserFound,
    UserOverview,
    UserQuery,
)
from gateway.responses import credits_text
from gateway.shares import MAX_RUNNING, MAX_WEIGHT, set_share, share_of
from kit.errors import InvalidRequest
from kit.ids import new_id

account_app = typer.Typer(no_args_is_help=True, help="Users and their accounts: find, show, suspend, freeze.")
console = Console(highlight=False)


# -- users ---------------------------------------------------------------------------------------------------------


@account_app.command("find")
def find_accounts(
    term: Annotated[
        str,
        typer.Argument(
            help="Part of an e-mail, how a key begins, or an id (user, key, job, hold, purchase)."
        ),
    ] = "",
    reference: Annotated[str, typer.Option(help="A transfer's reference.")] = "",
    limit: Limit = 50,
) -> None:
    """Find users, newest first."""
    found = on_books(lookups.find_users, UserQuery(term or None, reference or None, limit))
    show(
        console,
        ("id", "email", "free credits", "held", "owed", "state"),
        [
            (
                u.id,
                u.email,
                credits_text(u.free_tokens),
                credits_text(u.held_tokens),
                credits_text(u.debt_tokens),
                state(u),
            )
            for u in found
        ],
    )


def state(user: UserFound) -> str:
    """Say what a user may not do."""
    told = [("suspended", user.suspended_at), ("frozen", user.frozen_at), ("owes", user.debt_tokens or None)]
    return ", ".join(word for word, holds in told if holds is not None) or "ok"


@account_app.command("show")
def show_account(user: User, as_json: AsJson = False) -> None:
    """Show all about a user: money, grants, keys, holds, jobs, transfers."""

    async def overview(conn: AsyncConnection) -> UserOverview:
        return await lookups.user_overview(conn, await user_id_of(conn, user))

    found = on_books(overview)
    if as_json:
        print(json.dumps(asdict(found), default=str, indent=2))
        return
    owner = found.user
    show(
        console,
        ("id", "email", "free credits", "held", "owed", "state", "since"),
        [
            (
                *(owner.id, owner.email, credits_text(owner.free_tokens), credits_text(owner.held_tokens)),
                *(credits_text(owner.debt_tokens), state(owner), owner.created_at),
            )
        ],
    )
    show(
        console,
        ("grant", "source", "reference", "credits left", "of", "expires"),
        [
            (
                g.id,
                g.source,
                g.reference,
                credits_text(g.remaining_tokens),
                credits_text(g.amount_tokens),
                g.expires_at,
            )
            for g in found.grants
        ],
    )
    show(
        console,
        ("key", "label", "created", "revoked"),
        [(k.prefix, k.label, k.created_at, k.revoked_at) for k in found.keys],
    )
    show(
        console,
        ("hold", "tool", "credits", "created", "job"),
        [(h.id, h.tool, credits_text(h.amount_tokens), h.created_at, h.job_id) for h in found.holds],
    )
    show(
        console,
        ("job", "task", "status", "created", "error"),
        [(j.id, j.task, j.status, j.created_at, j.error_code) for j in found.jobs],
    )
    show(
        console,
        ("transfer", "kind", "tool", "reference", "credits", "balance after", "written"),
        [
            (
                *(t.transfer_id, t.kind, t.tool, t.reference, credits_text(t.amount_tokens)),
                *(credits_text(t.balance_after_tokens), t.written_at),
            )
            for t in found.transfers
        ],
    )


def _set(change: Callable[..., Awaitable[UserFound]], user: str, to: bool, reason: str) -> None:
    async def work(conn: AsyncConnection) -> UserFound:
        return await change(conn, by_hand(), await user_id_of(conn, user), to, reason)

    found = on_books(work)
    console.print(f"{found.email}: {state(found)}", markup=False, soft_wrap=True)


@account_app.command()
def suspend(user: User, reason: Reason) -> None:
    """Refuse every key of a user, from the next request on."""
    _set(interventions.set_suspended, user, True, reason)  # noqa: FBT003


@account_app.command()
def unsuspend(user: User, reason: Reason) -> None:
    """Accept a suspended user's keys again."""
    _set(interventions.set_suspended, user, False, reason)  # noqa: FBT003


@account_app.command()
def freeze(user: User, reason: Reason) -> None:
    """Stop all spending of a user; the keys still read."""
    _set(interventions.set_frozen, user, True, reason)  # noqa: FBT003


@account_app.command()
def unfreeze(user: User, reason: Reason) -> None:
    """Let a frozen user spend again."""
    _set(interventions.set_frozen, user, False, reason)  # noqa: FBT003


@account_app.command()
def shares(
    user: User,
    weight: Annotated[
        int | None, typer.Option(min=1, max=MAX_WEIGHT, help="Turns beside one of everybody else's.")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=0, max=MAX_RUNNING, help="Jobs that run at the same time at most; 0: as for everybody."
        ),
    ] = None,
    reason: Reason = "set by the operator",
) -> None:
    """Show a user's share of the models, or set what is given of it."""

    async def work(conn: AsyncConnection) -> Share:
        user_id = await user_id_of(conn, user)
        share = await share_of(conn, user_id)
        if weight is not None:
            share = replace(share, weight=weight)
        if concurrency is not None:
            share = replace(share, max_running=concurrency or None)
        return await set_share(conn, by_hand(), user_id, share, reason)

    share = on_books(work)
    bound = "as for everybody" if share.max_running is None else share.max_running
    console.print(f"{user}: weight {share.weight}, concurrency {bound}", markup=False, soft_wrap=True)


# -- money ---------------------------------------------------------------------------------------------------------


def grant(
    email: Annotated[str, typer.Argument(help="The user's e-mail address.", show_default=False)],
    amount: Annotated[
        int, typer.Argument(min=1, max=1_000_000, metavar="CREDITS", help="Whole credits to give.")
    ],
    reason: Annotated[str, typer.Option(help="Why; kept in the books.")] = "granted by the operator",
    reference: Reference = "",
    expires: Moment = "",
) -> None:
    """Give credits to a user, opening the account if there is none. They are booked against promotion."""
    name = reference or new_id("req")
    until = moment("expires", expires)

    async def give(conn: AsyncConnection) -> int:
        user_id = await user_of_email(conn, email)
        command = GiveCredits(user_id, amount * TOKENS_PER_CREDIT, name, reason, until)
        return (await interventions.give_credits(conn, by_hand(), command)).free_tokens

    free = on_books(give)
    console.print(f"{email} has {credits_text(free)} credits free to spend (reference {name})")


def refund(
    transfer: Annotated[int, typer.Argument(min=1, help="The charge, as `farebox account show` names it.")],
    reason: Reason,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="A part of it; without it, all that is left.")
    ] = None,
    reference: Reference = "",
) -> None:
    """Give a charge back to the grants that it was drawn from."""
    name = reference or new_id("req")
    moved = on_books(interventions.refund, by_hand(), GiveBack(transfer, tokens, name, reason))
    console.print(
        f"{moved.user_id} got {credits_text(moved.amount_tokens)} credits back and has"
        f" {credits_text(moved.free_tokens)} free (transfer {moved.transfer_id}, reference {name})",
        soft_wrap=True,
    )


def holds(
    user: Annotated[str, typer.Option(help="Only this user's: e-mail or id.")] = "",
    void: Annotated[
        str, typer.Option(metavar="HOLD", help="Set this hold's money free; wants --reason.")
    ] = "",
    reason: Reason = "",
    limit: Limit = 50,
) -> None:
    """List what is set aside now, or void one hold."""
    if void:
        if not reason:
            raise InvalidRequest("reason", "is required")
        freed = on_books(interventions.void_hold, by_hand(), void, reason)
        console.print(f"{freed.id} is voided: {credits_text(freed.amount_tokens)} credits are free again")
        return

    async def pending(conn: AsyncConnection) -> list[HoldFound]:
        whose = await user_id_of(conn, user) if user else None
        return await lookups.pending_holds(conn, HoldQuery(limit, user_id=whose))

    show(
        console,
        ("id", "email", "tool", "reference", "credits", "created", "expires", "job"),
        [
            (
                h.id,
                h.email,
                h.tool,
                h.reference,
                credits_text(h.amount_tokens),
                h.created_at,
                h.expires_at,
                h.job_id,
            )
            for h in on_books(pending)
        ],
    )


def jobs(
    user: Annotated[str, typer.Option(help="Only this user's: e-mail or id.")] = "",
    status: Annotated[str, typer.Option(help="Only in this status.")] = "",
    cancel: Annotated[str, typer.Option(metavar="JOB", help="Cancel this job; wants --reason.")] = "",
    reason: Reason = "",
    limit: Limit = 50,
) -> None:
    """List jobs of all accounts, newest first, or cancel one."""
    if cancel:
        if not reason:
            raise InvalidRequest("reason", "is required")
        ended = on_books(interventions.end_job, by_hand(), cancel, reason)
        asked = ", asked to stop" if ended.cancel_requested and ended.finished_at is None else ""
        console.print(f"{ended.id} is {ended.status}{asked}")
        return

    async def page(conn: AsyncConnection) -> list[JobFound]:
        whose = await user_id_of(conn, user) if user else None
        return await lookups.find_jobs(conn, JobsQuery(limit, status=status or None, user_id=whose))

    show(
        console,
        ("id", "email", "task", "status", "attempts", "created", "finished", "error"),
        [
            (j.id, j.email, j.task, j.status, j.attempts, j.created_at, j.finished_at, j.error_code)
            for j in on_books(page)
        ],
    )
