"""Referrals: one's own code and what it has brought, and the code of whoever brought oneself."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from gateway.account_answers import ReferralApplied, ReferralShown
from gateway.bodies import StrictRoute
from gateway.deps import SECURED, CallerKey, PartsOf
from gateway.openapi import READ, WRITE, problems
from gateway.responses import amount, json_response
from gateway.schemas import ApplyReferral
from kit.errors import NotFound
from payments.errors import AlreadyReferred, ReferralRing, ReferralTooLate, SelfReferral
from payments.referrals import Application

router = APIRouter(prefix="/api/v1", tags=["Referral"], route_class=StrictRoute)


@router.get(
    "/referral",
    operation_id="getReferral",
    summary="Get your referral code and what it earned",
    response_model=ReferralShown,
    responses=problems(*READ),
    openapi_extra=SECURED,
)
async def get_referral(credential: CallerKey, parts: PartsOf) -> Response:
    """The code is made at the first look and stays. Whoever applies it before their first paid order earns you
    `reward`, once that order has stood for the holding time. `pending` waits for that and may still come to nothing;
    an order that is taken back later takes its reward with it. Needs the scope `read`.
    """
    stands = await parts.ledger.referral(credential)
    return json_response(
        {
            "ok": True,
            "code": stands.code,
            "earned": amount(stands.earned_tokens),
            "pending": amount(stands.pending_tokens),
            "reward": amount(stands.reward_tokens),
            "referrals": {
                "applied": stands.applied,
                "ordered": stands.ordered,
                "rewarded": stands.rewarded,
            },
            "applied": stands.own and _application(stands.own),
        }
    )


@router.post(
    "/referral/apply",
    operation_id="applyReferral",
    summary="Apply someone's referral code",
    response_model=ReferralApplied,
    responses=problems(
        *WRITE,
        NotFound("referral code"),
        AlreadyReferred(),
        ReferralTooLate(),
        SelfReferral(),
        ReferralRing(),
    ),
    openapi_extra=SECURED,
)
async def apply_referral(body: ApplyReferral, credential: CallerKey, parts: PartsOf) -> Response:
    """Says who brought you: once for each account, and before its first paid order. The same code again gets the same
    answer. Needs the scope `checkout`.
    """
    return json_response(
        {"ok": True, "applied": _application(await parts.ledger.apply_referral(credential, body.code))}
    )


def _application(own: Application) -> dict[str, Any]:
    return {"code": own.code, "at": own.at}
