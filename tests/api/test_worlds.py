"""Test keys over HTTP: the same API, books of their own, no money; by status."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import text

from gateway.answers import CreditsRefilled, JobAccepted, KeyCreated, Keys, TrialBalance
from gateway.app import create_app
from gateway.ports import ModelState
from ledger import operators
from ledger.actions import Actor
from ledger.keys import Credential, hash_key
from payments.checkout import Checkout, ProviderSession
from payments.packages import Package
from payments.purchases import OpenPurchase

KEYS = "/api/v1/keys"
JOBS = "/api/v1/media/jobs"
BALANCE = "/api/v1/credits/balance"
REFILL = "/api/v1/test/refill"
CHECKOUT = "/api/v1/checkout/stripe"
CONSUME = "/api/v1/credits/consume"
SPEND = "/api/v1/tools/spend"
FULL = 100_000
"""The test credits of a server that nobody configured, in tokens."""
BUILDER = Package("builder_600", "Builder", 60_000, 5_000, "usd")
PICTURE = {"task": "image.generate", "input": {"prompt": "fox"}}
ORDER = {"email": "dev@company.com", "packageCode": "builder_600"}


@pytest_asyncio.fixture
async def calls(client):
    """`await calls(key, method, path, **request)`."""

    async def call(key, method, path, **request):
        return await client.request(
            method, path, headers={"x-api-key": key, **request.pop("headers", {})}, **request
        )

    return call


async def make(owner, **fields):
    made = await owner.client.post(KEYS, json={"label": "CI", "mode": "test", **fields})
    assert made.status_code == 200, made.text
    KeyCreated.model_validate_json(made.content)
    return made.json()


def refusal(answer):
    return answer.status_code, answer.json()["error"]


async def tokens(calls, key):
    return (await calls(key, "GET", BALANCE)).json()["tokens"]


# -- keys ----------------------------------------------------------------------------------------------------


async def test_200_a_live_key_makes_a_test_key_with_test_credits(customer, calls):
    owner = await customer(500)
    made = await make(owner)
    assert made["apiKey"].startswith("amai_test_" + made["keyPrefix"])
    assert made["mode"] == "test"
    assert await tokens(calls, made["apiKey"]) == FULL
    assert await owner.tokens() == 500


async def test_200_without_a_mode_a_key_is_of_the_world_of_the_key_that_asks(customer, calls):
    owner = await customer()
    live = (await owner.client.post(KEYS, json={"label": "more"})).json()
    assert (live["mode"], live["apiKey"][:10]) == ("live", "amai_live_")
    test = (await make(owner))["apiKey"]
    further = (await calls(test, "POST", KEYS, json={"label": "more"})).json()
    assert (further["mode"], further["apiKey"][:10]) == ("test", "amai_test_")


async def test_400_there_are_two_modes(customer):
    owner = await customer()
    answer = await owner.client.post(KEYS, json={"label": "x", "mode": "sandbox"})
    assert refusal(answer) == (400, "invalid_request")
    assert answer.json()["details"][0]["field"] == "mode"


async def test_403_a_test_key_makes_no_live_key(customer, calls):
    test = (await make(await customer()))["apiKey"]
    answer = await calls(test, "POST", KEYS, json={"label": "x", "mode": "live"})
    assert refusal(answer) == (403, "forbidden")
    assert "mode" in answer.json()["message"]


async def test_403_a_limited_live_key_makes_no_test_key(customer, calls):
    owner = await customer()
    limited = (await make(owner, mode="live", scopes=["keys"]))["apiKey"]
    answer = await calls(limited, "POST", KEYS, json={"label": "x", "mode": "test"})
    assert refusal(answer) == (403, "forbidden")


async def test_200_a_limited_test_key_makes_test_children(customer, calls):
    limited = await make(await customer(), scopes=["keys", "read"])
    child = (await calls(limited["apiKey"], "POST", KEYS, json={"label": "child"})).json()
    assert (child["mode"], child["parentId"]) == ("test", limited["id"])


async def test_200_a_test_key_sees_test_keys_and_a_live_key_sees_both(customer, calls):
    owner = await customer()
    made = await make(owner)
    seen = await calls(made["apiKey"], "GET", KEYS)
    Keys.model_validate_json(seen.content)
    assert [key["keyPrefix"] for key in seen.json()["keys"]] == [made["keyPrefix"]]
    all_of_them = (await owner.client.get(KEYS)).json()["keys"]
    assert [key["mode"] for key in all_of_them] == ["test", "live"]


@pytest.mark.parametrize("path", ["revoke", "rotate"])
async def test_404_a_live_key_is_none_to_a_test_key(customer, calls, path):
    owner = await customer()
    test = (await make(owner))["apiKey"]
    prefix = owner.key.removeprefix("amai_live_")[:10]
    body = {"keyPrefix": prefix} | ({"overlapSeconds": 0} if path == "rotate" else {})
    assert refusal(await calls(test, "POST", f"{KEYS}/{path}", json=body)) == (404, "not_found")
    assert (await owner.client.get(BALANCE)).status_code == 200


async def test_200_a_live_key_revokes_a_test_key(customer, calls):
    owner = await customer()
    made = await make(owner)
    answer = await owner.client.post(f"{KEYS}/revoke", json={"keyPrefix": made["keyPrefix"]})
    assert (answer.status_code, answer.json()["key"]["mode"]) == (200, "test")
    assert (await calls(made["apiKey"], "GET", BALANCE)).status_code == 401


@pytest.mark.parametrize("by", ["live", "test"])
async def test_200_a_rotated_test_key_stays_one(customer, calls, by):
    owner = await customer()
    made = await make(owner)
    answer = await calls(
        owner.key if by == "live" else made["apiKey"],
        "POST",
        f"{KEYS}/rotate",
        json={"keyPrefix": made["keyPrefix"], "overlapSeconds": 0},
    )
    assert answer.json()["apiKey"].startswith("amai_test_")
    assert await tokens(calls, answer.json()["apiKey"]) == FULL


async def test_200_a_repeat_shows_the_same_test_key(customer):
    owner = await customer()
    first, again = [await make(owner, idempotencyKey="ci-1") for _ in range(2)]
    assert first["apiKey"] == again["apiKey"]
    other = await owner.client.post(KEYS, json={"label": "CI", "idempotencyKey": "ci-1"})
    assert refusal(other) == (409, "idempotency_key_reused")


async def test_401_a_secret_is_of_one_world(customer, calls):
    owner = await customer()
    test = (await make(owner))["apiKey"]
    assert (await calls(test.replace("_test_", "_live_"), "GET", BALANCE)).status_code == 401
    assert (await calls(owner.key.replace("_live_", "_test_"), "GET", BALANCE)).status_code == 401


# -- money ---------------------------------------------------------------------------------------------------


async def test_200_a_refill_fills_the_test_account_up_and_costs_nothing(customer, calls):
    owner = await customer(500)
    test = (await make(owner))["apiKey"]
    await calls(test, "POST", SPEND, json={"tool": "chat", "units": 2, "reference": "a"})
    answer = await calls(test, "POST", REFILL)
    CreditsRefilled.model_validate_json(answer.content)
    assert answer.json() == {
        "ok": True, "granted": 0.1, "grantedTokens": 10, "balance": 1000.0, "balanceTokens": FULL,
    }  # fmt: skip
    assert (await calls(test, "POST", REFILL)).json()["grantedTokens"] == 0
    assert await owner.tokens() == 500


async def test_403_a_live_key_cannot_refill(customer):
    owner = await customer(500)
    assert refusal(await owner.client.post(REFILL)) == (403, "forbidden")
    assert await owner.tokens() == 500


async def test_403_a_refill_needs_the_scope_checkout(customer, calls):
    owner = await customer()
    for scopes, status in ((["read"], 403), (["checkout"], 200)):
        key = (await make(owner, scopes=scopes))["apiKey"]
        assert (await calls(key, "POST", REFILL)).status_code == status


async def test_401_a_refill_needs_a_key(client):
    assert refusal(await client.post(REFILL)) == (401, "auth_required")


async def test_200_spends_statements_and_usage_are_those_of_the_keys_world(customer, calls):
    owner = await customer(500)
    test = (await make(owner))["apiKey"]
    chat = {"tool": "chat", "units": 1, "reference": "same"}
    assert (await owner.client.post(SPEND, json=chat)).json()["balance_after"] == 495
    assert (await calls(test, "POST", SPEND, json=chat)).json()["balance_after"] == FULL - 5
    consumed = {"credits": 1, "reason": "x", "idempotencyKey": "one"}
    assert (await calls(test, "POST", CONSUME, json=consumed)).json()["balanceTokens"] == FULL - 105
    assert await owner.tokens() == 495
    for path, of_live, of_test in (
        ("/api/v1/statement", ["spend", "grant"], ["spend", "spend", "grant"]),
        ("/api/v1/cost?reference=same", ["spend"], ["spend"]),
    ):
        field = "data" if "statement" in path else "lines"
        for key, kinds in ((owner.key, of_live), (test, of_test)):
            lines = (await calls(key, "GET", path)).json()[field]
            assert [line["kind"] for line in lines] == kinds
    totals = [
        (await calls(key, "GET", "/api/v1/usage")).json()["total"]["net"]["tokens"]
        for key in (owner.key, test)
    ]
    assert totals == [5, 105]


async def test_402_a_test_account_can_run_dry(customer, calls):
    test = (await make(await customer()))["apiKey"]
    answer = await calls(test, "POST", SPEND, json={"tool": "dub", "units": 501, "reference": "a"})
    assert refusal(answer) == (402, "insufficient_credits")


async def test_200_the_trial_balance_shows_both_worlds(customer, calls, client, db, assert_sound):
    owner = await customer(500)
    test = (await make(owner))["apiKey"]
    await calls(test, "POST", SPEND, json={"tool": "chat", "units": 1, "reference": "a"})
    answer = await client.get("/api/v1/ledger/trial-balance")
    TrialBalance.model_validate_json(answer.content)
    rows = {(row["mode"], row["kind"]): row["tokens"] for row in answer.json()["rows"]}
    assert answer.json()["balanced"] is True
    assert rows == {
        ("live", "promotion"): -500,
        ("live", "user"): 500,
        ("test", "mint"): -FULL,
        ("test", "revenue"): 5,
        ("test", "user"): FULL - 5,
    }
    await assert_sound(db)


# -- jobs ----------------------------------------------------------------------------------------------------


async def applications(db):
    async with db.transaction() as conn:
        rows = await conn.execute(
            text("SELECT a.world, j.application FROM jobs j JOIN accounts a ON a.id = j.account_id")
        )
        return {(row.world, row.application) for row in rows}


async def test_202_in_the_tiny_profile_both_worlds_share_the_model(customer, calls, db):
    owner = await customer()
    test = (await make(owner))["apiKey"]
    for key in (owner.key, test):
        answer = await calls(key, "POST", JOBS, json=PICTURE, headers={"x-idempotency-key": "job-001"})
        assert answer.status_code == 202
        JobAccepted.model_validate_json(answer.content)
        assert "idempotent-replayed" not in answer.headers
    assert await applications(db) == {("live", "image"), ("test", "image")}
    assert await tokens(calls, test) == FULL - 100


async def test_404_a_job_of_the_other_world(customer, calls):
    owner = await customer()
    test = (await make(owner))["apiKey"]
    job = (await calls(test, "POST", JOBS, json=PICTURE)).json()["jobId"]
    for path in (f"{JOBS}/{job}", f"{JOBS}/{job}/receipt", f"/api/v1/cost?jobId={job}"):
        assert refusal(await owner.client.get(path)) == (404, "not_found")
    assert (await owner.client.get(JOBS)).json()["data"] == []
    assert (await calls(test, "GET", f"{JOBS}/{job}")).json()["status"] == "queued"


@pytest_asyncio.fixture
async def with_gpu(settings, ledger, models, objects) -> AsyncIterator[httpx.AsyncClient]:
    """A server whose models are real."""
    app = create_app(settings.model_copy(update={"profile": "gpu"}), ledger, models, None, objects)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        yield client


async def test_202_beside_real_models_a_test_job_goes_to_the_tiny_one(customer, with_gpu, models, db):
    models.known["image-tiny"] = ModelState("image-tiny", "starting", None)
    owner = await customer()
    test = (await make(owner))["apiKey"]
    for key in (owner.key, test):
        answer = await with_gpu.post(JOBS, json=PICTURE, headers={"x-api-key": key})
        assert answer.status_code == 202
    assert await applications(db) == {("live", "image"), ("test", "image-tiny")}


@pytest.mark.parametrize("state", [None, ModelState("image-tiny", "unavailable", "not deployed")])
async def test_503_without_a_tiny_model_test_jobs_are_not_taken(customer, with_gpu, models, calls, state):
    if state is not None:
        models.known["image-tiny"] = state
    owner = await customer()
    test = (await make(owner))["apiKey"]
    answer = await with_gpu.post(JOBS, json=PICTURE, headers={"x-api-key": test})
    assert refusal(answer) == (503, "unavailable")
    assert "test world" in answer.json()["message"]
    assert await tokens(calls, test) == FULL
    live = await with_gpu.post(JOBS, json=PICTURE, headers={"x-api-key": owner.key})
    assert live.status_code == 202


# -- checkout ------------------------------------------------------------------------------------------------


class Till:
    """A provider that opens sessions and remembers for which purchases."""

    name = "stripe"

    def __init__(self, *, livemode):
        self.livemode = livemode
        self.opened = []
        self.paid = False

    async def create(self, request):
        self.opened.append(request.purchase_id)
        return await self.retrieve(f"cs_{request.purchase_id}")

    async def retrieve(self, session_id):
        purchase_id = session_id.removeprefix("cs_")
        return ProviderSession(
            session_id, "https://pay.test", purchase_id, self.paid, 5_000, "usd", self.livemode
        )


@pytest.fixture
def shop(settings, ledger, models, objects):
    """`shop(till)` is a client of a server that sells through it."""

    def selling(till):
        app = create_app(settings, ledger, models, Checkout(ledger, till, settings.base_url), objects)
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t")

    return selling


async def test_503_a_test_key_never_reaches_a_provider_that_takes_real_money(customer, shop, db):
    owner = await customer()
    test = (await make(owner))["apiKey"]
    till = Till(livemode=True)
    async with shop(till) as client:
        answer = await client.post(CHECKOUT, json=ORDER, headers={"x-api-key": test})
        assert refusal(answer) == (503, "payments_unavailable")
        assert REFILL in answer.json()["message"]
        assert till.opened == []
        live = await client.post(CHECKOUT, json=ORDER, headers={"x-api-key": owner.key})
    assert live.status_code == 200
    async with db.transaction() as conn:
        assert (await conn.execute(text("SELECT world FROM purchases"))).scalars().all() == ["live"]


async def test_200_where_no_real_money_moves_a_test_key_buys_test_credits(
    customer, shop, calls, db, assert_sound
):
    owner = await customer(500)
    test = (await make(owner))["apiKey"]
    till = Till(livemode=False)
    async with shop(till) as client:
        started = await client.post(CHECKOUT, json=ORDER, headers={"x-api-key": test})
        till.paid = True
        claimed = await client.post(
            "/api/v1/claim/stripe", json={"sessionId": started.json()["sessionId"], "keyLabel": "x"}
        )
    assert refusal(claimed) == (409, "account_exists")
    assert (await tokens(calls, test), await owner.tokens()) == (FULL + 60_000, 500)
    await assert_sound(db)


async def test_503_without_a_provider(customer, calls):
    test = (await make(await customer()))["apiKey"]
    assert refusal(await calls(test, "POST", CHECKOUT, json=ORDER)) == (503, "payments_unavailable")


# -- the person ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/v1/account/export"), ("POST", "/api/v1/auth/sign-out-everywhere")]
)
async def test_403_what_is_the_persons_is_no_business_of_a_test_key(customer, calls, method, path):
    test = (await make(await customer()))["apiKey"]
    assert refusal(await calls(test, method, path)) == (403, "forbidden")


async def test_200_a_deletion_forgets_the_test_world_too(
    customer, person, calls, *, ledger, db, assert_sound
):
    owner = await customer(0)
    test = (await make(owner))["apiKey"]
    assert (await calls(test, "POST", JOBS, json=PICTURE)).status_code == 202
    kept = await calls(test, "POST", "/api/v1/files", files={"file": ("my cat.png", b"cat")})
    assert kept.status_code == 200
    await ledger.open_purchase(
        OpenPurchase("pur_1", "stripe", owner.email, BUILDER, Credential(hash_key(test)))
    )
    browser = await person(owner.email)
    answer = await browser.post("/account/delete", {"email": owner.email, "confirm": True})
    assert answer.status_code == 200, answer.text
    assert (await calls(test, "GET", BALANCE)).status_code == 401
    async with db.transaction() as conn:
        left = {
            table: " ".join(map(str, (await conn.execute(text(f"SELECT * FROM {table}"))).all()))
            for table in ("users", "api_keys", "jobs", "files", "purchases", "idempotency")
        }
        balances = (await conn.execute(text("SELECT balance, held FROM accounts WHERE kind = 'user'"))).all()
    for word in (owner.email, "fox", "my cat", "'CI'"):
        assert word not in str(left), word
    assert [tuple(row) for row in balances] == [(0, 0), (0, 0)], "test credits are no balance to give up"
    await assert_sound(db)


# -- operators -----------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def operator(app, db) -> AsyncIterator[httpx.AsyncClient]:
    """A client with an operator's key."""
    async with db.transaction() as conn:
        made = await operators.add(conn, Actor(None, "setup", None), "grace", brand="amai")
    transport = httpx.ASGITransport(app)
    base = "http://farebox.test/api/v1/operator"
    async with httpx.AsyncClient(
        transport=transport, base_url=base, headers={"x-api-key": made.secret}
    ) as client:
        yield client


async def test_200_an_operator_finds_a_user_once_by_what_is_in_either_world(customer, calls, operator):
    owner = await customer(500)
    test = (await make(owner))["apiKey"]
    job = (await calls(test, "POST", JOBS, json=PICTURE)).json()["jobId"]
    await calls(test, "POST", SPEND, json={"tool": "chat", "units": 1, "reference": "only-in-test"})
    for sought in ({"q": owner.email}, {"q": job}, {"reference": "only-in-test"}):
        (found,) = (await operator.get("/users", params=sought)).json()["data"]
        assert (found["email"], found["free"]["tokens"]) == (owner.email, 500)
    overview = await operator.get(f"/users/{found['id']}")
    assert overview.status_code == 200


async def test_200_an_operator_cancels_a_test_job(customer, calls, operator, db, assert_sound):
    test = (await make(await customer()))["apiKey"]
    job = (await calls(test, "POST", JOBS, json=PICTURE)).json()["jobId"]
    ended = await operator.post(f"/jobs/{job}/cancel", json={"reason": "ticket 17"})
    assert (ended.status_code, ended.json()["job"]["status"]) == (200, "canceled")
    assert await tokens(calls, test) == FULL
    await assert_sound(db)


async def test_403_a_suspension_stops_test_keys_too(customer, calls, operator):
    owner = await customer()
    test = (await make(owner))["apiKey"]
    (found,) = (await operator.get("/users", params={"q": owner.email})).json()["data"]
    assert (await operator.post(f"/users/{found['id']}/suspend", json={"reason": "x"})).status_code == 200
    assert refusal(await calls(test, "GET", BALANCE)) == (403, "forbidden")


async def test_403_a_test_key_uses_up_no_voucher(customer, calls, operator):
    owner = await customer(0)
    test = (await make(owner))["apiKey"]
    terms = {"label": "spring", "credits": 5, "maxRedemptions": 1}
    (voucher,) = (await operator.post("/vouchers", json=terms)).json()["vouchers"]
    redeem = {"json": {"code": voucher["code"]}}
    assert refusal(await calls(test, "POST", "/api/v1/vouchers/redeem", **redeem)) == (403, "forbidden")
    assert (await calls(owner.key, "POST", "/api/v1/vouchers/redeem", **redeem)).status_code == 200
    assert await owner.tokens() == 500


async def test_403_a_test_key_takes_no_part_in_referrals(customer, calls):
    code = (await (await customer()).client.get("/api/v1/referral")).json()["code"]
    test = (await make(await customer()))["apiKey"]
    answer = await calls(test, "POST", "/api/v1/referral/apply", json={"code": code})
    assert refusal(answer) == (403, "forbidden")
