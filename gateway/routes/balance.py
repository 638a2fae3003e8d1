"""What an account may spend."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.account_answers import PastBalance
from gateway.answers import BalanceShown
from gateway.bodies import LeanRoute
from gateway.deps import SECURED, credential_of, parts_of
from gateway.openapi import READ, problems
from gateway.periods import instant
from gateway.responses import amount, in_credits, json_response

router = APIRouter(prefix="/api/v1", tags=["Credits"], route_class=LeanRoute)


AT: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "at",
            "in": "query",
            "description": "An RFC 3339 time with its offset: return the balance at that time instead.",
            "schema": {"type": "string", "format": "date-time"},
        }
    ]
}


@router.get(
    "/credits/balance",
    operation_id="getBalance",
    summary="Get the credit balance",
    response_model=BalanceShown | PastBalance,
    responses=problems(*READ, "invalid_request"),
    openapi_extra=SECURED | AT,
)
async def get_balance(request: Request) -> Response:
    """What is free to spend, and what is held for jobs under way. With `at`: what the balance was then."""
    if request.scope["query_string"] and (sent := request.query_params.get("at")) is not None:
        return await _past_balance(request, instant("at", sent))
    balance = await parts_of(request).ledger.balance(credential_of(request))
    free, held = balance.available_tokens, balance.held_tokens
    return json_response(
        {
            "ok": True,
            "credits": in_credits(free),
            "tokens": free,
            "held": {"credits": in_credits(held), "tokens": held},
        }
    )


async def _past_balance(request: Request, at: datetime) -> Response:
    tokens = await parts_of(request).ledger.balance_at(credential_of(request), at)
    return json_response({"ok": True, "at": at, **amount(tokens)})


router.add_api_route(
    "/balance",
    get_balance,
    operation_id="getBalanceShort",
    summary="Get the credit balance, by its short path",
    response_model=BalanceShown | PastBalance,
    responses=problems(*READ, "invalid_request"),
    openapi_extra=SECURED | AT,
)
