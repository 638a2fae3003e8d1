"""Alerts, webhook endpoints and deliveries over HTTP, by status."""

from __future__ import annotations

import base64

import pytest
from sqlalchemy import text

from gateway import alerts
from gateway.account_schemas import AccountExport
from gateway.app import create_app
from gateway.webhook_schemas import Alerts, Deliveries, Endpoints, EndpointSecret

ALERTS = "/api/v1/alerts"
ENDPOINTS = "/api/v1/webhook-endpoints"
DELIVERIES = "/api/v1/webhook-deliveries"
JOBS = "/api/v1/media/jobs"
URL = "https://example.com/hooks"
FOX = {"task": "image.generate", "input": {"prompt": "fox"}}
UNKNOWN = "01k8z0g1m3n5p7q9r1s3t5v7w9"


def refusal(answer):
    return answer.status_code, answer.json()["error"]


async def told(owner, count=1):
    """End a job that names a URL; returns its newest delivery."""
    job = (await owner.client.post(JOBS, json={**FOX, "webhookUrl": URL})).json()
    await owner.client.post(f"{JOBS}/{job['id']}/cancel")
    found = (await owner.client.get(DELIVERIES)).json()["data"]
    assert [delivery["jobId"] for delivery in found] == [job["id"]] * count
    return found[0]


# -- alerts --------------------------------------------------------------------------------------------------------


async def test_200_an_alert_is_set_shown_and_taken_away(customer):
    owner = await customer()
    assert (await owner.client.get(ALERTS)).json() == {"ok": True, "lowBalance": None}
    wish = {"lowBalance": {"credits": 50.5, "webhookUrl": URL}}
    answer = await owner.client.put(ALERTS, json=wish)
    shown = {
        "threshold": {"credits": 50.5, "tokens": 5050},
        "webhookUrl": URL,
        "armed": True,
        "alertedAt": None,
    }
    assert (answer.status_code, answer.json()) == (200, {"ok": True, "lowBalance": shown})
    assert (await owner.client.get(ALERTS)).json()["lowBalance"] == shown
    assert (await owner.client.put(ALERTS, json={"lowBalance": None})).json()["lowBalance"] is None
    assert (await owner.client.get(ALERTS)).json()["lowBalance"] is None


async def test_200_a_person_signed_in_sets_an_alert_with_their_csrf_token(person):
    ada = await person()
    wish = {"lowBalance": {"credits": 5}}
    assert refusal(await ada.client.put(ALERTS, json=wish)) == (403, "forbidden")
    answer = await ada.client.put(ALERTS, json=wish, headers={"x-csrf-token": ada.csrf_token})
    assert answer.status_code == 200
    assert not answer.json()["lowBalance"]["armed"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "lowBalance"),
        ({"lowBalance": {}}, "lowBalance.credits"),
        ({"lowBalance": {"credits": 0}}, "lowBalance.credits"),
        ({"lowBalance": {"credits": -1}}, "lowBalance.credits"),
        ({"lowBalance": {"credits": 1.005}}, "lowBalance.credits"),
        ({"lowBalance": {"credits": "5"}}, "lowBalance.credits"),
        ({"lowBalance": {"credits": 1e30}}, "lowBalance.credits"),
        ({"lowBalance": {"credits": 5, "webhookUrl": "ftp://example.com"}}, "lowBalance.webhookUrl"),
        ({"lowBalance": {"credits": 5, "threshold": 5}}, "lowBalance.threshold"),
    ],
)
async def test_400_an_alert_that_cannot_be_names_its_field(customer, body, field):
    answer = await (await customer()).client.put(ALERTS, json=body)
    assert refusal(answer) == (400, "invalid_request")
    assert field in [fault["field"] for fault in answer.json()["details"]]


# -- endpoints -----------------------------------------------------------------------------------------------------


async def test_200_an_endpoint_shows_its_secret_once(customer):
    owner = await customer()
    made = (
        await owner.client.post(ENDPOINTS, json={"url": URL, "events": ["job.failed", "job.failed"]})
    ).json()
    assert made["secret"].startswith("whsec_")
    assert len(base64.b64decode(made["secret"].removeprefix("whsec_"), validate=True)) == 32
    (listed,) = (await owner.client.get(ENDPOINTS)).json()["data"]
    assert listed == {name: made[name] for name in made if name not in {"ok", "secret"}}
    assert (listed["url"], listed["events"]) == (URL, ["job.failed"])


async def test_200_a_rotation_shows_a_new_secret_and_until_when_the_old_one_signs(customer):
    owner = await customer()
    made = (await owner.client.post(ENDPOINTS, json={"url": URL})).json()
    rotate = f"{ENDPOINTS}/{made['id']}/rotate"
    with_overlap = (await owner.client.post(rotate, json={"overlapSeconds": 60})).json()
    assert with_overlap["secret"] != made["secret"]
    assert with_overlap["oldSecretUntil"]
    at_once = (await owner.client.post(rotate, json={"overlapSeconds": 0})).json()
    assert at_once["oldSecretUntil"] is None
    assert len({made["secret"], with_overlap["secret"], at_once["secret"]}) == 3


async def test_200_a_deleted_endpoint_is_gone(customer):
    owner = await customer()
    made = (await owner.client.post(ENDPOINTS, json={"url": URL})).json()
    answer = await owner.client.delete(f"{ENDPOINTS}/{made['id']}")
    assert answer.json() == {"ok": True, "id": made["id"], "deleted": True}
    assert (await owner.client.get(ENDPOINTS)).json()["data"] == []
    assert refusal(await owner.client.delete(f"{ENDPOINTS}/{made['id']}")) == (404, "not_found")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hooks",
        "https://127.0.0.1/hooks",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest",
        "https://user:password@example.com/",
        "https://example.com/#part",
        "https://example.com:99999/",
        "https://exa mple.com/",
        "https://",
        "hooks",
        "",
        "https://example.com/" + "x" * 2048,
        "https://ex\u00e4mple.com/",
        "https://[::1/",
    ],
)
async def test_400_a_url_that_could_never_be_posted_to_is_refused_at_once(customer, url):
    owner = await customer()
    for path, body, field in (
        (ENDPOINTS, {"url": url}, "url"),
        (JOBS, {**FOX, "webhookUrl": url}, "webhookUrl"),
    ):
        answer = await owner.client.post(path, json=body)
        assert refusal(answer) == (400, "invalid_request")
        assert [fault["field"] for fault in answer.json()["details"]] == [field]
    assert await owner.tokens() == 60_000


async def test_200_private_urls_where_the_operator_allows_them(settings, ledger, models, objects, customer):
    owner = await customer()
    allowing = settings.model_copy(update={"private_webhooks": True})
    owner.client._transport.app = create_app(allowing, ledger, models, None, objects)
    answer = await owner.client.post(ENDPOINTS, json={"url": "http://127.0.0.1:9000/hooks"})
    assert answer.status_code == 200


@pytest.mark.parametrize("events", [[], ["job.started"], "job.failed", [1]])
async def test_400_events_that_there_are_not(customer, events):
    owner = await customer()
    answer = await owner.client.post(ENDPOINTS, json={"url": URL, "events": events})
    assert refusal(answer) == (400, "invalid_request")
    assert answer.json()["details"][0]["field"].startswith("events")


async def test_400_events_without_a_url_for_them(customer):
    answer = await (await customer()).client.post(JOBS, json={**FOX, "webhookEvents": ["job.failed"]})
    assert refusal(answer) == (400, "invalid_request")


async def test_409_a_second_endpoint_for_the_same_url(customer):
    owner = await customer()
    await owner.client.post(ENDPOINTS, json={"url": URL})
    assert refusal(await owner.client.post(ENDPOINTS, json={"url": URL})) == (409, "endpoint_exists")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ALERTS),
        ("PUT", ALERTS),
        ("GET", ENDPOINTS),
        ("POST", ENDPOINTS),
        ("POST", f"{ENDPOINTS}/hook_{UNKNOWN}/rotate"),
        ("DELETE", f"{ENDPOINTS}/hook_{UNKNOWN}"),
        ("GET", DELIVERIES),
        ("POST", f"{DELIVERIES}/msg_{UNKNOWN}/replay"),
    ],
)
async def test_401_without_a_key_and_403_with_a_limited_one(customer, client, method, path):
    owner = await customer()
    body = {"PUT": {"lowBalance": {"credits": 5}}, "POST": {}}.get(method)
    if path.endswith("rotate"):
        body = {"overlapSeconds": 0}
    assert refusal(await client.request(method, path, json=body)) == (401, "auth_required")
    limited = await owner.client.post(
        "/api/v1/keys", json={"label": "limited", "scopes": ["read", "tasks:*"]}
    )
    key = {"authorization": f"Bearer {limited.json()['apiKey']}"}
    assert refusal(await client.request(method, path, json=body, headers=key)) == (403, "forbidden")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", ENDPOINTS + "/{hook}/rotate", {"overlapSeconds": 0}),
        ("DELETE", ENDPOINTS + "/{hook}", None),
        ("POST", DELIVERIES + "/{msg}/replay", None),
    ],
)
async def test_404_anothers_and_unknown_ones(customer, method, path, body):
    owner, stranger = await customer(), await customer()
    msg = (await told(owner))["id"]
    hook = (await owner.client.get(ENDPOINTS)).json()["data"][0]["id"]
    for ids in (
        {"hook": hook, "msg": msg},
        {"hook": f"hook_{UNKNOWN}", "msg": f"msg_{UNKNOWN}"},
        {"hook": "x", "msg": "x"},
    ):
        answer = await stranger.client.request(method, path.format(**ids), json=body)
        assert refusal(answer) == (404, "not_found")
    assert (await owner.client.get(DELIVERIES)).json()["data"][0]["status"] == "waiting"


# -- deliveries ----------------------------------------------------------------------------------------------------


async def test_200_a_delivery_shows_what_is_sent_and_what_became_of_it(customer):
    delivery = await told(await customer())
    assert (delivery["event"], delivery["url"], delivery["status"]) == ("job.canceled", URL, "waiting")
    assert (delivery["attempts"], delivery["answered"], delivery["problem"]) == (0, None, None)
    assert delivery["payload"]["type"] == "job.canceled"
    assert delivery["payload"]["timestamp"] == delivery["payload"]["data"]["finishedAt"]
    assert delivery["nextAttemptAt"]


async def test_200_answers_have_the_documented_shape(customer, db):
    owner = await customer()
    made = await owner.client.post(ENDPOINTS, json={"url": URL})
    EndpointSecret.model_validate_json(made.content)
    Endpoints.model_validate_json((await owner.client.get(ENDPOINTS)).content)
    Alerts.model_validate_json(
        (await owner.client.put(ALERTS, json={"lowBalance": {"credits": 600}})).content
    )
    await told(owner, count=2)
    await owner.client.post(
        "/api/v1/credits/consume", json={"credits": 1, "reason": "r", "idempotencyKey": "k"}
    )
    async with db.transaction() as conn:
        (account_id,) = (await alerts.accounts_moved(conn, 0, 10))[0]
        assert await alerts.decide(conn, account_id, "http://farebox.test")
    page = Deliveries.model_validate_json((await owner.client.get(DELIVERIES)).content)
    assert sorted(each.event for each in page.data) == ["balance.low", "job.canceled", "job.canceled"]
    export = AccountExport.model_validate_json((await owner.client.get("/api/v1/account/export")).content)
    assert export.webhook_deliveries == page.data
    assert [each.url for each in export.webhook_endpoints] == [None, URL]
    assert export.low_balance is not None


async def test_200_a_replay_has_all_its_attempts_again(customer, db):
    owner = await customer()
    delivery = await told(owner)
    async with db.transaction() as conn:
        await conn.execute(
            text("UPDATE webhook_deliveries SET attempts = 10, given_up_at = now(), problem = 'answered 500'")
        )
    (over,) = (await owner.client.get(DELIVERIES)).json()["data"]
    assert (over["status"], over["nextAttemptAt"]) == ("given_up", None)
    answer = await owner.client.post(f"{DELIVERIES}/{delivery['id']}/replay")
    assert answer.status_code == 200
    replayed = answer.json()
    assert (replayed["id"], replayed["status"], replayed["attempts"]) == (delivery["id"], "waiting", 0)


async def test_409_a_replay_to_a_disabled_endpoint(customer, db):
    owner = await customer()
    delivery = await told(owner)
    async with db.transaction() as conn:
        await conn.execute(text("UPDATE webhook_endpoints SET disabled_at = now()"))
    answer = await owner.client.post(f"{DELIVERIES}/{delivery['id']}/replay")
    assert refusal(answer) == (409, "endpoint_disabled")


async def test_200_deliveries_come_in_pages_and_by_job(customer):
    owner = await customer()
    ids = []
    for _ in range(3):
        job = (await owner.client.post(JOBS, json={**FOX, "webhookUrl": URL})).json()
        await owner.client.post(f"{JOBS}/{job['id']}/cancel")
        ids.append(job["id"])
    first = (await owner.client.get(DELIVERIES, params={"limit": 2})).json()
    rest = (await owner.client.get(DELIVERIES, params={"limit": 2, "cursor": first["nextCursor"]})).json()
    assert [each["jobId"] for each in first["data"] + rest["data"]] == ids[::-1]
    assert rest["nextCursor"] is None
    one = (await owner.client.get(DELIVERIES, params={"jobId": ids[1]})).json()
    assert [each["jobId"] for each in one["data"]] == [ids[1]]


@pytest.mark.parametrize("params", [{"cursor": "x"}, {"limit": 0}, {"limit": 101}])
async def test_400_a_page_that_there_is_not(customer, params):
    assert refusal(await (await customer()).client.get(DELIVERIES, params=params)) == (400, "invalid_request")


async def test_409_the_same_idempotency_key_with_another_webhook_url(customer):
    owner = await customer()
    body = {**FOX, "webhookUrl": URL, "idempotencyKey": "k"}
    assert (await owner.client.post(JOBS, json=body)).status_code == 202
    assert (await owner.client.post(JOBS, json=body)).headers["idempotent-replayed"] == "true"
    answer = await owner.client.post(JOBS, json={**body, "webhookUrl": f"{URL}/other"})
    assert refusal(answer) == (409, "idempotency_key_reused")
