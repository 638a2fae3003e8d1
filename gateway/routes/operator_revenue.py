"""An operator's route over what the models take and earn."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from gateway.answers import Answer, Ok, Tokens
from gateway.bodies import StrictRoute
from gateway.deps import SECURED, OperatorKey, PartsOf
from gateway.metering import Revenue
from gateway.openapi import READ, problems
from gateway.periods import Instant
from gateway.responses import json_response
from kit.errors import InvalidRequest

router = APIRouter(prefix="/api/v1/operator", tags=["Operator"], route_class=StrictRoute)

PERIOD: Final = timedelta(days=30)
"""What is looked back at where nobody says from when: about a bill of whoever rents out the GPUs."""


class ModelRevenue(Answer):
    """What a model took and earned. On a CPU no GPU is held: there the seconds are those that the model worked."""

    application: str
    model: Annotated[str | None, Field(description="Null while no job succeeded and no turn began.")]
    device: Literal["gpu", "cpu"]
    attempts: Annotated[int, Field(description="Attempts at jobs, and turns of conversations.")]
    succeeded: int
    seconds: Annotated[
        float,
        Field(description="GPU-seconds, on a CPU seconds at work; of shared time each one's part."),
    ]
    unpaid_seconds: Annotated[float, Field(description="Of these, for what nobody was charged for.")]
    tokens: Annotated[Tokens, Field(description="Charged for it, less what was given back since.")]
    tokens_per_second: float | None


class RevenueShown(Ok):
    """Attempts and turns of live customers that ended in the period, by model."""

    since: datetime
    until: datetime
    data: list[ModelRevenue]


@router.get(
    "/revenue",
    operation_id="operatorGetRevenue",
    summary="Revenue per GPU-second by model",
    response_model=RevenueShown,
    responses=problems(*READ, "invalid_request"),
    openapi_extra=SECURED,
)
async def get_revenue(
    by: OperatorKey,
    parts: PartsOf,
    *,
    since: Annotated[Instant | None, Query(description="Without it, 30 days before `until`.")] = None,
    until: Annotated[Instant | None, Query(description="Without it, now.")] = None,
) -> Response:
    """What each model took, also for jobs and turns that failed or were canceled, and what it earned by it."""
    end = until or datetime.now(UTC)
    begin = since or end - PERIOD
    if begin >= end:
        raise InvalidRequest("since", "must lie before until")
    found = await parts.ledger.revenue(by, begin, end)
    return json_response({"ok": True, "since": begin, "until": end, "data": [shown(each) for each in found]})


def shown(found: Revenue) -> dict[str, object]:
    """Return a model's line."""
    told = asdict(found)
    return {
        "application": told["application"],
        "model": told["model"],
        "device": "gpu" if found.on_gpu else "cpu",
        "attempts": told["attempts"],
        "succeeded": told["succeeded"],
        "seconds": found.busy_s,
        "unpaidSeconds": found.unpaid_s,
        "tokens": found.tokens,
        "tokensPerSecond": found.tokens_per_s,
    }
