"""The alert of a low balance: one for each fall, whoever moved the money and however many look."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlalchemy import text

from deployments.ledger import LedgerServer
from gateway import alerts, deliveries, erasure, webhooks
from kit.settings import Settings
from ledger import holds, keys, scopes
from ledger.credits import adjust, credit
from ledger.holds import HoldRequest
from ledger.payers import authorise
from ledger.spends import Spend, Spent, spend_many

BASE = "https://farebox.test"
URL = "https://customer.example/alerts"


async def spend(conn, customer, tokens):
    command = Spend(
        credential=customer.credential,
        tool="chat",
        reference=uuid4().hex,
        units_milli=1000,
        cost_tokens=tokens,
        price_version=1,
    )
    assert isinstance((await spend_many(conn, [command]))[0], Spent)


async def top_up(conn, customer, tokens):
    await credit(
        conn,
        customer.account_id,
        kind="grant",
        house="promotion:test",
        amount_tokens=tokens,
        reference=uuid4().hex,
    )


async def hold(conn, customer, tokens):
    use = (customer.credential, scopes.tool("chat"))
    payer = (await authorise(conn, [use]))[use]
    request = HoldRequest(f"hold_{uuid4().hex}", payer, "chat", uuid4().hex, tokens, 1, None)
    await holds.place(conn, [request])
    return request.id


async def sweep(conn):
    """Look once, as the Ledger does; returns how many were told."""
    moved, _ = await alerts.accounts_moved(conn, 0, 1000)
    return sum([await alerts.decide(conn, account_id, BASE) for account_id in moved])


async def mails(conn, customer):
    query = text("SELECT body FROM outbox WHERE recipient = :email ORDER BY id")
    return list((await conn.scalars(query, {"email": customer.email})).all())


async def test_a_spend_that_goes_below_the_threshold_is_told_once_by_mail_and_webhook(conn, customers):
    customer = await customers(conn, 1000)
    await alerts.set_alert(conn, customer.account_id, 500, URL)
    await spend(conn, customer, 500)
    assert await sweep(conn) == 0  # at the threshold is not below it
    await spend(conn, customer, 1)
    assert await sweep(conn) == 1
    await spend(conn, customer, 1)
    assert await sweep(conn) == 0
    (mail,) = await mails(conn, customer)
    assert "4.99 credits are free to spend, less than the 5.00" in mail
    assert f"{BASE}/credits" in mail
    (delivery,) = await deliveries.deliveries(conn, customer.account_id, 9, None, None)
    assert (delivery.event, delivery.url) == ("balance.low", URL)
    assert json.loads(delivery.body)["data"] == {
        "free": {"credits": 4.99, "tokens": 499},
        "threshold": {"credits": 5.0, "tokens": 500},
    }


async def by_spend(conn, customer):
    await spend(conn, customer, 600)


async def by_hold(conn, customer):
    await hold(conn, customer, 600)


async def by_capture(conn, customer):
    await holds.capture(conn, await hold(conn, customer, 600), 600, datetime.now(UTC))


async def by_adjustment(conn, customer):
    await adjust(conn, customer.account_id, amount_tokens=-600, reference="a", reason="a mistake put right")


@pytest.mark.parametrize("fall", [by_spend, by_hold, by_capture, by_adjustment])
async def test_any_movement_below_the_threshold_is_told(conn, customers, fall):
    customer = await customers(conn, 1000)
    await alerts.set_alert(conn, customer.account_id, 500, None)
    await fall(conn, customer)
    assert await sweep(conn) == 1
    assert len(await mails(conn, customer)) == 1


async def test_only_a_top_up_over_the_threshold_makes_it_tell_again(conn, customers):
    customer = await customers(conn, 1000)
    await alerts.set_alert(conn, customer.account_id, 500, None)
    await spend(conn, customer, 700)
    assert await sweep(conn) == 1
    await top_up(conn, customer, 199)  # 499: not enough
    assert await sweep(conn) == 0
    await spend(conn, customer, 1)
    assert await sweep(conn) == 0
    await top_up(conn, customer, 2)  # 500: back at the threshold
    assert await sweep(conn) == 0
    await spend(conn, customer, 1)
    assert await sweep(conn) == 1


async def test_a_hold_that_comes_free_is_no_top_up(conn, customers):
    customer = await customers(conn, 1000)
    await alerts.set_alert(conn, customer.account_id, 500, None)
    for told in (1, 0, 0):
        held = await hold(conn, customer, 600)
        assert await sweep(conn) == told
        await holds.release(conn, held, "voided")
        assert await sweep(conn) == 0
        await spend(conn, customer, 10)
        assert await sweep(conn) == 0
    assert not (await alerts.alert(conn, customer.account_id)).armed


async def test_a_balance_that_is_below_already_is_told_at_its_next_fall(conn, customers):
    customer = await customers(conn, 1000)
    held = await hold(conn, customer, 600)
    await alerts.set_alert(conn, customer.account_id, 500, None)
    assert await sweep(conn) == 0
    await holds.release(conn, held, "voided")
    assert await sweep(conn) == 0
    await spend(conn, customer, 501)
    assert await sweep(conn) == 1


async def test_the_same_threshold_again_tells_nothing_twice_and_another_starts_anew(conn, customers):
    customer = await customers(conn, 1000)
    await alerts.set_alert(conn, customer.account_id, 500, None)
    await spend(conn, customer, 501)
    assert await sweep(conn) == 1
    assert not (await alerts.set_alert(conn, customer.account_id, 500, URL)).armed
    assert await sweep(conn) == 0
    assert (await alerts.set_alert(conn, customer.account_id, 400, URL)).armed
    await spend(conn, customer, 100)
    assert await sweep(conn) == 1


async def test_concurrent_spends_and_sweeps_tell_once(db, customers):
    async with db.transaction() as conn:
        customer = await customers(conn, 1000)
        await alerts.set_alert(conn, customer.account_id, 500, URL)
        await webhooks.add(conn, b"secret", customer.account_id, f"{URL}/all", ("balance.low",))

    async def look():
        return [
            await db.run(alerts.decide, account_id, BASE)
            for account_id in (await db.run(alerts.accounts_moved, 0, 1000))[0]
        ]

    for _ in range(6):
        await asyncio.gather(*(db.run(spend, customer, 20) for _ in range(6)), look(), look(), look())
    await look()
    async with db.transaction() as conn:
        assert len(await mails(conn, customer)) == 1
        told = await deliveries.deliveries(conn, customer.account_id, 99, None, None)
    assert sorted(delivery.url for delivery in told) == [URL, f"{URL}/all"]


async def test_of_many_who_decide_at_once_one_tells(db, customers):
    async with db.transaction() as conn:
        customer = await customers(conn, 1000)
        await alerts.set_alert(conn, customer.account_id, 500, None)
        await spend(conn, customer, 600)
    told = await asyncio.gather(
        *(db.run(alerts.decide, customer.account_id, BASE) for _ in range(8)),
    )
    assert told.count(True) == 1
    async with db.transaction() as conn:
        assert len(await mails(conn, customer)) == 1


async def test_a_sweep_waits_for_no_spend_and_keeps_none_waiting(db, customers):
    async with db.transaction() as conn:
        customer = await customers(conn, 1000)
        await alerts.set_alert(conn, customer.account_id, 500, URL)
        await spend(conn, customer, 600)
    async with db.transaction() as spending, db.transaction() as sweeping:
        await spend(spending, customer, 1)  # holds the account's row
        await sweeping.execute(text("SET LOCAL lock_timeout = '200ms'"))
        assert await alerts.decide(sweeping, customer.account_id, BASE)
        await spending.execute(text("SET LOCAL lock_timeout = '200ms'"))
        await spend(spending, customer, 1)


async def test_the_sweep_looks_at_every_alert_in_slices(db, customers):
    async with db.transaction() as conn:
        many = [await customers(conn, 1000) for _ in range(5)]
        for customer in many:
            await alerts.set_alert(conn, customer.account_id, 500, None)
            await spend(conn, customer, 600)
    after, found = 0, []
    while True:
        moved, after = await db.run(alerts.accounts_moved, after, 2)
        found += moved
        if not after:
            break
    assert found == sorted(customer.account_id for customer in many)


async def test_the_ledgers_sweep_tells(db, fresh_url, tmp_path, customers):
    async with db.transaction() as conn:
        customer = await customers(conn, 1000)
        await alerts.set_alert(conn, customer.account_id, 500, None)
        await spend(conn, customer, 600)
    server = LedgerServer(Settings(database_url=fresh_url, data_dir=tmp_path, secret="s", public_url=BASE))
    await server.sweep()
    await server.close()
    async with db.transaction() as conn:
        (mail,) = await mails(conn, customer)
    assert f"{BASE}/credits" in mail


async def test_what_a_sweep_breaks_on_keeps_nobody_else_waiting(
    db, fresh_url, tmp_path, customers, monkeypatch
):
    async with db.transaction() as conn:
        both = [await customers(conn, 1000) for _ in range(2)]
        for customer in both:
            await alerts.set_alert(conn, customer.account_id, 500, None)
            await spend(conn, customer, 600)
    decide = alerts.decide

    async def broken(conn, account_id, base_url):
        if account_id == both[0].account_id:
            raise AssertionError("books that cannot be")
        return await decide(conn, account_id, base_url)

    monkeypatch.setattr(alerts, "decide", broken)
    server = LedgerServer(Settings(database_url=fresh_url, data_dir=tmp_path, secret="s", public_url=BASE))
    await server.sweep()
    await server.close()
    async with db.transaction() as conn:
        assert [len(await mails(conn, customer)) for customer in both] == [0, 1]
        assert await conn.scalar(text("SELECT count(*) FROM chain_mark")) == 1, (
            "and the books were looked after"
        )


async def test_a_suspended_person_is_told_nothing(conn, customers):
    customer = await customers(conn, 1000)
    await alerts.set_alert(conn, customer.account_id, 500, URL)
    await spend(conn, customer, 600)
    await conn.execute(text("UPDATE users SET suspended_at = now() WHERE id = :id"), {"id": customer.user_id})
    await sweep(conn)
    assert await mails(conn, customer) == []
    assert await deliveries.deliveries(conn, customer.account_id, 9, None, None) == []


async def test_a_deleted_account_leaves_no_alert_endpoint_or_delivery(conn, customers):
    customer = await customers(conn, 1000)
    await alerts.set_alert(conn, customer.account_id, 500, URL)
    await spend(conn, customer, 600)
    await sweep(conn)
    caller = await keys.caller_of(conn, customer.credential, scopes.ANY)
    await erasure.delete_account(conn, caller, customer.email, forfeit=True)
    for table in ("balance_alerts", "webhook_endpoints", "webhook_deliveries", "outbox"):
        assert (await conn.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one() == 0
