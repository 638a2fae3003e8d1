"""The tools: what work costs, and the charge for it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from gateway.bodies import LeanRoute
from gateway.deps import SECURED, CallerKey, PartsOf, RetryKey
from gateway.errors import CostExceedsHold
from gateway.fingerprints import fingerprint
from gateway.openapi import REPLAYED, WRITE, problems
from gateway.responses import REPLAY, json_response
from gateway.tool_answers import ToolChecked, ToolSpent
from gateway.tool_holds import Held, PlaceHold, SpendHeld
from gateway.tool_schemas import CheckTool, SpendTool
from kit.errors import NotFound
from ledger.errors import InsufficientCredits, ReferenceConflict
from ledger.spends import Allowance, Check, Spend

router = APIRouter(prefix="/api/v1/tools", tags=["Tools"], route_class=LeanRoute)


@router.post(
    "/check",
    operation_id="checkTool",
    summary="Quote the cost of work",
    response_model=ToolChecked,
    responses={200: {"headers": REPLAYED}, **problems(*WRITE, "idempotency_key_reused")},
    openapi_extra=SECURED,
)
async def check_tool(
    body: CheckTool, credential: CallerKey, header_key: RetryKey, parts: PartsOf
) -> Response:
    """Never charges. With `hold` the cost is set aside until `expires_at`, at this price.

    An idempotency key makes a retried hold the same hold.
    """
    price = (await parts.price_list()).tool(body.tool).price
    if not body.hold:
        cost_tokens = price.cost_tokens(body.units_milli)
        return json_response(_allowance(await parts.ledger.check(Check(credential, cost_tokens, body.tool))))
    meaning = fingerprint({"tool": body.tool, "units_milli": body.units_milli})
    outcome = await parts.ledger.hold_tool(
        PlaceHold(credential, body.tool, body.units_milli, price, header_key, meaning)
    )
    if isinstance(outcome, Allowance):
        return json_response(_allowance(outcome))
    return json_response(_held(outcome), headers=REPLAY if outcome.replayed else None)


@router.post(
    "/spend",
    operation_id="spendTool",
    summary="Charge for work that was done",
    response_model=ToolSpent,
    responses={
        200: {"headers": REPLAYED},
        **problems(
            *WRITE,
            InsufficientCredits(5, 2),
            "account_frozen",
            "key_limit_reached",
            ReferenceConflict("req_2026-07-03_abc123"),
            NotFound("hold"),
            "hold_resolved",
            CostExceedsHold(10, 5),
        ),
    },
    openapi_extra=SECURED,
)
async def spend_tool(body: SpendTool, credential: CallerKey, parts: PartsOf) -> Response:
    """Charges once for each `tool` and `reference`: a repeat gets the first answer again.

    With a `hold_id` the charge comes out of the hold and cannot fail for lack of credits.
    """
    tool = (await parts.price_list()).tool(body.tool)
    units_milli = body.units_milli
    if body.hold_id is None:
        price = tool.price
        spent = await parts.ledger.spend(
            Spend(
                credential,
                tool.name,
                body.reference,
                units_milli,
                price.cost_tokens(units_milli),
                price.version,
            )
        )
    else:
        spent = await parts.ledger.spend_held(
            SpendHeld(credential, tool.name, body.reference, units_milli, body.hold_id)
        )
    return json_response(
        {"ok": True, "charged": spent.charged_tokens, "balance_after": spent.balance_after_tokens},
        headers=REPLAY if spent.replayed else None,
    )


def _allowance(found: Allowance) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "ok": True,
        "allowed": found.allowed,
        "cost_tokens": found.cost_tokens,
        "balance_after": found.balance_after_tokens,
    }
    return answer if found.allowed else {**answer, "reason": found.reason}


def _held(held: Held) -> dict[str, Any]:
    return {
        "ok": True,
        "allowed": True,
        "cost_tokens": held.cost_tokens,
        "balance_after": held.balance_after_tokens,
        "hold_id": held.hold_id,
        "expires_at": held.expires_at,
    }
