"""The Ledger deployment: the only writing pool. One method is one use case and one transaction.

The hot methods take a batch: everything that waited while the last one committed shares the next transaction, and
each item is decided on its own. A plain class: tests call it directly, `deployments.app` makes it a deployment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Concatenate, ParamSpec, TypeVar

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.books import announce_books, forget_books
from deployments.ledger_billing import LedgerBilling
from deployments.ledger_chat import LedgerChat
from deployments.ledger_desk import LedgerDesk
from deployments.ledger_files import LedgerFiles
from deployments.ledger_job_sets import LedgerJobSets
from deployments.ledger_keys import LedgerKeys
from deployments.ledger_metering import LedgerMetering
from deployments.ledger_people import LedgerPeople
from deployments.ledger_quotas import counted
from deployments.ledger_reads import LedgerReads
from deployments.ledger_reconcile import LedgerReconcile
from deployments.ledger_referrals import LedgerReferrals
from deployments.ledger_stages import LedgerStages
from deployments.ledger_starts import LedgerStarts
from deployments.ledger_tools import LedgerTools
from deployments.ledger_topups import LedgerTopups
from deployments.ledger_webhooks import LedgerWebhooks
from deployments.ledger_x402 import LedgerX402
from deployments.sweeps import Sweeps
from gateway import files, jobs, leases
from gateway.ports import Job, JobQuery, JobReceipt, NewFile, StoredFile, SubmitJob
from gateway.turns import Concurrency
from kit import migrate
from kit.db import Database
from kit.errors import AppError, Internal, Unavailable
from kit.postgres import EmbeddedPostgres
from kit.settings import Settings, load_settings
from kit.telemetry import configure_logging, errors_total, ledger_batch_items, ledger_seconds
from ledger import audit, keys, scopes
from ledger.audit import TrialBalance
from ledger.balances import Balance, balances_by_key
from ledger.keys import Caller, Credential
from ledger.spends import Allowance, Check, Spend, Spent, check_many, spend_many
from payments import purchases, receipt_mails, referrals, webhooks
from payments.purchases import Claim, OpenPurchase, PaidSession, Purchase, UnpaidSession
from payments.webhooks import ProviderEvent

P = ParamSpec("P")
T = TypeVar("T")
I = TypeVar("I")  # noqa: E741  # an item of a batch
log = structlog.get_logger(__name__)


class LedgerServer(
    LedgerReads,
    LedgerTools,
    LedgerKeys,
    LedgerPeople,
    LedgerWebhooks,
    LedgerDesk,
    LedgerReferrals,
    LedgerBilling,
    LedgerX402,
    LedgerStarts,
    LedgerChat,
    LedgerFiles,
    LedgerStages,
    LedgerMetering,
    LedgerReconcile,
    LedgerTopups,
    LedgerJobSets,
):
    """All use cases of the books. Two replicas at once are safe: the authority is in Postgres alone."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or load_settings()
        self._embedded: EmbeddedPostgres | None = None
        url = self._settings.database_url
        if settings is None:
            configure_logging(self._settings.log_level, self._settings.log_format)
        if not url:  # `serve run` without the launcher: this replica brings the database along
            self._embedded = EmbeddedPostgres(self._settings.data_dir)
            url = self._embedded.start()
            migrate.upgrade(url)
            announce_books(self._settings.model_copy(update={"database_url": url}))
        self._db = Database(url, pool_size=self._settings.database_pool)
        self._lease = timedelta(seconds=self._settings.lease_s)
        self._concurrency = Concurrency(
            self._settings.account_concurrency or None, self._settings.key_concurrency or None
        )
        self._queue_ttl = timedelta(seconds=self._settings.job_queue_ttl_s)
        self._submitted = asyncio.Event()
        self._sweeps = Sweeps(
            self._run,
            self._settings.job_attempts,
            referrals.programme(self._settings),
            self._settings.base_url,
        )

    def __del__(self) -> None:
        """End the database that this replica brought along."""
        if self._embedded is not None:
            forget_books(self._settings.data_dir)
            self._embedded.stop()

    async def close(self) -> None:
        """Give the connections back (tests; a replica's end closes them anyway)."""
        await self._db.close()

    async def check_health(self) -> None:
        """Serve's probe: the replica is well while its loop runs. A database that is away is not its illness."""

    # -- hot paths: batches ------------------------------------------------------------------------------------

    @counted
    async def balance_many(self, credentials: list[Credential]) -> list[Balance | AppError]:
        """Read the balance behind each key, in one statement."""
        return await self._batch("balance", balances_by_key, credentials, self._db.read)

    @counted
    async def submit_job_many(self, commands: list[SubmitJob]) -> list[JobReceipt | AppError]:
        """Write each job with its hold, or refuse it, in one transaction."""

        async def submit(conn: AsyncConnection, batch: Sequence[SubmitJob]) -> list[JobReceipt | AppError]:
            return await jobs.submit_many(conn, batch, self._queue_ttl)

        outcomes = await self._batch("submit_job", submit, commands, self._db.run)
        self._submitted.set()
        return outcomes

    @counted
    async def job_many(self, lookups: list[tuple[Credential, str]]) -> list[Job | AppError]:
        """Return each caller's job: polling clients share one transaction."""

        async def look(
            conn: AsyncConnection, batch: Sequence[tuple[Credential, str]]
        ) -> list[Job | AppError]:
            return [await _caught(self._job(conn, credential, job_id)) for credential, job_id in batch]

        return await self._batch("job", look, lookups, self._db.read)

    @counted
    async def spend_many(self, spends: list[Spend]) -> list[Spent | AppError]:
        """Charge each spend, or refuse it, in one transaction."""
        return await self._batch("spend", spend_many, spends, self._db.run)

    @counted
    async def check_many(self, checks: list[Check]) -> list[Allowance | AppError]:
        """Answer what could be spent now, in two statements."""
        return await self._batch("check", check_many, checks, self._db.read)

    # -- a caller's other calls --------------------------------------------------------------------------------

    async def ping(self) -> None:
        """Return when money can move: the database answers and its schema is there."""
        await self._run("ping", _ping)

    async def whoami(self, credential: Credential, need: str) -> Caller:
        """Resolve a key for a use."""
        return await self._run("whoami", keys.caller_of, credential, need)

    async def jobs(self, query: JobQuery) -> list[Job]:
        """Return a page of the caller's jobs."""

        async def page(conn: AsyncConnection) -> list[Job]:
            caller = await keys.caller_of(conn, query.credential, scopes.SEE_JOBS)
            return await jobs.list_jobs(conn, caller.account_id, query.limit, query.before, query.status)

        return await self._run("jobs", page)

    async def cancel_job(self, credential: Credential, job_id: str) -> Job:
        """End a queued job, ask a running one to stop."""

        async def cancel(conn: AsyncConnection) -> Job:
            caller = await keys.caller_of(conn, credential, scopes.SUBMIT)
            canceled = await jobs.cancel(conn, caller.account_id, job_id)
            caller.require(scopes.task(canceled.task))  # a refusal undoes the cancellation
            return canceled

        return await self._run("cancel_job", cancel)

    async def add_file(self, command: NewFile) -> StoredFile:
        """Record an upload."""

        async def add(conn: AsyncConnection) -> StoredFile:
            caller = await keys.caller_of(conn, command.credential, scopes.ADD_FILES)
            most = self._settings.max_files_per_user
            return await files.add_upload(conn, caller.account_id, command, most, self._retention())

        return await self._run("add_file", add)

    async def files(self, credential: Credential, limit: int, before: str | None) -> list[StoredFile]:
        """Return a page of the caller's files."""

        async def page(conn: AsyncConnection) -> list[StoredFile]:
            caller = await keys.caller_of(conn, credential, scopes.SEE_FILES)
            return await files.list_files(conn, caller.account_id, limit, before)

        return await self._run("files", page)

    async def file(self, credential: Credential, file_id: str) -> StoredFile:
        """Return one of the caller's files."""

        async def one(conn: AsyncConnection) -> StoredFile:
            caller = await keys.caller_of(conn, credential, scopes.SEE_FILES)
            return await files.file(conn, file_id, caller.account_id)

        return await self._run("file", one)

    async def signed_file(self, file_id: str) -> StoredFile:
        """Return a file for whoever holds its signed URL."""
        return await self._run("signed_file", files.file, file_id, None)

    async def delete_file(self, credential: Credential, file_id: str) -> StoredFile:
        """Forget one of the caller's files."""

        async def delete(conn: AsyncConnection) -> StoredFile:
            caller = await keys.caller_of(conn, credential, scopes.DROP_FILES)
            return await files.delete_file(conn, caller.account_id, file_id)

        return await self._run("delete_file", delete)

    async def trial_balance(self) -> TrialBalance:
        """Return the sums by account kind, and the last sealed block."""
        return await self._run("trial_balance", audit.trial_balance)

    # -- money in ----------------------------------------------------------------------------------------------

    async def open_purchase(self, command: OpenPurchase) -> Purchase:
        """Write down what is about to be sold."""

        async def open_it(conn: AsyncConnection) -> Purchase:
            if command.credential is None:
                return await purchases.open_purchase(conn, command, None)
            topup = await keys.caller_of(conn, command.credential, scopes.CHECKOUT)
            return await purchases.open_purchase(conn, command, topup.user_id, topup.world)

        return await self._run("open_purchase", open_it)

    async def attach_session(self, purchase_id: str, session_id: str) -> None:
        """Remember the provider's session."""
        await self._run("attach_session", purchases.attach_session, purchase_id, session_id)

    async def purchase(self, provider: str, session_id: str) -> Purchase:
        """Return the purchase of a session."""
        return await self._run("purchase", purchases.by_session, provider, session_id)

    async def fulfil(self, paid: PaidSession) -> Purchase:
        """Grant what was paid for, once, and mail a receipt."""
        return await self._run("fulfil", receipt_mails.fulfil_and_tell, paid, self._settings.base_url)

    async def note_unpaid(self, seen: UnpaidSession) -> Purchase:
        """Keep what arrived of a payment that is not whole."""
        return await self._run("note_unpaid", purchases.note_unpaid, seen)

    async def due_purchases(self, limit: int) -> list[Purchase]:
        """Return purchases whose provider should be asked again, and set the next time."""
        return await self._run("due_purchases", purchases.take_due, limit)

    async def claim(self, provider: str, session_id: str, label: str) -> Claim:
        """Redeem a claim and mint its key, or neither."""
        return await self._run(
            "claim",
            purchases.claim,
            provider,
            session_id,
            label,
            brand=self._settings.key_brand,
            days=self._settings.claim_days,
        )

    async def store_event(self, event: ProviderEvent) -> bool:
        """Keep a verified event."""
        return await self._run("store_event", webhooks.store, event)

    async def finish_event(
        self, provider: str, event_id: str, problem: str | None, final: bool = False
    ) -> None:
        """Mark an event applied, or note why not; a final problem makes it a dead letter."""
        await self._run("finish_event", webhooks.finish, provider, event_id, problem, final)

    async def due_events(self, limit: int) -> list[ProviderEvent]:
        """Take up events to try again."""
        return await self._run("due_events", webhooks.due, limit)

    # -- the runner's calls ------------------------------------------------------------------------------------

    async def claim_jobs(
        self, runner: str, free_places: dict[str, int], wait_s: float
    ) -> list[leases.ClaimedJob]:
        """Take queued jobs for the places that are free; wait up to `wait_s` for one to be submitted."""
        self._submitted.clear()
        claimed = await self._claim_now(runner, free_places)
        if not claimed and wait_s > 0:
            try:
                async with asyncio.timeout(wait_s):
                    await self._submitted.wait()
            except TimeoutError:
                return []
            claimed = await self._claim_now(runner, free_places)
        return claimed

    async def renew_leases(self, beats: list[leases.Heartbeat]) -> dict[str, bool]:
        """Prolong leases; returns job id -> whether to stop. A missing job was lost."""
        return await self._run("renew_leases", leases.renew, beats, self._lease)

    async def fail_job(self, failure: leases.Failure) -> leases.Ended:
        """Requeue a job, or end it and free its hold."""
        ended = await self._run("fail_job", leases.fail, failure, self._settings.job_attempts)
        self._submitted.set()
        return ended

    async def give_back_job(self, job_id: str, fence: int) -> leases.Ended:
        """Return an untouched job to the queue."""
        ended = await self._run("give_back_job", leases.give_back, job_id, fence)
        self._submitted.set()
        return ended

    async def sweep(self) -> dict[str, leases.Ended]:
        """Do what is due by itself, in jobs and in the books; returns the jobs that this ended or queued again."""
        outcome = await self._sweeps.jobs()
        if "queued" in outcome.values():
            self._submitted.set()
        await self._sweeps.alerts()
        await self._sweeps.books()
        return outcome

    # -- inside ------------------------------------------------------------------------------------------------

    async def _claim_now(self, runner: str, free_places: dict[str, int]) -> list[leases.ClaimedJob]:
        async def claim(conn: AsyncConnection) -> list[leases.ClaimedJob]:
            claimed: list[leases.ClaimedJob] = []
            for application, limit in sorted(free_places.items()):
                claimed += await leases.claim(
                    conn, runner, application, limit, self._lease, self._concurrency
                )
            return claimed

        return await self._run("claim_jobs", claim)

    async def _job(self, conn: AsyncConnection, credential: Credential, job_id: str) -> Job:
        caller = await keys.caller_of(conn, credential, scopes.SEE_JOBS)
        return await jobs.job(conn, caller.account_id, job_id)

    async def _run(
        self,
        method: str,
        work: Callable[Concatenate[AsyncConnection, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        began = time.perf_counter()
        try:
            return await self._db.run(work, *args, **kwargs)
        finally:
            ledger_seconds.labels(method).observe(time.perf_counter() - began)

    async def _batch(
        self,
        method: str,
        work: Callable[[AsyncConnection, Sequence[I]], Awaitable[list[T | AppError]]],
        items: Sequence[I],
        within: Callable[..., Awaitable[list[T | AppError]]],
    ) -> list[T | AppError]:
        """Run a batch `within` the database's run or read; should it break, each item alone: none fails another."""
        ledger_batch_items.labels(method).observe(len(items))
        began = time.perf_counter()
        try:
            return await within(work, items)
        except Unavailable as away:
            return [away] * len(items)
        except Exception:
            errors_total.labels("ledger").inc()
            log.exception("batch failed", method=method, items=len(items))
            if len(items) == 1:
                return [Internal()]
            return [(await self._batch(method, work, [item], within))[0] for item in items]
        finally:
            ledger_seconds.labels(method).observe(time.perf_counter() - began)


async def _ping(conn: AsyncConnection) -> None:
    await conn.execute(text("SELECT 1 FROM accounts LIMIT 1"))


async def _caught(call: Awaitable[T]) -> T | AppError:
    try:
        return await call
    except AppError as refusal:
        return refusal
