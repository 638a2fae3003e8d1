"""A job's life as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.responses import Response

from gateway.bodies import StrictRoute
from gateway.deps import SECURED, CallerKey, Parts, PartsOf, own_id
from gateway.openapi import READ, problems
from gateway.ports import FINAL_STATUSES, Job
from gateway.problems import problem_body
from gateway.responses import dump
from gateway.routes.media import shown, starts_in_s
from gateway.watching import LOOK_S, watch
from kit.errors import AppError, Unavailable
from ledger.keys import Credential

router = APIRouter(prefix="/api/v1", tags=["Media jobs"], route_class=StrictRoute)

QUIET_LOOKS: Final = int(15 / LOOK_S)
"""After 15 s without news a comment goes out: proxies close what is silent for a minute, often for 30 s."""
RETRY_MS: Final = 2000
"""What a browser waits before it comes back to a stream that broke."""
_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}
_EXAMPLE: Final = (
    'retry: 2000\nid: running-40\nevent: job\ndata: {"jobId":"job_01k8z0c6m5n7q2r4t6v8x0y2z4",'
    '"status":"running","progress":0.4}\n\n'
)


@router.get(
    "/media/jobs/{job_id}/events",
    operation_id="watchJob",
    summary="Watch a media job",
    response_class=Response,
    responses={
        200: {
            "description": "A stream of events: `job` with the whole job as its data, at once and at every change;"
            " `error` with a refusal, which ends the stream. It ends when the job has ended.",
            "content": {"text/event-stream": {"example": _EXAMPLE}},
        },
        204: {"description": "The end was seen before, says `Last-Event-ID`: nothing more will come."},
        **problems(*READ, "not_found"),
    },
    openapi_extra=SECURED,
)
async def watch_job(
    job_id: str,
    credential: CallerKey,
    parts: PartsOf,
    request: Request,
    last_event_id: Annotated[
        str | None,
        Header(alias="Last-Event-ID", description="Sent by a browser that comes back."),
    ] = None,
) -> Response:
    """The job as it changes, for `EventSource` and its like. Each event is whole: nothing is lost between two."""
    del last_event_id  # declared for the OpenAPI document
    job = await parts.ledger.job(credential, own_id("job", job_id))
    if job.status in FINAL_STATUSES and request.headers.get("last-event-id") == _name(job):
        return Response(status_code=204)
    return EventSourceResponse(_events(parts, credential, job_id), headers=_HEADERS)


async def _events(parts: Parts, credential: Credential, job_id: str) -> AsyncGenerator[bytes, None]:
    yield f"retry: {RETRY_MS}\n\n".encode()
    quiet = 0
    try:
        async with aclosing(watch(parts.ledger, credential, job_id)) as looks:
            async for job in looks:
                quiet = quiet + 1 if job is None else 0
                if job is not None:
                    yield _event(
                        "job",
                        {"ok": True, **shown(parts, job, await starts_in_s(parts, credential.world, job))},
                        _name(job),
                    )
                elif quiet % QUIET_LOOKS == 0:
                    yield b": still here\n\n"
    except Unavailable:
        return  # the caller comes back after RETRY_MS, as after any broken stream
    except AppError as refusal:
        yield _event("error", problem_body(refusal), None)


def _event(event: str, body: dict[str, Any], name: str | None) -> bytes:
    return format_sse_event(data_str=dump(body).decode(), event=event, id=name)


def _name(job: Job) -> str:
    return f"{job.status}-{job.progress_percent}"
