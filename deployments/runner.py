"""The Runner: claims queued jobs, calls the models, stores what they made, settles. Holds no state that matters.

Everything that must survive lies in Postgres and the object store. A runner that dies leaves leases that run out;
another runner takes the jobs over, and whatever the first still tries to write names an old fence and is refused.
No transaction is open while a model works or an object is stored.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeVar, cast

import structlog
from ray.serve.handle import DeploymentHandle

from deployments import dubbing
from deployments.cold_starts import ColdStarts
from deployments.courier import Courier
from deployments.handles import (
    Call,
    LedgerClient,
    ModelAway,
    ModelCalls,
    ModelHandles,
    ledger_call,
    remote_ledger,
)
from deployments.inputs import Inputs
from deployments.leftovers import Leftovers
from deployments.models.contract import GenerateRequest, Metrics, ModelBusy, Output
from deployments.outputs import Outputs
from deployments.pipeline import clear_left_over
from deployments.postman import Postman
from deployments.provenance import provenance_for
from gateway.catalog import load_catalog
from gateway.leases import ClaimedJob, Failure, Heartbeat, LeaseLost, Settlement
from gateway.mail import mailer_for
from gateway.ports import StoredFile
from gateway.quantities import MILLI
from gateway.stages import Stage
from kit.errors import AppError, NotFound, Unavailable
from kit.fetch import Fetcher, is_public
from kit.ids import new_id
from kit.post import Poster
from kit.settings import Settings, load_settings
from kit.storage import ObjectStore
from kit.telemetry import configure_logging, errors_total, job_run_seconds, jobs_total
from payments.cards import CardBooks, CardCheckout
from payments.checkout import Checkout
from payments.crypto import crypto_for
from payments.reconciler import Reconciler, ReconciliationBooks
from payments.stripe_checkout import checkout_for
from payments.x402 import X402Checkout, x402_for

T = TypeVar("T")
log = structlog.get_logger(__name__)

CLAIM_WAIT_S: Final = 1.0
"""How long a claim waits for a submit: an idle runner asks once a second, a submitted job starts at once."""
BEAT_S: Final = 1.0
"""How often progress is written and a cancellation is noticed, unless a third of the lease is shorter."""
SWEEP_S: Final = 2.0
"""How often expired leases, jobs and holds are looked for; a dead runner's job waits lease + this at most."""
MAIL_S: Final = 1.0
"""How often mails are sent: somebody waits for a sign-in code."""
AWAY_S: Final = 2.0
"""How long an application that cannot be called is left alone before its jobs are claimed again."""
EVENTS_A_SWEEP: Final = 20
"""Payment events tried again in one sweep."""
PURCHASES_A_SWEEP: Final = 20
"""Unpaid purchases whose provider is asked in one sweep."""
NOT_CONFIGURED: Final = "its provider is not configured on this server"
CATCH_UP_S: Final = 600.0
"""How often the provider is asked for events that no webhook brought: a lost one is never longer noticed."""
RECONCILE_LOOK_S: Final = 300.0
"""How often it is asked whether a reconciliation is due: it is a day's work, and a minute's delay is nothing."""
HAND_BACK_S: Final = 4.0
"""Time to give jobs back at the end: two calls to the books and some air."""


@dataclass
class _Run:
    """A job under way in this process."""

    job: ClaimedJob
    progress_percent: int = 0
    stages: tuple[Stage, ...] | None = None
    generation: asyncio.Task[Output] | None = None
    stop: Literal["", "canceled", "lost"] = ""
    began: float = field(default_factory=time.perf_counter)
    at_work: float | None = None
    patience: asyncio.Timeout | None = None
    metrics: Metrics | None = None

    def note(self, percent: int, stages: tuple[Stage, ...], took: Metrics) -> None:
        """Take down how far the job is, and what that took."""
        self.progress_percent, self.stages, self.metrics = min(99, percent), stages, took
        self.at_work = self.at_work or time.perf_counter()

    def stop_now(self, why: Literal["canceled", "lost"]) -> None:
        """End the model's work at its next step."""
        self.stop = why
        if self.generation is not None:
            self.generation.cancel()


class Runner:
    """Runs jobs until it is stopped. `places` says how many jobs of each application are in flight at most."""

    def __init__(  # noqa: PLR0913, PLR0917  # its collaborators, each used
        self,
        settings: Settings,
        ledger: Call,
        models: ModelCalls,
        objects: ObjectStore,
        checkouts: Sequence[Checkout],
        places: Mapping[str, int],
        x402: X402Checkout | None = None,
        fetcher: Fetcher | None = None,
        starts: ColdStarts | None = None,
    ) -> None:
        self.name = new_id("run")
        self._settings = settings
        self._ledger = ledger
        self._models = models
        self._checkouts = {checkout.provider.name: checkout for checkout in checkouts}
        self._x402 = x402
        self._reconciler = Reconciler(
            cast("ReconciliationBooks", LedgerClient(ledger)), checkouts, wallets=x402 is not None
        )
        self._postman = Postman(ledger, mailer_for(settings))
        self._courier = Courier(ledger, _poster_for(settings))
        self._places = dict(places)
        self._packages = load_catalog().packages
        self._outputs = Outputs(objects, provenance_for(settings))
        self._leftovers = Leftovers(ledger, objects)
        self._objects = objects
        self._inputs = Inputs(ledger, objects, fetcher or Fetcher(), settings.max_upload_bytes)
        self._starts = starts
        self._dubbing = dubbing.Dubbing(
            self._until_answered, models, self._inputs, objects, settings.job_run_ttl_s
        )
        self._runs: dict[str, _Run] = {}
        self._away_until: dict[str, float] = {}
        self._freed = asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled; then give untouched and unfinished jobs back to the queue."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(min(BEAT_S, self._settings.lease_s / 3), self._beat))
            group.create_task(self._every(SWEEP_S, self._sweep))
            if self._checkouts:
                # Apart from the sweep: a provider that hangs keeps nothing else waiting.
                group.create_task(self._every(SWEEP_S, self._catch_up))
            group.create_task(self._every(SWEEP_S, self._clear_left_over))
            group.create_task(self._every(MAIL_S, self._postman.deliver))
            group.create_task(self._every(SWEEP_S, self._leftovers.clear))
            if self._settings.reconcile_every_s and self._reconciler.providers:
                group.create_task(self._every(RECONCILE_LOOK_S, self._reconcile))
            if any(isinstance(checkout, CardCheckout) for checkout in self._checkouts.values()):
                group.create_task(self._every(CATCH_UP_S, self._ask_for_events))
                group.create_task(self._every(SWEEP_S, self._top_up))
            group.create_task(self._courier.run())
            group.create_task(self._every(BEAT_S, self._watch_starts))
            group.create_task(self._every(SWEEP_S, self._settle_wallets))
            await self._dispatch(group)

    # -- taking work -------------------------------------------------------------------------------------------

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        while True:
            self._freed.clear()
            free = self._free_places()
            if not free:
                await _wait(self._freed, AWAY_S)
                continue
            try:
                claimed: list[ClaimedJob] = await self._ledger("claim_jobs", self.name, free, CLAIM_WAIT_S)
            except AppError as error:
                log.warning("claim failed", problem=str(error))
                await asyncio.sleep(AWAY_S)
                continue
            for job in claimed:
                run = self._runs[job.id] = _Run(job)
                group.create_task(self._work(run))

    def _free_places(self) -> dict[str, int]:
        busy = Counter(run.job.application for run in self._runs.values())
        now = time.monotonic()
        return {
            application: places - busy[application]
            for application, places in self._places.items()
            if places > busy[application] and self._away_until.get(application, 0.0) <= now
        }

    # -- one job -----------------------------------------------------------------------------------------------

    async def _work(self, run: _Run) -> None:
        job = run.job
        outcome = "lost"
        try:
            outcome = await self._attempt(run)
        except LeaseLost:
            log.info("lease lost", job_id=job.id, fence=job.fence)
        except asyncio.CancelledError:
            await self._hand_back(job)
            raise
        except Exception:
            # Its lease runs out and the job is tried again, here or elsewhere.
            errors_total.labels("runner").inc()
            log.exception("job abandoned", job_id=job.id)
        finally:
            self._runs.pop(job.id, None)
            self._freed.set()
            jobs_total.labels(job.task, outcome).inc()
            job_run_seconds.labels(job.task).observe(time.perf_counter() - run.began)
            log.info("attempt ended", job_id=job.id, task=job.task, outcome=outcome, attempt=job.attempts)

    async def _attempt(self, run: _Run) -> str:
        job = run.job
        run.generation = asyncio.create_task(self._generate(run))
        try:
            output = await self._in_time(run)
        except asyncio.CancelledError:
            if not run.stop:
                raise  # this runner is being stopped
            if run.stop == "lost":
                raise LeaseLost(job.id) from None
            return await self._fail(run, "canceled", "The job was canceled.", retryable=False)
        except (ModelAway, ModelBusy) as away:
            log.warning("model away", application=job.application, reason=away.message)
            self._away_until[job.application] = time.monotonic() + AWAY_S
            return str(await self._until_answered("give_back_job", job.id, job.fence))
        except TimeoutError:
            if job.deadline is not None and job.deadline <= datetime.now(UTC):
                return await self._fail(run, "deadline_passed", "The job's deadline passed.", retryable=False)
            return await self._fail(run, "timed_out", "The model did not finish in time.", retryable=True)
        except AppError as error:
            return await self._fail(run, error.code, error.message, retryable=error.retryable)
        stored = await self._outputs.store_all(job, output.media)
        charged_tokens = job.cost_tokens(output.units_milli)
        return await self._settle(
            Settlement(job.id, job.fence, stored, charged_tokens, self._metrics(run, output))
        )

    async def _settle(self, done: Settlement) -> str:
        """Write the result and its charge; the bytes of one that came too late go: no row would ever end them."""
        try:
            ended = str(await self._until_answered("settle_job", done))
        except LeaseLost:
            await self._drop_unknown(done.outputs)
            raise
        if ended != "succeeded":
            await self._drop_unknown(done.outputs)
        return ended

    async def _drop_unknown(self, stored: Sequence[StoredFile]) -> None:
        """Delete the bytes of files that the books don't have: a lost lease may be a lost answer to a success."""
        for file in stored:
            try:
                await self._ledger("signed_file", file.id)
            except NotFound:
                await self._outputs.drop(file)
            except AppError as error:
                log.warning("bytes without a row are left", storage_key=file.storage_key, problem=str(error))

    async def _in_time(self, run: _Run) -> Output:
        """Await the model. A run's time begins with its work: who only waited for it goes back into the queue.

        Raises: ModelAway for one that never began; TimeoutError for one that took too long.
        """
        assert run.generation is not None
        try:
            async with asyncio.timeout(self._patience_s(run.job)) as run.patience:
                return await run.generation
        except TimeoutError:
            if run.at_work is None and (run.job.deadline is None or run.job.deadline > datetime.now(UTC)):
                raise ModelAway("it had no time for the job") from None
            raise

    def _patience_s(self, job: ClaimedJob) -> float | None:
        """How long a run may take: no longer than the caller waits for it. A pipeline bounds each of its parts."""
        patience_s = None if job.task == dubbing.TASK else float(self._settings.job_run_ttl_s)
        if job.deadline is None:
            return patience_s
        left_s = (job.deadline - datetime.now(UTC)).total_seconds()
        return left_s if patience_s is None else min(patience_s, left_s)

    async def _generate(self, run: _Run) -> Output:
        job = run.job
        if job.task == dubbing.TASK:
            return await self._dubbing.dub(job, run.note)
        media = await self._inputs.read(job)
        request = GenerateRequest(job.id, job.task, job.input, job.units_milli, media)
        # Closed at once, however it is left: an abandoned stream would let the model compute on.
        async with aclosing(self._models.generate(job.application, request)) as events:
            async for event in events:
                self._note_work(run)
                run.metrics = event.metrics or run.metrics
                if isinstance(event, Output):
                    return event
                run.progress_percent = min(99, int(event.fraction * 100))
        raise ModelAway("the model ended without an output")

    def _note_work(self, run: _Run) -> None:
        """At the first word of the model: its work, and so the time that it may take, begins now."""
        if run.at_work is None:
            run.at_work = time.perf_counter()
            patience_s = self._patience_s(run.job)
            if patience_s is not None and run.patience is not None and not run.patience.expired():
                run.patience.reschedule(asyncio.get_running_loop().time() + patience_s)

    async def _fail(self, run: _Run, code: str, message: str, *, retryable: bool) -> str:
        failure = Failure(run.job.id, run.job.fence, code, message, retryable, self._metrics(run, None))
        return str(await self._until_answered("fail_job", failure))

    def _metrics(self, run: _Run, output: Output | None) -> dict[str, Any]:
        """Return what an attempt took; of one without an output, up to the last step that the model told of.

        Units: milliseconds, seconds, bytes. The queue's time ends where the model's work begins.
        """
        waited_s = (run.job.started_at - run.job.created_at).total_seconds()
        waited_s += (run.at_work or time.perf_counter()) - run.began
        metrics: dict[str, Any] = {"queueMs": int(waited_s * 1000)}
        if took := run.metrics:
            metrics |= {
                "runMs": took.run_ms,
                "gpuSeconds": took.gpu_seconds,
                "busySeconds": took.busy_seconds,
                "peakMemoryBytes": took.peak_memory_bytes,
                "batchSize": took.batch_size,
            }
        else:
            ran_s = 0.0 if run.at_work is None else time.perf_counter() - run.at_work
            metrics |= {"runMs": int(ran_s * 1000), "gpuSeconds": 0.0}
        if output is not None:
            metrics["model"] = output.model
            if output.units_milli is not None:
                metrics["units"] = output.units_milli / MILLI
        return metrics

    async def _until_answered(self, method: str, *args: object) -> Any:
        """Repeat a write while the books are away; the fence makes a repeat that already took a LeaseLost."""
        wait_s = 0.2
        while True:
            try:
                return await self._ledger(method, *args)
            except Unavailable:
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, 5.0)

    async def _hand_back(self, job: ClaimedJob) -> None:
        try:
            async with asyncio.timeout(2):
                await self._ledger("give_back_job", job.id, job.fence)
        except (AppError, TimeoutError) as error:
            log.info("job not handed back; its lease will run out", job_id=job.id, problem=str(error))

    # -- keeping up --------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        runs = dict(self._runs)
        if not runs:
            return
        beats = [
            Heartbeat(run.job.id, run.job.fence, run.progress_percent, run.stages) for run in runs.values()
        ]
        stop: dict[str, bool] = await self._ledger("renew_leases", beats)
        for job_id, run in runs.items():
            if job_id not in stop:
                run.stop_now("lost")
            elif stop[job_id]:
                run.stop_now("canceled")

    async def _watch_starts(self) -> None:
        if self._starts is not None:
            await self._starts.look(
                {run.job.application for run in self._runs.values() if not run.progress_percent}
            )

    async def _sweep(self) -> None:
        ended: dict[str, str] = await self._ledger("sweep")
        if ended:
            log.info("swept", **ended)

    async def _clear_left_over(self) -> None:
        await clear_left_over(self._ledger, self._objects)

    async def _settle_wallets(self) -> None:
        if self._x402 is not None:
            await self._x402.settle_due(EVENTS_A_SWEEP)

    async def _catch_up(self) -> None:
        """Bring payments into the books that no event has brought: those that did not take, those that never came."""
        for event in await self._ledger("due_events", EVENTS_A_SWEEP):
            if checkout := self._checkouts.get(event.provider):
                await checkout.apply(event)
            else:
                await self._ledger("finish_event", event.provider, event.event_id, NOT_CONFIGURED)
        for purchase in await self._ledger("due_purchases", PURCHASES_A_SWEEP):
            checkout = self._checkouts.get(purchase.provider)
            if checkout is not None and purchase.session_id is not None:
                try:
                    await checkout.settle(purchase.session_id)
                except AppError as error:  # it is due again later
                    log.info("purchase not looked at", purchase_id=purchase.id, problem=str(error))
                except Exception:  # what a provider answers to one must not keep the others waiting
                    errors_total.labels("runner").inc()
                    log.exception("purchase not looked at", purchase_id=purchase.id)

    async def _ask_for_events(self) -> None:
        for checkout in self._checkouts.values():
            if isinstance(checkout, CardCheckout) and (missed := await checkout.catch_up()):
                log.warning("webhooks were missed", events=missed)

    async def _reconcile(self) -> None:
        """Compare the providers with the books, once in a while and by one runner."""
        every = timedelta(seconds=self._settings.reconcile_every_s)
        back = timedelta(days=self._settings.reconcile_days)
        await self._reconciler.run_if_due(every, back, repairs=self._settings.reconcile_repairs)

    async def _top_up(self) -> None:
        for checkout in self._checkouts.values():
            if isinstance(checkout, CardCheckout):
                await checkout.top_up(self._packages)

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except AppError as error:
                log.warning("upkeep failed", work=work.__name__, problem=str(error))
            except Exception:
                errors_total.labels("runner").inc()
                log.exception("upkeep failed", work=work.__name__)
            await asyncio.sleep(seconds)


class RunnerServer:
    """The Runner as a deployment: works from its start to its end, and is unwell when its loop ended."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it, on the loop that the runner works on
        self, ledger: DeploymentHandle[Any], places: dict[str, int]
    ) -> None:
        settings = load_settings()
        configure_logging(settings.log_level, settings.log_format)
        models = ModelHandles(list(places))
        self._runner = Runner(
            settings,
            ledger_call(ledger),
            models,
            ObjectStore(settings.objects_url),
            every_checkout(settings, remote_ledger(ledger)),
            places,
            x402_for(settings, remote_ledger(ledger)),
            starts=ColdStarts(models.states, ledger_call(ledger), settings.scale or settings.profile),
        )
        self._task = asyncio.create_task(self._runner.run())

    async def check_health(self) -> None:
        """Raise when the loop ended: Serve then replaces this replica."""
        if self._task.done():
            raise RuntimeError("the runner's loop ended") from self._task.exception()

    async def __del__(self) -> None:
        """Give jobs back to the queue when Serve ends this replica in good order."""
        self._task.cancel()
        await asyncio.wait([self._task], timeout=HAND_BACK_S)


def _poster_for(settings: Settings) -> Poster:
    return Poster(may_connect=(lambda _: True) if settings.private_webhooks else is_public)


def every_checkout(settings: Settings, books: CardBooks) -> list[Checkout]:
    """Return the checkouts of all providers that the settings configure."""
    card, crypto = checkout_for(settings, books), crypto_for(settings, books)
    return [*([card] if card else []), *(crypto.checkouts if crypto else [])]


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
