"""A crypto payment's whole life, shuffled, repeated, dropped and delayed: the books end where the provider is.

The provider is its twin behind the real client; the one who catches up is the Runner, and after a day's payments its
reconciliation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from deployments.ledger import LedgerServer
from deployments.runner import Runner
from kit.db import Database
from kit.errors import NotFound
from kit.ids import new_id
from kit.settings import Settings
from kit.storage import ObjectStore
from payments.checkout import Checkout, PurchaseBooks, StartedCheckout
from payments.crypto import crypto_for
from payments.errors import (
    AccountExists,
    AlreadyClaimed,
    PaymentFailed,
    PaymentIncomplete,
    PaymentPending,
    PaymentsUnavailable,
)
from payments.packages import Package
from payments.purchases import OpenPurchase
from payments.reconciler import NOTES, Reconciler
from payments.reconciliations import Span
from payments.webhooks import ProviderEvent
from sandbox.btcpay_api import STORE_ID
from sandbox.crypto_instance import CryptoTwin
from sandbox.crypto_state import arrived, is_whole, refunded
from sandbox.crypto_twin import PROVIDERS, CryptoSettings, Provider, create_crypto_twin
from sandbox.testing import API_KEY, COINBASE_KEY, COINBASE_KEY_ID, CRYPTO_WEBHOOK_SECRET, running

BUILDER = Package("builder_600", "Builder", 60_000, 5_000, "usd")
OUTCOMES = ("pay", "part", "part", "over", "slow", "confirm", "expire", "fail")
REFUNDS = ("5.00", "10.00", "49.99", "50.00", "60.00")
REFUSALS = (
    PaymentPending,
    PaymentIncomplete,
    PaymentFailed,
    PaymentsUnavailable,
    AlreadyClaimed,
    AccountExists,
)
PICK = st.integers(0, 10**6)
STEP = st.one_of(
    st.tuples(st.just("act"), st.sampled_from(OUTCOMES)),
    st.tuples(st.just("refund"), st.sampled_from(REFUNDS)),
    st.tuples(st.just("deliver"), PICK),
    st.tuples(st.just("deliver"), PICK),
    st.tuples(st.just("deliver all at once"), PICK),
    st.tuples(st.just("drop"), PICK),
    st.tuples(st.just("claim"), PICK),
    st.tuples(st.just("fail next"), st.integers(1, 4)),
    st.tuples(st.just("catch up"), PICK),
)


@dataclass
class Life:
    """One payment and what became of the events that told of it."""

    checkout: Checkout
    started: StartedCheckout
    told: list[str] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)
    keys: int = 0


class Street:
    """The shop, the provider across the road, and the wire between them, which does as it is told."""

    def __init__(self, provider: Provider, url: str, twin: CryptoTwin, server: LedgerServer, tmp_path: Path):
        self.provider, self.url, self.twin, self.server = provider, url, twin, server
        told = {
            "coinbase": {
                "coinbase_api_key_id": COINBASE_KEY_ID,
                "coinbase_api_key_secret": COINBASE_KEY,
                "coinbase_webhook_secret": CRYPTO_WEBHOOK_SECRET,
                "coinbase_api_base": f"{url}/api/v1",
            },
            "btcpay": {
                "btcpay_url": url,
                "btcpay_store_id": STORE_ID,
                "btcpay_api_key": API_KEY,
                "btcpay_webhook_secret": CRYPTO_WEBHOOK_SECRET,
            },
            "commerce": {"coinbase_commerce_webhook_secret": CRYPTO_WEBHOOK_SECRET},
        }
        configured = Settings(data_dir=tmp_path, **told[provider])  # type: ignore[arg-type]
        books: PurchaseBooks = server  # type: ignore[assignment]
        crypto = crypto_for(configured, books)
        assert crypto
        (self.checkout,) = crypto.checkouts
        # Its patience with a provider that stumbles is tested elsewhere, and would only be slept through here.
        if provider != "commerce":
            self.checkout.provider._api._sleep = lambda _s: asyncio.sleep(0)  # type: ignore[attr-defined]
        self.runner = Runner(configured, self._call, None, ObjectStore("memory://"), [self.checkout], {})  # type: ignore[arg-type]
        self.dress = PROVIDERS[provider].dressed(CRYPTO_WEBHOOK_SECRET)
        self.http = httpx.AsyncClient()

    async def _call(self, method: str, *args: object) -> Any:
        return await getattr(self.server, method)(*args)

    async def close(self) -> None:
        await self.checkout.close()
        await self.http.aclose()

    async def begin(self, number: int) -> Life:
        await self.turn("faults", next_requests_fail=0)
        email = f"payer{number}@company.com"
        if self.provider != "commerce":
            return Life(self.checkout, await self.checkout.start(email, BUILDER, None))
        command = OpenPurchase(new_id("pur"), self.checkout.provider.name, email, BUILDER, None)
        purchase = await self.server.open_purchase(command)
        charge = await self.http.post(
            f"{self.url}/charges",
            json={
                "local_price": {"amount": "50.00", "currency": "USD"},
                "metadata": {"purchase_id": purchase.id},
            },
            headers={"x-cc-api-key": API_KEY},
        )
        return Life(self.checkout, StartedCheckout("", charge.json()["data"]["id"], purchase))

    async def turn(self, path: str, **order: Any) -> None:
        answer = await self.http.post(f"{self.url}/_twin/{path}", json=order or None)
        assert answer.status_code in (200, 409), answer.text

    def payment(self, life: Life) -> dict[str, Any]:
        return dict(self.twin._state.document["payments"][life.started.session_id])

    def told_minor(self, life: Life) -> int:
        """What Commerce told of what arrived: at a charge's ends alone, and of what came after them."""
        ends = [
            e
            for e in self.events(life)
            if e["type"] in ("charge:confirmed", "charge:failed", "charge:delayed")
        ]
        told = [0]
        for end in ends:
            payments = end["body"]["event"]["data"]["payments"]
            confirmed = [
                each["value"]["local"]["amount"] for each in payments if each["status"] == "CONFIRMED"
            ]
            told.append(minor(sum(map(Decimal, confirmed), Decimal(0))))
        return max(told)

    def events(self, life: Life) -> list[dict[str, Any]]:
        of_all = self.twin._state.document["events"].values()
        return [e for e in of_all if e["payment"] == life.started.session_id and e["id"] not in life.dropped]

    async def step(self, life: Life, what: str, pick: Any) -> None:
        events = self.events(life)
        if what == "act":
            await self.turn(f"payments/{life.started.session_id}/{pick}")
        elif what == "refund" and self.provider == "coinbase":  # the others do not tell of refunds
            await self.turn(f"payments/{life.started.session_id}/refund", amount=pick)
        elif what == "deliver" and events:
            await self.deliver(life, events[pick % len(events)])
        elif what == "deliver all at once":
            await asyncio.gather(*(self.deliver(life, event) for event in events[:: 1 if pick % 2 else -1]))
        elif what == "drop" and events and self.provider != "commerce":  # nobody could be asked instead
            life.dropped.add(events[pick % len(events)]["id"])
        elif what == "claim":
            await self.claim(life)
        elif what == "fail next":
            await self.turn("faults", next_requests_fail=pick, status=503)
        elif what == "catch up":
            await self.catch_up(life)

    async def deliver(self, life: Life, event: dict[str, Any]) -> None:
        """Deliver an event, at once or again: every try is signed anew, as providers do."""
        delivery = {
            "id": f"d{len(life.told)}",
            "sequence": len(life.told),
            "copy": life.told.count(event["id"]),
        }
        life.told.append(event["id"])
        body, headers = self.dress(event, delivery | {"attempts": 0}, int(time.time()))
        kept = await life.checkout.receive_webhook(body, {k.lower(): value for k, value in headers.items()})
        if kept is not None:
            await life.checkout.apply(kept)

    async def claim(self, life: Life) -> None:
        try:
            await life.checkout.claim(life.started.session_id, "Primary")
            life.keys += 1
        except REFUSALS:
            pass
        except NotFound:  # of a charge nothing is known until its webhook comes
            assert self.provider == "commerce"

    async def catch_up(self, life: Life) -> None:
        """Let the time pass after which the Runner asks on its own, and have it ask."""
        async with self.server._db.transaction() as conn:
            await conn.execute(text("UPDATE provider_events SET retry_at = now() WHERE applied_at IS NULL"))
            await conn.execute(
                text("UPDATE purchases SET look_at = now() WHERE look_at IS NOT NULL AND id = :id"),
                {"id": life.started.purchase.id},
            )
        await self.runner._catch_up()

    async def books(self, life: Life) -> Any:
        async with self.server._db.transaction() as conn:
            found = await conn.execute(
                text(
                    "SELECT p.*, (SELECT coalesce(sum(amount), 0) FROM transfers t WHERE t.reference = p.id"
                    " AND t.kind = 'purchase') AS granted FROM purchases p WHERE id = :id"
                ),
                {"id": life.started.purchase.id},
            )
            return found.one()


@contextmanager
def street(provider: Provider, loop: asyncio.Runner, fresh_url: str, tmp_path: Path) -> Iterator[Street]:
    key = (COINBASE_KEY_ID, COINBASE_KEY) if provider == "coinbase" else (STORE_ID, API_KEY)
    # The address is never called: the test carries the webhooks over itself.
    app = create_crypto_twin(provider, CryptoSettings(*key, CRYPTO_WEBHOOK_SECRET))
    server = LedgerServer(Settings(database_url=fresh_url, data_dir=tmp_path))

    async def made(url: str) -> Street:
        return Street(provider, url, app.state.twin, server, tmp_path)

    with running(app) as url:
        street = loop.run(made(url))
        try:
            yield street
        finally:
            loop.run(street.close())
            loop.run(server.close())


async def live(street: Street, number: int, steps: list[tuple[str, Any]]) -> Life:
    life = await street.begin(number)
    for what, pick in steps:
        await street.step(life, what, pick)
        so_far = await street.books(life)
        if so_far.granted:
            assert is_whole(street.payment(life)), "granted before the whole price was there"
    # The provider is well again; what was not dropped comes, in the order that it did not come before.
    await street.turn("faults", next_requests_fail=0)
    for event in reversed(street.events(life)):
        await street.deliver(life, event)
    await street.catch_up(life)
    payment, books = street.payment(life), await street.books(life)
    there_minor = minor(arrived(payment, confirmed=True))
    assert books.granted == (BUILDER.credits_tokens if is_whole(payment) else 0)
    assert books.received_minor <= there_minor
    if street.provider == "commerce":
        assert books.received_minor == street.told_minor(life)
    elif not is_whole(payment):
        assert books.received_minor == there_minor
        assert (books.closed_at is not None) == (payment["state"] in ("expired", "failed"))
    assert books.returned_minor <= back_minor(payment)
    await street.claim(life)
    await street.claim(life)
    assert life.keys == int(is_whole(payment))
    return life


async def reconciled(street: Street, lives: list[Life]) -> None:
    """What no event told is mended by one reconciliation, after which nothing differs."""
    now = datetime.now(UTC)
    span = Span(now - timedelta(days=1), now + timedelta(minutes=1))
    reconciler = Reconciler(street.server, [street.checkout], wallets=False)
    name = street.checkout.provider.name
    mended = await reconciler.run(span, repairs=True)
    seen = await reconciler.run(span, repairs=False)
    assert (seen.differences, seen.silent, seen.repaired) == ((), {}, 0)
    assert mended.differences == ()
    assert seen.payments == (0 if name == "coinbase_commerce" else len(lives))
    assert seen.notes == {each: note for each, note in NOTES.items() if each == name}
    for life in lives:
        payment, books = street.payment(life), await street.books(life)
        assert books.granted == (BUILDER.credits_tokens if is_whole(payment) else 0)
        assert books.returned_minor == back_minor(payment)
        if street.provider != "commerce":
            assert books.received_minor == minor(arrived(payment, confirmed=True))
    assert {life.keys for life in lives} == {0, 1}, "some were paid, and some were not"


def minor(amount: Decimal) -> int:
    return int(amount * 100)


def back_minor(payment: dict[str, Any]) -> int:
    """What went back of the price: what was paid over it goes back first."""
    over_minor = minor(arrived(payment, confirmed=True)) - BUILDER.price_minor
    return max(minor(refunded(payment)) - max(over_minor, 0), 0)


@pytest.mark.parametrize("provider", ["coinbase", "btcpay", "commerce"])
def test_whatever_becomes_of_its_events_a_payment_ends_in_the_books_as_at_the_provider(
    provider: Provider,
    fresh_url: str,
    tmp_path: Path,
    assert_sound: Callable[[Database], Awaitable[None]],
) -> None:
    numbers = iter(range(10**6))
    lives: list[Life] = []
    with asyncio.Runner() as loop, street(provider, loop, fresh_url, tmp_path) as place:

        @settings(
            max_examples=60,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(st.lists(STEP, max_size=14))
        def lived(steps: list[tuple[str, Any]]) -> None:
            lives.append(loop.run(live(place, next(numbers), steps)))

        lived()
        loop.run(reconciled(place, lives))
        loop.run(assert_sound(place.server._db))


@pytest.mark.parametrize(("currency", "price", "told"), [("jpy", 5_001, "5001"), ("kwd", 5_125, "5.125")])
async def test_currencies_with_other_decimals_are_asked_for_and_counted_exactly(  # noqa: PLR0917  # fixtures
    fresh_url, tmp_path, assert_sound, currency, price, told
):
    app = create_crypto_twin("btcpay", CryptoSettings(STORE_ID, API_KEY, CRYPTO_WEBHOOK_SECRET))
    server = LedgerServer(Settings(database_url=fresh_url, data_dir=tmp_path))
    package = Package("builder_600", "Builder", 60_000, price, currency)
    with running(app) as url:
        place = Street("btcpay", url, app.state.twin, server, tmp_path)
        life = Life(place.checkout, await place.checkout.start("payer@company.com", package, None))
        assert place.payment(life)["amount"] == told
        await place.turn(f"payments/{life.started.session_id}/receive", amount=told[:-1])
        await place.catch_up(life)
        assert (await place.books(life)).granted == 0
        await place.turn(f"payments/{life.started.session_id}/pay")
        await place.catch_up(life)
        books = await place.books(life)
        assert (books.granted, books.received_minor) == (60_000, price)
        await place.close()
    await assert_sound(server._db)
    await server.close()


async def test_coinbase_opens_no_checkout_in_a_currency_that_it_does_not_take(fresh_url, tmp_path):
    app = create_crypto_twin("coinbase", CryptoSettings(COINBASE_KEY_ID, COINBASE_KEY, CRYPTO_WEBHOOK_SECRET))
    server = LedgerServer(Settings(database_url=fresh_url, data_dir=tmp_path))
    with running(app) as url:
        place = Street("coinbase", url, app.state.twin, server, tmp_path)
        with pytest.raises(PaymentsUnavailable, match="JPY"):
            await place.checkout.start(
                "payer@company.com", Package("builder_600", "Builder", 60_000, 5_000, "jpy"), None
            )
        assert app.state.twin._state.document["payments"] == {}
        await place.close()
    await server.close()


async def test_a_session_of_nobody_is_acknowledged_and_forgotten(db, fresh_url, tmp_path):
    """A shop beside ours may sell through the same account."""
    app = create_crypto_twin("btcpay", CryptoSettings(STORE_ID, API_KEY, CRYPTO_WEBHOOK_SECRET))
    server = LedgerServer(Settings(database_url=fresh_url, data_dir=tmp_path))
    with running(app) as url:
        place = Street("btcpay", url, app.state.twin, server, tmp_path)
        made = await place.http.post(
            f"{url}/api/v1/stores/{STORE_ID}/invoices",
            json={"amount": "50.00", "currency": "USD", "metadata": {"orderId": "somebody-elses"}},
            headers={"authorization": f"token {API_KEY}"},
        )
        await place.turn(f"payments/{made.json()['id']}/pay")
        (event,) = [
            e for e in app.state.twin._state.document["events"].values() if e["type"] == "InvoiceSettled"
        ]
        body, headers = place.dress(event, {"copy": 0, "attempts": 0}, 0)
        kept = await place.checkout.receive_webhook(body, {k.lower(): v for k, v in headers.items()})
        assert kept
        await place.checkout.apply(kept)
        assert not await place.checkout.receive_webhook(body, {k.lower(): v for k, v in headers.items()})
        with pytest.raises(NotFound):
            await place.checkout.claim(made.json()["id"], "Primary")
        await place.close()
    async with db.transaction() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM transfers"))).scalar_one() == 0
    await server.close()


async def test_an_event_of_a_provider_that_is_gone_does_not_keep_the_others_waiting(fresh_url, tmp_path):
    app = create_crypto_twin("btcpay", CryptoSettings(STORE_ID, API_KEY, CRYPTO_WEBHOOK_SECRET))
    server = LedgerServer(Settings(database_url=fresh_url, data_dir=tmp_path))
    with running(app) as url:
        place = Street("btcpay", url, app.state.twin, server, tmp_path)
        await server.store_event(ProviderEvent("coinbase", "1", "checkout.payment.success", "1", b"{}"))
        async with server._db.transaction() as conn:
            await conn.execute(text("UPDATE provider_events SET retry_at = now()"))
        await place.runner._catch_up()
        assert await server.due_events(10) == []
        async with server._db.transaction() as conn:
            event = (await conn.execute(text("SELECT * FROM provider_events"))).one()
        assert (event.applied_at, event.problem) == (None, "its provider is not configured on this server")
        await place.close()
    await server.close()


async def test_a_purchase_that_breaks_a_look_does_not_keep_the_others_waiting(
    fresh_url, tmp_path, monkeypatch
):
    app = create_crypto_twin("btcpay", CryptoSettings(STORE_ID, API_KEY, CRYPTO_WEBHOOK_SECRET))
    server = LedgerServer(Settings(database_url=fresh_url, data_dir=tmp_path))
    with running(app) as url:
        place = Street("btcpay", url, app.state.twin, server, tmp_path)
        for name in ("one", "two"):
            await server.open_purchase(
                OpenPurchase(f"pur_{name}", "btcpay", "dev@company.com", BUILDER, None)
            )
            await server.attach_session(f"pur_{name}", name)
        async with server._db.transaction() as conn:
            await conn.execute(text("UPDATE purchases SET look_at = now()"))
        looked_at = []

        async def broken(session_id):
            looked_at.append(session_id)
            raise ValueError("an answer of another form")

        monkeypatch.setattr(place.runner._checkouts["btcpay"], "settle", broken)
        await place.runner._catch_up()
        assert sorted(looked_at) == ["one", "two"]
        await place.close()
    await server.close()
