"""What an operator gets back, and a caller with a voucher, as models for the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.answers import Amount, Answer, Credits, KeyShown, Ok, Tokens

NextCursor = Annotated[str | None, Field(description="Send it as `cursor` for the next page.")]


class OperatorUser(Answer):
    """A user with the account. `debt` is owed and stops spending, as `frozenAt` does."""

    id: str
    email: str
    created_at: datetime
    suspended_at: datetime | None
    frozen_at: datetime | None
    account_id: int
    free: Amount
    held: Amount
    debt: Amount


class OperatorUserShown(Ok):
    """A user as an operator left it."""

    user: OperatorUser


class OperatorUsers(Ok):
    """A page of users, newest first."""

    data: list[OperatorUser]
    next_cursor: NextCursor


class OperatorGrant(Answer):
    """Credits of one source that are not used up; `remaining` as last worked out."""

    id: int
    source: str
    reference: str
    reason: str | None
    amount: Amount
    remaining: Amount
    priority: int
    starts_at: datetime
    expires_at: datetime | None


class OperatorHold(Answer):
    """Money set aside. `jobId` is the job that it pays for, if it is a job's."""

    id: str
    user_id: str
    email: str
    tool: str
    reference: str
    amount: Amount
    state: str
    created_at: datetime
    expires_at: datetime | None
    job_id: str | None


class OperatorHoldShown(Ok):
    """A hold as it stands now."""

    hold: OperatorHold


class OperatorHolds(Ok):
    """A page of pending holds, newest first."""

    data: list[OperatorHold]
    next_cursor: NextCursor


class OperatorJob(Answer):
    """How a job goes and what it costs; not what its owner asked for."""

    id: str
    user_id: str
    email: str
    task: str
    status: str
    quoted: Amount
    charged: Amount | None
    cancel_requested: bool
    attempts: int
    runner: str | None
    error_code: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class OperatorJobShown(Ok):
    """A job as it stands now."""

    job: OperatorJob


class OperatorJobs(Ok):
    """A page of jobs, newest first."""

    data: list[OperatorJob]
    next_cursor: NextCursor


class OperatorTransfer(Answer):
    """One movement of an account; `transferId` names it in a refund or a reversal."""

    transfer_id: int
    kind: str
    tool: str
    reference: str
    reason: str | None
    amount: Amount
    balance_after: Amount
    reverses_id: int | None
    happened_at: datetime


class OperatorOverview(OperatorUserShown):
    """All that is needed to answer a user: the newest of each, and every grant that is not used up."""

    grants: list[OperatorGrant]
    keys: list[KeyShown]
    holds: list[OperatorHold]
    jobs: list[OperatorJob]
    transfers: list[OperatorTransfer]


class OperatorMovement(Ok):
    """A transfer, and what the account may spend now."""

    transfer_id: int
    user_id: str
    moved: Amount
    free: Amount


class VoucherShown(Answer):
    """A voucher; `hint` is how its code begins."""

    id: str
    hint: str
    label: str
    credits: Credits
    tokens: Tokens
    max_redemptions: int
    redemptions: int
    expires_at: datetime | None
    credits_days: int | None
    created_at: datetime
    disabled_at: datetime | None


class VoucherMade(VoucherShown):
    """A voucher with its code."""

    code: str


class VouchersMade(Ok):
    """The only answer that has these codes: only their hashes are kept."""

    vouchers: list[VoucherMade]


class Vouchers(Ok):
    """A page of vouchers, newest first."""

    data: list[VoucherShown]
    next_cursor: NextCursor


class VoucherClosed(Ok):
    """The voucher is redeemed no more."""

    voucher: VoucherShown


class VoucherRedeemed(Ok):
    """What the code gave. A repeat gets the same answer."""

    credits: Credits
    tokens: Tokens
    balance: Annotated[float, Field(description="Credits free to spend right after it.")]
    balance_tokens: Tokens
    credits_expire_at: datetime | None
    redeemed_at: datetime


class PriceVersionShown(Answer):
    """What a tool costs from a time on."""

    version: int
    tool: str
    tokens: int
    per_units: int
    since: datetime
    announced_at: datetime
    state: Annotated[
        Literal["announced", "current", "past"], Field(description="`current`: what quotes are made with.")
    ]


class PriceAnnounced(Ok):
    """The price is written and begins by itself."""

    price: PriceVersionShown


class PriceHistory(Ok):
    """Every announced price, newest first. A tool without one has the catalogue's."""

    prices: list[PriceVersionShown]


class ActionBy(Answer):
    """Whose hand it was. `operatorId` is null at the command line, where `name` is the system's user."""

    operator_id: str | None
    name: str


class ActionShown(Answer):
    """A line of the log. Money in `before` and `after` is in tokens."""

    id: str
    at: datetime
    by: ActionBy
    action: Annotated[str, Field(examples=["credits.grant"])]
    target: str
    user_id: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reason: str | None
    request_id: str | None


class Actions(Ok):
    """A page of the log, newest first."""

    data: list[ActionShown]
    next_cursor: NextCursor
