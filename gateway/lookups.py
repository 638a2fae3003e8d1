"""What an operator may look at, over all accounts. Reads alone; lists are newest first, by id."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, CompoundSelect, Select, and_, or_, select
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.operator_ports import (
    GrantFound,
    HoldFound,
    HoldQuery,
    JobFound,
    JobsQuery,
    UserFound,
    UserOverview,
    UserQuery,
)
from gateway.tables import jobs
from kit.errors import NotFound
from ledger import keys, statements
from ledger.tables import accounts, api_keys, grants, holds, transfers, users

SHOWN: Final = 20
"""Of each kind in an overview: what fits a screen; the lists have the rest."""


async def find_users(conn: AsyncConnection, query: UserQuery) -> list[UserFound]:
    """Return the users that fit a query."""
    found = _users().order_by(users.c.id.desc()).limit(query.limit)
    if query.before is not None:
        found = found.where(users.c.id < query.before)
    if query.term is not None:
        found = found.where(_fits(query.term.strip()))
    if query.reference is not None:
        named = select(transfers.c.account_id).where(transfers.c.reference == query.reference)
        found = found.where(_of_accounts(named))
    return [_user(row) for row in await conn.execute(found)]


async def user(conn: AsyncConnection, user_id: str) -> UserFound:
    """Return a user. Raises: NotFound."""
    row = (await conn.execute(_users().where(users.c.id == user_id))).one_or_none()
    if row is None:
        raise NotFound("user")
    return _user(row)


async def user_overview(conn: AsyncConnection, user_id: str) -> UserOverview:
    """Return all that an operator needs to answer a user. Raises: NotFound."""
    owner = await user(conn, user_id)
    unused = (
        select(grants)
        .where(grants.c.account_id == owner.account_id, grants.c.remaining > 0)
        .order_by(grants.c.priority, grants.c.expires_at.asc().nulls_last(), grants.c.id)
    )
    page = await statements.statement(conn, owner.account_id, limit=SHOWN)
    return UserOverview(
        user=owner,
        grants=[_grant(row) for row in await conn.execute(unused)],
        keys=await keys.list_keys(conn, user_id),
        holds=await pending_holds(conn, HoldQuery(SHOWN, user_id=user_id)),
        jobs=await find_jobs(conn, JobsQuery(SHOWN, user_id=user_id)),
        transfers=page.lines,
    )


async def pending_holds(conn: AsyncConnection, query: HoldQuery) -> list[HoldFound]:
    """Return a page of what is set aside now."""
    found = _holds().where(holds.c.state == "pending").order_by(holds.c.id.desc()).limit(query.limit)
    if query.before is not None:
        found = found.where(holds.c.id < query.before)
    if query.user_id is not None:
        found = found.where(accounts.c.user_id == query.user_id)
    return [_hold(row) for row in await conn.execute(found)]


async def hold(conn: AsyncConnection, hold_id: str) -> HoldFound:
    """Return a hold. Raises: NotFound."""
    row = (await conn.execute(_holds().where(holds.c.id == hold_id))).one_or_none()
    if row is None:
        raise NotFound("hold")
    return _hold(row)


async def find_jobs(conn: AsyncConnection, query: JobsQuery) -> list[JobFound]:
    """Return a page of jobs that fit a query."""
    found = _jobs().order_by(jobs.c.id.desc()).limit(query.limit)
    if query.before is not None:
        found = found.where(jobs.c.id < query.before)
    if query.status is not None:
        found = found.where(jobs.c.status == query.status)
    if query.task is not None:
        found = found.where(jobs.c.task == query.task)
    if query.user_id is not None:
        # By the account, which the index of jobs begins with.
        found = found.where(
            jobs.c.account_id.in_(select(accounts.c.id).where(accounts.c.user_id == query.user_id))
        )
    return [_job(row) for row in await conn.execute(found)]


async def job(conn: AsyncConnection, job_id: str) -> JobFound:
    """Return a job. Raises: NotFound."""
    row = (await conn.execute(_jobs().where(jobs.c.id == job_id))).one_or_none()
    if row is None:
        raise NotFound("job")
    return _job(row)


def _fits(term: str) -> ColumnElement[bool]:
    by_key = select(api_keys.c.user_id).where(
        or_(api_keys.c.prefix.startswith(term, autoescape=True), api_keys.c.id == term)
    )
    by_account = (
        select(jobs.c.account_id)
        .where(jobs.c.id == term)
        .union_all(
            select(holds.c.account_id).where(holds.c.id == term),
            select(grants.c.account_id).where(grants.c.purchase_id == term),
        )
    )
    return or_(
        users.c.id == term,
        users.c.email.contains(term.lower(), autoescape=True),
        users.c.id.in_(by_key),
        _of_accounts(by_account),
    )


def _of_accounts(account_ids: Select[Any] | CompoundSelect[Any]) -> ColumnElement[bool]:
    """Fit the users of these accounts, whichever world those are of."""
    owned = accounts.alias()
    return users.c.id.in_(select(owned.c.user_id).where(owned.c.id.in_(account_ids)))


def _users() -> Select[Any]:
    """Users with their live accounts."""
    return select(
        users,
        accounts.c.id.label("account_id"),
        accounts.c.balance,
        accounts.c.held,
        accounts.c.debt,
        accounts.c.frozen_at,
    ).join(accounts, and_(accounts.c.user_id == users.c.id, accounts.c.world == "live"))


def _holds() -> Select[Any]:
    return (
        select(holds, users.c.id.label("user_id"), users.c.email, jobs.c.id.label("job_id"))
        .join(accounts, accounts.c.id == holds.c.account_id)
        .join(users, users.c.id == accounts.c.user_id)
        .outerjoin(jobs, jobs.c.hold_id == holds.c.id)
    )


def _jobs() -> Select[Any]:
    return (
        select(jobs, users.c.id.label("user_id"), users.c.email)
        .join(accounts, accounts.c.id == jobs.c.account_id)
        .join(users, users.c.id == accounts.c.user_id)
    )


def _user(row: Row[Any]) -> UserFound:
    return UserFound(
        id=row.id,
        email=row.email,
        created_at=row.created_at,
        suspended_at=row.suspended_at,
        account_id=row.account_id,
        balance_tokens=row.balance,
        held_tokens=row.held,
        debt_tokens=row.debt,
        frozen_at=row.frozen_at,
    )


def _grant(row: Row[Any]) -> GrantFound:
    return GrantFound(
        id=row.id,
        source=row.source,
        reference=row.reference,
        reason=row.reason,
        amount_tokens=row.amount,
        remaining_tokens=row.remaining,
        priority=row.priority,
        starts_at=row.starts_at,
        expires_at=row.expires_at,
    )


def _hold(row: Row[Any]) -> HoldFound:
    return HoldFound(
        id=row.id,
        user_id=row.user_id,
        email=row.email,
        tool=row.tool,
        reference=row.reference,
        amount_tokens=row.amount,
        state=row.state,
        created_at=row.created_at,
        expires_at=row.expires_at,
        job_id=row.job_id,
    )


def _job(row: Row[Any]) -> JobFound:
    return JobFound(
        id=row.id,
        user_id=row.user_id,
        email=row.email,
        task=row.task,
        status=row.status,
        quoted_tokens=row.quoted,
        charged_tokens=row.charged,
        cancel_requested=row.cancel_requested_at is not None,
        attempts=row.attempts,
        runner=row.runner,
        error_code=row.error_code,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
