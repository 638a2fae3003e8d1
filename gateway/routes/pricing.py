"""The price list, for everyone."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.bodies import LeanRoute
from gateway.catalog import Tool
from gateway.deps import parts_of
from gateway.responses import json_response
from gateway.tool_answers import Pricing

router = APIRouter(prefix="/api/v1", tags=["Tools"], route_class=LeanRoute)

CACHEABLE: Final = {"cache-control": "public, max-age=60"}
"""Prices change by the day; a minute keeps a busy page off the server."""


@router.get("/pricing", operation_id="getPricing", summary="List tools and prices", response_model=Pricing)
async def get_pricing(request: Request) -> Response:
    """Each tool with its unit, its price, the model behind it and the day since when. May be cached a minute."""
    catalog = await parts_of(request).price_list.last_known()
    return json_response(
        {
            "ok": True,
            "price_version": catalog.price_version,
            "since": catalog.since,
            "tools": [_shown(tool) for tool in catalog.tools.values()],
        },
        headers=CACHEABLE,
    )


def _shown(tool: Tool) -> dict[str, Any]:
    price = tool.price
    return {
        "tool": tool.name,
        "unit": tool.unit,
        # A decimal written out: exact, since prices are for 1, 10, 100 or 1000 units.
        "tokens_per_unit": orjson.Fragment(f"{Decimal(price.tokens) / price.per_units:f}"),
        "tokens": price.tokens,
        "per_units": price.per_units,
        "model": tool.model,
        "licence": tool.licence,
        "since": tool.since,
        "price_version": price.version,
    }
