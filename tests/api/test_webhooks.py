"""What may call itself a webhook: the right signature on these very bytes, soon enough. All else leaves no trace."""

from __future__ import annotations

import json
import time

import pytest
import pytest_asyncio
from sqlalchemy import text

from gateway.app import create_app
from kit.errors import InvalidRequest, NotFound
from kit.settings import Settings, SettingsError, load_settings
from payments.stripe_checkout import StripeCheckout, checkout_for
from sandbox.stripe_webhooks import signature_header
from sandbox.testing import SECRET_KEY

WEBHOOK = "/api/v1/webhooks/stripe"
OLD, NEW = "whsec_old", "whsec_new"
NOBODY = "http://127.0.0.1:9"


def event(kind="customer.created", event_id="evt_1", **more):
    return json.dumps({"id": event_id, "object": "event", "type": kind, **more}).encode()


def signed(body, secret=NEW, age_s=0):
    return {"stripe-signature": signature_header(secret, int(time.time()) - age_s, body)}


@pytest_asyncio.fixture
async def app(settings, ledger, models, objects):
    configured = Settings(
        **{
            **settings.model_dump(),
            "stripe_secret_key": SECRET_KEY,
            "stripe_webhook_secret": f"{NEW}, {OLD}",
            "stripe_api_base": NOBODY,
        }
    )
    checkout = checkout_for(configured, ledger)
    yield create_app(configured, ledger, models, checkout, objects)
    await checkout.close()


async def kept(db):
    async with db.transaction() as conn:
        rows = await conn.execute(
            text("SELECT event_id, type, object_id, body, applied_at FROM provider_events")
        )
        return list(rows)


@pytest.mark.parametrize("secret", [NEW, OLD])
async def test_while_secrets_are_rotated_either_is_valid(client, db, secret):
    body = event()
    answer = await client.post(WEBHOOK, content=body, headers=signed(body, secret))
    assert (answer.status_code, answer.json()["duplicate"]) == (200, False)
    assert [bytes(row.body) for row in await kept(db)] == [body]


async def test_one_of_several_signatures_is_enough(client):
    body = event()
    first, second = (signed(body, secret)["stripe-signature"] for secret in ("whsec_other", OLD))
    header = f"{first},{second.partition(',')[2]}"
    assert (await client.post(WEBHOOK, content=body, headers={"stripe-signature": header})).status_code == 200


@pytest.mark.parametrize("age_s", [290, -290, -3_600])
async def test_a_clock_that_differs_by_minutes_does_no_harm(client, age_s):
    body = event()
    assert (await client.post(WEBHOOK, content=body, headers=signed(body, age_s=age_s))).status_code == 200


@pytest.mark.parametrize(
    ("body", "headers", "status", "field"),
    [
        (event(), signed(event(), age_s=400), 400, "Stripe-Signature"),
        (event(), signed(event(), "whsec_other"), 400, "Stripe-Signature"),
        (event(), signed(event(), ""), 400, "Stripe-Signature"),
        (event(), {"stripe-signature": "t=x,v1=y"}, 400, "Stripe-Signature"),
        (event(), {"stripe-signature": "t=1,v0=y"}, 400, "Stripe-Signature"),
        (event(), {}, 400, "Stripe-Signature"),
        # Signed for later: tests are collected minutes before the last of them run.
        (b'{"id": "\xff"}', signed(b'{"id": "\xff"}', age_s=-3_600), 400, "body"),
        (b"[]", signed(b"[]", age_s=-3_600), 400, "body"),
        (b"not json", signed(b"not json", age_s=-3_600), 400, "body"),
        (b'{"id": "evt_1"}', signed(b'{"id": "evt_1"}', age_s=-3_600), 400, "body"),
        (event(event_id="evt\x00"), signed(event(event_id="evt\x00"), age_s=-3_600), 400, "body"),
        (event(event_id=7), signed(event(event_id=7), age_s=-3_600), 400, "body"),
        (event("e" * 300), signed(event("e" * 300), age_s=-3_600), 400, "body"),
        (event(x="y" * 20_000), signed(event(x="y" * 20_000)), 413, None),
    ],
)
async def test_what_is_no_event_of_stripes_is_refused_and_not_kept(  # noqa: PLR0917  # parameters
    client, db, body, headers, status, field
):
    answer = await client.post(WEBHOOK, content=body, headers=headers)
    assert answer.status_code == status, answer.text
    if field:
        assert answer.json()["details"][0]["field"] == field
    assert await kept(db) == []


@pytest.mark.parametrize(
    "body",
    [
        event("checkout.session.of.the.future", data={"object": {"id": "cs_test_1"}}),
        event("v1.billing.meter.no_meter_found", object="v2.core.event", related_object=None),
        event("payment_intent.succeeded", data={"object": {"id": "pi_1"}}),
        event("charge.refunded", data={"object": {"id": "py_1", "payment_intent": None}}),
    ],
)
async def test_types_that_we_do_not_handle_are_kept_and_acknowledged(client, db, body):
    answer = await client.post(WEBHOOK, content=body, headers=signed(body))
    assert answer.status_code == 200
    (row,) = await kept(db)
    assert (bytes(row.body), row.object_id) == (body, None)
    assert row.applied_at is not None


async def test_an_event_is_answered_though_the_provider_is_away_and_stays_due(client, db, server):
    body = event("checkout.session.completed", data={"object": {"id": "cs_test_1"}})
    assert (await client.post(WEBHOOK, content=body, headers=signed(body))).status_code == 200
    async with (
        db.transaction() as conn
    ):  # its next try is two seconds away, which a busy machine takes for this
        await conn.execute(text("UPDATE provider_events SET retry_at = retry_at + interval '1 hour'"))
    again = await client.post(WEBHOOK, content=body, headers=signed(body))
    assert (again.status_code, again.json()["duplicate"]) == (200, True)
    async with db.transaction() as conn:
        row = (await conn.execute(text("SELECT attempts, problem, applied_at FROM provider_events"))).one()
        assert (row.attempts, row.applied_at) == (1, None)
        assert "payments_unavailable" in row.problem
        await conn.execute(text("UPDATE provider_events SET retry_at = now()"))
    assert [each.event_id for each in await server.due_events(10)] == ["evt_1"]


async def test_a_duplicate_is_never_kept_twice(client, db):
    body = event()
    answers = [await client.post(WEBHOOK, content=body, headers=signed(body)) for _ in range(3)]
    assert [answer.json()["duplicate"] for answer in answers] == [False, True, True]
    assert len(await kept(db)) == 1


async def test_without_a_secret_there_is_no_such_path(web):
    """An empty key verifies anything."""
    body = event()
    answer = await web.post(WEBHOOK, content=body, headers=signed(body, ""))
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


async def test_a_checkout_without_a_secret_takes_no_webhook():
    provider = StripeCheckout(SECRET_KEY, [])
    with pytest.raises(NotFound):
        provider.verify(event(), signed(event(), ""))
    await provider.close()
    with pytest.raises(ValueError, match="empty webhook secret"):
        StripeCheckout(SECRET_KEY, ["whsec_x", " "])


@pytest.mark.parametrize("written", ["", " ", ",", " , "])
def test_a_key_without_a_webhook_secret_is_refused_at_the_start(tmp_path, written):
    with pytest.raises(SettingsError, match="STRIPE_WEBHOOK_SECRET"):
        load_settings(data_dir=tmp_path, stripe_secret_key=SECRET_KEY, stripe_webhook_secret=written)


async def test_the_published_vector_verifies():
    body = b'{"id":"evt_1","object":"event"}'
    header = "t=1700000000,v1=0c8670ed117751cc551a20e35839447075c42800ea3cf3e8a2fbda99cd1e6edd"
    assert signature_header("whsec_test_secret", 1_700_000_000, body) == header
    provider = StripeCheckout(SECRET_KEY, ["whsec_test_secret"], tolerance_s=10**10)
    with pytest.raises(InvalidRequest, match="not a Stripe event"):  # past its signature: it has no type
        provider.verify(body, {"stripe-signature": header})
    with pytest.raises(InvalidRequest, match="does not verify"):
        provider.verify(body, {"stripe-signature": header.replace("6edd", "6ede")})
    with pytest.raises(InvalidRequest, match="does not verify"):
        provider.verify(body.replace(b"evt_1", b"evt_2"), {"stripe-signature": header})
    await provider.close()
