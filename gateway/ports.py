"""What the HTTP surface needs from the rest of the house, as Protocols and the values that cross them.

`Ledger` is the books: each method is one use case and one transaction, wherever it runs (in this process in tests,
in the Ledger deployment behind a handle otherwise). Values are plain dataclasses, so that they can be pickled.

Units: `*_tokens` tokens, `*_minor` the currency's minor unit, `*_s` seconds. Times are aware datetimes in UTC.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Literal, Protocol

from gateway.conversations import MeteredTurn, TurnBooks
from gateway.metering import Meters
from gateway.operator_ports import Desk
from gateway.quotas import Quota, Take
from gateway.stages import Stage
from gateway.tool_holds import Held, PlaceHold, SpendHeld
from gateway.usage import EVERY_DIMENSION, Dimension, Usage
from gateway.webhook_ports import JobEvent, Webhooks
from kit.errors import AppError
from ledger.accounts import World
from ledger.audit import TrialBalance
from ledger.balances import Balance
from ledger.keys import ApiKey, Caller, Credential, Limits, NewApiKey
from ledger.refills import Refilled
from ledger.sessions import Session
from ledger.spends import Allowance, Check, Spend, Spent
from ledger.statements import Cost, Statement
from payments.cards import TopupBooks
from payments.customers import Customer
from payments.purchases import Claim, OpenPurchase, PaidSession, Purchase, UnpaidSession
from payments.reconciler import ReconciliationBooks
from payments.referrals import Application, Standing
from payments.webhooks import ProviderEvent
from payments.x402_facilitator import Settlement
from payments.x402_payments import Bill, Outcome, Settling

JobStatus = Literal["queued", "running", "succeeded", "failed", "canceled", "expired"]
FINAL_STATUSES: frozenset[JobStatus] = frozenset({"succeeded", "failed", "canceled", "expired"})


@dataclass(frozen=True, slots=True)
class SubmitJob:
    """A quoted job to be written together with its hold."""

    credential: Credential
    job_id: str
    task: str
    tool: str
    application: str
    input: dict[str, Any]
    units_milli: int
    cost_tokens: int
    price_version: int
    idempotency_key: str | None
    fingerprint: str
    """SHA-256 of what the caller meant: task, input and ceiling, in canonical form."""
    priority: int = 0
    """Among the account's own jobs: 1 goes first, -1 last."""
    deadline: datetime | None = None
    world: World = "live"
    """Whose jobs `application` does; a key of another world is refused."""
    webhook_url: str | None = None
    """Where its end is told, beside the account's endpoints; `webhook_events`: which ends, None: all."""
    webhook_events: tuple[JobEvent, ...] | None = None
    refusal: AppError | None = None
    """Why it cannot be done now. A repeat of what was submitted before is answered all the same."""


@dataclass(frozen=True, slots=True)
class JobReceipt:
    """The first answer to a submit: a replay carries the same values."""

    job_id: str
    task: str
    cost_tokens: int
    balance_after_tokens: int
    created_at: datetime
    replayed: bool


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An upload or an output, with where its bytes lie."""

    id: str
    name: str
    storage_key: str
    content_type: str
    size_bytes: int
    sha256: str
    created_at: datetime
    job_id: str | None
    facts: dict[str, Any] = field(default_factory=dict)
    preview_key: str | None = None
    """Where a small WebP of it lies: a picture's thumbnail, a film's poster."""
    kept_until: datetime | None = None
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its owner may see it."""

    id: str
    task: str
    tool: str
    status: JobStatus
    input: dict[str, Any]
    quoted_tokens: int
    charged_tokens: int | None
    progress_percent: int
    queue_position: int | None
    cancel_requested: bool
    output: list[StoredFile]
    error_code: str | None
    error_message: str | None
    metrics: dict[str, Any]
    attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    stages: list[Stage] = field(default_factory=list)
    """In their order; none where one model does all the work."""


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """What a receipt states of a job that has ended, however. Nothing of it changes any more.

    `units_milli` is what was quoted, in thousandths of the tool's unit (None: a job from before it was kept).
    `transfer_id` names the charge in the statement; None: nothing was charged. `outputs` has deleted files too.
    """

    id: str
    task: str
    tool: str
    status: JobStatus
    units_milli: int | None
    price_version: int
    quoted_tokens: int
    charged_tokens: int
    transfer_id: int | None
    outputs: list[StoredFile]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class JobQuery:
    """A page of one's jobs, newest first; `before` is the id that the last page ended with."""

    credential: Credential
    limit: int
    before: str | None
    status: JobStatus | None


@dataclass(frozen=True, slots=True)
class StatementQuery:
    """A page of one's statement, newest first; `before` is the last page's `next_before`.

    `since` (included) and `until` (not included) bound the time of writing.
    """

    credential: Credential
    limit: int
    before: int | None
    since: datetime | None
    until: datetime | None


@dataclass(frozen=True, slots=True)
class CreateKey:
    """A further key for the caller's account, or for the user's account in another world."""

    credential: Credential
    label: str
    limits: Limits
    idempotency_key: str | None
    fingerprint: str
    world: World | None = None


@dataclass(frozen=True, slots=True)
class RotateKey:
    """A new secret for the one key that begins so; the old one works on for `overlap_s` seconds."""

    credential: Credential
    prefix: str
    overlap_s: int
    idempotency_key: str | None
    fingerprint: str


@dataclass(frozen=True, slots=True)
class NewFile:
    """An upload whose bytes are stored already."""

    credential: Credential
    id: str
    name: str
    storage_key: str
    content_type: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class VerifySignIn:
    """A code to redeem for the session whose token hashes to `session`; `replaces` is the browser's older one."""

    email: str
    code: str
    session: bytes
    replaces: bytes | None


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Whose session was opened; `opened` when the sign-in made the user."""

    user_id: str
    email: str
    expires_at: datetime
    opened: bool


@dataclass(frozen=True, slots=True)
class DeleteAccount:
    """A wish to be forgotten. `email` was typed again; `forfeit` gives up what is left of the balance."""

    credential: Credential
    email: str
    forfeit: bool


class Ledger(Desk, Webhooks, TurnBooks, TopupBooks, Meters, ReconciliationBooks, Protocol):
    """The books. Every method raises `kit.errors.Unavailable` while Postgres is away.

    Then nothing was written, but for one case: the connection was lost while it committed, and nobody knows. The same
    call with the same reference or idempotency key answers what became of it and takes effect once.

    The first call that a limited request makes counts it, and raises `RateLimited` in place of doing anything.
    """

    async def ping(self) -> None:
        """Return when money can move."""

    async def take(self, take: Take) -> Quota:
        """Count a request, by one count for all replicas. Raises: RateLimited."""

    async def whoami(self, credential: Credential, need: str) -> Caller:
        """Raises: AuthRequired; Forbidden when suspended, elsewhere, or without the scope (`ledger.scopes`)."""

    async def balance(self, credential: Credential) -> Balance:
        """Raises: AuthRequired, Forbidden."""

    async def balance_at(self, credential: Credential, at: datetime) -> int:
        """Return the balance in tokens after the last entry written by that time."""

    async def statement(self, query: StatementQuery) -> Statement:
        """Return a page of entries, newest first. Raises: InvalidRequest for a limit out of bounds."""

    async def usage(
        self,
        credential: Credential,
        since: date,
        until: date,
        by: AbstractSet[Dimension] = EVERY_DIMENSION,
    ) -> list[Usage]:
        """Return what was used on UTC days (both ends included), apart by the given dimensions.

        Raises: InvalidRequest for no days, more than a year's, or too many rows.
        """

    async def cost(self, credential: Credential, reference: str, tool: str | None) -> Cost:
        """Return what a reference or a job (by its id) cost. Raises: NotFound, also for another account's."""

    async def turn(self, credential: Credential, turn_id: str) -> MeteredTurn | None:
        """Return what one of the caller's turns took of its model; None for an id that is none, or another's."""

    async def submit_job(self, command: SubmitJob) -> JobReceipt:
        """Write the job and its hold, or neither.

        Raises: AuthRequired; Forbidden, also for a key of another world than the work is for; InsufficientCredits,
        IdempotencyKeyReused.
        """

    async def spend(self, spend: Spend) -> Spent:
        """Charge for a tool, once for its reference.

        Raises: AuthRequired, Forbidden, AccountFrozen, InsufficientCredits, KeyCapReached, ReferenceConflict.
        """

    async def check(self, check: Check) -> Allowance:
        """Tell whether a spend would be accepted now. Raises: AuthRequired, Forbidden."""

    async def hold_tool(self, command: PlaceHold) -> Held | Allowance:
        """Set the cost of work aside; Allowance: it may not be spent now, and nothing was held.

        Raises: AuthRequired, Forbidden, IdempotencyKeyReused.
        """

    async def spend_held(self, command: SpendHeld) -> Spent:
        """Charge for a tool out of a hold, once for its reference, and free the rest of the hold.

        Raises: AuthRequired, Forbidden, ReferenceConflict, NotFound, InvalidRequest, HoldResolved, CostExceedsHold.
        """

    async def job(self, credential: Credential, job_id: str) -> Job:
        """Raises: NotFound, also for another account's job."""

    async def finished_job(self, credential: Credential, job_id: str) -> FinishedJob:
        """Return what a job's receipt states. Raises: NotFound, JobNotFinished."""

    async def jobs(self, query: JobQuery) -> list[Job]:
        """Return up to `limit` jobs, newest first."""

    async def cancel_job(self, credential: Credential, job_id: str) -> Job:
        """End a queued job and void its hold; ask a running one to stop; leave an ended one as it is."""

    async def keys(self, credential: Credential) -> list[ApiKey]:
        """Return the keys that the caller may see, newest first, revoked ones too.

        A full key sees the account's keys; a limited one itself and its descendants; a test key no live ones.
        """

    async def create_key(self, command: CreateKey) -> NewApiKey:
        """Mint a key: a child of a limited caller's. Its secret is in this answer alone.

        A test key comes with test credits. Raises: Forbidden for more than the caller's key may; IdempotencyKeyReused.
        """

    async def refill(self, credential: Credential) -> Refilled:
        """Fill the caller's test account up. Raises: Forbidden for a live key."""

    async def rotate_key(self, command: RotateKey) -> NewApiKey:
        """Give a key a new secret with the same settings. Raises: NotFound, AmbiguousPrefix, IdempotencyKeyReused."""

    async def revoke_key(self, credential: Credential, prefix: str) -> ApiKey:
        """Revoke the one key that begins so, with its descendants. Raises: NotFound, AmbiguousPrefix."""

    async def start_sign_in(self, email: str, network: str | None) -> None:
        """Write a sign-in code and its mail; the answer is the same for known and unknown. Raises: RateLimited."""

    async def verify_sign_in(self, command: VerifySignIn) -> SignedIn:
        """Redeem a code for a session, once. Raises: WrongCode, Forbidden (suspended)."""

    async def sign_out(self, credential: Credential) -> None:
        """End this session; one that is over stays so."""

    async def sign_out_everywhere(self, credential: Credential) -> int:
        """End every session of the caller; returns how many were open."""

    async def sessions(self, credential: Credential) -> list[Session]:
        """Return the caller's sessions, newest first, ended ones too."""

    async def purchases(self, credential: Credential, limit: int, before: str | None) -> list[Purchase]:
        """Return up to `limit` of the caller's purchases, newest first."""

    async def delete_account(self, command: DeleteAccount) -> list[str]:
        """Forget the caller; the books stay, without a name. Returns the storage keys of the bytes to be deleted.

        Raises: InvalidRequest (another e-mail), AccountInUse, BalanceLeft, AccountFrozen - with nothing written.
        """

    async def add_file(self, command: NewFile) -> StoredFile:
        """Record an upload. Raises: TooManyFiles."""

    async def files(self, credential: Credential, limit: int, before: str | None) -> list[StoredFile]:
        """Return up to `limit` files, newest first."""

    async def file(self, credential: Credential, file_id: str) -> StoredFile:
        """Raises: NotFound."""

    async def delete_file(self, credential: Credential, file_id: str) -> StoredFile:
        """Forget a file; its bytes may then be deleted. Raises: NotFound."""

    async def signed_file(self, file_id: str) -> StoredFile:
        """Return a file for a caller who holds a signed URL. Raises: NotFound."""

    async def open_purchase(self, command: OpenPurchase) -> Purchase:
        """Write down what is about to be sold. Raises: AuthRequired for a bad credential of a top-up."""

    async def attach_session(self, purchase_id: str, session_id: str) -> None:
        """Remember the provider's session of a purchase."""

    async def purchase(self, provider: str, session_id: str) -> Purchase:
        """Raises: NotFound."""

    async def fulfil(self, paid: PaidSession) -> Purchase:
        """Grant what was paid for, once, and take back what of the money went back, however often this is called.

        Raises: NotFound, PaymentMismatch.
        """

    async def note_unpaid(self, seen: UnpaidSession) -> Purchase:
        """Keep what arrived of a payment that is not whole; nothing is granted. Raises: NotFound."""

    async def claim(self, provider: str, session_id: str, label: str) -> Claim:
        """Mint the first key of a payment, once.

        Raises: NotFound, PaymentPending, PaymentIncomplete, AlreadyClaimed, AccountExists, ClaimExpired.
        """

    async def referral(self, credential: Credential) -> Standing:
        """Return the caller's referral code, made at the first look, and what it has brought."""

    async def apply_referral(self, credential: Credential, code: str) -> Application:
        """Note whose code brought the caller, once; the same code again gets the same answer.

        Raises: NotFound, SelfReferral, AlreadyReferred, ReferralTooLate, ReferralRing; Forbidden without a programme.
        """

    async def store_event(self, event: ProviderEvent) -> bool:
        """Keep a verified event; return whether it is the caller's to handle now."""

    async def finish_event(
        self, provider: str, event_id: str, problem: str | None, final: bool = False
    ) -> None:
        """Mark an event applied, or keep it with the problem: for another try, or as a dead letter if that is final."""

    async def billing_customer(self, provider: str, credential: Credential, need: str) -> Customer:
        """Return who the caller is at a payment provider. Raises: AuthRequired, Forbidden."""

    async def remember_customer(
        self, provider: str, user_id: str, customer_id: str, instead_of: str | None
    ) -> None:
        """Link a user to a provider's customer; the first link of either stays, unless this one replaces it."""

    async def newest_event(self, provider: str) -> datetime | None:
        """Return when a provider's last event came in."""

    async def resume_x402(self, bill: Bill) -> Outcome | None:
        """Return how a wallet's payment with this nonce stands; None: it was never sent. Raises: PaymentReused."""

    async def begin_x402(self, bill: Bill) -> Outcome:
        """Write a verified payment down, once for its nonce and its idempotency key.

        Raises: PaymentReused; Forbidden for a suspended wallet.
        """

    async def conclude_x402(self, payment_id: str, attempt: int, said: Settlement) -> Outcome:
        """Store what the facilitator said; a success grants the credits and makes the key, once."""

    async def due_x402(self, limit: int) -> list[Settling]:
        """Take payments whose outcome is not known, to be asked about again."""

    async def start_times(self, scale: str) -> dict[str, int]:
        """Return what to expect of each model application that was seen to start, in seconds."""

    async def submit_job_set(self, commands: list[SubmitJob]) -> list[JobReceipt]:
        """Write several jobs of one caller with their holds, all or nothing. Raises: as `submit_job`."""

    async def take_back_upload(self, credential: Credential, file_id: str) -> StoredFile:
        """Forget an upload that this caller's request brought; its bytes may then be deleted. Raises: NotFound."""

    async def trial_balance(self) -> TrialBalance:
        """Return the sums of entries by world and account kind, zero for each world, and the last sealed block."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """Whether a model application can work now. `state`: ready, starting, unavailable.

    `failed`: it was given up, and stays so until an operator deploys it anew. Jobs do not wait for it. `asleep`: it has
    no replica because nobody asks; the next job starts one. `starts_in_s`: how long a start takes, as far as is known.
    """

    application: str
    state: Literal["ready", "starting", "unavailable"]
    reason: str | None
    failed: bool = False
    asleep: bool = False
    starts_in_s: int | None = None


class Models(Protocol):
    """The model applications, as far as the HTTP surface must know them."""

    async def states(self) -> dict[str, ModelState]:
        """Return the state of each application. Never raises: a part that cannot be asked is unavailable."""
