"""Keys over the real books: shown once, listed by prefix, revoked from the next request on."""

from __future__ import annotations

import asyncio

from gateway.answers import KeyCreated, KeyRevoked, Keys
from ledger import keys
from ledger.users import account_of_email

KEYS = "/api/v1/keys"


async def test_a_key_is_shown_once_works_and_is_listed_without_its_secret(client, customer):
    owner = await customer()
    made = await owner.client.post(KEYS, json={"label": " Agent Worker A "})
    assert made.status_code == 200, made.text
    KeyCreated.model_validate_json(made.content)
    key = made.json()
    assert key["label"] == "Agent Worker A"
    assert key["apiKey"].startswith(f"amai_live_{key['keyPrefix']}")
    assert made.headers["cache-control"] == "no-store"

    works = await client.get("/api/v1/credits/balance", headers={"x-api-key": key["apiKey"]})
    assert works.json()["tokens"] == 60_000
    listed = await owner.client.get(KEYS)
    Keys.model_validate_json(listed.content)
    assert [shown["label"] for shown in listed.json()["keys"]] == ["Agent Worker A", "test"]
    assert key["apiKey"] not in listed.text


async def test_a_retried_creation_shows_the_same_key_and_another_meaning_is_refused(customer):
    owner = await customer()
    headers = {"x-idempotency-key": "key-1"}
    first = await owner.client.post(KEYS, json={"label": "Agent"}, headers=headers)
    again = await owner.client.post(KEYS, json={"label": "Agent", "idempotencyKey": "key-1"})
    assert again.json() == first.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    other = await owner.client.post(KEYS, json={"label": "Other"}, headers=headers)
    assert (other.status_code, other.json()["error"]) == (409, "idempotency_key_reused")
    assert len((await owner.client.get(KEYS)).json()["keys"]) == 2


async def test_a_revoked_key_fails_on_its_next_request_and_others_go_on(client, customer):
    owner = await customer()
    key = (await owner.client.post(KEYS, json={"label": "Agent"})).json()
    revoked = await owner.client.post(f"{KEYS}/revoke", json={"keyPrefix": key["keyPrefix"]})
    assert revoked.status_code == 200
    KeyRevoked.model_validate_json(revoked.content)
    assert revoked.json()["key"]["revokedAt"] is not None
    refused = await client.get("/api/v1/credits/balance", headers={"x-api-key": key["apiKey"]})
    assert (refused.status_code, refused.json()["error"]) == (401, "auth_required")
    assert await owner.tokens() == 60_000


async def test_an_ambiguous_prefix_revokes_nothing_and_lists_the_matches(customer, db):
    owner = await customer()
    prefixes: list[str] = []
    async with db.transaction() as conn:  # over HTTP, so many would meet the limit
        user = await account_of_email(conn, owner.email)
        while len({prefix[0] for prefix in prefixes}) == len(prefixes):  # until two begin alike
            prefixes.append((await keys.mint(conn, user.user_id, "x", brand="amai")).key.prefix)
    shared = prefixes[-1][0]
    answer = await owner.client.post(f"{KEYS}/revoke", json={"keyPrefix": shared})
    assert (answer.status_code, answer.json()["error"]) == (409, "ambiguous_prefix")
    assert {prefix for prefix in prefixes if prefix[0] == shared} <= set(answer.json()["details"]["matches"])
    assert all(key["revokedAt"] is None for key in (await owner.client.get(KEYS)).json()["keys"])


async def test_another_accounts_key_cannot_be_revoked(customer):
    owner, stranger = await customer(), await customer()
    prefix = owner.key.removeprefix("amai_live_")[:10]
    answer = await stranger.client.post(f"{KEYS}/revoke", json={"keyPrefix": prefix})
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    assert await owner.tokens() == 60_000


async def test_concurrent_retries_of_a_creation_make_one_key(customer):
    owner = await customer()
    answers = await asyncio.gather(
        *(owner.client.post(KEYS, json={"label": "Agent", "idempotencyKey": "k"}) for _ in range(8))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["apiKey"] for answer in answers}) == 1
    assert len((await owner.client.get(KEYS)).json()["keys"]) == 2


async def test_an_expiry_is_kept_in_utc(customer):
    owner = await customer()
    made = await owner.client.post(KEYS, json={"label": "x", "expiresAt": "2100-01-31T02:00:00+02:00"})
    assert made.json()["expiresAt"] == "2100-01-31T00:00:00Z"
