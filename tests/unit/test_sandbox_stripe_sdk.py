"""The Stripe twin over real sockets: the real SDK as its client, real deliveries, and its own process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st
from stripe._encode import _api_encode
from stripe.params.checkout import SessionCreateParams

from payments.checkout import ProviderSession, SessionRequest
from payments.coinbase_checkout import CoinbaseCheckout
from payments.packages import Package
from sandbox.__main__ import main
from sandbox.stripe_params import parse_form
from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.testing import (
    COINBASE_KEY,
    COINBASE_KEY_ID,
    CRYPTO_WEBHOOK_SECRET,
    SECRET_KEY,
    WEBHOOK_SECRET,
    Inbox,
    running,
)

BUILDER = Package("builder_600", "Builder", 60_000, 5_000, "usd")

# Long enough for a loaded machine; a process that hangs fails here instead of hanging the run.
PROCESS_TIMEOUT_S = 30


class Sdk(Protocol):
    def __call__(self, url: str, *, key: str = SECRET_KEY, retries: int = 2) -> stripe.StripeClient: ...


@pytest.fixture
def sdk() -> Iterator[Sdk]:
    """The real SDK, pointed at a twin; its connections are closed at the end."""
    with ExitStack() as stack:

        def client(url: str, *, key: str = SECRET_KEY, retries: int = 2) -> stripe.StripeClient:
            http = stripe.RequestsClient()
            stack.callback(http.close)
            return stripe.StripeClient(
                key, http_client=http, base_addresses={"api": url}, max_network_retries=retries
            )

        yield client


def order() -> SessionCreateParams:
    return {
        "mode": "payment",
        "line_items": [
            {
                "price_data": {
                    "currency": "usd",
                    "unit_amount": 1200,
                    "product_data": {"name": "Builder & Söhne"},
                },
                "quantity": 1,
            }
        ],
        "success_url": "https://shop.example/done?session={CHECKOUT_SESSION_ID}",
        "cancel_url": "https://shop.example/credits",
        "client_reference_id": "pur_1",
        "customer_email": "dev@company.example",
        "metadata": {"purchase": "pur_1", "0": "zero"},
        "payment_intent_data": {"metadata": {"purchase": "pur_1"}},
        "automatic_tax": {"enabled": False},
    }


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def url(inbox: Inbox) -> Iterator[str]:
    with ExitStack() as stack:
        hook = stack.enter_context(running(inbox.app()))
        settings = TwinSettings(
            secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET, webhook_url=f"{hook}/webhooks/stripe"
        )
        yield stack.enter_context(running(create_twin(settings)))


def test_the_sdk_opens_pays_reads_and_refunds(sdk: Sdk, url: str, inbox: Inbox) -> None:
    client = sdk(url)
    session = client.v1.checkout.sessions.create(order())
    assert session.url == f"{url}/c/pay/{session.id}"
    assert session.metadata is not None
    assert session.metadata.to_dict() == {"purchase": "pur_1", "0": "zero"}
    paid = httpx.post(session.url, data={"outcome": "pay"})
    assert paid.headers["location"] == f"https://shop.example/done?session={session.id}"

    read = client.v1.checkout.sessions.retrieve(session.id, {"expand": ["payment_intent", "line_items"]})
    assert (read.status, read.payment_status, read.amount_total) == ("complete", "paid", 1200)
    assert isinstance(read.payment_intent, stripe.PaymentIntent)
    assert read.payment_intent.metadata["purchase"] == "pur_1"
    assert read.line_items is not None
    assert read.line_items.data[0].description == "Builder & Söhne"

    refund = client.v1.refunds.create({"payment_intent": read.payment_intent.id, "amount": 200})
    assert (refund.status, refund.amount) == ("succeeded", 200)
    assert [found.id for found in client.v1.refunds.list().auto_paging_iter()] == [refund.id]

    events = [
        stripe.Webhook.construct_event(webhook.body, webhook.headers["stripe-signature"], WEBHOOK_SECRET)
        for webhook in inbox.wait_for(4)
    ]
    assert [event.type for event in events] == [
        "checkout.session.completed",
        "payment_intent.succeeded",
        "refund.created",
        "charge.refunded",
    ]
    assert isinstance(events[0].data.object, stripe.checkout.Session)
    assert events[0].data.object.id == session.id
    assert client.v1.events.retrieve(events[0].id).type == events[0].type


def test_a_webhook_of_another_secret_or_body_does_not_verify(sdk: Sdk, url: str, inbox: Inbox) -> None:
    client = sdk(url)
    client.v1.checkout.sessions.expire(client.v1.checkout.sessions.create(order()).id)
    webhook = inbox.wait_for(1)[0]
    header = webhook.headers["stripe-signature"]
    for body, secret in [(webhook.body, "whsec_other"), (webhook.body + b" ", WEBHOOK_SECRET)]:
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.Webhook.construct_event(body, header, secret)


@pytest.mark.parametrize("after_effect", [False, True])
def test_the_sdks_retries_open_one_session(sdk: Sdk, url: str, after_effect: bool) -> None:
    fault = {"next_requests_fail": 1, "status": 500, "after_effect": after_effect}
    httpx.post(f"{url}/_twin/faults", json=fault).raise_for_status()
    client = sdk(url)
    session = client.v1.checkout.sessions.create(order(), {"idempotency_key": "pur_1"})
    assert [found.id for found in client.v1.checkout.sessions.list().data] == [session.id]


def test_the_sdk_raises_its_own_errors(sdk: Sdk, url: str) -> None:
    client = sdk(url, retries=0)
    with pytest.raises(stripe.AuthenticationError):
        sdk(url, key="sk_test_other").v1.checkout.sessions.list()
    with pytest.raises(stripe.InvalidRequestError) as refusal:
        client.v1.checkout.sessions.retrieve("cs_test_none")
    assert (refusal.value.http_status, refusal.value.code) == (404, "resource_missing")
    with pytest.raises(stripe.InvalidRequestError) as refusal:
        client.v1.checkout.sessions.create({"mode": "payment"})
    assert refusal.value.param == "success_url"
    client.v1.checkout.sessions.create(order(), {"idempotency_key": "pur_1"})
    with pytest.raises(stripe.IdempotencyError):
        client.v1.checkout.sessions.create({**order(), "metadata": {}}, {"idempotency_key": "pur_1"})
    for status, expected in [(429, stripe.RateLimitError), (500, stripe.APIError)]:
        httpx.post(f"{url}/_twin/faults", json={"next_requests_fail": 1, "status": status}).raise_for_status()
        with pytest.raises(expected):
            client.v1.checkout.sessions.list()


# The SDK hands httpx its body the deprecated way.
async def test_the_async_sdk_works_too(url: str) -> None:
    http = stripe.HTTPXClient()
    client = stripe.StripeClient(SECRET_KEY, http_client=http, base_addresses={"api": url})
    session = await client.v1.checkout.sessions.create_async(order(), {"idempotency_key": "pur_1"})
    read = await client.v1.checkout.sessions.retrieve_async(session.id, {"expand": ["payment_intent"]})
    await http.close_async()  # type: ignore[no-untyped-call]
    assert (read.id, read.payment_intent) == (session.id, None)


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
_trees = st.recursive(
    _texts,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=4) | st.dictionaries(_names, inner, min_size=1, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(_names, _trees, max_size=4))
def test_what_the_sdk_encodes_is_read_back_unchanged(params: dict[str, Any]) -> None:
    pairs = list(_api_encode(params))
    assert parse_form(str(httpx.QueryParams(pairs)).encode()) == params


# The process


@contextmanager
def sandbox(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `python -m sandbox` and give it with the address that it printed."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox", *arguments],
        cwd=root,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield process, json.loads(line)["url"] if line else ""
    finally:
        process.kill()
        process.communicate(timeout=PROCESS_TIMEOUT_S)


SECRETS = {"FAREBOX_SANDBOX_SECRET_KEY": SECRET_KEY, "FAREBOX_SANDBOX_WEBHOOK_SECRET": WEBHOOK_SECRET}


def test_the_process_ends_cleanly_and_goes_on_where_it_was(sdk: Sdk, tmp_path: Path) -> None:
    inbox, state = Inbox(), ("--state-file", str(tmp_path / "stripe.json"))
    with running(inbox.app()) as hook:
        with sandbox(*state, "--webhook-url", "http://127.0.0.1:9/closed", **SECRETS) as (process, url):
            session = sdk(url).v1.checkout.sessions.create(order())
            httpx.post(f"{url}/c/pay/{session.id}", data={"outcome": "pay"})
            process.send_signal(signal.SIGTERM)
            assert process.wait(PROCESS_TIMEOUT_S) == 0
        with sandbox(*state, "--webhook-url", hook, "--nonce", "n-2", **SECRETS) as (process, url):
            assert httpx.get(f"{url}/healthz").json() == {"ok": True, "instance": "n-2"}
            assert sdk(url).v1.checkout.sessions.retrieve(session.id).payment_status == "paid"
            assert [json.loads(webhook.body)["type"] for webhook in inbox.wait_for(2)] == [
                "checkout.session.completed",
                "payment_intent.succeeded",
            ]
            process.send_signal(signal.SIGINT)
            assert process.wait(PROCESS_TIMEOUT_S) == 0


async def test_coinbases_twin_lives_in_the_same_process_and_goes_on_where_it_was(tmp_path: Path) -> None:
    inbox = Inbox()
    secrets = SECRETS | {
        "FAREBOX_SANDBOX_COINBASE_KEY_ID": COINBASE_KEY_ID,
        "FAREBOX_SANDBOX_COINBASE_KEY": COINBASE_KEY,
        "FAREBOX_SANDBOX_COINBASE_WEBHOOK_SECRET": CRYPTO_WEBHOOK_SECRET,
    }
    state = ("--state-file", str(tmp_path / "stripe.json"))

    async def retrieved(url: str) -> ProviderSession:
        shop = CoinbaseCheckout(
            COINBASE_KEY_ID, COINBASE_KEY, CRYPTO_WEBHOOK_SECRET, f"{url}/coinbase/api/v1"
        )
        request = SessionRequest(
            "pur_1", "a@b.c", BUILDER, "Builder", "https://shop.example", "https://shop.example"
        )
        session = await shop.create(request)
        await asyncio.to_thread(httpx.post, f"{url}/coinbase/pay/{session.id}", data={"outcome": "pay"})
        shown = await shop.retrieve(session.id)
        await shop.close()
        return shown

    with running(inbox.app()) as hook:
        with sandbox(*state, **secrets) as (process, url):
            first = await retrieved(url)
            assert first.url == f"{url}/coinbase/pay/{first.id}"
            process.kill()
            process.wait(PROCESS_TIMEOUT_S)
        with sandbox(*state, "--crypto-webhook-url", hook, **secrets) as (_, url):
            again = await retrieved(url)
            assert (again.id, again.paid) == (first.id, True)
            await asyncio.to_thread(
                httpx.post, f"{url}/coinbase/_twin/payments/{first.id}/refund", json={"amount": "1"}
            )
            (told,) = await asyncio.to_thread(inbox.wait_for, 1)
            assert json.loads(told.body)["eventType"] == "checkout.refund.success"


def test_a_killed_process_has_lost_nothing_that_it_answered(sdk: Sdk, tmp_path: Path) -> None:
    state = ("--state-file", str(tmp_path / "stripe.json"))
    with sandbox(*state, **SECRETS) as (process, url):
        session = sdk(url).v1.checkout.sessions.create(order())
        process.kill()
        process.wait(PROCESS_TIMEOUT_S)
    with sandbox(*state, **SECRETS) as (_, url):
        assert sdk(url).v1.checkout.sessions.retrieve(session.id).status == "open"


def test_two_processes_never_share_a_state_file(tmp_path: Path) -> None:
    state = ("--state-file", str(tmp_path / "stripe.json"))
    with sandbox(*state, **SECRETS), sandbox(*state, **SECRETS) as (second, url):
        assert (url, second.wait(PROCESS_TIMEOUT_S)) == ("", 1)
        assert second.stderr is not None
        assert "another sandbox is using" in second.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        ([], {}, "sk_test_"),
        (["--secret-key", "sk_live_0123456789"], {}, "sk_test_"),
        (["--secret-key", SECRET_KEY], {}, "webhook secret"),
        (["--host", "0.0.0.0"], SECRETS, "loopback"),
    ],
)
def test_the_process_refuses_an_unsafe_start(
    arguments: list[str],
    environment: dict[str, str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        sys.exit(main(arguments))
    assert end.value.code == 2
    assert reason in capsys.readouterr().err
