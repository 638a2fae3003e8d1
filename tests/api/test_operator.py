"""The operator API over the real books: its own key, every route by status, and the log of all of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import pytest_asyncio

from gateway import operator_answers as answers
from gateway.documented import REQUESTS
from gateway.lookups import find_users
from gateway.operator_ports import UserQuery
from ledger import operators
from ledger.actions import Actor

HAND = Actor(None, "setup", None)
ROOT = "/api/v1/operator"
WHY = {"reason": "ticket 17"}
GIFT = {"credits": 5, "reference": "ticket-17", "reason": "sorry"}
READS = (
    "/users",
    "/users/user_01k8z0b2c4d6f8g0h2j4k6m8n0",
    "/holds",
    "/jobs",
    "/vouchers",
    "/prices",
    "/audit",
    "/revenue",
    "/reconciliations",
    "/reconciliations/rec_01k8z0b2c4d6f8g0h2j4k6m8n0",
)
UNKNOWN = "01k8z0b2c4d6f8g0h2j4k6m8n0"


@pytest_asyncio.fixture
async def operator(app, db):
    """A client with an operator's key."""
    async with db.transaction() as conn:
        made = await operators.add(conn, HAND, "grace", brand="amai")
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {made.secret}"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://farebox.test", headers=headers
    ) as client:
        yield client


@pytest.fixture
def user_id(db):
    """`await user_id(customer)`."""

    async def find(owner):
        async with db.transaction() as conn:
            return (await find_users(conn, UserQuery(owner.email, None, 1)))[0].id

    return find


async def told(operator):
    """The log's lines but that of the key's making, oldest first."""
    found = await operator.get(f"{ROOT}/audit", params={"limit": 100})
    answers.Actions.model_validate_json(found.content)
    return found.json()["data"][::-1][1:]


def refused(answer, status, error):
    told = answer.json()["error"]
    code = told["code"] if isinstance(told, dict) else told  # under /v1 it has OpenAI's shape
    assert (answer.status_code, code) == (status, error), answer.text
    return True


# -- who may ---------------------------------------------------------------------------------------------------------


async def test_customers_strangers_and_revoked_operators_get_401_everywhere(
    app, client, customer, operator, db
):
    owner = await customer()
    served = [
        (method, route.path)
        for route in app.routes
        if route.path.startswith(ROOT)
        for method in route.methods - {"HEAD"}
    ]
    assert len(served) == 25
    for method, path in served:
        place = path.replace("{transfer_id}", "1").format(
            user_id=f"user_{UNKNOWN}",
            hold_id="hold_x",
            job_id="job_x",
            voucher_id="voucher_x",
            reconciliation_id="rec_x",
        )
        body = {} if method == "GET" else {"json": {"nonsense": 1}}
        assert refused(await client.request(method, place, **body), 401, "auth_required")
        assert refused(await owner.client.request(method, place, **body), 401, "auth_required")
    async with db.transaction() as conn:
        await operators.revoke(conn, HAND, "grace")
    for path in READS:
        assert refused(await operator.get(ROOT + path), 401, "auth_required")


async def test_an_operators_key_works_on_no_customers_route(operator):
    for path in ("/api/v1/credits/balance", "/api/v1/keys", "/api/v1/media/jobs", "/api/v1/files"):
        assert refused(await operator.get(path), 401, "auth_required")
    body = {"code": "0000-0000-0000-0000"}
    assert refused(await operator.post("/api/v1/vouchers/redeem", json=body), 401, "auth_required")
    spend = {"tool": "chat", "units": 1, "reference": "r"}
    assert refused(await operator.post("/api/v1/tools/spend", json=spend), 401, "auth_required")


async def test_no_route_makes_an_operator(app):
    made = [route.path for route in app.routes if "operators" in route.path]
    assert made == []


# -- users -----------------------------------------------------------------------------------------------------------


async def test_a_user_is_found_and_shown_whole(operator, customer, user_id):
    owner = await customer(1000)
    await owner.client.post("/api/v1/tools/spend", json={"tool": "chat", "units": 1, "reference": "r-1"})
    mine = await user_id(owner)
    for query in ({"q": owner.email.upper()}, {"reference": "r-1"}, {"q": mine}):
        found = await operator.get(f"{ROOT}/users", params=query)
        answers.OperatorUsers.model_validate_json(found.content)
        assert [user["id"] for user in found.json()["data"]] == [mine]
    shown = await operator.get(f"{ROOT}/users/{mine}")
    answers.OperatorOverview.model_validate_json(shown.content)
    body = shown.json()
    assert body["user"]["free"] == {"credits": 9.95, "tokens": 995}
    assert [line["kind"] for line in body["transfers"]] == ["spend", "grant"]
    assert owner.key not in shown.text


async def test_users_come_in_pages(operator, customer):
    for _ in range(3):
        await customer()
    whole = (await operator.get(f"{ROOT}/users")).json()["data"]
    first = (await operator.get(f"{ROOT}/users", params={"limit": 2})).json()
    rest = await operator.get(f"{ROOT}/users", params={"cursor": first["nextCursor"]})
    assert first["data"] + rest.json()["data"] == whole
    assert len(whole) == 3


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/users", {"q": "a\x00b"}),
        ("/users", {"q": ""}),
        ("/users", {"reference": "\x01"}),
        ("/users", {"limit": "0"}),
        ("/users", {"cursor": "x"}),
        ("/jobs", {"status": "nonsense"}),
        ("/jobs", {"task": "\x00"}),
        ("/jobs", {"cursor": "hold_x"}),
        ("/vouchers", {"cursor": "x"}),
        ("/audit", {"cursor": "x"}),
    ],
)
async def test_a_bad_question_gets_400(operator, path, query):
    assert refused(await operator.get(ROOT + path, params=query), 400, "invalid_request")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/users/user_{UNKNOWN}"),
        ("GET", "/users/nonsense"),
        ("GET", f"/holds?userId={'%00'}"),
        ("GET", "/audit?userId=x"),
        ("POST", f"/users/user_{UNKNOWN}/suspend"),
        ("POST", f"/users/user_{UNKNOWN}/unfreeze"),
        ("POST", f"/holds/hold_{UNKNOWN}/void"),
        ("POST", f"/jobs/job_{UNKNOWN}/cancel"),
        ("POST", f"/vouchers/voucher_{UNKNOWN}/disable"),
    ],
)
async def test_what_is_not_there_gets_404(operator, method, path):
    body = {"json": WHY} if method == "POST" else {}
    assert refused(await operator.request(method, ROOT + path, **body), 404, "not_found")
    assert await told(operator) == []


async def test_a_change_without_its_reason_gets_400(operator, customer, user_id):
    mine = await user_id(await customer())
    for body in ({}, {"reason": ""}, {"reason": "a\nb"}, {"reason": "x" * 501}, {"reason": "x", "more": 1}):
        assert refused(await operator.post(f"{ROOT}/users/{mine}/suspend", json=body), 400, "invalid_request")
    assert await told(operator) == []


async def test_a_suspended_user_gets_403_on_the_next_request_and_then_not(operator, customer, user_id):
    owner = await customer()
    mine = await user_id(owner)
    done = await operator.post(f"{ROOT}/users/{mine}/suspend", json=WHY, headers={"x-request-id": "rq-7"})
    answers.OperatorUserShown.model_validate_json(done.content)
    assert refused(await owner.client.get("/api/v1/credits/balance"), 403, "forbidden")
    await operator.post(f"{ROOT}/users/{mine}/unsuspend", json=WHY)
    assert await owner.tokens() == 60_000
    suspended, restored = await told(operator)
    assert (suspended["action"], restored["action"]) == ("user.suspend", "user.unsuspend")
    assert (suspended["requestId"], suspended["reason"], suspended["userId"]) == ("rq-7", "ticket 17", mine)
    assert suspended["by"]["name"] == "grace"
    assert suspended["by"]["operatorId"].startswith("op_")


async def test_a_suspended_user_gets_403_on_every_route_that_wants_a_key(app, operator, customer, user_id):
    owner = await customer()
    await operator.post(f"{ROOT}/users/{await user_id(owner)}/suspend", json=WHY)
    tried = set()
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            security = operation.get("security", [])
            if not security or {} in security or "Operator" in operation["tags"]:
                continue
            place = path.format(
                reference="r",
                job_id=f"job_{UNKNOWN}",
                file_id=f"file_{UNKNOWN}",
                endpoint_id=f"hook_{UNKNOWN}",
                delivery_id=f"msg_{UNKNOWN}",
                model="qwen-image",
            )
            name = operation["operationId"]
            # This server has no provider; `test_payment_life` and `test_auto_topup` have one.
            if name in ("openBillingPortal", "setAutoTopup", "saveCard"):
                continue
            body = {"json": next(iter(REQUESTS[name].values()))} if name in REQUESTS else {}
            if name == "uploadFile":
                body = {"files": {"file": ("fox.png", b"\x89PNG\r\n\x1a\n", "image/png")}}
            if name in ("editImages", "transcribeAudio"):
                part = "image" if name == "editImages" else "file"
                body = {
                    "files": {part: ("fox.png", b"\x89PNG\r\n\x1a\n", "image/png")},
                    "data": {"prompt": "a"},
                }
            query = {"reference": "r"} if name == "getCost" else {}
            answer = await owner.client.request(method, place, params=query, **body)
            assert refused(answer, 403, "forbidden"), name
            tried.add(name)
    assert tried >= {"getBalance", "createKey", "spendTool", "checkTool", "submitJob", "redeemVoucher"}


async def test_a_frozen_account_reads_and_does_not_spend(operator, customer, user_id):
    owner = await customer()
    mine = await user_id(owner)
    spend = {"tool": "chat", "units": 1, "reference": "r"}
    await operator.post(f"{ROOT}/users/{mine}/freeze", json=WHY)
    assert refused(await owner.client.post("/api/v1/tools/spend", json=spend), 403, "account_frozen")
    assert await owner.tokens() == 60_000
    await operator.post(f"{ROOT}/users/{mine}/unfreeze", json=WHY)
    assert (await owner.client.post("/api/v1/tools/spend", json=spend)).status_code == 200


# -- money -----------------------------------------------------------------------------------------------------------


async def test_credits_are_granted_once_however_often_the_request_comes(
    operator, customer, user_id, db, assert_sound
):
    owner = await customer(0)
    path = f"{ROOT}/users/{await user_id(owner)}/grants"
    sent = await asyncio.gather(*(operator.post(path, json=GIFT) for _ in range(5)))
    assert {answer.status_code for answer in sent} == {200}
    assert len({answer.content for answer in sent}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in sent) == 1
    answers.OperatorMovement.model_validate_json(sent[0].content)
    assert await owner.tokens() == 500
    assert refused(await operator.post(path, json=GIFT | {"credits": 6}), 409, "idempotency_key_reused")
    later = {"expiresAt": "2100-01-31T00:00:00Z", "priority": 10, "reference": "second"}
    assert (await operator.post(path, json=GIFT | later)).status_code == 200
    assert [line["action"] for line in await told(operator)] == ["credits.grant"] * 2
    await assert_sound(db)


@pytest.mark.parametrize(
    "wrong",
    [
        {"credits": 0},
        {"credits": -1},
        {"credits": 0.001},
        {"credits": "5"},
        {"credits": 10**10},
        {"reference": ""},
        {"reference": "x" * 256},
        {"expiresAt": "2020-01-01T00:00:00Z"},
        {"priority": -1},
        {"priority": 10**9},
        {"reason": None},
    ],
)
async def test_a_grant_that_cannot_be_gets_400(operator, customer, user_id, wrong):
    mine = await user_id(await customer(0))
    answer = await operator.post(f"{ROOT}/users/{mine}/grants", json=GIFT | wrong)
    assert refused(answer, 400, "invalid_request")
    assert answer.json()["details"][0]["field"] == next(iter(wrong))


async def test_a_balance_is_corrected_and_never_below_what_is_free(operator, customer, user_id):
    owner = await customer(1000)
    path = f"{ROOT}/users/{await user_id(owner)}/adjustments"
    assert (await operator.post(path, json=GIFT | {"credits": -4.5})).json()["free"]["tokens"] == 550
    short = await operator.post(path, json=GIFT | {"credits": -100, "reference": "x"})
    assert refused(short, 402, "insufficient_credits")
    assert refused(await operator.post(path, json=GIFT | {"credits": 0}), 400, "invalid_request")
    assert await owner.tokens() == 550


async def test_a_charge_is_refunded_and_a_transfer_undone(operator, customer, user_id):
    owner = await customer(1000)
    mine = await user_id(owner)
    await owner.client.post("/api/v1/tools/spend", json={"tool": "image", "units": 2, "reference": "r"})
    spend, grant = (await operator.get(f"{ROOT}/users/{mine}")).json()["transfers"]
    refund = f"{ROOT}/transfers/{spend['transferId']}/refund"
    part = await operator.post(refund, json={"credits": 0.5, "reference": "a", "reason": "slow"})
    assert part.json()["moved"] == {"credits": 0.5, "tokens": 50}
    whole = {"reference": "b", "reason": "broken"}
    assert (await operator.post(refund, json=whole)).json()["moved"]["tokens"] == 150
    assert (await operator.post(refund, json=whole)).headers["idempotent-replayed"] == "true"
    over = await operator.post(refund, json={"credits": 1, "reference": "c", "reason": "more"})
    assert refused(over, 409, "exceeds_original")
    assert await owner.tokens() == 1000
    undo = f"{ROOT}/transfers/{grant['transferId']}"
    whole["reference"] = "d"
    assert refused(await operator.post(f"{undo}/refund", json=whole), 409, "not_reversible")
    assert (await operator.post(f"{undo}/reverse", json=whole)).json()["free"]["tokens"] == 0
    for unknown in (2**62, 2**63, 0, "x"):
        answer = await operator.post(f"{ROOT}/transfers/{unknown}/refund", json=whole)
        assert answer.status_code == (404 if unknown == 2**62 else 400)


# -- holds and jobs --------------------------------------------------------------------------------------------------


async def test_a_hold_is_listed_and_voided(operator, customer, user_id):
    owner = await customer(1000)
    await owner.client.post("/api/v1/tools/check", json={"tool": "image", "units": 2, "hold": True})
    listed = await operator.get(f"{ROOT}/holds", params={"userId": await user_id(owner)})
    answers.OperatorHolds.model_validate_json(listed.content)
    (hold,) = listed.json()["data"]
    assert (hold["email"], hold["amount"]["tokens"], hold["jobId"]) == (owner.email, 200, None)
    voided = await operator.post(f"{ROOT}/holds/{hold['id']}/void", json=WHY)
    answers.OperatorHoldShown.model_validate_json(voided.content)
    assert (voided.json()["hold"]["state"], await owner.tokens()) == ("voided", 1000)
    assert refused(await operator.post(f"{ROOT}/holds/{hold['id']}/void", json=WHY), 409, "hold_resolved")


async def test_a_job_is_listed_and_canceled_with_its_hold(operator, customer):
    owner = await customer(1000)
    job = {"task": "image.generate", "input": {"prompt": "my secret garden"}}
    job_id = (await owner.client.post("/api/v1/media/jobs", json=job)).json()["jobId"]
    listed = await operator.get(f"{ROOT}/jobs", params={"status": "queued", "task": "image.generate"})
    answers.OperatorJobs.model_validate_json(listed.content)
    assert [found["id"] for found in listed.json()["data"]] == [job_id]
    assert "secret garden" not in listed.text, "what a user asks of a model is the user's own"
    (hold,) = (await operator.get(f"{ROOT}/holds")).json()["data"]
    assert refused(await operator.post(f"{ROOT}/holds/{hold['id']}/void", json=WHY), 409, "hold_of_job")
    ended = await operator.post(f"{ROOT}/jobs/{job_id}/cancel", json=WHY)
    answers.OperatorJobShown.model_validate_json(ended.content)
    assert (ended.json()["job"]["status"], await owner.tokens()) == ("canceled", 1000)
    assert [line["action"] for line in await told(operator)] == ["job.cancel"]


# -- vouchers --------------------------------------------------------------------------------------------------------


async def test_a_voucher_is_made_redeemed_listed_and_disabled(operator, customer):
    owner, late = await customer(0), await customer(0)
    made = await operator.post(
        f"{ROOT}/vouchers", json={"label": "spring", "credits": 5, "maxRedemptions": 2, "creditsDays": 30}
    )
    answers.VouchersMade.model_validate_json(made.content)
    (voucher,) = made.json()["vouchers"]
    redeem = {"code": voucher["code"]}
    first = await owner.client.post("/api/v1/vouchers/redeem", json=redeem)
    answers.VoucherRedeemed.model_validate_json(first.content)
    assert (first.json()["tokens"], first.json()["balanceTokens"]) == (500, 500)
    again = await owner.client.post("/api/v1/vouchers/redeem", json=redeem)
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    listed = await operator.get(f"{ROOT}/vouchers")
    answers.Vouchers.model_validate_json(listed.content)
    assert voucher["code"] not in listed.text
    closed = await operator.post(f"{ROOT}/vouchers/{voucher['id']}/disable", json=WHY)
    answers.VoucherClosed.model_validate_json(closed.content)
    assert closed.json()["voucher"]["redemptions"] == 1
    refusal = await late.client.post("/api/v1/vouchers/redeem", json=redeem)
    assert refused(refusal, 409, "voucher_closed")
    assert refusal.json()["details"] == {"state": "disabled"}
    lines = await told(operator)
    assert [line["action"] for line in lines] == ["voucher.make", "voucher.disable"]
    assert voucher["code"] not in str(lines)


async def test_a_code_that_is_not_ours_gets_404_and_no_code_400(client, customer):
    owner = await customer(0)
    for code in ("0000-0000-0000-0000", "x", "\N{SNOWMAN}", "ß" * 64):
        answer = await owner.client.post("/api/v1/vouchers/redeem", json={"code": code})
        assert refused(answer, 404, "not_found")
    for body in ({}, {"code": ""}, {"code": 7}, {"code": "x" * 65}, {"code": "\x00"}):
        answer = await owner.client.post("/api/v1/vouchers/redeem", json=body)
        assert refused(answer, 400, "invalid_request")
    assert refused(await client.post("/api/v1/vouchers/redeem", json={"code": "x"}), 401, "auth_required")


@pytest.mark.parametrize(
    "wrong",
    [
        {"credits": 0},
        {"count": 0},
        {"count": 1001},
        {"maxRedemptions": 0},
        {"creditsDays": 0},
        {"expiresAt": "2020-01-01T00:00:00Z"},
        {"label": ""},
    ],
)
async def test_a_voucher_that_cannot_be_gets_400(operator, wrong):
    answer = await operator.post(f"{ROOT}/vouchers", json={"label": "x", "credits": 1} | wrong)
    assert refused(answer, 400, "invalid_request")
    assert (await operator.get(f"{ROOT}/vouchers")).json()["data"] == []


# -- prices ----------------------------------------------------------------------------------------------------------


async def test_a_price_is_announced_and_sold_from_its_since_on(operator, customer, app, monkeypatch):
    made = await operator.post(f"{ROOT}/prices", json={"tool": "chat", "tokens": 7, **WHY})
    answers.PriceAnnounced.model_validate_json(made.content)
    price = made.json()["price"]
    assert (price["state"], price["tokens"], price["perUnits"]) == ("announced", 7, 1)
    history = await operator.get(f"{ROOT}/prices")
    answers.PriceHistory.model_validate_json(history.content)
    assert history.json()["prices"] == [price]

    owner = await customer(1000)
    check = {"tool": "chat", "units": 1}
    assert (await owner.client.post("/api/v1/tools/check", json=check)).json()["cost_tokens"] == 5
    since = datetime.fromisoformat(price["since"])

    class Then(datetime):
        @classmethod
        def now(cls, tz=None):
            return since

    monkeypatch.setattr("gateway.prices.datetime", Then)
    assert (await owner.client.post("/api/v1/tools/check", json=check)).json()["cost_tokens"] == 7
    spent = await owner.client.post("/api/v1/tools/spend", json=check | {"reference": "r"})
    assert spent.json()["charged"] == 7
    shown = (await owner.client.get("/api/v1/pricing")).json()["tools"]
    assert [t["price_version"] for t in shown if t["tool"] == "chat"] == [price["version"]]
    assert "7 tokens" in (await owner.client.get("/pricing")).text


@pytest.mark.parametrize(
    "wrong",
    [
        {"tool": "nonsense"},
        {"tokens": 0},
        {"tokens": 10**7},
        {"tokens": 1.5},
        {"perUnits": 7},
        {"since": "soon"},
        {"since": (datetime.now(UTC) + timedelta(seconds=30)).isoformat()},
    ],
)
async def test_a_price_that_cannot_be_gets_400(operator, wrong):
    answer = await operator.post(f"{ROOT}/prices", json={"tool": "chat", "tokens": 7, **WHY} | wrong)
    assert refused(answer, 400, "invalid_request")
    assert answer.json()["details"][0]["field"] == next(iter(wrong))
    assert (await operator.get(f"{ROOT}/prices")).json()["prices"] == []


async def test_the_log_comes_in_pages_and_by_user(operator, customer, user_id):
    one, other = await user_id(await customer(0)), await user_id(await customer(0))
    for mine in (one, one, other):
        await operator.post(
            f"{ROOT}/users/{mine}/grants", json=GIFT | {"reference": f"{len(await told(operator))}"}
        )
    lines = (await operator.get(f"{ROOT}/audit")).json()["data"]
    first = (await operator.get(f"{ROOT}/audit", params={"limit": 2})).json()
    rest = (await operator.get(f"{ROOT}/audit", params={"cursor": first["nextCursor"]})).json()
    assert first["data"] + rest["data"] == lines
    of_one = (await operator.get(f"{ROOT}/audit", params={"userId": one})).json()["data"]
    assert [line["userId"] for line in of_one] == [one, one]


async def test_a_share_is_set_by_an_operator_alone(operator, customer, user_id):
    owner = await customer()
    place = f"{ROOT}/users/{await user_id(owner)}/share"
    done = await operator.post(place, json={**WHY, "weight": 3, "concurrency": 8})
    assert (done.status_code, done.json()["share"]) == (200, {"weight": 3, "concurrency": 8})
    for wrong in ({"weight": 0}, {"weight": 101}, {"concurrency": 0}, {"weight": True}):
        assert refused(await operator.post(place, json={**WHY, **wrong}), 400, "invalid_request")
    assert (await owner.client.post(place, json={**WHY, "weight": 3})).status_code in (401, 403)
    assert [line["action"] for line in await told(operator)] == ["account.share"]
