"""Credits that a caller takes off their own balance by hand."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gateway.bodies import StrictRoute
from gateway.catalog import CONSUME, TOKENS_PER_CREDIT
from gateway.deps import SECURED, CallerKey, PartsOf, RetryKey, agreed_key
from gateway.openapi import REPLAYED, WRITE, problems
from gateway.quantities import MILLI
from gateway.responses import REPLAY, in_credits, json_response
from gateway.tool_answers import CreditsConsumed
from gateway.tool_schemas import ConsumeCredits
from kit.errors import InvalidRequest
from ledger.errors import ReferenceConflict
from ledger.spends import Spend

router = APIRouter(prefix="/api/v1", tags=["Credits"], route_class=StrictRoute)


@router.post(
    "/credits/consume",
    operation_id="consumeCredits",
    summary="Consume credits",
    response_model=CreditsConsumed,
    responses={
        200: {"headers": REPLAYED},
        **problems(
            *WRITE,
            "insufficient_credits",
            "account_frozen",
            "key_limit_reached",
            ReferenceConflict("render-001"),
        ),
    },
    openapi_extra=SECURED,
)
async def consume_credits(
    body: ConsumeCredits, credential: CallerKey, header_key: RetryKey, parts: PartsOf
) -> Response:
    """Charges credits for a reason of yours. An idempotency key is required: a retry charges nothing again."""
    key = agreed_key([sent for sent in (header_key, body.idempotency_key) if sent is not None])
    if key is None:
        raise InvalidRequest("idempotencyKey", "is required; send X-Idempotency-Key so that a retry is safe")
    spent = await parts.ledger.spend(
        Spend(
            credential,
            CONSUME,
            key,
            body.tokens * MILLI // TOKENS_PER_CREDIT,
            body.tokens,
            parts.catalog.price_version,
            body.reason,
        )
    )
    return json_response(
        {
            "ok": True,
            "consumed": in_credits(spent.charged_tokens),
            "tokens": spent.charged_tokens,
            "balance": in_credits(spent.balance_after_tokens),
            "balanceTokens": spent.balance_after_tokens,
        },
        headers=REPLAY if spent.replayed else None,
    )
