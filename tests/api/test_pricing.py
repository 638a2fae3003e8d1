"""The price list: public, exact, cacheable, and what the quotes are made of."""

from __future__ import annotations

from decimal import Decimal

import pytest

from gateway.catalog import load_catalog
from gateway.tool_answers import Pricing

PRICING = "/api/v1/pricing"


async def test_everyone_may_read_the_prices_and_keep_them_a_minute(web):
    answer = await web.get(PRICING)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "public, max-age=60"
    Pricing.model_validate_json(answer.content)
    chat = answer.json()["tools"][0]
    assert chat == {
        "tool": "chat",
        "unit": "turn",
        "tokens_per_unit": 5,
        "tokens": 5,
        "per_units": 1,
        "model": "Qwen3-8B",
        "licence": "Apache-2.0",
        "since": "2026-11-22",
        "price_version": 1,
    }


async def test_every_tool_on_sale_is_listed_with_an_exact_price(web):
    shown = (await web.get(PRICING)).text
    tools = {t["tool"]: t for t in (await web.get(PRICING)).json()["tools"]}
    assert tools.keys() == load_catalog().tools.keys()
    assert '"tokens_per_unit":0.01,' in shown
    for tool in tools.values():
        assert Decimal(str(tool["tokens_per_unit"])) * tool["per_units"] == tool["tokens"]


@pytest.mark.parametrize("tool", [tool.name for tool in load_catalog().tools.values()])
async def test_a_quote_is_the_listed_price(web, customer, tool):
    owner = await customer(100_000)
    price = next(t for t in (await web.get(PRICING)).json()["tools"] if t["tool"] == tool)
    quote = await owner.client.post(
        "/api/v1/tools/check", json={"tool": tool, "units": 7 * price["per_units"]}
    )
    assert quote.json()["cost_tokens"] == 7 * price["tokens"]


async def test_prices_cannot_be_written(web):
    answer = await web.post(PRICING, json={})
    assert (answer.status_code, answer.json()["error"]) == (405, "method_not_allowed")
