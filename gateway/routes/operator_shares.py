"""An operator's route about a user's share of the models."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from gateway.answers import Answer, Ok
from gateway.bodies import StrictRoute
from gateway.deps import SECURED, OperatorKey, PartsOf, own_id
from gateway.openapi import WRITE, problems
from gateway.operator_ports import Share
from gateway.operator_schemas import Because
from gateway.responses import json_response
from gateway.shares import MAX_RUNNING, MAX_WEIGHT
from kit.errors import NotFound

router = APIRouter(prefix="/api/v1/operator", tags=["Operator"], route_class=StrictRoute)

Concurrency = Annotated[
    int | None,
    Field(
        ge=1,
        le=MAX_RUNNING,
        description="Jobs of the account that run at the same time; null: as for everybody.",
        examples=[8],
    ),
]


class SetShare(Because):
    """A user's share, whole: what is left out is as for everybody."""

    weight: Annotated[
        int, Field(ge=1, le=MAX_WEIGHT, description="Turns beside one of everybody else's.", examples=[3])
    ] = 1
    concurrency: Concurrency = None


class ShareFields(Answer):
    """How heavy an account's turns are, and its own bound."""

    weight: int
    concurrency: int | None


class OperatorShareShown(Ok):
    """A share as an operator left it."""

    share: ShareFields


@router.post(
    "/users/{user_id}/share",
    operation_id="operatorSetShare",
    summary="Set a user's share of the models",
    response_model=OperatorShareShown,
    responses=problems(*WRITE, NotFound("user")),
    openapi_extra=SECURED,
)
async def set_share(user_id: str, body: SetShare, by: OperatorKey, parts: PartsOf) -> Response:
    """Where several wait, an account of weight 3 gets three turns for one of another's. Holds from the next job on."""
    wanted = Share(body.weight, body.concurrency)
    share = await parts.ledger.set_share(by, own_id("user", user_id), wanted, body.reason)
    return json_response({"ok": True, "share": {"weight": share.weight, "concurrency": share.max_running}})
