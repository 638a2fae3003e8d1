"""Health tells the truth about the parts, cheaply: 503 only if money cannot move."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway.app import create_app
from gateway.catalog import load_catalog
from gateway.health_answers import HealthReport
from gateway.ports import ModelState
from kit.errors import Unavailable
from payments.stripe_checkout import checkout_for
from payments.x402 import x402_for

HEALTH = "/api/v1/health"


async def test_health_names_every_part(web: httpx.AsyncClient):
    answer = await web.get(HEALTH)
    assert answer.status_code == 200
    HealthReport.model_validate_json(answer.content)
    body = answer.json()
    assert body["instance"] == "nonce"
    assert body["profile"] == "tiny"
    assert body["ledger"] == {"state": "ready", "reason": None}
    applications = {task.application for task in load_catalog().tasks.values()}
    assert body["models"] == {
        name: {"state": "ready", "reason": None, "asleep": False, "startsInSeconds": None}
        for name in applications
    }
    assert body["payments"] == {"state": "unavailable", "mode": "off"}
    assert (body["status"], body["sandbox"]) == ("degraded", False)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Unavailable("The ledger", 2), "The ledger is not available"),
        (RuntimeError("password=x"), "The ledger does not answer."),
    ],
)
async def test_health_is_503_when_money_cannot_move(web, stub_ledger, broken: Exception, said: str):
    stub_ledger.broken = broken
    answer = await web.get(HEALTH)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    body = answer.json()
    assert (body["ok"], body["error"], body["ledger"]["state"]) == (False, "unavailable", "unavailable")
    assert said in body["message"]
    assert "password" not in answer.text


@pytest.mark.parametrize("state", ["starting", "unavailable"])
async def test_money_moves_without_models(web, models, state):
    models.known = {"image": ModelState("image", state, "weights are being loaded")}
    answer = await web.get(HEALTH)
    assert answer.status_code == 200
    assert answer.json()["status"] == "degraded"
    assert answer.json()["models"]["image"] == {
        "state": state,
        "reason": "weights are being loaded",
        "asleep": False,
        "startsInSeconds": None,
    }


async def test_models_that_cannot_be_asked_count_as_unavailable(web, models):
    async def states():
        raise RuntimeError("no controller")

    models.states = states
    answer = await web.get(HEALTH)
    assert answer.status_code == 200
    assert answer.json()["models"]["image"]["state"] == "unavailable"


async def test_a_flood_of_health_checks_asks_the_books_once(web, stub_ledger):
    answers = await asyncio.gather(*(web.get(HEALTH) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert stub_ledger.calls == ["ping"]


@pytest.mark.parametrize(("network", "mode"), [("eip155:8453", "live"), ("eip155:84532", "test")])
async def test_health_knows_of_a_server_that_sells_to_wallets_alone(  # noqa: PLR0917
    settings, stub_ledger, models, objects, network, mode
):
    wallets = {
        "x402_facilitator": "http://127.0.0.1:9",
        "x402_pay_to": "0x" + "1" * 40,
        "x402_network": network,
    }
    told = type(settings)(**{**settings.model_dump(), **wallets})
    app = create_app(told, stub_ledger, models, None, objects, x402=x402_for(told, stub_ledger))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as web:
        body = (await web.get(HEALTH)).json()
    assert body["payments"] == {"state": "ready", "mode": mode}


@pytest.mark.parametrize(
    ("configured", "mode", "sandbox"),
    [
        ({"stripe_secret_key": "sk_live_1"}, "live", False),
        ({"stripe_secret_key": "sk_test_1"}, "test", False),
        ({"stripe_secret_key": "sk_test_1", "stripe_api_base": "http://127.0.0.1:9"}, "sandbox", True),
    ],
)
async def test_health_says_what_money_is_taken(  # noqa: PLR0917
    settings, stub_ledger, models, objects, configured, mode, sandbox
):
    told = type(settings)(**{**settings.model_dump(), **configured, "stripe_webhook_secret": "whsec_1"})
    app = create_app(told, stub_ledger, models, checkout_for(told, stub_ledger), objects)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as web:
        body = (await web.get(HEALTH)).json()
    assert body["payments"] == {"state": "ready", "mode": mode}
    assert (body["sandbox"], body["status"]) == (sandbox, "ready")
