"""Vouchers, as a caller redeems them."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gateway.bodies import StrictRoute
from gateway.deps import SECURED, CallerKey, PartsOf
from gateway.openapi import REPLAYED, WRITE, problems
from gateway.operator_answers import VoucherRedeemed
from gateway.operator_schemas import RedeemVoucher
from gateway.responses import REPLAY, in_credits, json_response
from kit.errors import NotFound
from payments.errors import VoucherClosed

router = APIRouter(prefix="/api/v1", tags=["Credits"], route_class=StrictRoute)


# A code has 80 random bits, so a guess finds nothing; `gateway.limits` keeps guessing slow all the same.
@router.post(
    "/vouchers/redeem",
    operation_id="redeemVoucher",
    summary="Redeem a voucher",
    response_model=VoucherRedeemed,
    responses={
        200: {"headers": REPLAYED},
        **problems(*WRITE, NotFound("voucher"), VoucherClosed("used_up")),
    },
    openapi_extra=SECURED,
)
async def redeem_voucher(body: RedeemVoucher, credential: CallerKey, parts: PartsOf) -> Response:
    """Adds the code's credits to your account, once: a repeat gets the first answer again and adds nothing.

    Needs the scope `checkout`; a test key may not.
    """
    redeemed = await parts.ledger.redeem_voucher(credential, body.code)
    return json_response(
        {
            "ok": True,
            "credits": in_credits(redeemed.amount_tokens),
            "tokens": redeemed.amount_tokens,
            "balance": in_credits(redeemed.free_after_tokens),
            "balanceTokens": redeemed.free_after_tokens,
            "creditsExpireAt": redeemed.credits_expire_at,
            "redeemedAt": redeemed.redeemed_at,
        },
        headers=REPLAY if redeemed.replayed else None,
    )
