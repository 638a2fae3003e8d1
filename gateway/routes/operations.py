"""What operators and strangers may look at: health, the trial balance, metrics."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.answers import TrialBalance
from gateway.bodies import LeanRoute
from gateway.deps import parts_of
from gateway.health_answers import HealthReport
from gateway.openapi import problems
from gateway.responses import in_credits, json_response
from kit.telemetry import render_metrics

router = APIRouter(route_class=LeanRoute)


@router.get(
    "/api/v1/health",
    tags=["Operations"],
    operation_id="getHealth",
    summary="Check health",
    response_model=HealthReport,
    responses=problems("unavailable"),
)
async def get_health(request: Request) -> Response:
    """200 with the state of ledger, models and payments; 503 only if money cannot move."""
    status, body = await parts_of(request).health()
    headers = {"cache-control": "no-store"} | ({} if status == HTTPStatus.OK else {"retry-after": "2"})
    return Response(body, status, headers, media_type="application/json")


@router.get(
    "/api/v1/ledger/trial-balance",
    tags=["Operations"],
    operation_id="getTrialBalance",
    summary="Get the trial balance",
    response_model=TrialBalance,
    responses=problems("unavailable"),
)
async def get_trial_balance(request: Request) -> Response:
    """The sums of all entries by kind of account: every movement has two sides, so together they are zero.

    The test world (`mode`) has books of its own: no movement has a side in both, and each is zero by itself.

    `lastBlock` is the newest block of the hash chain: what it and the blocks before it hold cannot change unseen.
    """
    books = await parts_of(request).trial_balance()
    block = books.last_block
    return json_response(
        {
            "ok": True,
            "rows": [
                {
                    "mode": row.world,
                    "kind": row.kind,
                    "accounts": row.accounts,
                    "entries": row.entries,
                    "credits": in_credits(row.amount_tokens),
                    "tokens": row.amount_tokens,
                }
                for row in books.rows
            ],
            "totalTokens": books.total_tokens,
            "balanced": books.balanced,
            "lastBlock": {
                "number": block.number,
                "upToTransfer": block.to_id,
                "hash": block.hash.hex(),
                "sealedAt": block.sealed_at,
            }
            if block
            else None,
        }
    )


@router.get("/metrics", include_in_schema=False)
async def get_metrics(request: Request) -> Response:
    """The Prometheus text. Reading the processes' files takes milliseconds, so not on the event loop."""
    text = await asyncio.to_thread(render_metrics, parts_of(request).settings.metrics_dir)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
