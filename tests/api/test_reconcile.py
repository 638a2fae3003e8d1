"""Providers' records beside the books, over the twins and the real clients: missed webhooks heal, the rest is shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from deployments.cli import app as farebox
from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from deployments.runner import Runner
from kit.errors import NotFound
from kit.settings import Settings
from kit.storage import ObjectStore
from payments.checkout import Checkout
from payments.crypto import crypto_for
from payments.packages import Package
from payments.reconciler import Reconciler
from payments.reconciliations import Span
from payments.stripe_checkout import checkout_for
from sandbox.btcpay_api import STORE_ID
from sandbox.crypto_twin import CryptoSettings, create_crypto_twin
from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.testing import (
    API_KEY,
    COINBASE_KEY,
    COINBASE_KEY_ID,
    CRYPTO_WEBHOOK_SECRET,
    SECRET_KEY,
    WEBHOOK_SECRET,
    running,
)

BUILDER = Package("builder_600", "Builder", 60_000, 5_000, "usd")
PROVIDERS = ("stripe", "coinbase", "btcpay")


class Street:
    """A shop whose provider's webhooks never arrive."""

    def __init__(self, name: str, url: str, server: LedgerServer, place: Any, twin: Any) -> None:
        self.twin = twin
        self.name, self.url, self.server = name, url, server
        self.told = {
            "stripe": {
                "STRIPE_SECRET_KEY": SECRET_KEY,
                "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
                "STRIPE_API_BASE": url,
            },
            "coinbase": {
                "COINBASE_API_KEY_ID": COINBASE_KEY_ID,
                "COINBASE_API_KEY_SECRET": COINBASE_KEY,
                "COINBASE_WEBHOOK_SECRET": CRYPTO_WEBHOOK_SECRET,
                "COINBASE_API_BASE": f"{url}/api/v1",
            },
            "btcpay": {
                "BTCPAY_URL": url,
                "BTCPAY_STORE_ID": STORE_ID,
                "BTCPAY_API_KEY": API_KEY,
                "BTCPAY_WEBHOOK_SECRET": CRYPTO_WEBHOOK_SECRET,
            },
        }[name]
        configured = Settings(data_dir=place, **{key.lower(): value for key, value in self.told.items()})
        ledger = local_ledger(server)
        crypto = crypto_for(configured, ledger)
        self.checkout: Checkout = crypto.checkouts[0] if crypto else checkout_for(configured, ledger)
        self.reconciler = Reconciler(server, [self.checkout], wallets=False)
        self.runner = Runner(configured, self._call, None, ObjectStore("memory://"), [self.checkout], {})
        self.http = httpx.AsyncClient(verify=False)

    async def _call(self, method: str, *args: object) -> Any:
        return await getattr(self.server, method)(*args)

    def document(self) -> dict[str, Any]:
        return self.twin.state.twin._state.document

    async def turn(self, path: str, **order: Any) -> dict[str, Any]:
        answer = await self.http.post(f"{self.url}/_twin/{path}", json=order or None)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def open(self, number: int) -> str:
        return (await self.checkout.start(f"payer{number}@company.com", BUILDER, None)).session_id

    async def pay(self, session_id: str) -> str:
        """Pay; returns what a refund of it is asked for by."""
        where = "sessions" if self.name == "stripe" else "payments"
        paid = await self.turn(f"{where}/{session_id}/pay")
        return str(paid["payment_intent"]) if self.name == "stripe" else session_id

    async def refund(self, payment_id: str) -> None:
        """Send two fifths back."""
        part = {"amount": 2_000} if self.name == "stripe" else {"amount": "20.00"}
        await self.turn(f"payments/{payment_id}/refund", **part)

    async def compare(self, *, repairs: bool = False) -> Any:
        now = datetime.now(UTC)
        return await self.reconciler.run(
            Span(now - timedelta(days=1), now + timedelta(minutes=1)), repairs=repairs
        )


@pytest.fixture(params=PROVIDERS)
def name(request) -> str:
    return str(request.param)


@pytest_asyncio.fixture
async def street(name: str, server: LedgerServer, tmp_path) -> AsyncIterator[Street]:
    if name == "stripe":
        twin = create_twin(TwinSettings(secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET))
    else:
        key = (COINBASE_KEY_ID, COINBASE_KEY) if name == "coinbase" else (STORE_ID, API_KEY)
        twin = create_crypto_twin(name, CryptoSettings(*key, CRYPTO_WEBHOOK_SECRET))
    with running(twin) as url:
        street = Street(name, url, server, tmp_path, twin)
        yield street
        await street.checkout.close()
        await street.http.aclose()


only_stripe = pytest.mark.parametrize("name", ["stripe"], indirect=True)


async def clawed(db) -> list[tuple[int, int]]:
    async with db.transaction() as conn:
        rows = await conn.execute(text("SELECT amount, clawed FROM grants ORDER BY id"))
        return [(row.amount, row.clawed) for row in rows]


async def frozen(db) -> list[bool]:
    async with db.transaction() as conn:
        rows = await conn.execute(
            text("SELECT frozen_at IS NOT NULL AS frozen FROM accounts WHERE user_id IS NOT NULL")
        )
        return [row.frozen for row in rows]


async def begun_earlier(street: Street, db, days: int) -> None:
    """Make all that was begun and granted so far so many days older, on both sides."""
    async with db.transaction() as conn:
        await conn.execute(text("ALTER TABLE purchases DISABLE TRIGGER USER"))
        await conn.execute(
            text("UPDATE purchases SET created_at = created_at - make_interval(days => :days)"),
            {"days": days},
        )
        await conn.execute(text("UPDATE purchases SET fulfilled_at = created_at"))
    for table in ("sessions", "payment_intents"):
        for each in street.document()[table].values():
            each["created"] -= days * 24 * 3600


async def test_payments_of_whom_no_webhook_came_are_found_and_granted(street, db, assert_sound, monkeypatch):
    for module in ("payments.stripe_checkout", "payments.coinbase_checkout", "payments.btcpay_checkout"):
        monkeypatch.setattr(f"{module}.PAGE", 2)  # so that there are several pages
    sessions = [await street.open(number) for number in range(5)]
    for session in sessions[:4]:
        await street.pay(session)
    seen = await street.compare()
    assert {(each.kind, each.session_id) for each in seen.differences} == {
        ("not_granted", session) for session in sessions[:4]
    }
    assert (seen.payments, seen.repaired, await clawed(db)) == (5, 0, [])
    mended = await street.compare(repairs=True)
    assert (mended.repaired, mended.differences) == (4, ())
    assert await clawed(db) == [(60_000, 0)] * 4
    again = await street.compare(repairs=True)
    assert (again.repaired, again.differences) == (0, ())
    await assert_sound(db)


@pytest.mark.parametrize("name", ["stripe", "coinbase"], indirect=True)
async def test_what_went_back_unheard_takes_its_credits(street, db, assert_sound):
    session = await street.open(1)
    payment = await street.pay(session)
    await street.checkout.settle(session)
    assert (await street.compare()).differences == ()
    await street.refund(payment)
    (found,) = (await street.compare()).differences
    assert (found.kind, found.repair) == ("refund", "take back its share of the credits")
    assert (await street.compare(repairs=True)).differences == ()
    assert await clawed(db) == [(60_000, 24_000)]
    await assert_sound(db)


async def test_what_was_granted_and_never_paid_is_told_and_left_alone(street, db):
    """A key of another account, a restored backup of the provider's side: whatever it is, a person looks."""
    session = await street.open(1)
    await street.pay(session)
    await street.checkout.settle(session)
    async with db.transaction() as conn:
        other = {"stripe": "cs_test_gone", "coinbase": "f" * 24, "btcpay": "1" * 22}[street.name]
        await conn.execute(
            text("UPDATE purchases SET session_id = :other, payment_id = NULL"), {"other": other}
        )
    seen = await street.compare(repairs=True)
    kinds = {each.kind: each for each in seen.differences}
    assert kinds.keys() == {"not_paid", "paid_twice"}
    assert {each.repair for each in seen.differences} == {None}
    assert await clawed(db) == [(60_000, 0)]


@only_stripe
async def test_disputes_and_refunds_of_older_sessions_are_found_by_their_own_day(street, db, assert_sound):
    session = await street.open(1)
    payment = await street.pay(session)
    await street.checkout.settle(session)
    dispute = await street.turn(f"payments/{payment}/dispute", amount=2_500)
    await begun_earlier(street, db, 9)
    (found,) = (await street.compare()).differences
    assert (found.kind, found.session_id) == ("dispute", session)
    assert (await street.compare(repairs=True)).repaired == 1
    assert await clawed(db) == [(60_000, 30_000)]
    await street.turn(f"disputes/{dispute['id']}/win")
    (won,) = (await street.compare()).differences
    assert won.repair == "give back the credits that were taken for it"
    assert (await street.compare(repairs=True)).differences == ()
    assert await clawed(db) == [(60_000, 0)]
    await assert_sound(db)


@only_stripe
@pytest.mark.parametrize("days_old", [0, 9])
async def test_a_fraud_warning_that_no_webhook_told_freezes_its_account_once(  # fixtures
    street, db, assert_sound, days_old
):
    session = await street.open(1)
    payment = await street.pay(session)
    await street.checkout.settle(session)
    if days_old:
        await begun_earlier(street, db, days_old)
    await street.turn(f"payments/{payment}/warn")
    (found,) = (await street.compare()).differences
    assert (found.kind, found.session_id, found.repair) == ("warning", session, "freeze its account")
    assert await frozen(db) == [False]
    mended = await street.compare(repairs=True)
    assert (mended.repaired, mended.differences) == (1, ())
    assert (await frozen(db), await clawed(db)) == ([True], [(60_000, 0)])
    async with db.transaction() as conn:  # an operator looked
        await conn.execute(text("UPDATE accounts SET frozen_at = NULL"))
    assert (await street.compare(repairs=True)).differences == ()
    assert await frozen(db) == [False]
    await assert_sound(db)


@only_stripe
async def test_a_refund_that_failed_unheard_gives_its_credits_back(street, db, assert_sound):
    session = await street.open(1)
    payment = await street.pay(session)
    refund = await street.turn(f"payments/{payment}/refund", amount=2_000)
    await street.checkout.settle(session)
    assert await clawed(db) == [(60_000, 24_000)]
    await street.turn(f"refunds/{refund['id']}/fail")
    assert (await street.compare(repairs=True)).repaired == 1
    assert await clawed(db) == [(60_000, 0)]
    await assert_sound(db)


@only_stripe
async def test_a_price_that_differs_is_granted_by_no_repair(street, db):
    session = await street.open(1)
    await street.pay(session)
    street.document()["sessions"][session].update(amount_total=1, amount_subtotal=1)
    seen = await street.compare(repairs=True)
    assert {(each.kind, each.repair) for each in seen.differences} == {("price", None), ("not_granted", None)}
    assert await clawed(db) == []


async def test_the_runner_heals_what_no_webhook_told_and_keeps_the_result(street, db, server, assert_sound):
    await street.pay(await street.open(1))
    with pytest.raises(NotFound):
        await server.last_reconciliation()
    await street.runner._reconcile()
    assert await clawed(db) == [(60_000, 0)]
    kept = await server.last_reconciliation()
    assert (kept.scheduled, kept.left, kept.result.repaired) == (True, 0, 1)
    await street.pay(await street.open(2))
    await street.runner._reconcile()  # not due before tomorrow
    assert await clawed(db) == [(60_000, 0)]
    with pytest.raises(DBAPIError):
        async with db.transaction() as conn:
            await conn.execute(text("UPDATE reconciliations SET differences = 1"))
    await assert_sound(db)


async def test_one_runner_reconciles_and_a_dead_one_is_waited_for_an_hour(db, server):
    day, days = timedelta(days=1), timedelta(days=3)
    begun = await server.begin_reconciliation_if_due(day, days, True)
    assert begun
    assert await server.begin_reconciliation_if_due(day, days, True) is None
    async with db.transaction() as conn:
        await conn.execute(text("UPDATE reconciliations SET began_at = now() - interval '61 minutes'"))
    assert await server.begin_reconciliation_if_due(day, days, True)


@only_stripe
async def test_a_provider_that_is_away_is_named_and_asked_again_within_the_day(street, db, server):
    await street.turn("faults", next_requests_fail=1000, status=500)
    await street.runner._reconcile()
    kept = await server.last_reconciliation()
    assert kept.result.silent.keys() == {"stripe"}
    await street.turn("faults", next_requests_fail=0)
    day, days = timedelta(days=1), timedelta(days=3)
    assert await server.begin_reconciliation_if_due(day, days, True) is None
    async with db.transaction() as conn:
        await conn.execute(text("ALTER TABLE reconciliations DISABLE TRIGGER ended_for_good"))
        await conn.execute(text("UPDATE reconciliations SET began_at = now() - interval '61 minutes'"))
    assert await server.begin_reconciliation_if_due(day, days, True)


@only_stripe
async def test_the_command_tells_mends_and_leaves_with_its_status(
    street, db, fresh_url, tmp_path, monkeypatch
):
    for name, value in ({"DATABASE_URL": fresh_url, "FAREBOX_DATA_DIR": str(tmp_path)} | street.told).items():
        monkeypatch.setenv(name, value)

    async def typed(*arguments: str) -> tuple[int, str]:
        done = await asyncio.to_thread(CliRunner().invoke, farebox, ["reconcile", *arguments])
        return done.exit_code, done.stdout

    session = await street.open(1)
    await street.pay(session)
    status, output = await typed("--since", "2020-01-01")
    assert (status, output.split("\t")[1:4]) == (1, ["stripe", session, "not_granted"])
    assert (await typed("--since", "2020-01-01", "--repair"))[0] == 0
    assert await clawed(db) == [(60_000, 0)]
    status, output = await typed("--last", "--json")
    assert (status, json.loads(output)["repaired"]) == (0, 1)
    assert (await typed("--since", "yesterday"))[0] == 2
    assert (await typed("--since", "2020-01-01", "--provider", "btcpay"))[0] == 2
    await street.turn("faults", next_requests_fail=1000, status=500)
    assert (await typed("--since", "2020-01-01"))[0] == 2
