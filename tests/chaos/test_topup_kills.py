"""`kill -9` between the charge of a saved card and its record: one charge at Stripe, one grant in the books.

The process that dies is the one that charges. Over the real Stripe SDK and the twin behind it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import text

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from gateway.catalog import load_catalog
from kit.db import Database
from kit.settings import Settings
from payments.cards import CardCheckout
from payments.reconciler import Reconciler
from payments.reconciliations import Span
from payments.stripe_checkout import checkout_for
from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.stripe_webhooks import event_body, signature_header
from sandbox.testing import SECRET_KEY, WEBHOOK_SECRET, running

STARTER = load_catalog().packages["starter_100"]
START_TOKENS, THRESHOLD_TOKENS = 1_000, 5_000
NO_ANSWER = ("Stripe's answer", "before")
"""Charged, and the answer has not left Stripe when whoever asked for it dies."""
MOMENTS = [
    pytest.param(("begin_topups", "after"), 0, False, id="written down"),
    pytest.param(("take_topups", "after"), 0, False, id="taken, and nobody asked"),
    pytest.param(NO_ANSWER, 1, False, id="charged, no answer"),
    pytest.param(NO_ANSWER, 1, True, id="charged, no answer, then its webhook"),
    pytest.param(("fulfil", "before"), 1, False, id="answered, not recorded"),
    pytest.param(("fulfil", "before"), 1, True, id="answered, not recorded, then its webhook"),
    pytest.param(("fulfil", "after"), 1, False, id="recorded"),
]


class Stripe:
    """The twin on a port of its own, which kills whom it is told at their charge."""

    def __init__(self) -> None:
        self._app = create_twin(TwinSettings(secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET))
        self.url = ""
        self.victim: BaseProcess | None = None

    @property
    def document(self) -> dict[str, Any]:
        return dict(self._app.state.twin._state.document)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.victim is None or (scope.get("method"), scope.get("path")) != ("POST", "/v1/payment_intents"):
            await self._app(scope, receive, send)
            return

        async def unsent(_message: Any) -> None:
            """The charge is made, and nobody hears of it."""

        await self._app(scope, receive, unsent)
        pid = self.victim.pid
        self.victim = None
        assert pid
        os.kill(pid, signal.SIGKILL)

    def charges(self, customer_id: str) -> list[int]:
        of_all = self.document["charges"].values()
        return [c["amount"] for c in of_all if c["customer"] == customer_id and c["status"] == "succeeded"]


@pytest.fixture
def stripe() -> Iterator[Stripe]:
    twin = Stripe()
    with running(twin) as url:  # type: ignore[arg-type]  # an application all the same
        twin.url = url
        yield twin


@pytest_asyncio.fixture
async def server(durable) -> AsyncIterator[LedgerServer]:
    server = LedgerServer(Settings(database_url=durable.url, secret="of this test alone"))
    yield server
    await server.close()


@pytest_asyncio.fixture
async def checkout(server, stripe, tmp_path) -> AsyncIterator[CardCheckout]:
    settings = Settings(
        data_dir=tmp_path,
        stripe_secret_key=SECRET_KEY,
        stripe_webhook_secret=WEBHOOK_SECRET,
        stripe_api_base=stripe.url,
    )
    checkout = checkout_for(settings, local_ledger(server))
    assert checkout
    yield checkout
    await checkout.close()


async def rows(db: Database, query: str, **values: Any) -> list[Any]:
    async with db.transaction() as conn:
        return [tuple(row) for row in await conn.execute(text(query), values)]


async def short_customer(checkout: CardCheckout, db: Database, customers: Any) -> Any:
    """Somebody who is short of what they wish to have, with a saved card."""
    async with db.transaction() as conn:
        owner = await customers(conn, START_TOKENS)
    async with httpx.AsyncClient(verify=False) as browser:
        saved = await browser.post(
            await checkout.card_page(owner.credential), data={"outcome": "pay", "card": "pm_card_visa"}
        )
    assert saved.status_code == 303, saved.text
    await checkout.switch_topup_on(owner.credential, STARTER, THRESHOLD_TOKENS, 10 * STARTER.price_minor)
    return owner


async def told(checkout: CardCheckout, stripe: Stripe) -> None:
    """Bring the webhook of every charge, twice."""
    events = [e for e in stripe.document["events"].values() if e["type"] == "payment_intent.succeeded"]
    for event in events * 2:
        body = event_body(event)
        signature = signature_header(WEBHOOK_SECRET, event["created"], body)
        if (kept := await checkout.receive_webhook(body, {"stripe-signature": signature})) is not None:
            await checkout.apply(kept)


@pytest.mark.parametrize(("doom", "charged", "heard"), MOMENTS)
async def test_a_saved_card_is_charged_once_and_granted_once_whenever_who_charges_it_dies(  # noqa: PLR0917  # fixtures
    durable, top_ups, stripe, server, checkout, customers, assert_sound, doom, charged, heard
):
    db: Database = server._db
    look: Callable[..., BaseProcess] = top_ups
    owner = await short_customer(checkout, db, customers)
    ((customer_id,),) = await rows(
        db, "SELECT customer_id FROM auto_topups WHERE account_id = :id", id=owner.account_id
    )

    async def granted() -> list[Any]:
        found = await rows(
            db,
            "SELECT t.amount FROM transfers t WHERE t.account_id = :id AND t.kind = 'purchase'",
            id=owner.account_id,
        )
        return [amount for (amount,) in found]

    victim = look(durable.url, stripe.url, None if doom == NO_ANSWER else doom)
    if doom == NO_ANSWER:
        stripe.victim = victim
    victim.start()
    await asyncio.to_thread(victim.join)
    assert victim.exitcode == -signal.SIGKILL
    assert len(stripe.charges(customer_id)) == charged
    assert await granted() == ([STARTER.credits_tokens] if doom == ("fulfil", "after") else [])
    assert await rows(
        db, "SELECT state FROM auto_topup_charges WHERE account_id = :id", id=owner.account_id
    ) == [("paid" if doom == ("fulfil", "after") else "charging",)]

    if heard:
        await told(checkout, stripe)
        assert await granted() == [STARTER.credits_tokens]
    # As when the dead one's lease is over, and two Runners look at once.
    await rows(db, "UPDATE auto_topup_charges SET due_at = now() WHERE state = 'charging' RETURNING id")
    others = [look(durable.url, stripe.url, None) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        await asyncio.to_thread(other.join)
        assert other.exitcode == 0
    await told(checkout, stripe)

    assert stripe.charges(customer_id) == [STARTER.price_minor]
    assert await granted() == [STARTER.credits_tokens]
    assert await rows(
        db, "SELECT state FROM auto_topup_charges WHERE account_id = :id", id=owner.account_id
    ) == [("paid",)]
    now = datetime.now(UTC)
    # Each test has a Stripe of its own, and the books are shared.
    ids = await rows(db, "SELECT id FROM auto_topup_charges WHERE account_id = :id", id=owner.account_id)
    seen = await Reconciler(server, [checkout], wallets=False).run(
        Span(now - timedelta(days=1), now + timedelta(minutes=1)), repairs=False
    )
    assert [each for each in seen.differences if (each.purchase_id,) in ids] == []
    await assert_sound(db)
