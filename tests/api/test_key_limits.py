"""Limited keys over HTTP: what is shown, what is refused and with which status."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import pytest_asyncio

from gateway.answers import KeyCreated, Keys
from gateway.app import create_app

KEYS = "/api/v1/keys"
JOBS = "/api/v1/media/jobs"
BALANCE = "/api/v1/credits/balance"
TOOLS = "/api/v1/tools"
CONSUME = "/api/v1/credits/consume"
CHAT = {"tool": "chat", "units": 1}
HOLD = "hold_01k8z0c6m5n7q2r4t6v8x0y2z4"
PICTURE = {"task": "image.generate", "input": {"prompt": "fox"}}


@pytest_asyncio.fixture
async def calls(app, client):
    """`await calls(key, method, path, **request)`; the test client's address is 127.0.0.1."""

    async def call(key, method, path, **request):
        headers = {"x-api-key": key, **request.pop("headers", {})}
        return await client.request(method, path, headers=headers, **request)

    return call


async def make(owner, **limits):
    made = await owner.client.post(KEYS, json={"label": "Agent", **limits})
    assert made.status_code == 200, made.text
    KeyCreated.model_validate_json(made.content)
    return made.json()


def refusal(answer):
    return answer.status_code, answer.json()["error"]


async def test_200_a_key_shows_its_limits_and_what_is_used_of_them(customer, calls):
    owner = await customer()
    made = await make(
        owner,
        spendLimit={"credits": 1.5, "per": "month"},
        scopes=["tasks:*", "read", "read"],
        allowedIps=["127.0.0.1", "2001:DB8::/32"],
        expiresAt="2100-01-31T00:00:00Z",
    )
    assert made["scopes"] == ["read", "tasks:*"]
    assert made["allowedIps"] == ["127.0.0.1", "2001:db8::/32"]
    assert made["spendLimit"] == {"credits": 1.5, "tokens": 150, "per": "month"}
    assert (await calls(made["apiKey"], "POST", JOBS, json=PICTURE)).status_code == 202
    listed = await owner.client.get(KEYS)
    Keys.model_validate_json(listed.content)
    shown = listed.json()["keys"][0]
    assert (shown["spendLimit"]["usedTokens"], shown["spendLimit"]["usedCredits"]) == (100, 1.0)
    assert shown["spendLimit"]["resetsAt"].endswith("-01T00:00:00Z")
    assert (shown["parentId"], shown["lastUsedAt"] is not None) == (None, True)


async def test_403_key_limit_reached(customer, calls):
    key = (await make(await customer(), spendLimit={"credits": 1, "per": "total"}))["apiKey"]
    assert (await calls(key, "POST", JOBS, json=PICTURE)).status_code == 202
    again = await calls(key, "POST", JOBS, json=PICTURE)
    assert (refusal(again), again.json()["left_tokens"]) == ((403, "key_limit_reached"), 0)


@pytest.mark.parametrize(
    ("scopes", "request_", "named"),
    [
        (["tools:*"], ("GET", BALANCE, None), "`read`"),
        (["read"], ("POST", JOBS, PICTURE), "`tasks:image.generate`"),
        (["tasks:image.edit"], ("POST", JOBS, PICTURE), "`tasks:image.generate`"),
        (["tools:*"], ("GET", JOBS, None), "`read` or `tasks:*`"),
        (["read"], ("POST", KEYS, {"label": "x"}), "`keys`"),
        (["tools:*"], ("GET", KEYS, None), "`keys` or `read`"),
        (["read"], ("POST", f"{KEYS}/revoke", {"keyPrefix": "abcde"}), "`keys`"),
        (["read"], ("POST", f"{KEYS}/rotate", {"keyPrefix": "abcde", "overlapSeconds": 0}), "`keys`"),
        (["tools:*"], ("GET", "/api/v1/files", None), "`files`"),
        (["tools:*"], ("GET", "/api/v1/usage", None), "`read`"),
        (["tools:dub"], ("POST", f"{TOOLS}/check", CHAT), "`tools:chat`"),
        (["tools:dub"], ("POST", f"{TOOLS}/check", CHAT | {"hold": True}), "`tools:chat`"),
        (["read"], ("POST", f"{TOOLS}/spend", CHAT | {"reference": "r"}), "`tools:chat`"),
        (
            ["tools:dub"],
            ("POST", f"{TOOLS}/spend", CHAT | {"reference": "r", "hold_id": HOLD}),
            "`tools:chat`",
        ),
        (
            ["tools:chat"],
            ("POST", CONSUME, {"credits": 1, "reason": "x", "idempotencyKey": "k"}),
            "`tools:consume`",
        ),
        (["read", "tools:*"], ("POST", "/api/v1/vouchers/redeem", {"code": "K7QX"}), "`checkout`"),
    ],
)
async def test_403_forbidden_out_of_scope(customer, calls, scopes, request_, named):
    key = (await make(await customer(), scopes=scopes))["apiKey"]
    method, path, body = request_
    answer = await calls(key, method, path, json=body)
    assert refusal(answer) == (403, "forbidden")
    assert named in answer.json()["message"]


async def test_200_tools_within_scope(customer, calls):
    key = (await make(await customer(), scopes=["tools:chat"]))["apiKey"]
    held = (await calls(key, "POST", f"{TOOLS}/check", json=CHAT | {"hold": True})).json()
    spent = [
        await calls(key, "POST", f"{TOOLS}/spend", json=CHAT | body)
        for body in ({"reference": "a"}, {"reference": "b", "hold_id": held["hold_id"]})
    ]
    assert [answer.json()["charged"] for answer in spent] == [5, 5]


async def test_403_a_job_is_canceled_by_a_key_of_its_task_alone(customer, calls):
    owner = await customer()
    job = (await owner.client.post(JOBS, json=PICTURE)).json()
    other = (await make(owner, scopes=["tasks:image.edit"]))["apiKey"]
    assert refusal(await calls(other, "POST", f"{JOBS}/{job['id']}/cancel")) == (403, "forbidden")
    assert (await owner.client.get(f"{JOBS}/{job['id']}")).json()["status"] == "queued"
    own = (await make(owner, scopes=["tasks:image.generate"]))["apiKey"]
    assert (await calls(own, "POST", f"{JOBS}/{job['id']}/cancel")).json()["status"] == "canceled"


async def test_403_forbidden_from_another_address(customer, calls):
    owner = await customer()
    here = (await make(owner, allowedIps=["127.0.0.0/8"]))["apiKey"]
    elsewhere = (await make(owner, allowedIps=["203.0.113.7", "::1"]))["apiKey"]
    assert (await calls(here, "GET", BALANCE)).status_code == 200
    for method, path, body in (("GET", BALANCE, None), ("GET", KEYS, None), ("POST", JOBS, PICTURE)):
        assert refusal(await calls(elsewhere, method, path, json=body)) == (403, "forbidden")


async def test_403_a_forged_address_is_not_believed(customer, calls):
    key = (await make(await customer(), allowedIps=["203.0.113.7"]))["apiKey"]
    for name in ("x-forwarded-for", "x-real-ip", "forwarded"):
        forged = {name: "for=203.0.113.7" if name == "forwarded" else "203.0.113.7"}
        assert refusal(await calls(key, "GET", BALANCE, headers=forged)) == (403, "forbidden")


async def test_behind_a_trusted_proxy_the_address_is_the_one_that_it_wrote(
    settings, ledger, models, objects, customer
):
    key = (await make(await customer(), allowedIps=["203.0.113.7"]))["apiKey"]
    trusting = settings.model_copy(update={"trusted_proxies": "127.0.0.1"})
    app = create_app(trusting, ledger, models, None, objects)
    behind = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://farebox.test")
    async with behind as web:
        for chain, status in {
            "203.0.113.7": 200,
            "192.0.2.1, 203.0.113.7": 200,
            "203.0.113.7, 192.0.2.1": 403,
        }.items():
            answer = await web.get(BALANCE, headers={"x-api-key": key, "x-forwarded-for": chain})
            assert answer.status_code == status, chain


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["everything"]}, "scopes.0"),
        ({"scopes": ["tools:"]}, "scopes.0"),
        ({"scopes": ["read"] * 51}, "scopes"),
        ({"allowedIps": ["203.0.113.7/24"]}, "allowedIps.0"),
        ({"allowedIps": ["localhost"]}, "allowedIps.0"),
        ({"allowedIps": [3405803783]}, "allowedIps.0"),
        ({"allowedIps": []}, "allowedIps"),
        ({"spendLimit": {"credits": 0, "per": "day"}}, "spendLimit.credits"),
        ({"spendLimit": {"credits": 0.001, "per": "day"}}, "spendLimit.credits"),
        ({"spendLimit": {"credits": 1, "per": "week"}}, "spendLimit.per"),
        ({"spendLimit": {"credits": 1}}, "spendLimit.per"),
        ({"spendLimit": 5}, "spendLimit"),
    ],
)
async def test_400_invalid_request_names_the_field(customer, limits, field):
    owner = await customer()
    answer = await owner.client.post(KEYS, json={"label": "x", **limits})
    assert refusal(answer) == (400, "invalid_request")
    assert field in {fault["field"] for fault in answer.json()["details"]}


@pytest.mark.parametrize("overlap", [-1, 2_592_001, 1.5, "60", None])
async def test_400_an_overlap_is_whole_seconds_up_to_a_month(customer, overlap):
    owner = await customer()
    body = {"keyPrefix": "abcde", "overlapSeconds": overlap}
    assert refusal(await owner.client.post(f"{KEYS}/rotate", json=body)) == (400, "invalid_request")


# -- children ------------------------------------------------------------------------------------------------------


async def test_a_limited_key_makes_children_within_its_limits(customer, calls):
    owner = await customer()
    parent = await make(owner, spendLimit={"credits": 2, "per": "total"}, scopes=["keys", "tasks:*"])
    child = (
        await calls(parent["apiKey"], "POST", KEYS, json={"label": "Child", "scopes": ["tasks:*"]})
    ).json()
    assert child["parentId"] == parent["id"]
    answers = await asyncio.gather(
        *(calls(key["apiKey"], "POST", JOBS, json=PICTURE) for key in (parent, child) * 3)
    )
    assert sorted(answer.status_code for answer in answers) == [202, 202, 403, 403, 403, 403]
    wider = await calls(parent["apiKey"], "POST", KEYS, json={"label": "x", "scopes": ["tools:chat"]})
    assert refusal(wider) == (403, "forbidden")
    assert "tools:chat" in wider.json()["message"]


async def test_a_limited_key_lists_itself_and_its_children(customer, calls):
    owner = await customer()
    parent = await make(owner, scopes=["keys"])
    child = (await calls(parent["apiKey"], "POST", KEYS, json={"label": "Child"})).json()
    seen = (await calls(parent["apiKey"], "GET", KEYS)).json()["keys"]
    assert [key["id"] for key in seen] == [child["id"], parent["id"]]
    assert len((await owner.client.get(KEYS)).json()["keys"]) == 3


async def test_404_a_limited_key_revokes_none_of_the_others(customer, calls):
    owner = await customer()
    parent, other = await make(owner, scopes=["keys"]), await make(owner)
    body = {"keyPrefix": other["keyPrefix"]}
    assert refusal(await calls(parent["apiKey"], "POST", f"{KEYS}/revoke", json=body)) == (404, "not_found")
    assert (await calls(other["apiKey"], "GET", BALANCE)).status_code == 200


async def test_401_children_of_a_revoked_key(customer, calls):
    owner = await customer()
    parent = await make(owner, scopes=["keys", "read"])
    child = (await calls(parent["apiKey"], "POST", KEYS, json={"label": "Child"})).json()
    await owner.client.post(f"{KEYS}/revoke", json={"keyPrefix": parent["keyPrefix"]})
    assert refusal(await calls(child["apiKey"], "GET", BALANCE)) == (401, "auth_required")


async def test_409_a_replay_shows_no_secret_that_another_key_made(customer, calls):
    owner = await customer()
    body = {"label": "Agent", "idempotencyKey": "key-1"}
    await owner.client.post(KEYS, json=body)
    limited = (await make(owner, scopes=["keys"]))["apiKey"]
    guessed = await calls(limited, "POST", KEYS, json=body)
    assert refusal(guessed) == (409, "idempotency_key_reused")
    assert "apiKey" not in guessed.json()


# -- rotation ------------------------------------------------------------------------------------------------------


async def test_200_a_rotated_key_gets_a_new_secret_and_the_old_one_works_through_the_overlap(customer, calls):
    owner = await customer()
    old = await make(owner, spendLimit={"credits": 2, "per": "total"}, scopes=["tasks:*", "read"])
    await calls(old["apiKey"], "POST", JOBS, json=PICTURE)
    body = {"keyPrefix": old["keyPrefix"], "overlapSeconds": 3600}
    rotated = await owner.client.post(f"{KEYS}/rotate", json=body)
    KeyCreated.model_validate_json(rotated.content)
    new = rotated.json()
    assert new["apiKey"] != old["apiKey"]
    assert {name: new[name] for name in ("label", "scopes", "allowedIps", "spendLimit", "expiresAt")} == {
        name: old[name] for name in ("label", "scopes", "allowedIps", "spendLimit", "expiresAt")
    }
    assert (await calls(old["apiKey"], "POST", JOBS, json=PICTURE)).status_code == 202
    assert refusal(await calls(new["apiKey"], "POST", JOBS, json=PICTURE)) == (403, "key_limit_reached")
    listed = {key["id"]: key for key in (await owner.client.get(KEYS)).json()["keys"]}
    assert listed[new["id"]]["spendLimit"]["usedTokens"] == 200
    assert (listed[old["id"]]["parentId"], listed[old["id"]]["expiresAt"] is not None) == (new["id"], True)


async def test_401_the_old_secret_without_an_overlap(customer, calls):
    owner = await customer()
    old = await make(owner)
    body = {"keyPrefix": old["keyPrefix"], "overlapSeconds": 0}
    new = (await owner.client.post(f"{KEYS}/rotate", json=body)).json()
    assert refusal(await calls(old["apiKey"], "GET", BALANCE)) == (401, "auth_required")
    assert (await calls(new["apiKey"], "GET", BALANCE)).status_code == 200


async def test_a_retried_rotation_of_ones_own_key_shows_the_same_secret_again(customer, calls):
    owner = await customer()
    body = {"keyPrefix": owner.key.removeprefix("amai_live_")[:10], "overlapSeconds": 600}
    headers = {"x-idempotency-key": "rotate-1"}
    first = await owner.client.post(f"{KEYS}/rotate", json=body, headers=headers)
    again = await owner.client.post(f"{KEYS}/rotate", json=body, headers=headers)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    other = await owner.client.post(f"{KEYS}/rotate", json=body | {"overlapSeconds": 60}, headers=headers)
    assert refusal(other) == (409, "idempotency_key_reused")
    third = await calls(first.json()["apiKey"], "POST", f"{KEYS}/rotate", json=body, headers=headers)
    assert third.json() == first.json()


async def test_404_an_unknown_prefix_is_not_rotated(customer):
    owner = await customer()
    answer = await owner.client.post(f"{KEYS}/rotate", json={"keyPrefix": "zzzzzzzzzz", "overlapSeconds": 0})
    assert refusal(answer) == (404, "not_found")
