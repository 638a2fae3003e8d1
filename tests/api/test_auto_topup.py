"""Automatic top-up over the running routes, the real books, the real Stripe SDK and the twin behind it.

A card is charged once for a fall, whoever sweeps and whatever breaks; what its bank refuses moves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from gateway.app import create_app
from gateway.catalog import load_catalog
from kit.db import Database
from kit.errors import Unavailable
from kit.settings import Settings
from payments.cards import CardCheckout
from payments.reconciler import Reconciler
from payments.reconciliations import Span
from payments.topup_charges import DECLINES_MOST
from sandbox import stripe_cards
from sandbox.stripe_state import BY_THE_BUYER
from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.stripe_webhooks import event_body, signature_header
from sandbox.testing import SECRET_KEY, WEBHOOK_SECRET, running

AUTO = "/api/v1/account/auto-topup"
WISH = {"threshold": 50, "packageCode": "starter_100", "monthMostMinor": 2_000}
ON_SALE = load_catalog().packages


@dataclass
class Shop:
    """A customer who is short, with the parts behind them."""

    client: httpx.AsyncClient
    email: str
    key: str
    checkout: CardCheckout
    twin: Any
    page: httpx.AsyncClient
    db: Database
    url: str

    async def save(self, card: str = "pm_card_visa") -> None:
        url = (await self.client.post(f"{AUTO}/card")).json()["cardUrl"]
        saved = await self.page.post(url, data={"outcome": "pay", "card": card})
        assert saved.status_code == 303, saved.text

    async def wish(self, **changes: Any) -> dict[str, Any]:
        answer = await self.client.put(AUTO, json=WISH | changes)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["autoTopup"])

    async def stands(self) -> dict[str, Any]:
        return dict((await self.client.get(AUTO)).json()["autoTopup"])

    async def tokens(self) -> int:
        return int((await self.client.get("/api/v1/credits/balance")).json()["tokens"])

    async def hold(self, tokens: int) -> None:
        update = f"UPDATE accounts SET held = held + {tokens} WHERE user_id IS NOT NULL AND world = 'live'"
        await self.sql(update)  # what a job holds is not free

    def charges(self) -> list[dict[str, Any]]:
        return [c for c in self.twin.document["charges"].values() if c["status"] == "succeeded"]

    def asked(self) -> int:
        return len(self.twin.document["payment_intents"])

    async def sql(self, statement: str) -> list[Any]:
        async with self.db.transaction() as conn:
            found = await conn.execute(text(statement))
            return list(found.all()) if found.returns_rows else []

    async def mails(self) -> list[str]:
        return [row.subject for row in await self.sql("SELECT subject FROM outbox ORDER BY id")]


@pytest_asyncio.fixture
async def shop(  # noqa: PLR0917  # fixtures
    at_stripe: Callable[[str], Settings],
    card_shop: Callable[[str], CardCheckout],
    server: LedgerServer,
    models: Any,
    objects: Any,
    db: Database,
    customers: Callable[..., Awaitable[Any]],
) -> AsyncIterator[Shop]:
    app = create_twin(TwinSettings(secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET))
    with running(app) as url:
        checkout = card_shop(url)
        async with db.transaction() as conn:
            made = await customers(conn, 1_000)
        house = create_app(at_stripe(url), local_ledger(server), models, checkout, objects)
        async with (
            httpx.AsyncClient(
                transport=httpx.ASGITransport(house),
                base_url="http://farebox.test",
                headers={"authorization": f"Bearer {made.secret}"},
            ) as client,
            httpx.AsyncClient(
                verify=False
            ) as page,  # no certificates: loading them takes longer than the calls
        ):
            yield Shop(client, made.email, made.secret, checkout, app.state.twin._state, page, db, url)


async def differences(shop: Shop, server: LedgerServer, *, repairs: bool) -> list[str]:
    """Compare Stripe with the books over the last day."""
    now = datetime.now(UTC)
    span = Span(now - timedelta(days=1), now + timedelta(minutes=1))
    result = await Reconciler(server, [shop.checkout], wallets=False).run(span, repairs=repairs)
    assert not result.silent
    return [each.kind for each in result.differences]


async def deliver(shop: Shop, kind: str) -> None:
    """Bring the twin's events of a type as webhooks, each twice."""
    events = [event for event in shop.twin.document["events"].values() if event["type"] == kind]
    for event in events * 2:
        body = event_body(event)
        signature = signature_header(WEBHOOK_SECRET, event["created"], body)
        kept = await shop.checkout.receive_webhook(body, {"stripe-signature": signature})
        if kept is not None:
            await shop.checkout.apply(kept)


async def test_a_balance_below_the_threshold_is_topped_up_once_with_the_saved_card(shop, assert_sound):
    await shop.save()
    assert (await shop.wish())["state"] == "on"
    await shop.checkout.top_up(ON_SALE)
    assert await shop.tokens() == 11_000
    await shop.checkout.top_up(ON_SALE)
    await deliver(shop, "payment_intent.succeeded")
    assert await shop.tokens() == 11_000
    assert [charge["amount"] for charge in shop.charges()] == [1_000]
    assert (await shop.stands())["spentMinor"] == 1_000
    await assert_sound(shop.db)


async def test_an_export_holds_it(shop):
    await shop.save()
    wished = await shop.wish()
    exported = (await shop.client.get("/api/v1/account/export")).json()
    assert exported["autoTopup"] == wished


async def test_nothing_is_switched_on_without_a_saved_card(shop):
    answer = await shop.client.put(AUTO, json=WISH)
    assert (answer.status_code, answer.json()["error"]) == (409, "card_needed")
    assert (await shop.client.get(AUTO)).json() == {"ok": True, "autoTopup": None}


async def test_where_tax_is_worked_out_at_a_checkout_nothing_is_switched_on_or_charged(shop, monkeypatch):
    await shop.save()
    await shop.wish()
    options = replace(shop.checkout.provider._options, tax="exclusive")
    monkeypatch.setattr(shop.checkout.provider, "_options", options)
    answer = await shop.client.put(AUTO, json=WISH)
    assert (answer.status_code, answer.json()["error"]) == (503, "payments_unavailable")
    assert "buy a package at /credits" in answer.json()["message"], "what to do instead"
    for _ in range(2):  # what was switched on before
        await shop.checkout.top_up(ON_SALE)
    assert (shop.asked(), await shop.tokens()) == (0, 1_000)
    stands = await shop.stands()
    assert (stands["state"], stands["reason"]) == ("paused", "not_offered")
    assert await shop.mails() == ["Automatic top-up is paused"]


async def test_a_charge_that_the_provider_does_not_take_is_no_decline_of_the_card(shop, monkeypatch):
    await shop.save()
    await shop.wish()
    monkeypatch.setattr("payments.stripe_cards.to_stripe", lambda *_: 1)
    for _ in range(2):
        await shop.checkout.top_up(ON_SALE)
    stands = await shop.stands()
    assert (stands["state"], stands["reason"]) == ("paused", "not_offered")
    [mail] = await shop.sql("SELECT subject, body FROM outbox")
    assert mail.subject == "Automatic top-up is paused"
    assert "declined" not in mail.body


async def test_what_breaks_one_charge_breaks_no_other_off(shop, monkeypatch):
    await shop.save()
    await shop.wish()
    take, charge = shop.checkout._card_books.take_topups, shop.checkout.provider.charge_saved
    broke = asyncio.Event()

    async def two(*args: Any) -> list[Any]:
        return [each for one in await take(*args) for each in (replace(one, purchase_id="pur_broken"), one)]

    async def broken(due: Any) -> Any:
        if due.purchase_id == "pur_broken":
            broke.set()
            raise ValueError("an answer of another form")
        await broke.wait()
        return await charge(due)

    monkeypatch.setattr(shop.checkout._card_books, "take_topups", two)
    monkeypatch.setattr(shop.checkout.provider, "charge_saved", broken)
    await shop.checkout.top_up(ON_SALE)
    assert await shop.tokens() == 11_000


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"threshold": 100.01}, "threshold"),
        ({"threshold": 0}, "threshold"),
        ({"monthMostMinor": 999}, "monthMostMinor"),
        ({"packageCode": "gold"}, "packageCode"),
    ],
)
async def test_a_wish_that_cannot_be_is_refused_by_its_field(shop, changes, field):
    answer = await shop.client.put(AUTO, json=WISH | changes)
    assert answer.status_code == 400
    assert field in answer.text


async def test_two_runners_that_sweep_at_once_make_one_charge(shop, assert_sound):
    await shop.save()
    await shop.wish()
    await asyncio.gather(*(shop.checkout.top_up(ON_SALE) for _ in range(6)))
    assert (shop.asked(), await shop.tokens()) == (1, 11_000)
    await assert_sound(shop.db)


async def test_the_months_ceiling_holds_and_is_told_once(shop):
    await shop.save()
    await shop.wish(monthMostMinor=1_999)
    for _ in range(2):
        await shop.checkout.top_up(ON_SALE)
        await shop.hold(await shop.tokens() - 100)
    await asyncio.gather(*(shop.checkout.top_up(ON_SALE) for _ in range(4)))
    await shop.checkout.top_up(ON_SALE)
    assert (len(shop.charges()), await shop.tokens()) == (1, 100)
    assert (await shop.mails()).count("Automatic top-up has reached its ceiling") == 1
    assert (await shop.stands())["restUntil"] is not None


async def test_the_database_itself_keeps_the_ceiling_and_one_charge_at_a_time(shop):
    await shop.save()
    await shop.wish()
    await shop.checkout.top_up(ON_SALE)
    again = (
        "INSERT INTO purchases (id, provider, email, package_code, credits_tokens, amount_minor, currency)"
        " SELECT id || '{0}', provider, email, package_code, credits_tokens, amount_minor, currency FROM purchases"
        " WHERE id IN (SELECT min(id) FROM auto_topup_charges);"
    )
    charge = (
        "INSERT INTO auto_topup_charges (id, account_id, customer_id, amount_minor, currency, month)"
        " SELECT id || '{0}', account_id, customer_id, {1}, currency, month FROM auto_topup_charges"
        " WHERE state = 'paid'"
    )
    for suffix in "abc":
        await shop.sql(again.format(suffix))
    with pytest.raises(IntegrityError, match="may not be charged"):
        await shop.sql(charge.format("a", 1_001))
    await shop.sql(charge.format("b", 500))
    with pytest.raises(IntegrityError, match="one_at_a_time"):
        await shop.sql(charge.format("c", 500))


async def test_a_runner_that_dies_between_charge_and_record_charges_once(shop, monkeypatch, assert_sound):
    await shop.save()
    await shop.wish()

    async def dies(*_: object) -> None:
        raise Unavailable("the ledger", 1)

    with monkeypatch.context() as patch:
        patch.setattr(shop.checkout, "_book", dies)
        await shop.checkout.top_up(ON_SALE)
    assert (len(shop.charges()), await shop.tokens()) == (1, 1_000)
    await shop.checkout.top_up(ON_SALE)  # the lease still runs
    assert await shop.tokens() == 1_000
    await shop.sql("UPDATE auto_topup_charges SET due_at = now()")
    await shop.checkout.top_up(ON_SALE)
    assert (shop.asked(), await shop.tokens()) == (1, 11_000)
    await assert_sound(shop.db)


@pytest.mark.parametrize("after_effect", [False, True])
async def test_an_answer_that_is_lost_is_asked_for_again_and_charged_once(shop, after_effect):
    await shop.save()
    await shop.wish()
    shop.twin.faults.status, shop.twin.faults.after_effect = 500, after_effect
    shop.twin.faults.next_requests_fail = 20
    await shop.checkout.top_up(ON_SALE)
    shop.twin.faults.next_requests_fail = 0
    await shop.sql("UPDATE auto_topup_charges SET due_at = now()")
    await shop.checkout.top_up(ON_SALE)
    assert (len(shop.charges()), await shop.tokens()) == (1, 11_000)


async def test_a_webhook_that_comes_before_the_answer_grants_and_the_answer_changes_nothing(
    shop, monkeypatch, assert_sound
):
    await shop.save()
    await shop.wish()
    book = shop.checkout._book

    async def late(session: Any) -> None:
        monkeypatch.setattr(shop.checkout, "_book", book)
        await deliver(shop, "payment_intent.succeeded")
        assert await shop.tokens() == 11_000
        await book(session)

    monkeypatch.setattr(shop.checkout, "_book", late)
    await shop.checkout.top_up(ON_SALE)
    assert await shop.tokens() == 11_000
    assert [row.state for row in await shop.sql("SELECT state FROM auto_topup_charges")] == ["paid"]
    await assert_sound(shop.db)


async def test_a_declined_card_rests_and_is_switched_off_in_the_end_without_a_charge(shop):
    await shop.save("pm_card_chargeCustomerFail")
    await shop.wish()
    for tries in range(1, DECLINES_MOST + 1):
        await shop.checkout.top_up(ON_SALE)
        await shop.checkout.top_up(ON_SALE)
        assert shop.asked() == tries
        await shop.sql("UPDATE auto_topups SET rest_until = now()")
    await shop.checkout.top_up(ON_SALE)
    found = await shop.stands()
    assert (found["state"], found["reason"], found["spentMinor"]) == ("off", "card_declined", 0)
    assert (shop.asked(), shop.charges(), await shop.tokens()) == (DECLINES_MOST, [], 1_000)
    declined = "Your automatic top-up was declined"
    assert await shop.mails() == [declined] * (DECLINES_MOST - 1) + ["Automatic top-up is off"]


async def test_a_bank_that_wants_its_customer_pauses_it_and_setting_it_again_resumes(shop):
    await shop.save("pm_card_authenticationRequired")
    await shop.wish()
    for _ in range(2):
        await shop.checkout.top_up(ON_SALE)
    found = await shop.stands()
    assert (found["state"], found["reason"]) == ("paused", "authentication_required")
    assert (shop.asked(), await shop.tokens(), await shop.mails()) == (
        1,
        1_000,
        ["Automatic top-up is paused"],
    )
    await shop.save()
    await shop.wish()
    await shop.checkout.top_up(ON_SALE)
    assert await shop.tokens() == 11_000


async def test_a_refusal_from_before_the_wish_was_set_anew_does_not_pause_it(shop, monkeypatch):
    await shop.save("pm_card_authenticationRequired")
    await shop.wish()

    async def away(*_: object) -> bool:
        raise Unavailable("the ledger", 1)

    with monkeypatch.context() as patch:
        patch.setattr(shop.checkout._card_books, "refuse_topup", away)
        await shop.checkout.top_up(ON_SALE)
    await shop.save()
    await shop.wish()
    await shop.sql("UPDATE auto_topup_charges SET due_at = now()")
    for _ in range(2):  # hears of the refusal, then asks for the other card
        await shop.checkout.top_up(ON_SALE)
    assert (shop.asked(), await shop.tokens(), await shop.mails()) == (2, 11_000, ["Receipt: 100 credits"])


@pytest.mark.parametrize(
    "state",
    [
        "UPDATE accounts SET frozen_at = now() WHERE user_id IS NOT NULL",
        "UPDATE users SET suspended_at = now()",
        "DELETE FROM auto_topups",
    ],
)
async def test_a_frozen_a_suspended_and_an_unwilling_customer_is_not_charged(shop, state):
    await shop.save()
    await shop.wish()
    await shop.sql(state)
    await shop.checkout.top_up(ON_SALE)
    assert shop.asked() == 0


@pytest.mark.parametrize("end", ["frozen", "suspended", "taxed", "switched off"])
async def test_who_may_not_be_charged_any_more_is_not_asked_for_what_was_written_down(
    shop, server, end, monkeypatch
):
    await shop.save()
    await shop.wish()
    assert await server.begin_topups("stripe", ON_SALE) == 1  # and the one who began it is gone
    if end == "frozen":
        await shop.sql("UPDATE accounts SET frozen_at = now() WHERE user_id IS NOT NULL")
    elif end == "suspended":
        await shop.sql("UPDATE users SET suspended_at = now()")
    elif end == "switched off":
        await shop.client.delete(AUTO)
    else:
        options = replace(shop.checkout.provider._options, tax="exclusive")
        monkeypatch.setattr(shop.checkout.provider, "_options", options)
    await shop.checkout.top_up(ON_SALE)
    assert shop.asked() == 0
    [charge] = await shop.sql("SELECT state, problem FROM auto_topup_charges")
    assert charge == ("refused", "the provider never heard of this charge")


async def test_a_wallets_account_is_topped_up_where_receipts_are_mailed(shop, monkeypatch):
    await shop.save()
    await shop.wish()
    await shop.sql("UPDATE users SET email = '0xabc.eip155-8453@invalid'")
    options = replace(shop.checkout.provider._options, receipts=True)
    monkeypatch.setattr(shop.checkout.provider, "_options", options)
    await shop.checkout.top_up(ON_SALE)
    assert await shop.tokens() == 11_000


async def test_a_default_that_is_no_card_leaves_the_saved_card_to_be_charged(shop, assert_sound):
    await shop.save()
    await shop.wish()
    (customer_id,) = shop.twin.document["customers"]
    bank = stripe_cards.save(shop.twin, customer_id, "pm_usBankAccount", BY_THE_BUYER)
    stripe_cards.make_default(
        shop.twin, shop.twin.document["customers"][customer_id], bank["id"], BY_THE_BUYER
    )
    await shop.checkout.top_up(ON_SALE)
    assert await shop.tokens() == 11_000
    await assert_sound(shop.db)


async def test_a_bank_account_alone_is_no_saved_card(shop):
    await shop.client.post(f"{AUTO}/card")
    (customer_id,) = shop.twin.document["customers"]
    bank = stripe_cards.save(shop.twin, customer_id, "pm_usBankAccount", BY_THE_BUYER)
    stripe_cards.make_default(
        shop.twin, shop.twin.document["customers"][customer_id], bank["id"], BY_THE_BUYER
    )
    answer = await shop.client.put(AUTO, json=WISH)
    assert (answer.status_code, answer.json()["error"]) == (409, "card_needed")


async def test_a_package_that_is_sold_otherwise_now_charges_nothing_and_pauses(shop):
    await shop.save()
    await shop.wish()
    await shop.checkout.top_up({})
    assert (shop.asked(), (await shop.stands())["reason"]) == (0, "package_changed")


async def test_the_test_world_is_never_topped_up(shop):
    await shop.save()
    made = await shop.client.post("/api/v1/keys", json={"label": "CI", "mode": "test"})
    key = made.json()["apiKey"]
    answer = await shop.client.put(AUTO, json=WISH, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 403
    await shop.wish()
    with pytest.raises(IntegrityError, match="not topped up by itself"):
        await shop.sql(
            "UPDATE auto_topups SET account_id = (SELECT id FROM accounts WHERE world = 'test' LIMIT 1)"
        )


async def test_a_refund_of_a_top_up_takes_its_credits_back(shop, assert_sound):
    await shop.save()
    await shop.wish()
    await shop.checkout.top_up(ON_SALE)
    await shop.client.delete(AUTO)
    (charge,) = shop.charges()
    refunded = await shop.page.post(f"{shop.url}/_twin/payments/{charge['payment_intent']}/refund", json={})
    assert refunded.status_code == 200
    await deliver(shop, "refund.created")
    assert await shop.tokens() == 1_000
    await assert_sound(shop.db)


async def test_a_saved_card_and_its_charge_are_equal_to_the_books(shop, server):
    await shop.save()
    await shop.wish()
    await shop.checkout.top_up(ON_SALE)
    assert await shop.tokens() == 11_000
    assert await differences(shop, server, repairs=False) == []
