"""Test credits: free, and filled up whenever a test key asks."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gateway.answers import CreditsRefilled
from gateway.bodies import StrictRoute
from gateway.deps import SECURED, CallerKey, PartsOf
from gateway.openapi import READ, problems
from gateway.responses import in_credits, json_response

router = APIRouter(prefix="/api/v1", tags=["Keys"], route_class=StrictRoute)


@router.post(
    "/test/refill",
    operation_id="refillTestCredits",
    summary="Fill the test account up",
    response_model=CreditsRefilled,
    responses=problems(*READ),
    openapi_extra=SECURED,
)
async def refill_test_credits(credential: CallerKey, parts: PartsOf) -> Response:
    """Brings what a test key may spend up to this server's test credits, at no cost; a full account gets none.

    403 for a live key. Needs the scope `checkout`.
    """
    refilled = await parts.ledger.refill(credential)
    free = refilled.balance.available_tokens
    return json_response(
        {
            "ok": True,
            "granted": in_credits(refilled.granted_tokens),
            "grantedTokens": refilled.granted_tokens,
            "balance": in_credits(free),
            "balanceTokens": free,
        }
    )
