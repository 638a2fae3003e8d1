"""Signed receipts of jobs, and the public keys that check them."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from gateway.account_answers import JwkSet, ReceiptShown
from gateway.bodies import StrictRoute
from gateway.deps import SECURED, CallerKey, PartsOf, own_id
from gateway.openapi import READ, problems
from gateway.receipts import JWKS_PATH, receipt
from gateway.responses import json_response

JWKS_HEADERS: Final = {
    # A verifier asks again within five minutes: a key is published that long before it signs.
    "cache-control": "public, max-age=300",
    "access-control-allow-origin": "*",  # any page may check a receipt; the keys are public
}

router = APIRouter(tags=["Usage"], route_class=StrictRoute)


@router.get(
    "/api/v1/media/jobs/{job_id}/receipt",
    operation_id="getReceipt",
    summary="Get the signed receipt of a finished job",
    response_model=ReceiptShown,
    responses=problems(*READ, "not_found", "job_not_finished"),
    openapi_extra=SECURED,
)
async def get_receipt(job_id: str, credential: CallerKey, parts: PartsOf) -> Response:
    """What was made and what it cost, signed; also for a job that cost nothing.

    It states the job's end: what was refunded later is in `GET /cost`. Check it with `farebox receipt verify FILE` or
    at `/docs/receipts`.
    """
    job = await parts.ledger.finished_job(credential, own_id("job", job_id))
    return json_response({"ok": True, **receipt(job, parts.settings.base_url, parts.receipt_keys)})


router.add_api_route(
    "/api/v1/jobs/{job_id}/receipt",
    get_receipt,
    operation_id="getReceiptShort",
    summary="Get the signed receipt of a finished job, by its short path",
    response_model=ReceiptShown,
    responses=problems(*READ, "not_found", "job_not_finished"),
    openapi_extra=SECURED,
)


@router.get(
    JWKS_PATH,
    operation_id="getJwks",
    summary="Get the public keys of receipts",
    response_model=JwkSet,
    responses=problems(),
)
async def get_jwks(parts: PartsOf) -> Response:
    """The Ed25519 keys that sign receipts, or did, as a JWK Set. A receipt names its key by `kid`."""
    return json_response(parts.receipt_keys.jwks, headers=JWKS_HEADERS)
