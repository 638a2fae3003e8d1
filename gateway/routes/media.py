"""Media jobs: submit, look, list, cancel."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from gateway import ports
from gateway.answers import JobAccepted, Jobs, JobShown
from gateway.bodies import StrictRoute
from gateway.catalog import Quote, Task
from gateway.deps import (
    SECURED,
    CallerKey,
    Parts,
    PartsOf,
    PayingKey,
    RetryKey,
    agreed_key,
    own_id,
    page_before,
)
from gateway.downloads import preview_url, signed_url
from gateway.errors import CostExceedsLimit, TaskUnavailable
from gateway.fingerprints import fingerprint
from gateway.listing import JobCursor, Limit, page
from gateway.openapi import LOCATION, PAID, READ, REPLAYED, WAITED, WRITE, X402, problems
from gateway.ports import FINAL_STATUSES, Job, JobStatus, StoredFile
from gateway.responses import REPLAY, in_credits, json_response
from gateway.routes.webhooks import own_url
from gateway.schemas import SubmitJob
from gateway.stages import as_json, at_work
from gateway.task_schemas import media_of, task_input
from gateway.watching import ended_within, wait_preferred
from gateway.worlds import application_in, working_application
from gateway.x402 import JOB_KEY_DAYS, credential_of_payment, paid_call, payment_headers, payment_shown
from gateway.x402_answers import PaidJobAccepted, PaidJobShown
from kit.errors import AppError, NotFound, Unavailable
from kit.ids import new_id
from ledger.accounts import World
from ledger.keys import Credential
from payments.x402_payments import Paid
from payments.x402_wire import Call

router = APIRouter(prefix="/api/v1", tags=["Media jobs"], route_class=StrictRoute)


@router.post(
    "/media/jobs",
    operation_id="submitJob",
    summary="Submit a media job",
    status_code=202,
    response_model=JobAccepted | PaidJobAccepted,
    responses={
        200: {
            "model": JobShown | PaidJobShown,
            "description": "Only with `Prefer: wait=n`: the job, which ended within n seconds.",
            "headers": LOCATION | REPLAYED | WAITED | PAID,
        },
        202: {"headers": LOCATION | REPLAYED | PAID},
        **problems(
            *WRITE,
            "insufficient_credits",
            "payment_required",
            "account_frozen",
            "key_limit_reached",
            "cost_exceeds_limit",
            "idempotency_key_reused",
            "payment_reused",
            "settlement_pending",
            "settlement_unclear",
            "payments_unavailable",
            "not_found",
        ),
    },
    openapi_extra=SECURED | X402,
)
async def submit_job(  # noqa: PLR0913, PLR0917  # what the request brings
    body: SubmitJob,
    credential: PayingKey,
    header_key: RetryKey,
    parts: PartsOf,
    request: Request,
    prefer: Annotated[
        str | None,
        Header(
            description="`wait=n` holds the answer up to n seconds (60 at most) for the job's end, as RFC 7240 has it.",
            examples=["wait=30"],
        ),
    ] = None,
) -> Response:
    """Quotes the job, holds its cost and queues it, all or nothing. You pay when it succeeds, and only then.

    With an idempotency key a retry returns the first answer and holds nothing again. A test key's job runs on the tiny
    model: a real file of the right kind, and a meaningless picture. Without a key, where this server takes x402, the
    call is paid for first: 402 tells its price.
    """
    del prefer  # declared for the OpenAPI document; the header may come twice
    catalog = await parts.price_list()
    task = catalog.task(body.task)
    job_input = task_input(task.name, body.input)
    quote = catalog.quote(task.name, job_input)
    limit_tokens = body.limit_tokens
    retry_key = agreed_key([key for key in (header_key, body.idempotency_key) if key is not None])
    application, refusal = task.application, None
    try:
        application = await _application(parts, credential, task, job_input)
        _within(limit_tokens, quote)
    except (NotFound, Unavailable, TaskUnavailable, CostExceedsLimit) as error:
        if credential is None or retry_key is None:
            raise
        refusal = error  # unless this is a retry of what was accepted when it could be done
    meaning = fingerprint({"task": task.name, "input": job_input, "limit": limit_tokens} | body.terms)
    webhook_url = own_url(parts, "webhookUrl", body.webhook_url)
    paid = None
    if credential is None:  # nothing of the request is refused after this: its money was taken
        paid = await _paid(request, parts, task.name, quote, meaning, retry_key)
        # As it was paid for: once for its payment, at that price, with the wallet's own key.
        credential, retry_key = credential_of_payment(request, parts, paid), paid.payment_id
        quote = replace(quote, cost_tokens=paid.credits_tokens, price_version=paid.price_version)
    receipt = await parts.ledger.submit_job(
        ports.SubmitJob(
            credential=credential,
            job_id=new_id("job"),
            task=task.name,
            tool=quote.tool,
            application=application,
            input=job_input,
            units_milli=quote.units_milli,
            cost_tokens=quote.cost_tokens,
            price_version=quote.price_version,
            idempotency_key=retry_key,
            fingerprint=meaning,
            priority=body.rank,
            deadline=body.deadline,
            world=credential.world,
            webhook_url=webhook_url,
            webhook_events=None if body.webhook_events is None else tuple(body.webhook_events),
            refusal=refusal,
        )
    )
    urls = _urls(parts, receipt.job_id)
    headers = {"location": urls["get"]} | (REPLAY if receipt.replayed else {})
    also: dict[str, Any] = {}
    if paid is not None:
        headers |= payment_headers(paid)
        assert paid.key is not None, "only a top-up brings none"
        key = {"apiKey": paid.secret, "apiKeyExpiresAt": paid.key.expires_at}
        also = {"payment": payment_shown(paid) | key}
    wait_s = wait_preferred(request.headers.getlist("prefer"))
    if wait_s is not None:
        with suppress(AppError):  # the job is accepted, whatever keeps its caller from looking at it
            job = await ended_within(parts.ledger, credential, receipt.job_id, wait_s)
            if job.status in FINAL_STATUSES:
                headers["preference-applied"] = f"wait={wait_s}"
                return json_response({"ok": True, **shown(parts, job), **also}, 200, headers)
    return json_response({"ok": True, **_accepted(receipt, urls), **also}, 202, headers)


async def _application(
    parts: Parts, credential: Credential | None, task: Task, job_input: dict[str, Any]
) -> str:
    """Return who does the work, if it can be done now. Raises: NotFound for a file, TaskUnavailable."""
    for kind, value in media_of(job_input).values():
        if kind == "FileId":
            if credential is None:  # who pays for the call itself has no files here
                raise NotFound("file")
            await parts.ledger.file(credential, own_id("file", value))
    return await working_application(parts, credential.world if credential else "live", task)


def _within(limit_tokens: int | None, quote: Quote) -> None:
    """Return if the caller agreed to pay as much. Raises: CostExceedsLimit."""
    if limit_tokens is not None and quote.cost_tokens > limit_tokens:
        raise CostExceedsLimit(quote.cost_tokens, limit_tokens)


async def _paid(  # noqa: PLR0913, PLR0917  # the call that is sold
    request: Request, parts: Parts, task: str, quote: Quote, meaning: str, retry_key: str | None
) -> Paid:
    """Return the payment of this job, by nobody we know. Raises: PaymentRequired and more (`gateway.x402`)."""
    assert parts.x402 is not None, "a stranger came this far"
    call = Call(
        resource=f"POST {request.url.path}",
        description=task,
        fingerprint=meaning,
        package_code=task,
        price_version=quote.price_version,
        credits_tokens=quote.cost_tokens,
        amount_minor=parts.x402.price_minor(quote.cost_tokens),
    )
    return await paid_call(request, parts, call, retry_key, key_label=task, key_days=JOB_KEY_DAYS)


def _accepted(receipt: ports.JobReceipt, urls: dict[str, str]) -> dict[str, Any]:
    return {
        "jobId": receipt.job_id,
        "id": receipt.job_id,
        "task": receipt.task,
        "status": "queued",
        "cost": _cost(receipt.cost_tokens, receipt.cost_tokens, None),
        "balanceAfter": in_credits(receipt.balance_after_tokens),
        "balanceAfterTokens": receipt.balance_after_tokens,
        "createdAt": receipt.created_at,
        "urls": urls,
    }


@router.get(
    "/media/jobs",
    operation_id="listJobs",
    summary="List media jobs, or get one by `jobId`",
    response_model=Jobs | JobShown,
    responses=problems(*READ, "invalid_request", "not_found"),
    openapi_extra=SECURED,
)
async def list_jobs(  # noqa: PLR0913  # its query parameters
    credential: CallerKey,
    parts: PartsOf,
    *,
    job_id: Annotated[
        str | None, Query(alias="jobId", description="Return this one job, as `GET /media/jobs/{id}` does.")
    ] = None,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this status.")] = None,
    limit: Limit = 20,
    cursor: JobCursor = None,
) -> Response:
    """Your jobs, newest first."""
    if job_id is not None:
        return await get_job(job_id, credential, parts)
    jobs = await parts.ledger.jobs(ports.JobQuery(credential, limit + 1, page_before("job", cursor), status))
    starting = {job.id: await starts_in_s(parts, credential.world, job) for job in jobs}
    return json_response({"ok": True, **page(jobs, limit, lambda job: shown(parts, job, starting[job.id]))})


@router.get(
    "/media/jobs/{job_id}",
    operation_id="getJob",
    summary="Get a media job",
    response_model=JobShown,
    responses=problems(*READ, "not_found"),
    openapi_extra=SECURED,
)
async def get_job(job_id: str, credential: CallerKey, parts: PartsOf) -> Response:
    """The job as it stands. Its output's URLs download without a key until they expire."""
    job = await parts.ledger.job(credential, own_id("job", job_id))
    return json_response({"ok": True, **shown(parts, job, await starts_in_s(parts, credential.world, job))})


@router.post(
    "/media/jobs/{job_id}/cancel",
    operation_id="cancelJob",
    summary="Cancel a media job",
    response_model=JobShown,
    responses=problems(*READ, "not_found"),
    openapi_extra=SECURED,
)
async def cancel_job(job_id: str, credential: CallerKey, parts: PartsOf) -> Response:
    """Ends a queued job at once and asks a running one to stop; an ended one stays as it is."""
    job = await parts.ledger.cancel_job(credential, own_id("job", job_id))
    return json_response({"ok": True, **shown(parts, job)})


async def starts_in_s(parts: Parts, world: World, job: Job) -> int | None:
    """Return how long the model takes to start that an unfinished job waits for; None where it works."""
    task = parts.catalog.tasks.get(job.task)
    if job.status in FINAL_STATUSES or job.progress_percent or task is None:
        return None
    with suppress(Unavailable):
        state = (await parts.model_states()).get(await application_in(parts, world, task.application))
        return state.starts_in_s if state is not None else None
    return None


def shown(parts: Parts, job: Job, starting_s: int | None = None) -> dict[str, Any]:
    """Return a job as its owner sees it; `starting_s` of `starts_in_s`."""
    held_tokens = 0 if job.status in FINAL_STATUSES else job.quoted_tokens
    return {
        "jobId": job.id,
        "id": job.id,
        "task": job.task,
        "status": job.status,
        "input": job.input,
        "cost": _cost(job.quoted_tokens, held_tokens, job.charged_tokens),
        "progress": job.progress_percent / 100,
        "stage": at_work(job.stages),
        "stages": as_json(job.stages),
        "queuePosition": job.queue_position,
        "startsInSeconds": starting_s,
        "cancelRequested": job.cancel_requested,
        "output": [_output(parts, file) for file in job.output],
        "error": {"code": job.error_code, "message": job.error_message or ""} if job.error_code else None,
        "metrics": job.metrics,
        "attempts": job.attempts,
        "createdAt": job.created_at,
        "startedAt": job.started_at,
        "finishedAt": job.finished_at,
        "urls": _urls(parts, job.id),
    }


def _output(parts: Parts, file: StoredFile) -> dict[str, Any]:
    if file.deleted_at is not None:
        return {
            **file.facts,
            "id": file.id,
            "url": None,
            "contentType": file.content_type,
            "sizeBytes": file.size_bytes,
            "sha256": file.sha256,
            "expiresAt": None,
            "keptUntil": file.kept_until,
            "deletedAt": file.deleted_at,
        }
    url, expires_at = signed_url(parts, file.id)
    return {
        **file.facts,
        **preview_url(parts, file),
        "id": file.id,
        "url": url,
        "contentType": file.content_type,
        "sizeBytes": file.size_bytes,
        "sha256": file.sha256,
        "expiresAt": expires_at,
        "keptUntil": file.kept_until,
        "deletedAt": None,
    }


def _cost(quoted_tokens: int, held_tokens: int, charged_tokens: int | None) -> dict[str, Any]:
    return {
        "quoted": in_credits(quoted_tokens),
        "held": in_credits(held_tokens),
        "charged": None if charged_tokens is None else in_credits(charged_tokens),
        "quotedTokens": quoted_tokens,
        "heldTokens": held_tokens,
        "chargedTokens": charged_tokens,
    }


def _urls(parts: Parts, job_id: str) -> dict[str, str]:
    get = f"{parts.settings.base_url}/api/v1/media/jobs/{job_id}"
    return {"get": get, "cancel": f"{get}/cancel", "events": f"{get}/events"}
