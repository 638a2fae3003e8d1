"""What became of an account's credits: usage by day, tool, task and key; the statement; the cost of one reference."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from pydantic import AfterValidator
from starlette.responses import Response, StreamingResponse

from gateway.account_answers import CostShown, StatementShown, UsageShown
from gateway.bodies import StrictRoute
from gateway.conversations import MeteredTurn
from gateway.deps import SECURED, CallerKey, PartsOf, is_id, own_id
from gateway.listing import LineCursor
from gateway.openapi import CSV, READ, problems
from gateway.patterns import REFERENCE
from gateway.periods import Day, Instant
from gateway.ports import StatementQuery
from gateway.responses import amount, in_units, json_response
from gateway.schemas import printable
from gateway.statement_csv import csv_pages
from gateway.usage import DAYS_OF_USAGE, DIMENSIONS, Dimension, Usage
from kit.errors import InvalidRequest
from ledger.statements import LINES_A_PAGE, Line

DAYS_SHOWN: Final = 30
"""What is shown when no period is named: a month, which is how people budget."""
LINES_SHOWN: Final = 50
VERSION: Final = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
"""A cursor of the statement is the number of a line: within the 64 bits of the books."""

GROUPS: Final = "^(D)(,(D))*$".replace("D", "|".join(DIMENSIONS))
"""How the OpenAPI document words the dimensions of usage."""

router = APIRouter(prefix="/api/v1", tags=["Usage"], route_class=StrictRoute)


def _dimensions(sent: str) -> str:
    if unknown := set(sent.split(",")) - set(DIMENSIONS):
        raise ValueError(f"must list some of {', '.join(DIMENSIONS)}; {len(unknown)} of them are others")
    return sent


Reference = Annotated[
    str, Query(min_length=1, max_length=255, json_schema_extra=REFERENCE), AfterValidator(printable)
]


@router.get(
    "/usage",
    operation_id="getUsage",
    summary="Get usage by day, tool, task and key",
    response_model=UsageShown,
    responses=problems(*READ, "invalid_request"),
    openapi_extra=SECURED,
)
async def get_usage(
    credential: CallerKey,
    parts: PartsOf,
    *,
    since: Annotated[
        Day | None, Query(description=f"The first UTC day; by default the period has {DAYS_SHOWN} days.")
    ] = None,
    until: Annotated[
        Day | None, Query(description=f"The last UTC day, today by default; at most {DAYS_OF_USAGE} days.")
    ] = None,
    group_by: Annotated[
        str,
        Query(
            alias="groupBy",
            description="What to tell apart: some of `day,tool,task,key`.",
            json_schema_extra={"pattern": GROUPS},
        ),
        AfterValidator(_dimensions),
    ] = ",".join(DIMENSIONS),
) -> Response:
    """What was charged and given back. A refund counts on its own day, under the tool and key of its charge."""
    last = until or datetime.now(UTC).date()
    first = since or _days_before(last)
    asked = frozenset(group_by.split(","))
    by = [dimension for dimension in DIMENSIONS if dimension in asked]
    rows = await parts.ledger.usage(credential, first, last, frozenset(by))
    total = {
        "charges": sum(row.charges for row in rows),
        **_money(
            sum(row.charged_tokens for row in rows),
            sum(row.refunded_tokens for row in rows),
        ),
    }
    shown = [_row(row, by) for row in rows]
    return json_response(
        {"ok": True, "since": first, "until": last, "groupBy": by, "data": shown, "total": total}
    )


@router.get(
    "/statement",
    operation_id="getStatement",
    summary="Get the account's statement",
    response_model=StatementShown,
    responses={**CSV, **problems(*READ, "invalid_request")},
    openapi_extra=SECURED,
)
async def get_statement(  # noqa: PLR0913  # its query parameters
    credential: CallerKey,
    parts: PartsOf,
    *,
    since: Annotated[
        Instant | None, Query(description="Only what was written at this time or later.")
    ] = None,
    until: Annotated[Instant | None, Query(description="Only what was written before this time.")] = None,
    limit: Annotated[
        int | None,
        Query(
            ge=1,
            le=LINES_A_PAGE,
            description=f"How many lines; {LINES_SHOWN} by default, in CSV all that there are.",
        ),
    ] = None,
    cursor: LineCursor = None,
    format: Annotated[  # noqa: A002  # the parameter's public name
        Literal["json", "csv"], Query(description="`csv`: a file for a spreadsheet.")
    ] = "json",
) -> Response:
    """Every movement of your credits with the balance after it, newest first."""
    whole = format == "csv" and limit is None
    page_lines = limit or (LINES_A_PAGE if whole else LINES_SHOWN)
    query = StatementQuery(credential, page_lines, _version(cursor), since, until)
    page = await parts.ledger.statement(query)
    if format == "csv":
        return StreamingResponse(
            csv_pages(parts.ledger.statement, query, page, on=whole),
            headers={
                "cache-control": "no-store",
                "content-disposition": 'attachment; filename="statement.csv"',
            },
            media_type="text/csv; charset=utf-8; header=present",
        )
    return json_response(
        {
            "ok": True,
            "data": [line(each) for each in page.lines],
            "nextCursor": None if page.next_before is None else str(page.next_before),
        }
    )


@router.get(
    "/cost",
    operation_id="getCost",
    summary="Get the cost of a reference or a job",
    response_model=CostShown,
    responses=problems(*READ, "invalid_request", "not_found"),
    openapi_extra=SECURED,
)
async def get_cost(
    credential: CallerKey,
    parts: PartsOf,
    *,
    reference: Annotated[
        Reference | None,
        Query(description="The `reference` of a spend; under any tool unless `tool` is sent."),
    ] = None,
    tool: Annotated[Reference | None, Query(description="Only this tool's use of the reference.")] = None,
    job_id: Annotated[str | None, Query(alias="jobId", description="A job, in place of a reference.")] = None,
) -> Response:
    """What was charged, given back and is held under one reference, or for one job."""
    if (reference is None) == (job_id is None):
        raise InvalidRequest("reference", "send either `reference` or `jobId`")
    if job_id is not None:
        if tool is not None:
            raise InvalidRequest("tool", "goes with `reference`; a job has its own")
        job = await parts.ledger.job(credential, own_id("job", job_id))
        reference, tool = job.id, job.tool
    assert reference is not None, "one of the two was sent"
    cost = await parts.ledger.cost(credential, reference, tool)
    turn = await parts.ledger.turn(credential, reference) if is_id("chatcmpl", reference) else None
    return json_response(
        {
            "ok": True,
            "reference": reference,
            "jobId": job_id,
            **_money(cost.charged_tokens, cost.refunded_tokens),
            "held": amount(cost.held_tokens),
            "lines": [line(each) for each in cost.lines],
            "turn": turn and _turn(turn),
        }
    )


def line(entry: Line) -> dict[str, Any]:
    """Return a line of the statement as it is shown."""
    return {
        "number": entry.version,
        "transferId": entry.transfer_id,
        "kind": entry.kind,
        "tool": entry.tool,
        "reference": entry.reference,
        "reason": entry.reason,
        "keyId": entry.key_id,
        "units": None if entry.units_milli is None else in_units(entry.units_milli),
        "priceVersion": entry.price_version,
        "amount": amount(entry.amount_tokens),
        "balanceAfter": amount(entry.balance_after_tokens),
        "happenedAt": entry.happened_at,
        "writtenAt": entry.written_at,
        "reversesId": entry.reverses_id,
        "holdId": entry.hold_id,
    }


def _row(row: Usage, by: list[Dimension]) -> dict[str, Any]:
    """Return a row with the dimensions that were asked for. Units of several tools are not added up."""
    shown: dict[str, Any] = {}
    if "day" in by:
        shown["day"] = row.day
    if "tool" in by:
        shown["tool"] = row.tool
    if "task" in by:
        shown["task"] = row.task
    if "key" in by:
        shown |= {"keyId": row.key_id, "keyPrefix": row.key_prefix}
    shown["charges"] = row.charges
    if "tool" in by:
        shown["units"] = in_units(row.units_milli)
    return shown | _money(row.charged_tokens, row.refunded_tokens)


def _turn(turn: MeteredTurn) -> dict[str, Any]:
    busy_s = turn.busy_us / 1_000_000
    return {
        "model": turn.model,
        "outcome": turn.outcome,
        "promptTokens": turn.prompt_tokens,
        "completionTokens": turn.completion_tokens,
        "metrics": {
            "queueMs": turn.queue_ms,
            "runMs": turn.run_ms,
            "busySeconds": busy_s,
            "gpuSeconds": busy_s if turn.on_gpu else 0.0,
        },
    }


def _money(charged_tokens: int, refunded_tokens: int) -> dict[str, Any]:
    return {
        "charged": amount(charged_tokens),
        "refunded": amount(refunded_tokens),
        "net": amount(charged_tokens - refunded_tokens),
    }


def _days_before(last: Day) -> Day:
    """Return the first day of a period that ends with `last` and was not named."""
    try:
        return last - timedelta(days=DAYS_SHOWN - 1)
    except OverflowError:  # the year 1
        return last


def _version(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not VERSION.fullmatch(cursor):
        raise InvalidRequest("cursor", "is not a nextCursor of this list")
    return int(cursor)
