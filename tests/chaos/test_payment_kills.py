"""The Ledger dies between a payment's webhook and its grant, at each step: the purchase is granted once.

Over the real Stripe SDK, the twin behind it, and a Ledger in a process of its own; wallets' payments likewise.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import text

from kit.db import Database
from kit.errors import Unavailable
from kit.settings import Settings
from payments.checkout import Checkout
from payments.errors import AlreadyClaimed, PaymentRequired
from payments.packages import Package
from payments.purchases import Claim
from payments.stripe_checkout import checkout_for
from payments.x402 import x402_for
from payments.x402_payments import Paid
from payments.x402_wire import Call
from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.testing import SECRET_KEY, WEBHOOK_SECRET, Inbox, running
from sandbox.x402_facilitator import Chain, create_facilitator

BUILDER = Package("builder_600", "Builder", 60_000, 5_000, "usd")
EVENTS_OF_A_PAYMENT = 2
"""`checkout.session.completed` and `payment_intent.succeeded`."""
STEPS = [
    ("store_event", "after"),
    ("fulfil", "before"),
    ("fulfil", "after"),
    ("finish_event", "after"),
]

T = TypeVar("T")


@pytest.fixture
def inbox() -> Inbox:
    """What Stripe sent us."""
    return Inbox()


@pytest.fixture
def twin(inbox) -> Iterator[str]:
    with ExitStack() as stack:
        hook = stack.enter_context(running(inbox.app()))
        settings = TwinSettings(
            secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET, webhook_url=f"{hook}/webhooks"
        )
        yield stack.enter_context(running(create_twin(settings)))


@pytest_asyncio.fixture
async def process(replicas) -> AsyncIterator[Any]:
    async with replicas(1) as (only,):
        yield only


@pytest_asyncio.fixture
async def checkout(process, twin, tmp_path) -> AsyncIterator[Checkout]:
    settings = Settings(
        data_dir=tmp_path, stripe_secret_key=SECRET_KEY, stripe_webhook_secret=WEBHOOK_SECRET, stripe_api_base=twin
    )  # fmt: skip
    checkout = checkout_for(settings, process.books)
    assert checkout
    yield checkout
    await checkout.close()


@pytest_asyncio.fixture
async def books(durable) -> AsyncIterator[Database]:
    db = Database(durable.url, pool_size=1)
    yield db
    await db.close()


async def until_answered(ask: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await ask()
        except Unavailable:
            await asyncio.sleep(0.02)  # a caller's pause before it tries again


@pytest.mark.parametrize("step", STEPS, ids="-".join)
async def test_a_purchase_is_granted_once_whichever_step_its_webhook_dies_at(  # noqa: PLR0917  # fixtures
    process, checkout, inbox, books, assert_sound, step
):
    email = f"{'-'.join(step)}@company.com"
    await until_answered(process.books.ping)
    order = await checkout.start(email, BUILDER, None)
    async with httpx.AsyncClient() as payer:
        await payer.post(order.checkout_url, data={"outcome": "pay"})
    sent = await asyncio.to_thread(inbox.wait_for, EVENTS_OF_A_PAYMENT)
    (event,) = [each for each in sent if json.loads(each.body)["type"] == "checkout.session.completed"]

    async def deliver() -> bool:
        """Take the event in and handle it, as the route does; returns whether that is nobody's work any more."""
        kept = await checkout.receive_webhook(event.body, event.headers)
        if kept is not None:
            await checkout.apply(kept)
        return kept is None

    await process.call("doom", *step)
    with pytest.raises(Unavailable):  # so that Stripe sends it again
        await deliver()
    await process.died()
    process.start()

    async def claim() -> Claim | AlreadyClaimed:
        try:
            return await checkout.claim(order.session_id, "Primary")
        except AlreadyClaimed as earlier:
            return earlier

    # At once: Stripe's repeats, and the payer on two tabs, whose claims grant what no webhook did.
    *_, first, second = await asyncio.gather(
        *(until_answered(ask) for ask in (deliver, deliver, claim, claim))
    )
    assert sorted([type(first), type(second)], key=str) == [AlreadyClaimed, Claim]
    assert await until_answered(deliver)  # kept before
    async with books.transaction() as conn:  # as when its handler's time is over
        await conn.execute(text("UPDATE provider_events SET retry_at = now() WHERE applied_at IS NULL"))
    for due in await until_answered(lambda: process.books.due_events(10)):
        await until_answered(lambda due=due: checkout.apply(due))
    async with books.transaction() as conn:
        granted = await conn.execute(
            text(
                "SELECT t.amount, a.balance FROM transfers t JOIN accounts a ON a.id = t.account_id"
                " JOIN users u ON u.id = a.user_id WHERE u.email = :email"
            ),
            {"email": email},
        )
        assert [tuple(row) for row in granted] == [(BUILDER.credits_tokens, BUILDER.credits_tokens)]
    await assert_sound(books)


WALLET_STEPS = [("begin_x402", "after"), ("conclude_x402", "before"), ("conclude_x402", "after")]


@pytest.mark.parametrize("step", WALLET_STEPS, ids="-".join)
async def test_a_wallets_payment_moves_and_is_granted_once_whichever_step_it_dies_at(
    process, books, tmp_path, assert_sound, step
):
    await until_answered(process.books.ping)
    chain = Chain()
    with running(create_facilitator(chain)) as url:
        settings = Settings(
            data_dir=tmp_path, secret="of this test alone", x402_facilitator=url, x402_pay_to=f"0x{'1' * 40}"
        )
        checkout = x402_for(settings, process.books)
        assert checkout
        call = Call("POST /jobs", "a fox", "f" * 64, "image", 1, 100, checkout.price_minor(100))

        async def admit(_: str) -> None:
            return

        async def pay(header: str | None) -> Paid:
            return await checkout.pay(call, url, header, None, key_label="fox", key_days=1, admit=admit)

        with pytest.raises(PaymentRequired) as offered:
            await pay(None)
        payment = chain.sign(offered.value.details)
        header = base64.b64encode(json.dumps(payment).encode()).decode()
        await process.call("doom", *step)
        first = asyncio.create_task(pay(header))
        await process.died()
        process.start()
        # The answer in hand outlives the Ledger; without one, its wallet sends the payment again.
        with suppress(Unavailable):
            await first

        async def again() -> Paid:
            async with books.transaction() as conn:  # as when its asker's lease is over
                await conn.execute(text("UPDATE x402_payments SET due_at = now() WHERE state = 'settling'"))
            return await pay(header)

        paid = [await until_answered(again) for _ in range(2)]
        assert len({each.secret for each in paid}) == 1
        assert list(chain.transactions.values()) == [paid[0].transaction]
        await checkout.close()
    async with books.transaction() as conn:
        granted = await conn.execute(
            text(
                "SELECT t.amount FROM transfers t JOIN purchases p ON p.transfer_id = t.id"
                " JOIN x402_payments x ON x.purchase_id = p.id WHERE x.id = :id"
            ),
            {"id": paid[0].payment_id},
        )
        assert [tuple(row) for row in granted] == [(100,)]
    await assert_sound(books)
