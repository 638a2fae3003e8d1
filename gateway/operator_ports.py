"""What an operator may ask of the books and do to them, as a Protocol and the values that cross it.

Every method takes `by`: the hash of the operator's key, checked in the method's own transaction, and the request's id
for the log. Whatever changes something writes one line of the log (`ledger.actions`) in the same transaction; a repeat
that changes nothing writes none.

Units: `*_tokens` tokens. Times are aware datetimes in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gateway.prices import NewPrice, PriceVersion
from ledger.actions import LoggedAction
from ledger.keys import ApiKey, Credential
from ledger.statements import Line
from payments.reconciliations import Reconciliation, Span
from payments.vouchers import NewVoucher, Redemption, Voucher, VoucherTerms


@dataclass(frozen=True, slots=True)
class Share:
    """An account's part in the models. `weight`: its turns beside one of everybody else's.

    `max_running`: how many of its jobs run at the same time at most; None: as for everybody.
    """

    weight: int = 1
    max_running: int | None = None


@dataclass(frozen=True, slots=True)
class Signed:
    """Who asks: the SHA-256 of an operator's key, and the request that it came with."""

    credential: bytes
    request_id: str | None


@dataclass(frozen=True, slots=True)
class UserQuery:
    """A page of users, newest first. Without terms: all of them.

    `term`: part of an e-mail, how a key begins, or the id of a user, key, job, hold or purchase. `reference`: of any
    transfer; it is looked for in all of them, which takes seconds in large books.
    """

    term: str | None
    reference: str | None
    limit: int
    before: str | None = None


@dataclass(frozen=True, slots=True)
class UserFound:
    """A user with the account. `debt_tokens` is owed; `frozen_at`: an operator stopped all spending."""

    id: str
    email: str
    created_at: datetime
    suspended_at: datetime | None
    account_id: int
    balance_tokens: int
    held_tokens: int
    debt_tokens: int
    frozen_at: datetime | None

    @property
    def free_tokens(self) -> int:
        """What is neither spent nor held."""
        return self.balance_tokens - self.held_tokens


@dataclass(frozen=True, slots=True)
class GrantFound:
    """Credits of one source that are not used up. `remaining_tokens` as last worked out."""

    id: int
    source: str
    reference: str
    reason: str | None
    amount_tokens: int
    remaining_tokens: int
    priority: int
    starts_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class HoldQuery:
    """A page of pending holds, newest first: of everyone, or of one user."""

    limit: int
    before: str | None = None
    user_id: str | None = None


@dataclass(frozen=True, slots=True)
class HoldFound:
    """A hold; `job_id` is the job that it pays for, if it is a job's."""

    id: str
    user_id: str
    email: str
    tool: str
    reference: str
    amount_tokens: int
    state: str
    created_at: datetime
    expires_at: datetime | None
    job_id: str | None


@dataclass(frozen=True, slots=True)
class JobsQuery:
    """A page of jobs, newest first, of every account: those that fit all that is given."""

    limit: int
    before: str | None = None
    status: str | None = None
    task: str | None = None
    user_id: str | None = None


@dataclass(frozen=True, slots=True)
class JobFound:
    """A job as an operator sees it: how it goes and what it costs, not what its owner asked for."""

    id: str
    user_id: str
    email: str
    task: str
    status: str
    quoted_tokens: int
    charged_tokens: int | None
    cancel_requested: bool
    attempts: int
    runner: str | None
    error_code: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class UserOverview:
    """All that an operator needs to answer a user: the newest of each, and every grant that is not used up."""

    user: UserFound
    grants: list[GrantFound]
    keys: list[ApiKey]
    holds: list[HoldFound]
    jobs: list[JobFound]
    transfers: list[Line]


@dataclass(frozen=True, slots=True)
class GiveCredits:
    """Credits for a user, once for each reference. `priority`: lower burns first; None: that of gifts."""

    user_id: str
    amount_tokens: int
    reference: str
    reason: str
    expires_at: datetime | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class Adjust:
    """A correction of a user's balance, up or down, once for each reference."""

    user_id: str
    amount_tokens: int
    reference: str
    reason: str


@dataclass(frozen=True, slots=True)
class GiveBack:
    """A refund of a charge, once for each reference; None: all that is left of it."""

    transfer_id: int
    amount_tokens: int | None
    reference: str
    reason: str


@dataclass(frozen=True, slots=True)
class Undo:
    """The reversal of a whole transfer, once."""

    transfer_id: int
    reference: str
    reason: str


@dataclass(frozen=True, slots=True)
class Movement:
    """A transfer that an operator caused, and how the account stands now. A replay moved nothing."""

    transfer_id: int
    user_id: str
    amount_tokens: int
    free_tokens: int
    replayed: bool


class Desk(Protocol):
    """An operator's side of the books. Every method with `by` raises AuthRequired for what is no operator's key."""

    async def find_users(self, by: Signed, query: UserQuery) -> list[UserFound]:
        """Return users that fit."""

    async def user_overview(self, by: Signed, user_id: str) -> UserOverview:
        """Raises: NotFound."""

    async def set_suspended(self, by: Signed, user_id: str, suspended: bool, reason: str) -> UserFound:
        """Refuse all of a user's keys from the next request on, or accept them again. Raises: NotFound."""

    async def set_frozen(self, by: Signed, user_id: str, frozen: bool, reason: str) -> UserFound:
        """Stop all spending of a user's account, or let it go on. Raises: NotFound."""

    async def set_share(self, by: Signed, user_id: str, share: Share, reason: str) -> Share:
        """Set an account's share of the models. Raises: NotFound."""

    async def give_credits(self, by: Signed, command: GiveCredits) -> Movement:
        """Raises: NotFound, ReferenceConflict."""

    async def adjust(self, by: Signed, command: Adjust) -> Movement:
        """Raises: NotFound, InsufficientCredits, ReferenceConflict."""

    async def refund(self, by: Signed, command: GiveBack) -> Movement:
        """Raises: NotFound, NotReversible, ExceedsOriginal, ReferenceConflict."""

    async def reverse(self, by: Signed, command: Undo) -> Movement:
        """Raises: NotFound, NotReversible, ReferenceConflict."""

    async def pending_holds(self, by: Signed, query: HoldQuery) -> list[HoldFound]:
        """Return what is set aside now."""

    async def void_hold(self, by: Signed, hold_id: str, reason: str) -> HoldFound:
        """Free a pending hold. Raises: NotFound, HoldResolved, HoldOfJob."""

    async def find_jobs(self, by: Signed, query: JobsQuery) -> list[JobFound]:
        """Return jobs that fit."""

    async def end_job(self, by: Signed, job_id: str, reason: str) -> JobFound:
        """Cancel anybody's job as its owner could. Raises: NotFound."""

    async def make_vouchers(
        self, by: Signed, terms: VoucherTerms, count: int, reason: str | None
    ) -> list[NewVoucher]:
        """Make codes; only this answer has them."""

    async def vouchers(self, by: Signed, limit: int, before: str | None) -> list[Voucher]:
        """Return vouchers, newest first."""

    async def disable_voucher(self, by: Signed, voucher_id: str, reason: str) -> Voucher:
        """Close a voucher; what was redeemed stays. Raises: NotFound."""

    async def set_price(self, by: Signed, new: NewPrice) -> PriceVersion:
        """Announce a price. Raises: InvalidRequest for too short a notice."""

    async def price_history(self, by: Signed) -> list[PriceVersion]:
        """Return every announced price, newest first."""

    async def actions(
        self, by: Signed, limit: int, before: str | None, user_id: str | None
    ) -> list[LoggedAction]:
        """Return the log, newest first."""

    async def reconciliations(self, by: Signed, limit: int, before: str | None) -> list[Reconciliation]:
        """Return comparisons of providers with the books, newest first."""

    async def reconciliation(self, by: Signed, reconciliation_id: str) -> Reconciliation:
        """Raises: NotFound."""

    async def order_reconciliation(
        self, by: Signed, span: Span, provider: str | None, repairs: bool, reason: str
    ) -> Reconciliation:
        """Write down that a comparison begins; whoever ordered it carries it out."""

    async def prices(self) -> list[PriceVersion]:
        """Return every announced price, for the quotes of an ingress replica."""

    async def redeem_voucher(self, credential: Credential, code: str) -> Redemption:
        """Grant a code's credits to a caller's account, once.

        Raises: AuthRequired, Forbidden; NotFound for no code of ours; VoucherClosed.
        """
