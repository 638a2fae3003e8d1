"""What an account may spend."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.answers import BalanceShown
from gateway.bodies import LeanRoute
from gateway.deps import SECURED, credential_of, parts_of
from gateway.openapi import READ, problems
from gateway.responses import in_credits, json_response

router = APIRouter(prefix="/api/v1", tags=["Credits"], route_class=LeanRoute)


@router.get(
    "/credits/balance",
    operation_id="getBalance",
    summary="Get the credit balance",
    response_model=BalanceShown,
    responses=problems(*READ),
    openapi_extra=SECURED,
)
async def get_balance(request: Request) -> Response:
    """What is free to spend, and what is held for jobs under way."""
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


router.add_api_route(
    "/balance",
    get_balance,
    operation_id="getBalanceShort",
    summary="Get the credit balance, by its short path",
    response_model=BalanceShown,
    responses=problems(*READ),
    openapi_extra=SECURED,
)
