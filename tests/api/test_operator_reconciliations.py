"""The operator's reconciliations over the running routes, the real books and Stripe's twin, by status."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from deployments.handles import local_ledger
from gateway.app import create_app
from gateway.routes.operator_reconciliations import Reconciliations, ReconciliationShown
from ledger import operators
from ledger.actions import Actor
from payments.cards import CardCheckout
from payments.packages import Package
from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.testing import SECRET_KEY, WEBHOOK_SECRET, running

ROOT = "/api/v1/operator"
HERE = f"{ROOT}/reconciliations"
BUILDER = Package("builder_600", "Builder", 60_000, 5_000, "usd")
UNKNOWN = "rec_01k8z0b2c4d6f8g0h2j4k6m8n0"


def day(**changes: Any) -> dict[str, Any]:
    since = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    return {"since": since, "reason": "ticket 17"} | changes


@pytest_asyncio.fixture
async def stripe() -> AsyncIterator[str]:
    with running(create_twin(TwinSettings(secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET))) as url:
        yield url


@pytest.fixture
def checkout(stripe: str, card_shop: Callable[[str], CardCheckout]) -> CardCheckout:
    return card_shop(stripe)


@pytest_asyncio.fixture
async def app(settings, server, models, objects, checkout) -> FastAPI:
    return create_app(settings, local_ledger(server), models, checkout, objects)


@pytest_asyncio.fixture
async def operator(app, db) -> AsyncIterator[httpx.AsyncClient]:
    """A client with an operator's key; what a route does after its answer has been done when a call returns."""
    async with db.transaction() as conn:
        made = await operators.add(conn, Actor(None, "setup", None), "grace", brand="amai")
    headers = {"authorization": f"Bearer {made.secret}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://farebox.test", headers=headers
    ) as client:
        yield client


async def paid_unheard(checkout: CardCheckout, stripe: str, email: str) -> str:
    """A payment of which no webhook tells."""
    started = await checkout.start(email, BUILDER, None)
    async with httpx.AsyncClient(verify=False) as switches:
        paid = await switches.post(f"{stripe}/_twin/sessions/{started.session_id}/pay", json={})
    assert paid.status_code == 200
    return started.session_id


async def begun(operator: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    """Begin one, and return it as it ended."""
    answer = await operator.post(HERE, json=day(**changes))
    assert answer.status_code == 202, answer.text
    first = ReconciliationShown.model_validate_json(answer.content).reconciliation
    assert (first.ended_at, first.scheduled, first.differences) == (None, False, [])
    shown = await operator.get(f"{HERE}/{first.id}")
    assert ReconciliationShown.model_validate_json(shown.content).reconciliation.ended_at is not None
    return dict(shown.json()["reconciliation"])


async def test_202_for_a_comparison_whose_differences_are_shown_and_mended_on_request(
    operator, checkout, stripe, server, assert_sound
):
    session = await paid_unheard(checkout, stripe, "payer@company.com")
    seen = await begun(operator)
    (found,) = seen["differences"]
    assert (found["kind"], found["sessionId"], found["repair"]) == (
        "not_granted",
        session,
        "grant its credits",
    )
    assert (seen["payments"], seen["left"], seen["repaired"], seen["silent"]) == (1, 1, 0, {})
    assert not (await server.purchase("stripe", session)).paid
    mended = await begun(operator, repair=True, provider="stripe")
    assert (mended["repairs"], mended["left"], mended["repaired"], mended["differences"]) == (True, 0, 1, [])
    assert (await server.purchase("stripe", session)).paid
    await assert_sound(server._db)


async def test_200_for_a_list_newest_first_in_pages(operator, server):
    made = [(await begun(operator))["id"] for _ in range(3)]
    await server.begin_reconciliation_if_due(timedelta(days=1), timedelta(days=3), True)
    first = await operator.get(HERE, params={"limit": 3})
    page = Reconciliations.model_validate_json(first.content)
    assert [each.id for each in page.data][1:] == made[:0:-1]
    assert (page.data[0].scheduled, page.data[0].ended_at) == (True, None), "the Runner is at it"
    rest = await operator.get(HERE, params={"cursor": page.next_cursor})
    assert [each["id"] for each in rest.json()["data"]] == made[:1]
    assert rest.json()["nextCursor"] is None


async def test_each_is_a_line_of_the_log_with_what_was_asked(operator):
    seen = await begun(operator, provider="stripe", repair=True)
    line = (await operator.get(f"{ROOT}/audit")).json()["data"][0]
    assert (line["action"], line["target"], line["reason"]) == (
        "reconciliation.begin",
        seen["id"],
        "ticket 17",
    )
    assert (line["after"]["provider"], line["after"]["repairs"]) == ("stripe", True)
    assert line["by"]["name"] == "grace"


async def test_a_provider_that_is_away_is_named_and_the_answer_is_none(operator, stripe):
    async with httpx.AsyncClient(verify=False) as switches:
        await switches.post(f"{stripe}/_twin/faults", json={"next_requests_fail": 1000, "status": 500})
    seen = await begun(operator)
    assert (seen["silent"].keys(), seen["payments"]) == ({"stripe"}, 0)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"since": None}, "since"),
        ({"since": "yesterday"}, "since"),
        ({"since": "2100-01-01T00:00:00Z"}, "since"),
        ({"since": "2020-01-01T00:00:00Z"}, "since"),
        ({"until": "2020-01-01T00:00:00Z"}, "since"),
        ({"provider": "btcpay"}, "provider"),
        ({"provider": ""}, "provider"),
        ({"repair": "yes"}, "repair"),
        ({"reason": ""}, "reason"),
    ],
)
async def test_400_for_what_cannot_be_compared(operator, changes, field):
    answer = await operator.post(HERE, json=day(**changes))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), answer.text
    assert answer.json()["details"][0]["field"] == field
    assert (await operator.get(HERE)).json()["data"] == []


@pytest.mark.parametrize("path", [UNKNOWN, "rec_x", "0"])
async def test_404_for_one_that_never_was(operator, path):
    answer = await operator.get(f"{HERE}/{path}")
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


async def test_401_for_a_customers_key(operator, db, customers):
    async with db.transaction() as conn:
        owner = await customers(conn, 0)
    headers = {"authorization": f"Bearer {owner.secret}"}
    for answer in (
        await operator.get(HERE, headers=headers),
        await operator.get(f"{HERE}/{UNKNOWN}", headers=headers),
        await operator.post(HERE, json=day(), headers=headers),
    ):
        assert (answer.status_code, answer.json()["error"]) == (401, "auth_required")


async def test_503_where_no_provider_is_configured(operator, settings, ledger, models, objects):
    bare = httpx.ASGITransport(create_app(settings, ledger, models, None, objects))
    async with httpx.AsyncClient(transport=bare, base_url="http://t", headers=operator.headers) as client:
        answer = await client.post(HERE, json=day())
    assert (answer.status_code, answer.json()["error"]) == (503, "payments_unavailable")
