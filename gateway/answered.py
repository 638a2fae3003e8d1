"""Requests that are answered with a job's result: the jobs are submitted, waited for, and shown.

The jobs are ordinary ones: quoted, held, run, charged when they succeed. A caller who hangs up without an idempotency
key could never ask for the result, so the jobs are canceled; with a key they go on, and the same request finds them.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request
from starlette.requests import ClientDisconnect

from gateway.catalog import Task
from gateway.deps import Parts
from gateway.errors import IdempotencyKeyReused
from gateway.fingerprints import fingerprint
from gateway.openai_errors import JobEnded, JobFailed, JobRefused, JobRunning
from gateway.ports import FINAL_STATUSES, Job, SubmitJob
from gateway.problems import InvalidFields
from gateway.responses import REPLAY
from gateway.task_schemas import media_of, task_input
from gateway.uploads import delete_bytes
from gateway.watching import LOOK_S
from gateway.worlds import working_application
from kit.errors import AppError, InvalidRequest, NotFound, Unavailable
from kit.ids import new_id
from ledger.keys import Credential

REFUSALS: Final = frozenset({"invalid_request", "input_refused", "input_unreachable"})
"""Codes of failed jobs that are the input's fault."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a request wants done: `copies` jobs of a task. `meaning` is what the caller meant, for the retry key."""

    credential: Credential
    route: str
    task: str
    input: Mapping[str, Any]
    names: Mapping[str, str]
    """The request's own name of each field of the task's input, for refusals."""
    copies: int
    retry_key: str | None
    meaning: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """Jobs that have ended, of which one at least succeeded; the others cost nothing."""

    jobs: list[Job]
    replayed: bool

    @property
    def succeeded(self) -> list[Job]:
        return [job for job in self.jobs if job.status == "succeeded"]

    @property
    def charged_tokens(self) -> int:
        return sum(job.charged_tokens or 0 for job in self.jobs)

    @property
    def headers(self) -> dict[str, str]:
        """Which jobs did the work, and what it cost."""
        told = {"x-job-id": ", ".join(job.id for job in self.jobs), "x-cost-tokens": str(self.charged_tokens)}
        return told | (REPLAY if self.replayed else {})


async def done(request: Request, parts: Parts, order: Order) -> Done:
    """Submit an order and return its jobs once they have ended. Units: waits `settings.answer_wait_s` at most.

    Raises: what a submit does; JobRunning at the end of the wait; JobRefused, JobFailed or JobEnded when nothing was
    made; ClientDisconnect when the caller has gone.
    """
    receipts = await _submitted(parts, order)
    job_ids = [receipt.job_id for receipt in receipts]
    try:
        jobs = await _ended(request, parts, order.credential, job_ids)
    except (ClientDisconnect, asyncio.CancelledError):
        if order.retry_key is None:
            await _cancel(parts, order.credential, job_ids)
        raise
    await take_back(parts, order.credential, jobs)
    finished = Done(jobs, all(receipt.replayed for receipt in receipts))
    if not finished.succeeded:
        raise _refusal(jobs[0], order.names)
    return finished


async def take_back(parts: Parts, credential: Credential, jobs: Sequence[Job]) -> None:
    """Delete the uploads that ended jobs were given: they were sent for these jobs alone."""
    for file_id in {
        value for job in jobs for kind, value in media_of(job.input).values() if kind == "FileId"
    }:
        await drop_upload(parts, credential, file_id)


async def drop_upload(parts: Parts, credential: Credential, file_id: str) -> None:
    """Delete an upload. What is gone already, or cannot be reached now, keeps nobody waiting."""
    with suppress(AppError):
        await delete_bytes(parts, await parts.ledger.take_back_upload(credential, file_id))


async def _submitted(parts: Parts, order: Order) -> list[Any]:
    catalog = await parts.price_list()
    task = catalog.task(order.task)
    job_input = checked_input(task, order)
    application = await working_application(parts, order.credential.world, task)
    quote = catalog.quote(task.name, job_input)
    meaning = fingerprint({"route": order.route, "copies": order.copies, **order.meaning})
    commands = [
        SubmitJob(
            credential=order.credential,
            job_id=new_id("job"),
            task=task.name,
            tool=quote.tool,
            application=application,
            input=job_input,
            units_milli=quote.units_milli,
            cost_tokens=quote.cost_tokens,
            price_version=quote.price_version,
            idempotency_key=_key_of(order, place),
            fingerprint=meaning,
            world=order.credential.world,
        )
        for place in range(order.copies)
    ]
    try:
        return await parts.ledger.submit_job_set(commands)
    except IdempotencyKeyReused as refusal:
        raise IdempotencyKeyReused(order.retry_key or "") from refusal


def checked_input(task: Task, order: Order) -> dict[str, Any]:
    """Return the task's input. Raises: InvalidFields under the names that the request has for them."""
    try:
        return task_input(task.name, order.input)
    except InvalidFields as refusal:
        faults = [(field.removeprefix("input."), text) for field, text in refusal.faults]
        raise InvalidFields([(order.names.get(field, field), text) for field, text in faults]) from refusal


def _key_of(order: Order, place: int) -> str | None:
    """Return a job's own retry key: that of its request, apart by route and place."""
    if order.retry_key is None:
        return None
    digest = hashlib.sha256(f"{order.route}\n{order.retry_key}".encode()).hexdigest()
    return f"v1.{digest}.{place}"


async def _ended(request: Request, parts: Parts, credential: Credential, job_ids: Sequence[str]) -> list[Job]:
    wait_s = parts.settings.answer_wait_s
    deadline = time.monotonic() + wait_s
    ended: dict[str, Job] = {}
    while True:
        for job_id in job_ids:
            if job_id not in ended:
                with suppress(Unavailable):  # the jobs go on while the books are away
                    job = await parts.ledger.job(credential, job_id)
                    if job.status in FINAL_STATUSES:
                        ended[job_id] = job
        if len(ended) == len(job_ids):
            return [ended[job_id] for job_id in job_ids]
        if await request.is_disconnected():
            raise ClientDisconnect
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise JobRunning(next(job_id for job_id in job_ids if job_id not in ended), wait_s)
        await asyncio.sleep(min(LOOK_S, left_s))


async def _cancel(parts: Parts, credential: Credential, job_ids: Sequence[str]) -> None:
    jobs = []
    for job_id in job_ids:
        with suppress(AppError):  # its key has lost its right, or the books are away: the job ends by itself
            jobs.append(await parts.ledger.cancel_job(credential, job_id))
    await take_back(parts, credential, jobs)


def _refusal(job: Job, names: Mapping[str, str]) -> AppError:
    """Return why a job made nothing, with a field at fault under the name that the request has for it."""
    reason = job.error_message or "Nothing is known of why."
    if job.status != "failed":
        return JobEnded(job.id, job.status)
    if job.error_code in REFUSALS:
        field, told, problem = reason.removeprefix("input.").partition(": ")
        if not told or field == reason:
            return JobRefused(job.id, "", reason)
        return JobRefused(job.id, names.get(field, field), problem)
    return JobFailed(job.id, job.error_code or "unknown", reason)


def only_output(job: Job) -> Any:
    """Return the first file that a job made. Raises: NotFound when its owner deleted it."""
    if not job.output or job.output[0].deleted_at is not None:
        raise NotFound(f"output of {job.id}; it was deleted")
    return job.output[0]


def unknown_field(name: str) -> InvalidRequest:
    """Return the refusal of a field that a request does not have."""
    return InvalidRequest(name, "is not a field of this request")
