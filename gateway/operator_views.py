"""What an operator's answers say of each thing, from the values of the books."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from gateway.operator_ports import GrantFound, HoldFound, JobFound, Movement, UserFound, UserOverview
from gateway.prices import PriceVersion, current
from gateway.responses import amount
from gateway.routes import keys
from ledger.actions import LoggedAction
from ledger.statements import Line
from payments.vouchers import NewVoucher, Voucher


def user(found: UserFound) -> dict[str, Any]:
    """Return a user with the account."""
    return {
        "id": found.id,
        "email": found.email,
        "createdAt": found.created_at,
        "suspendedAt": found.suspended_at,
        "frozenAt": found.frozen_at,
        "accountId": found.account_id,
        "free": amount(found.free_tokens),
        "held": amount(found.held_tokens),
        "debt": amount(found.debt_tokens),
    }


def overview(found: UserOverview) -> dict[str, Any]:
    """Return all about a user."""
    return {
        "user": user(found.user),
        "grants": [_grant(item) for item in found.grants],
        "keys": [keys.shown(item) for item in found.keys],
        "holds": [hold(item) for item in found.holds],
        "jobs": [job(item) for item in found.jobs],
        "transfers": [_transfer(item) for item in found.transfers],
    }


def hold(found: HoldFound) -> dict[str, Any]:
    """Return a hold."""
    return {
        "id": found.id,
        "userId": found.user_id,
        "email": found.email,
        "tool": found.tool,
        "reference": found.reference,
        "amount": amount(found.amount_tokens),
        "state": found.state,
        "createdAt": found.created_at,
        "expiresAt": found.expires_at,
        "jobId": found.job_id,
    }


def job(found: JobFound) -> dict[str, Any]:
    """Return a job."""
    return {
        "id": found.id,
        "userId": found.user_id,
        "email": found.email,
        "task": found.task,
        "status": found.status,
        "quoted": amount(found.quoted_tokens),
        "charged": None if found.charged_tokens is None else amount(found.charged_tokens),
        "cancelRequested": found.cancel_requested,
        "attempts": found.attempts,
        "runner": found.runner,
        "errorCode": found.error_code,
        "createdAt": found.created_at,
        "startedAt": found.started_at,
        "finishedAt": found.finished_at,
    }


def movement(moved: Movement) -> dict[str, Any]:
    """Return a transfer that an operator caused."""
    return {
        "transferId": moved.transfer_id,
        "userId": moved.user_id,
        "moved": amount(moved.amount_tokens),
        "free": amount(moved.free_tokens),
    }


def voucher(found: Voucher) -> dict[str, Any]:
    """Return a voucher without its code."""
    terms = found.terms
    return {
        "id": found.id,
        "hint": found.hint,
        "label": terms.label,
        **amount(terms.amount_tokens),
        "maxRedemptions": terms.max_redemptions,
        "redemptions": found.redemptions,
        "expiresAt": terms.expires_at,
        "creditsDays": terms.credits_days,
        "createdAt": found.created_at,
        "disabledAt": found.disabled_at,
    }


def new_voucher(made: NewVoucher) -> dict[str, Any]:
    """Return a voucher as its one answer shows it."""
    return {**voucher(made.voucher), "code": made.code}


def prices(announced: list[PriceVersion], at: datetime) -> list[dict[str, Any]]:
    """Return announced prices with what each is at a time."""
    in_force = {price.version for price in current(announced, at)}

    def state(price: PriceVersion) -> str:
        if price.since > at:
            return "announced"
        return "current" if price.version in in_force else "past"

    return [
        {
            "version": price.version,
            "tool": price.tool,
            "tokens": price.tokens,
            "perUnits": price.per_units,
            "since": price.since,
            "announcedAt": price.announced_at,
            "state": state(price),
        }
        for price in announced
    ]


def action(line: LoggedAction) -> dict[str, Any]:
    """Return a line of the log."""
    return {
        "id": line.id,
        "at": line.at,
        "by": {"operatorId": line.operator_id, "name": line.name},
        "action": line.action,
        "target": line.target,
        "userId": line.user_id,
        "before": line.before,
        "after": line.after,
        "reason": line.reason,
        "requestId": line.request_id,
    }


def _grant(found: GrantFound) -> dict[str, Any]:
    return {
        "id": found.id,
        "source": found.source,
        "reference": found.reference,
        "reason": found.reason,
        "amount": amount(found.amount_tokens),
        "remaining": amount(found.remaining_tokens),
        "priority": found.priority,
        "startsAt": found.starts_at,
        "expiresAt": found.expires_at,
    }


def _transfer(line: Line) -> dict[str, Any]:
    return {
        "transferId": line.transfer_id,
        "kind": line.kind,
        "tool": line.tool,
        "reference": line.reference,
        "reason": line.reason,
        "amount": amount(line.amount_tokens),
        "balanceAfter": amount(line.balance_after_tokens),
        "reversesId": line.reverses_id,
        "happenedAt": line.happened_at,
    }
