"""A payment's whole life over the real books, the real Stripe SDK and the twin behind it.

Whatever is heard of it, in whatever order: the books end where the provider is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from gateway.answers import PortalOpened
from gateway.app import create_app
from gateway.leases import Settlement
from gateway.ports import StoredFile, SubmitJob
from kit.db import Database
from kit.errors import InvalidRequest
from kit.ids import new_id
from kit.settings import Settings
from ledger.keys import Credential, hash_key
from ledger.spends import Spend
from payments.cards import CardCheckout
from payments.errors import NotRefundable, PaymentFailed, PaymentPending
from payments.packages import Package
from payments.purchases import OpenPurchase
from payments.reconciler import Reconciler
from payments.reconciliations import Span
from payments.stripe_checkout import HANDLED_EVENTS, checkout_for
from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.stripe_webhooks import event_body, signature_header
from sandbox.testing import SECRET_KEY, WEBHOOK_SECRET, running

BUILDER = Package("builder_600", "Builder", 60_000, 5_000, "usd")
EMAIL = "dev@company.com"


class Stripe:
    """The twin, as tests hold it: its switches, and its events, which arrive when a test delivers them."""

    def __init__(self, app: FastAPI, url: str) -> None:
        self.state = app.state.twin._state  # what it remembers
        self.url = url
        # No certificates: loading them takes longer than the calls.
        self.client = httpx.AsyncClient(base_url=f"{url}/_twin/", verify=False, timeout=60)

    async def turn(self, path: str, **order: Any) -> dict[str, Any]:
        """Turn one of its switches."""
        answer = await self.client.post(path, json=order)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def events(self, since: int = 0) -> list[dict[str, Any]]:
        """What happened, the earliest first."""
        return list(self.state.document["events"].values())[since:]

    def session(self, session_id: str) -> dict[str, Any]:
        return dict(self.state.document["sessions"][session_id])

    def customers(self) -> list[str]:
        return list(self.state.document["customers"])

    def returned_minor(self, payment_id: str | None) -> int:
        """What of a payment went back, by the money alone."""
        charges = [c for c in self.state.document["charges"].values() if c["payment_intent"] == payment_id]
        refunds = [r for r in self.state.document["refunds"].values() if r["payment_intent"] == payment_id]
        disputes = [d for d in self.state.document["disputes"].values() if d["payment_intent"] == payment_id]
        gone = sum(r["amount"] for r in refunds if r["status"] != "failed")
        gone += sum(
            d["amount"] for d in disputes if sum(move["amount"] for move in d["balance_transactions"]) < 0
        )
        return min(gone, sum(c["amount"] for c in charges if c["status"] == "succeeded"))


@pytest_asyncio.fixture
async def stripe() -> AsyncIterator[Stripe]:
    app = create_twin(TwinSettings(secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET))
    with running(app) as url:
        stripe = Stripe(app, url)
        yield stripe
        await stripe.client.aclose()


def configured(stripe: Stripe, tmp_path: Any, **more: Any) -> Settings:
    return Settings(
        data_dir=tmp_path,
        secret="a secret of this test run alone",
        stripe_secret_key=SECRET_KEY,
        stripe_webhook_secret=WEBHOOK_SECRET,
        stripe_api_base=stripe.url,
        **more,
    )


@pytest_asyncio.fixture
async def checkout(stripe: Stripe, server: LedgerServer, tmp_path: Any) -> AsyncIterator[CardCheckout]:
    checkout = checkout_for(configured(stripe, tmp_path), local_ledger(server))
    assert checkout
    yield checkout
    await checkout.close()


async def deliver(checkout: CardCheckout, events: list[dict[str, Any]]) -> None:
    """Bring events as webhooks, and have them handled, as the route does."""
    for event in events:
        body = event_body(event)
        signature = signature_header(WEBHOOK_SECRET, event["created"], body)
        kept = await checkout.receive_webhook(body, {"stripe-signature": signature})
        if kept is not None:
            await checkout.apply(kept)


async def bought(checkout: CardCheckout, stripe: Stripe, email: str = EMAIL, **buyer: Any) -> tuple[str, str]:
    """Buy a package, paid and granted; returns the session and the payment."""
    started = await checkout.start(email, BUILDER, None)
    paid = await stripe.turn(f"sessions/{started.session_id}/pay", **buyer)
    await checkout.settle(started.session_id)
    return started.session_id, paid["payment_intent"]


async def standing(db: Database, email: str = EMAIL) -> tuple[int, int, bool]:
    """Balance, debt, and whether the account is frozen by hand or warning."""
    async with db.transaction() as conn:
        row = (
            await conn.execute(
                text(
                    "SELECT a.balance, a.debt, a.frozen_at IS NOT NULL AS frozen FROM accounts a"
                    " JOIN users u ON u.id = a.user_id WHERE u.email = :email"
                ),
                {"email": email},
            )
        ).one()
    return row.balance, row.debt, row.frozen


async def spend(server: LedgerServer, secret: str, tokens: int, reference: str) -> None:
    (outcome,) = await server.spend_many(
        [Spend(Credential(hash_key(secret)), "image", reference, 1000, tokens, 1)]
    )
    assert outcome.charged_tokens == tokens, outcome


async def test_refunds_in_parts_take_their_share_and_a_failed_one_gives_it_back(
    checkout, stripe, db, assert_sound
):
    _, payment = await bought(checkout, stripe)
    refunds = [await stripe.turn(f"payments/{payment}/refund", amount=part) for part in (1, 999, 1_500)]
    await deliver(checkout, stripe.events())
    assert await standing(db) == (30_000, 0, False)
    await stripe.turn(f"refunds/{refunds[2]['id']}/fail")
    await deliver(checkout, stripe.events())
    assert await standing(db) == (48_000, 0, False)
    await stripe.turn(f"payments/{payment}/refund")  # all that is left
    await deliver(checkout, stripe.events())
    assert await standing(db) == (0, 0, False)
    await assert_sound(db)


async def test_a_whole_refund_that_failed_gives_everything_back(checkout, stripe, db, assert_sound):
    _, payment = await bought(checkout, stripe)
    refund = await stripe.turn(f"payments/{payment}/refund")
    await deliver(checkout, stripe.events())
    assert await standing(db) == (0, 0, False)
    await stripe.turn(f"refunds/{refund['id']}/fail")
    await deliver(checkout, stripe.events())
    assert await standing(db) == (60_000, 0, False)
    await assert_sound(db)


async def test_an_inquiry_moves_nothing_until_it_is_escalated(checkout, stripe, db):
    _, payment = await bought(checkout, stripe)
    inquiry = await stripe.turn(f"payments/{payment}/dispute", inquiry=True)
    await deliver(checkout, stripe.events())
    assert await standing(db) == (60_000, 0, False)
    await stripe.turn(f"disputes/{inquiry['id']}/escalate")
    await deliver(checkout, stripe.events())
    assert await standing(db) == (0, 0, False)


async def test_an_inquiry_that_is_closed_moves_nothing(checkout, stripe, db):
    _, payment = await bought(checkout, stripe)
    inquiry = await stripe.turn(f"payments/{payment}/dispute", inquiry=True)
    await stripe.turn(f"disputes/{inquiry['id']}/close")
    await deliver(checkout, stripe.events())
    assert await standing(db) == (60_000, 0, False)


async def test_a_dispute_won_after_its_clawback_made_a_debt_forgives_it(
    checkout, stripe, server, db, assert_sound
):
    session, payment = await bought(checkout, stripe)
    key = (await checkout.claim(session, "Primary")).secret
    await spend(server, key, 45_000, "r1")
    dispute = await stripe.turn(f"payments/{payment}/dispute")
    await deliver(checkout, stripe.events())
    assert await standing(db) == (0, 45_000, False)
    await stripe.turn(f"disputes/{dispute['id']}/respond")
    await stripe.turn(f"disputes/{dispute['id']}/win")
    await deliver(checkout, stripe.events())
    assert await standing(db) == (15_000, 0, False)
    await spend(server, key, 15_000, "r2")  # and nothing is frozen
    await assert_sound(db)


async def test_a_dispute_that_is_lost_stays_taken(checkout, stripe, db):
    _, payment = await bought(checkout, stripe)
    dispute = await stripe.turn(f"payments/{payment}/dispute", amount=2_500)
    await stripe.turn(f"disputes/{dispute['id']}/lose")
    await deliver(checkout, stripe.events())
    assert await standing(db) == (30_000, 0, False)


async def test_a_refund_and_a_dispute_of_the_same_money_take_it_once(checkout, stripe, db, assert_sound):
    _, payment = await bought(checkout, stripe)
    await stripe.turn(f"payments/{payment}/refund", amount=3_000)
    await stripe.turn(f"payments/{payment}/dispute", amount=5_000)
    await deliver(checkout, stripe.events())
    assert await standing(db) == (0, 0, False)
    await assert_sound(db)


async def test_an_early_fraud_warning_freezes_once_and_an_operator_may_undo_it(checkout, stripe, server, db):
    _, payment = await bought(checkout, stripe)
    await stripe.turn(f"payments/{payment}/warn")
    await deliver(checkout, stripe.events())
    assert await standing(db) == (60_000, 0, True)
    async with db.transaction() as conn:
        await conn.execute(text("UPDATE accounts SET frozen_at = NULL"))
        await conn.execute(text("UPDATE provider_events SET applied_at = NULL, retry_at = now()"))
    for event in await server.due_events(50):
        await checkout.apply(event)
    assert await standing(db) == (60_000, 0, False)


async def test_a_refund_during_a_running_job_leaves_its_hold_and_its_price_is_owed(
    checkout, stripe, server, db, assert_sound
):
    session, payment = await bought(checkout, stripe)
    key = (await checkout.claim(session, "Primary")).secret
    credential = Credential(hash_key(key))
    submit = SubmitJob(
        credential, "job_1", "image.generate", "image", "image", {"prompt": "x"}, 1000, 100, 1, None, "f" * 64
    )
    await server.submit_job_many([submit])
    (job,) = await server.claim_jobs("run_1", {"image": 1}, 0)
    await stripe.turn(f"payments/{payment}/refund")
    await deliver(checkout, stripe.events())
    assert await standing(db) == (100, 100, False), "what the job holds stays, and is owed"
    picture = StoredFile("file_1", "o.png", "o.png", "image/png", 3, "0" * 64, datetime.now(UTC), job.id)
    await server.settle_job(Settlement(job.id, job.fence, [picture], 100, {}))
    assert await standing(db) == (0, 100, False)
    await assert_sound(db)


async def test_a_delayed_payment_is_granted_when_the_money_comes(checkout, stripe, db):
    started = await checkout.start(EMAIL, BUILDER, None)
    await stripe.turn(f"sessions/{started.session_id}/delayed")
    await deliver(checkout, stripe.events())
    with pytest.raises(PaymentPending):
        await checkout.claim(started.session_id, "Primary")
    await stripe.turn(f"sessions/{started.session_id}/settle", outcome="succeeded")
    await deliver(checkout, stripe.events())
    assert await standing(db) == (60_000, 0, False)


@pytest.mark.parametrize("end", ["failed", "expired"])
async def test_a_payment_that_will_never_come_is_said_so(checkout, stripe, db, end):
    started = await checkout.start(EMAIL, BUILDER, None)
    if end == "expired":
        await stripe.turn(f"sessions/{started.session_id}/expire")
    else:
        await stripe.turn(f"sessions/{started.session_id}/delayed")
        await stripe.turn(f"sessions/{started.session_id}/settle", outcome="failed")
    await deliver(checkout, stripe.events())
    with pytest.raises(PaymentFailed):
        await checkout.claim(started.session_id, "Primary")
    async with db.transaction() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM transfers")) == 0
        assert await conn.scalar(text("SELECT count(look_at) FROM purchases")) == 0, "nobody asks again"


async def test_our_own_refund_takes_the_credits_at_once_and_a_repeat_is_the_same_refund(
    checkout, stripe, server, db, assert_sound
):
    session, payment = await bought(checkout, stripe)
    purchase = await server.purchase("stripe", session)
    first = await checkout.refund(purchase, 2_000, "requested_by_customer", "ticket-1")
    assert await checkout.refund(purchase, 2_000, "requested_by_customer", "ticket-1") == first
    with pytest.raises(NotRefundable, match="reference"):
        await checkout.refund(purchase, 1_000, "requested_by_customer", "ticket-1")
    assert stripe.returned_minor(payment) == 2_000
    assert await standing(db) == (36_000, 0, False)
    with pytest.raises(NotRefundable):
        await checkout.refund(purchase, 3_001, None, "ticket-2")
    await checkout.refund(purchase, None, None, "ticket-3")
    assert await standing(db) == (0, 0, False)
    await deliver(checkout, stripe.events())
    await assert_sound(db)


async def test_what_was_paid_elsewhere_is_not_refunded_by_card(checkout, stripe, server):
    elsewhere = OpenPurchase(new_id("pur"), "coinbase", "payer@company.com", BUILDER, None)
    paid = await server.open_purchase(elsewhere)
    await server.attach_session(paid.id, "68f7a946db0529ea9b6d3a12")
    with pytest.raises(NotRefundable, match="coinbase"):
        await checkout.refund(await server.purchase_by_id(paid.id), None, None, "refund:1")


async def test_our_own_refund_stands_though_its_credits_could_not_be_taken_at_once(
    checkout, stripe, server, db, monkeypatch
):
    session, payment = await bought(checkout, stripe)
    refund = checkout.provider.refund

    async def then_nothing_answers(order):
        refund_id = await refund(order)
        stripe.state.faults.status, stripe.state.faults.next_requests_fail = 500, 100
        return refund_id

    monkeypatch.setattr(checkout.provider, "refund", then_nothing_answers)
    purchase = await server.purchase("stripe", session)
    refund_id = await checkout.refund(purchase, 2_500, None, "ticket-1")
    assert refund_id in stripe.state.document["refunds"], "or whoever hears of a failure orders another"
    stripe.state.faults.next_requests_fail = 0
    await deliver(checkout, stripe.events())
    assert (stripe.returned_minor(payment), await standing(db)) == (2_500, (30_000, 0, False))


async def test_an_event_that_the_provider_refuses_to_speak_of_stays_due(checkout, stripe, db):
    started = await checkout.start(EMAIL, BUILDER, None)
    await stripe.turn(f"sessions/{started.session_id}/pay")
    stripe.state.faults.status, stripe.state.faults.next_requests_fail = 400, 100
    await deliver(checkout, stripe.events())
    stripe.state.faults.next_requests_fail = 0
    async with db.transaction() as conn:
        kept = await conn.execute(
            text("SELECT applied_at, dead_at FROM provider_events WHERE type = 'checkout.session.completed'")
        )
        assert kept.one() == (None, None), "it is no word of its being somebody else's"


async def test_webhooks_that_never_came_are_caught_up_with(checkout, stripe, db):
    _, payment = await bought(checkout, stripe)
    await stripe.turn(f"payments/{payment}/refund", amount=2_500)
    assert await checkout.catch_up() == 4
    assert await standing(db) == (30_000, 0, False)
    assert await checkout.catch_up() == 0


async def test_what_was_missed_in_an_outage_is_caught_up_with_though_webhooks_come_again(
    checkout, stripe, db
):
    _, payment = await bought(checkout, stripe)
    await stripe.turn(f"payments/{payment}/refund", amount=2_500)
    for event in stripe.state.document["events"].values():
        event["created"] -= 5 * 3600
    missed = len(stripe.events())
    await bought(checkout, stripe, "other@company.com")
    await deliver(checkout, stripe.events(missed))
    await checkout.catch_up()
    assert await standing(db) == (30_000, 0, False)


async def test_events_of_other_shops_are_kept_and_change_nothing(checkout, stripe, db):
    async with httpx.AsyncClient(base_url=stripe.url, auth=(SECRET_KEY, "")) as other:
        session = await other.post(
            "/v1/checkout/sessions",
            data={
                "mode": "payment",
                "success_url": "https://other.example/ok",
                "line_items[0][quantity]": "1",
                "line_items[0][price_data][currency]": "usd",
                "line_items[0][price_data][unit_amount]": "900",
                "line_items[0][price_data][product_data][name]": "A shirt",
            },
        )
    paid = await stripe.turn(f"sessions/{session.json()['id']}/pay")
    await stripe.turn(f"payments/{paid['payment_intent']}/refund")
    await deliver(checkout, stripe.events())
    async with db.transaction() as conn:
        rows = await conn.execute(text("SELECT applied_at IS NOT NULL AS done FROM provider_events"))
        assert {row.done for row in rows} == {True}
        assert await conn.scalar(text("SELECT count(*) FROM transfers")) == 0


@pytest.mark.parametrize(
    ("options", "buyer", "paid_minor"),
    [
        ({"stripe_promotion_codes": True}, {"discount": 1_000}, 4_000),
        ({"stripe_promotion_codes": True}, {"discount": 5_000}, 0),
        ({"stripe_tax": "exclusive"}, {"tax": 1_000}, 6_000),
        ({"stripe_tax": "inclusive"}, {"tax": 833}, 5_000),
        (
            {"stripe_tax": "exclusive", "stripe_promotion_codes": True},
            {"tax": 800, "discount": 1_000},
            4_800,
        ),
    ],
)
async def test_discounts_and_taxes_leave_the_credits_whole_and_refunds_in_proportion(  # noqa: PLR0917  # fixtures
    stripe, server, tmp_path, db, assert_sound, options, buyer, paid_minor
):
    checkout = checkout_for(configured(stripe, tmp_path, **options), local_ledger(server))
    session, payment = await bought(checkout, stripe, **buyer)
    assert await standing(db) == (60_000, 0, False)
    assert (await server.purchase("stripe", session)).paid_minor == paid_minor
    if paid_minor:
        await stripe.turn(f"payments/{payment}/refund", amount=paid_minor // 2)
        await checkout.settle(session)
        assert (await standing(db))[0] == 60_000 - 60_000 * (paid_minor // 2) // paid_minor
    await assert_sound(db)
    await checkout.close()


async def test_receipts_invoices_and_tax_are_asked_for_by_settings(stripe, server, tmp_path):
    settings = configured(
        stripe, tmp_path, stripe_receipts=True, stripe_invoices=True, stripe_tax="exclusive"
    )
    checkout = checkout_for(settings, local_ledger(server))
    session, payment = await bought(checkout, stripe)
    assert stripe.session(session)["invoice_creation"]["enabled"]
    assert stripe.session(session)["automatic_tax"]["enabled"]
    assert stripe.state.document["payment_intents"][payment]["receipt_email"] == EMAIL
    await checkout.close()


@pytest.mark.parametrize(
    ("currency", "price", "stripes"), [("jpy", 5_000, 5_000), ("isk", 5_000, 500_000), ("kwd", 5_120, 5_120)]
)
async def test_currencies_with_other_decimals_are_charged_and_refunded_exactly(  # noqa: PLR0917  # fixtures
    checkout, stripe, db, assert_sound, currency, price, stripes
):
    package = Package("builder_600", "Builder", 60_000, price, currency)
    started = await checkout.start(EMAIL, package, None)
    assert stripe.session(started.session_id)["amount_total"] == stripes
    paid = await stripe.turn(f"sessions/{started.session_id}/pay")
    await stripe.turn(f"payments/{paid['payment_intent']}/refund", amount=stripes // 2)
    await deliver(checkout, stripe.events())
    assert await standing(db) == (30_000, 0, False)
    await assert_sound(db)


# -- customers ---------------------------------------------------------------------------------------------------


async def test_a_users_payments_are_those_of_one_customer(checkout, stripe):
    session, _ = await bought(checkout, stripe)
    key = Credential(hash_key((await checkout.claim(session, "Primary")).secret))
    for _ in range(2):
        topup = await checkout.start("accounting@company.com", BUILDER, key)
        await stripe.turn(f"sessions/{topup.session_id}/pay")
        await checkout.settle(topup.session_id)
        assert stripe.session(topup.session_id)["customer"] == stripe.session(session)["customer"]
    assert len(stripe.customers()) == 1


async def test_who_pays_for_anothers_email_does_not_become_their_customer(checkout, stripe, db, customers):
    async with db.transaction() as conn:
        owner = await customers(conn, 0, email="owner@company.com")
    session, _ = await bought(checkout, stripe, "owner@company.com")
    stranger = stripe.session(session)["customer"]
    await checkout.portal(owner.credential)
    assert len(stripe.customers()) == 2
    topup = await checkout.start("owner@company.com", BUILDER, owner.credential)
    assert stripe.session(topup.session_id)["customer"] not in (None, stranger)


async def test_a_customer_who_was_deleted_at_the_provider_can_still_pay(checkout, stripe, server):
    session, _ = await bought(checkout, stripe)
    key = Credential(hash_key((await checkout.claim(session, "Primary")).secret))
    await stripe.turn(f"customers/{stripe.session(session)['customer']}/delete")
    topup = await checkout.start(EMAIL, BUILDER, key)
    await stripe.turn(f"sessions/{topup.session_id}/pay")
    await checkout.settle(topup.session_id)
    assert (await server.purchase("stripe", topup.session_id)).paid


async def test_a_customer_who_was_deleted_at_the_provider_is_made_anew_for_their_pages(
    checkout, stripe, server
):
    session, _ = await bought(checkout, stripe)
    key = Credential(hash_key((await checkout.claim(session, "Primary")).secret))
    for page in (checkout.portal, checkout.card_page, checkout.portal):
        for customer in stripe.customers():
            await stripe.turn(f"customers/{customer}/delete")
        assert (await page(key)).startswith(stripe.url)
        (anew,) = stripe.customers()
        topup = await checkout.start(EMAIL, BUILDER, key)
        assert stripe.session(topup.session_id)["customer"] == anew


async def test_a_wallets_account_is_topped_up_by_card_too(checkout, stripe, server, db, customers):
    async with db.transaction() as conn:
        wallet = await customers(conn, 0, email="0xabc.eip155-8453@invalid")
    topup = await checkout.start("owner@company.com", BUILDER, wallet.credential)
    await stripe.turn(f"sessions/{topup.session_id}/pay")
    await checkout.settle(topup.session_id)
    assert (await standing(db, wallet.email))[0] == 60_000


async def test_an_address_that_the_provider_does_not_take_is_the_callers_to_change(checkout):
    with pytest.raises(InvalidRequest, match="email"):
        await checkout.start("dev@localhost", BUILDER, None)


@pytest.fixture
def selling(stripe, server, checkout, models, objects, tmp_path) -> FastAPI:  # noqa: PLR0917  # its parts
    """The surface that sells."""
    return create_app(configured(stripe, tmp_path), local_ledger(server), models, checkout, objects)


async def test_the_portal_opens_for_a_key_that_may(selling, stripe, db, customers):
    async with db.transaction() as conn:
        owner = await customers(conn, 0)
    transport = httpx.ASGITransport(selling)
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        client.headers["x-api-key"] = owner.secret
        answer = await client.post("/api/v1/billing/portal")
        assert answer.status_code == 200, answer.text
        assert PortalOpened.model_validate_json(answer.content).portal_url.startswith(stripe.url)
        limited = await client.post("/api/v1/keys", json={"label": "x", "scopes": ["read", "checkout"]})
        client.headers["x-api-key"] = limited.json()["apiKey"]
        assert (await client.post("/api/v1/billing/portal")).status_code == 403


# -- any order ---------------------------------------------------------------------------------------------------

STEPS = [
    *("refund", "refund", "refund", "fail", "fail", "dispute", "dispute", "win", "win", "spend", "spend"),
    *("inquire", "escalate", "respond", "lose", "close", "warn"),
]
"""The frequent ones have followers: a refund fails, a dispute is won."""


class Life:
    """One payment from its order to its end, and what was heard of it."""

    def __init__(
        self, stripe: Stripe, checkout: CardCheckout, server: LedgerServer, chance: random.Random
    ) -> None:
        self.stripe, self.checkout, self.server, self.chance = stripe, checkout, server, chance
        self.email = new_id("user") + "@life.example"
        self.spent = 0
        self.key: str | None = None
        self.warned = False
        self.late: list[dict[str, Any]] = []
        self.heard = len(stripe.events())
        self.refunds: list[str] = []
        self.disputes: list[str] = []

    async def run(self, *, delayed: bool, fails: bool) -> None:
        started = await self.checkout.start(self.email, BUILDER, None)
        self.session = started.session_id
        await self.stripe.turn(f"sessions/{self.session}/{'delayed' if delayed else 'pay'}")
        await self.hear()
        if delayed:
            await self.stripe.turn(
                f"sessions/{self.session}/settle", outcome="failed" if fails else "succeeded"
            )
            await self.hear()
            if fails:
                return
        self.payment = self.stripe.session(self.session)["payment_intent"]
        for _ in range(self.chance.randrange(12)):
            while not await self.take(self.chance.choice(STEPS), self.chance.choice((1, 700, 2_000, 5_000))):
                continue  # it does not follow on what was: another
            await self.hear()
        self.chance.shuffle(self.late)
        await deliver(self.checkout, self.late)
        await self.checkout.catch_up()  # what was dropped

    async def hear(self) -> None:
        """Let each new event arrive now, twice, later or never, in any order."""
        new = [event for event in self.stripe.events(self.heard) if event["type"] in HANDLED_EVENTS]
        self.heard = len(self.stripe.events())
        now = []
        for event in new:
            fate = self.chance.choice(["now", "twice", "late", "late and now", "never"])
            now += [event] * (2 if fate == "twice" else "now" in fate)
            self.late += [event] * ("late" in fate)
        if self.late and self.chance.random() < 0.3:
            now.append(self.late.pop(self.chance.randrange(len(self.late))))
        self.chance.shuffle(now)
        await asyncio.gather(*(deliver(self.checkout, [event]) for event in now))

    async def take(self, step: str, amount: int) -> bool:
        """Take a step; returns whether it could be taken."""
        try:
            if step == "refund":
                self.refunds.append((await self.turn(f"payments/{self.payment}/refund", amount=amount))["id"])
            elif step == "fail":
                await self.turn(f"refunds/{self.chance.choice(self.refunds or ['re_0'])}/fail")
            elif step in ("dispute", "inquire"):
                facts = {"amount": amount, "inquiry": step == "inquire"}
                self.disputes.append((await self.turn(f"payments/{self.payment}/dispute", **facts))["id"])
            elif step == "warn":
                await self.turn(f"payments/{self.payment}/warn")
                self.warned = True
            elif step == "spend":
                await self.spend(amount)
            else:
                await self.turn(f"disputes/{self.chance.choice(self.disputes or ['du_0'])}/{step}")
        except AssertionError:
            return False
        return True

    async def turn(self, path: str, **order: Any) -> dict[str, Any]:
        return await self.stripe.turn(path, **order)

    async def spend(self, amount: int) -> None:
        if self.key is None:
            try:
                self.key = (await self.checkout.claim(self.session, "Primary")).secret
            except PaymentPending:
                return
        item = Spend(
            Credential(hash_key(self.key)), "image", f"s{self.chance.getrandbits(32)}", 1000, amount, 1
        )
        (outcome,) = await self.server.spend_many([item])
        self.spent += getattr(outcome, "charged_tokens", 0)


async def test_the_books_end_where_the_provider_is_whatever_was_heard(
    checkout, stripe, server, db, assert_sound
):
    loop = asyncio.get_running_loop()

    async def live(delayed, fails, seed):
        life = Life(stripe, checkout, server, random.Random(seed))
        await life.run(delayed=delayed, fails=fails)
        if delayed and fails:
            assert not await exists(db, life.email)
            return
        balance, debt, frozen = await standing(db, life.email)
        returned = stripe.returned_minor(life.payment)
        clawed = 60_000 * returned // 5_000
        assert balance - debt == 60_000 - clawed - life.spent
        assert frozen == life.warned
        async with db.transaction() as conn:
            kept = await conn.execute(
                text("SELECT returned_minor FROM purchases WHERE email = :email"), {"email": life.email}
            )
            assert kept.scalar_one() == returned

    @settings(
        max_examples=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=[Phase.generate],  # an example takes a second: shrinking one would take minutes
    )
    @given(delayed=st.booleans(), fails=st.booleans(), seed=st.integers(0, 2**32))
    def any_life(delayed, fails, seed):
        asyncio.run_coroutine_threadsafe(live(delayed, fails, seed), loop).result(150)

    await asyncio.to_thread(any_life)
    await assert_sound(db)
    now = datetime.now(UTC)
    span = Span(now - timedelta(days=1), now + timedelta(minutes=1))
    seen = await Reconciler(server, [checkout], wallets=False).run(span, repairs=False)
    assert (seen.differences, seen.silent) == ((), {})
    assert seen.payments >= 20


async def exists(db: Database, email: str) -> bool:
    async with db.transaction() as conn:
        found = await conn.scalar(text("SELECT count(*) FROM users WHERE email = :email"), {"email": email})
    return bool(found)
