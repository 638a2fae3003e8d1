"""Rate limits as callers meet them: fields, refusals, one count for all ingresses, and no way around it."""

from __future__ import annotations

import re

import httpx
import pytest
import pytest_asyncio
from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from sqlalchemy import text
from starlette.routing import Mount

from gateway.app import create_app
from gateway.documented import REQUESTS
from gateway.limits import BUCKETS, OPERATOR, ROUTES, UNLIMITED, Gate, UndeclaredRoute, address_of, bucket_of
from kit.errors import Unavailable
from kit.settings import Settings

BALANCE, JOBS, KEYS, REVOKE = "/api/v1/balance", "/api/v1/media/jobs", "/api/v1/keys", "/api/v1/keys/revoke"
CLAIM, CHECKOUT = "/api/v1/claim/stripe", "/api/v1/checkout/stripe"
FOX = {"task": "image.generate", "input": {"prompt": "quick fox"}}
ITEM = re.compile(r'"([a-z_]+)";([a-z]+)=(\d+);([a-z]+)=(\d+)')
"""A structured-fields list of one string with two integer parameters."""


def field(answer, name):
    """Return a field's string and parameters."""
    found = ITEM.fullmatch(answer.headers[name])
    assert found, answer.headers[name]
    return found[1], {found[2]: int(found[3]), found[4]: int(found[5])}


def remaining(answer):
    return field(answer, "ratelimit")[1]["r"]


def client_of(app, key=""):
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://farebox.test",
        headers={"authorization": f"Bearer {key}"} if key else {},
    )


@pytest.fixture
def small(settings):
    """Settings with limits that a test can reach."""
    others = ("sensitive_auth", "purchase", "referral_read", "referral_apply")
    return settings.model_copy(update={"limit_key": 3, **{f"limit_{name}": 2 for name in others}})


@pytest.fixture
def ingress(small, ledger, models, objects):
    """`ingress(**settings)` is one more surface over the same books."""
    return lambda **changed: create_app(small.model_copy(update=changed), ledger, models, None, objects)


@pytest.fixture
def app(ingress):
    return ingress()


@pytest_asyncio.fixture
async def owner(customer):
    return await customer()


# -- no route around it --------------------------------------------------------------------------------------


def test_every_route_has_a_gate_or_stands_in_the_list_of_the_unlimited(app):
    free = set()
    for route in app.routes:
        if isinstance(route, Mount):
            assert route.path in {"/static", "/static/docs"}
        elif isinstance(route, APIRoute):
            if OPERATOR in route.tags:
                assert not isinstance(route.app, Gate)
            elif not isinstance(route.app, Gate):
                free.add(route.operation_id or route.name)
        else:
            pytest.fail(f"{route} is of a kind that no gate stands before")
    assert free == UNLIMITED


def test_every_name_in_the_tables_is_a_route(app):
    names = {route.operation_id or route.name for route in app.routes if isinstance(route, APIRoute)}
    assert names >= UNLIMITED | ROUTES.keys()


def test_an_undeclared_public_route_stops_the_start(settings, stub_ledger, models, objects, monkeypatch):
    router = APIRouter()

    @router.get("/api/v1/forgotten", operation_id="forgotten")
    async def forgotten() -> None: ...

    monkeypatch.setattr("gateway.app.ROUTERS", [type("module", (), {"router": router})])
    with pytest.raises(UndeclaredRoute, match="forgotten"):
        create_app(settings, stub_ledger, models, None, objects)


def test_a_route_that_wants_a_key_counts_without_being_named(app):
    found = {
        route.operation_id: bucket_of(route).name
        for route in app.routes
        if isinstance(route, APIRoute) and isinstance(route.app, Gate)
    }
    assert found.items() >= ROUTES.items()
    assert {found[name] for name in found.keys() - ROUTES.keys()} == {"key"}


@pytest.mark.parametrize("name", sorted(n for n, b in ROUTES.items() if not BUCKETS[b].rides))
async def test_routes_of_their_own_bucket_count_every_caller(app, client, owner, name):
    route = next(r for r in app.routes if getattr(r, "operation_id", None) == name)
    (method,) = route.methods
    request = next(iter(REQUESTS.get(name, {}).values()), None)
    # A wallet is known once it has signed: `test_x402` counts it.
    public = {} in (route.openapi_extra or {}).get("security", [{}]) and name != "buyWithX402"
    for caller in [owner.client, client] if public else [owner.client]:
        answer = await caller.request(method, route.path, json=request)
        assert field(answer, "ratelimit-policy") == (ROUTES[name], {"q": 2, "w": 60}), answer.text


@pytest.mark.parametrize(
    "path",
    ["/api/v1/balance/", "/api/v1/Balance", "//api/v1/balance", "/api/v1//balance", "/api/v1/balance%2f"],
)
async def test_another_spelling_of_a_path_is_no_route(app, owner, path):
    async with client_of(app, owner.key) as client:
        answer = await client.get(f"http://farebox.test{path}")
    assert answer.status_code == 404
    assert "ratelimit" not in answer.headers


async def test_methods_and_key_headers_share_one_count(app, owner):
    async with client_of(app) as client:
        bearer, other = {"authorization": f"bearer {owner.key}"}, {"x-api-key": owner.key}
        answers = [
            await client.get(BALANCE, headers=bearer),
            await client.head(BALANCE, headers=other),
            await client.get("/api/v1/credits/balance", headers=bearer | other),
            await client.get(f"{BALANCE}?x=1", headers=other),
            await client.head(BALANCE, headers=bearer),
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert [remaining(answer) for answer in answers] == [2, 1, 0, 0, 0]


async def test_requests_that_end_before_the_books_are_counted_too(owner):
    answers = [
        await owner.client.post(JOBS, content=b"{", headers={"content-type": "application/json"}),
        await owner.client.post(JOBS, content=b" " * 20_001, headers={"content-type": "application/json"}),
        await owner.client.get(f"{JOBS}/nonsense"),
        await owner.client.post(JOBS, json={}),
        await owner.client.post(JOBS, json=FOX),
    ]
    assert [answer.status_code for answer in answers] == [400, 413, 404, 429, 429]
    assert [remaining(answer) for answer in answers] == [2, 1, 0, 0, 0]
    assert answers[3].json()["error"] == "rate_limited"


# -- fields and refusals -------------------------------------------------------------------------------------


async def test_answers_say_the_policy_and_what_is_left(owner):
    answer = await owner.client.get(BALANCE)
    assert field(answer, "ratelimit-policy") == ("key", {"q": 3, "w": 60})
    name, left = field(answer, "ratelimit")
    assert (name, left["r"]) == ("key", 2)
    assert 0 < left["t"] <= 60
    assert "retry-after" not in answer.headers


async def test_past_the_limit_429_says_when_to_come_back_and_nothing_is_done(owner):
    made = [await owner.client.post(KEYS, json={"label": "Agent"}) for _ in range(3)]
    assert [answer.status_code for answer in made] == [200, 200, 429]
    refused = made[-1]
    assert refused.json().keys() == {"ok", "error", "message"}
    assert (refused.json()["ok"], refused.json()["error"]) == (False, "rate_limited")
    assert "2 of these requests in 60 s" in refused.json()["message"]
    assert field(refused, "ratelimit") == (
        "sensitive_auth",
        {"r": 0, "t": int(refused.headers["retry-after"])},
    )
    assert refused.headers["x-request-id"]
    keys = (await owner.client.get(KEYS)).json()["keys"]
    assert len(keys) == 3, "the first key and two more"


async def test_a_submit_past_the_limit_holds_nothing(owner, customer):
    answers = [await owner.client.post(JOBS, json=FOX) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    other = await customer()
    assert (await other.client.post(JOBS, json=FOX)).status_code == 202
    made = (await owner.client.post(KEYS, json={"label": "looks"})).json()["apiKey"]
    owner.client.headers["authorization"] = f"Bearer {made}"
    assert (await owner.client.get(BALANCE)).json()["held"]["tokens"] == 300


async def test_the_next_window_is_open_to_the_refused(owner, db):
    assert [(await owner.client.get(BALANCE)).status_code for _ in range(4)] == [200, 200, 200, 429]
    async with db.transaction() as conn:
        await conn.execute(text("UPDATE rate_counters SET resets_at = now()"))
    assert remaining(await owner.client.get(BALANCE)) == 2


async def test_two_ingresses_share_one_limit(ingress, owner):
    async with client_of(ingress(), owner.key) as there:
        answers = [await client.get(BALANCE) for client in (owner.client, there, owner.client, there, there)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]


async def test_creating_and_revoking_keys_share_the_users_count(owner):
    made = (await owner.client.post(KEYS, json={"label": "Agent"})).json()
    revoked = await owner.client.post(REVOKE, json={"keyPrefix": made["keyPrefix"]})
    assert (revoked.status_code, remaining(revoked)) == (200, 0)
    assert (await owner.client.post(KEYS, json={"label": "Agent"})).status_code == 429


# -- without a key -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [BALANCE, JOBS, f"{JOBS}/job_01k8z0c6m5n7q2r4t6v8x0y2z4", KEYS])
@pytest.mark.parametrize("key", ["", "amai_live_short", "nonsense"])
async def test_what_is_no_key_is_refused_without_a_count(client, db, path, key):
    answer = await client.get(path, headers={"x-api-key": key} if key else {})
    assert answer.status_code == 401
    assert "ratelimit" not in answer.headers
    async with db.transaction() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM rate_counters"))).scalar_one() == 0


async def test_an_unknown_key_is_limited_and_hurts_nobody(client, owner):
    unknown = {"x-api-key": "amai_live_" + "Z" * 43}
    statuses = [(await client.get(BALANCE, headers=unknown)).status_code for _ in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    assert remaining(await owner.client.get(BALANCE)) == 2


async def test_claims_are_counted_by_session_and_a_made_up_key_is_no_way_around(client):
    def claim(session, **headers):
        return client.post(CLAIM, json={"sessionId": session, "keyLabel": "mine"}, headers=headers)

    statuses = [
        (await claim("cs_test_1", authorization=f"Bearer amai_live_{digit * 43}")).status_code
        for digit in "12345"
    ]
    assert statuses == [503, 503, 429, 429, 429], "no provider is configured here"
    assert (await claim("cs_test_2")).status_code == 503


async def test_a_session_counts_as_its_user_beside_their_keys(person, owner, db):
    browser = await person(owner.email)
    made = [
        await browser.post("/keys", {"label": "by session"}),
        await owner.client.post(KEYS, json={"label": "x"}),
    ]
    assert [remaining(answer) for answer in made] == [1, 0]
    assert (await browser.post("/keys", {"label": "one too many"})).status_code == 429
    assert [remaining(await browser.get("/balance")) for _ in range(3)] == [2, 1, 0], "a session by itself"
    assert (await browser.get("/balance")).status_code == 429
    assert remaining(await owner.client.get(BALANCE)) == 2


async def test_another_sites_writes_use_up_nobodys_limit(person):
    browser = await person()
    for _ in range(3):
        refused = await browser.client.post(KEYS, json={"label": "x"})
        assert refused.status_code == 403
    assert remaining(await browser.post("/keys", {"label": "x"})) == 1


@pytest.mark.parametrize("path", ["/api/v1/auth/email/start", "/api/v1/auth/email/verify"])
async def test_sign_ins_are_counted_by_email_whatever_key_they_carry(client, owner, path):
    def ask(caller, email):
        return caller.post(path, json={"email": email, **({"code": "12345678"} if "verify" in path else {})})

    first = [
        await ask(client, "a@x.com"),
        await ask(owner.client, "A@x.com"),
        await ask(owner.client, "a@x.com"),
    ]
    assert [answer.status_code == 429 for answer in first] == [False, False, True]
    assert "sensitive_auth" in first[-1].json()["message"]
    assert (await ask(client, "b@x.com")).status_code != 429


async def test_checkouts_without_a_key_are_counted_by_email(client, owner):
    def start(caller, email):
        return caller.post(CHECKOUT, json={"email": email, "packageCode": "builder_600"})

    statuses = [
        (await start(client, email)).status_code for email in ("a@x.com", "A@x.com", "a@X.com", "b@x.com")
    ]
    assert statuses == [503, 503, 429, 503]
    assert (await start(owner.client, "a@x.com")).status_code == 503, "a customer is known by the key"


async def test_addresses_are_counted_where_a_proxy_of_ours_names_them(ingress):
    async with client_of(ingress(trusted_proxies="127.0.0.1")) as client:

        def claim(number, forwarded):
            headers = {"x-forwarded-for": forwarded}
            return client.post(CLAIM, json={"sessionId": f"cs_{number}", "keyLabel": "x"}, headers=headers)

        said = [
            "9.9.9.9",
            "1.1.1.1, 9.9.9.9",
            "2.2.2.2,9.9.9.9",
            "8.8.8.8",
            "2001:db8::1",
            "2001:db8::2",
            "2001:db8::3",
        ]
        statuses = [(await claim(n, forwarded)).status_code for n, forwarded in enumerate(said)]
    assert statuses == [503, 503, 429, 503, 503, 503, 429]


@pytest.mark.parametrize(
    ("proxies", "said", "address"),
    [
        ("", ["9.9.9.9"], None),
        ("7.7.7.7", [], None),
        ("7.7.7.7", ["unknown"], None),
        ("7.7.7.7", ["1.1.1.1, 9.9.9.9"], "9.9.9.9"),
        ("7.7.7.7,10.0.0.1", ["1.1.1.1, 9.9.9.9", "10.0.0.1"], "9.9.9.9"),
        ("10.0.0.1", ["9.9.9.9"], "7.7.7.7"),
        ("7.7.7.7", ["2001:db8:1:2:3::4"], "2001:db8:1:2::/64"),
    ],
)
def test_only_what_a_trusted_proxy_wrote_is_an_address(proxies, said, address):
    headers = [(b"x-forwarded-for", value.encode()) for value in said]
    request = Request({"type": "http", "headers": headers, "client": ("7.7.7.7", 1)})
    assert address_of(request, Settings(trusted_proxies=proxies).proxies) == address


# -- off, and away -------------------------------------------------------------------------------------------


async def test_a_limit_of_zero_counts_nothing(ingress, owner, db):
    app = ingress(**dict.fromkeys((f"limit_{name}" for name in BUCKETS), 0))
    assert not any(isinstance(getattr(route, "app", None), Gate) for route in app.routes)
    limited = {
        path
        for path, ops in app.openapi()["paths"].items()
        if any("429" in op["responses"] for op in ops.values())
    }
    assert limited == {"/v1/chat/completions"}, "its model may have too much to do"
    async with client_of(app, owner.key) as client:
        answers = [await client.get(BALANCE) for _ in range(5)] + [
            await client.post(KEYS, json={"label": "x"})
        ]
    assert {answer.status_code for answer in answers} == {200}
    assert not any("ratelimit" in answer.headers for answer in answers)
    async with db.transaction() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM rate_counters"))).scalar_one() == 0


async def test_while_the_books_are_away_limited_routes_answer_503_and_public_ones_pass(
    caller, web, stub_ledger
):
    stub_ledger.broken = Unavailable("The ledger", 2)
    assert (await caller.get(BALANCE)).status_code == 503
    assert (await caller.post(KEYS, json={"label": "x"})).status_code == 503
    assert (await caller.post(JOBS, json={})).status_code == 400, "known without the books"
    assert (await web.get("/api/v1/packages")).status_code == 200
    assert (await web.get("/")).status_code == 200


# -- the document --------------------------------------------------------------------------------------------


def test_the_document_shows_the_limits(app):
    document = app.openapi()
    operations = {op["operationId"]: op for ops in document["paths"].values() for op in ops.values()}
    for name, operation in operations.items():
        free = name in UNLIMITED or OPERATOR in operation["tags"]
        assert ("429" in operation["responses"]) is not free, name
        if not free:
            headers = operation["responses"]["429"]["headers"]
            assert headers.keys() == {"Retry-After", "RateLimit", "RateLimit-Policy"}
            answered = next(
                response for status, response in operation["responses"].items() if status[0] == "2"
            )
            assert answered["headers"].keys() >= {"RateLimit", "RateLimit-Policy"}
    submit = operations["submitJob"]["responses"]
    assert "Location" in submit["202"]["headers"]
    example = submit["429"]["content"]["application/json"]["examples"]["rate_limited"]["value"]
    assert example["message"].startswith("You may send 3 of these requests in 60 s")
