"""Credits consumed by hand: once for a key, in both units, never below zero."""

from __future__ import annotations

import asyncio
import json

import pytest
from sqlalchemy import text

from gateway.tool_answers import CreditsConsumed
from ledger.credits import credit

CONSUME = "/api/v1/credits/consume"
KEY = {"x-idempotency-key": "render-001"}


async def test_200_charges_and_answers_in_both_units(customer, db, assert_sound):
    owner = await customer()
    answer = await owner.client.post(CONSUME, json={"credits": 1.5, "reason": "rendering"}, headers=KEY)
    assert answer.status_code == 200, answer.text
    CreditsConsumed.model_validate_json(answer.content)
    assert answer.json() == {
        "ok": True,
        "consumed": 1.5,
        "tokens": 150,
        "balance": 598.5,
        "balanceTokens": 59_850,
    }
    assert '"balance":598.50' in answer.text
    async with db.transaction() as conn:
        row = (await conn.execute(text("SELECT * FROM transfers WHERE tool = 'consume'"))).one()
        house = (await conn.execute(text("SELECT code FROM accounts WHERE kind = 'revenue'"))).scalar_one()
    assert (row.kind, row.reference, row.reason, row.amount) == ("spend", "render-001", "rendering", -150)
    assert house == "revenue:consume"
    await assert_sound(db)


@pytest.mark.parametrize(("written", "tokens"), [("0.01", 1), ("1", 100), ("1.00", 100), ("599.99", 59_999)])
async def test_credits_are_exact(customer, written: str, tokens: int):
    owner = await customer()
    raw = f'{{"credits": {written}, "reason": "x"}}'
    answer = await owner.client.post(
        CONSUME, content=raw, headers={**KEY, "content-type": "application/json"}
    )
    assert answer.json()["tokens"] == tokens
    assert await owner.tokens() == 60_000 - tokens


async def test_a_retry_is_answered_alike_and_charges_nothing(customer):
    owner = await customer()
    first = await owner.client.post(CONSUME, json={"credits": 2, "reason": "a"}, headers=KEY)
    await owner.client.post(CONSUME, json={"credits": 1, "reason": "a"}, headers={"idempotency-key": "other"})
    again = await owner.client.post(
        CONSUME, json={"credits": 2.00, "reason": "a", "idempotencyKey": "render-001"}
    )
    assert again.status_code == 200
    assert again.json() == first.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert await owner.tokens() == 60_000 - 300


@pytest.mark.parametrize("other", [{"credits": 3, "reason": "a"}, {"credits": 2, "reason": "b"}])
async def test_409_for_the_same_key_with_another_meaning(customer, other):
    owner = await customer()
    await owner.client.post(CONSUME, json={"credits": 2, "reason": "a"}, headers=KEY)
    answer = await owner.client.post(CONSUME, json=other, headers=KEY)
    assert (answer.status_code, answer.json()["error"]) == (409, "idempotency_key_reused")
    assert await owner.tokens() == 60_000 - 200


async def test_concurrent_uses_of_one_key_are_one_charge_or_a_conflict(customer):
    owner = await customer()
    answers = await asyncio.gather(
        *(
            owner.client.post(CONSUME, json={"credits": 1, "reason": reason}, headers=KEY)
            for reason in "abababab"
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 4 + [409] * 4
    assert await owner.tokens() == 60_000 - 100


async def test_402_is_not_stored_so_the_key_works_after_a_top_up(customer, db):
    owner = await customer(50)
    poor = await owner.client.post(CONSUME, json={"credits": 1, "reason": "a"}, headers=KEY)
    assert (poor.status_code, poor.json()["error"]) == (402, "insufficient_credits")
    assert (poor.json()["cost_tokens"], poor.json()["balance"]) == (100, 50)
    async with db.transaction() as conn:
        account = (await conn.execute(text("SELECT id FROM accounts WHERE kind = 'user'"))).scalar_one()
        await credit(
            conn, account, kind="grant", house="promotion:test", amount_tokens=70, reference="top-up"
        )
    paid = await owner.client.post(CONSUME, json={"credits": 1, "reason": "a"}, headers=KEY)
    assert (paid.status_code, paid.json()["balanceTokens"]) == (200, 20)
    assert "idempotent-replayed" not in paid.headers


async def test_400_without_an_idempotency_key(customer):
    owner = await customer()
    answer = await owner.client.post(CONSUME, json={"credits": 1, "reason": "a"})
    assert answer.status_code == 400
    assert answer.json()["details"][0]["field"] == "idempotencyKey"
    assert await owner.tokens() == 60_000


async def test_400_for_two_keys_that_differ(customer):
    owner = await customer()
    body = {"credits": 1, "reason": "a", "idempotencyKey": "another"}
    answer = await owner.client.post(CONSUME, json=body, headers=KEY)
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (400, "idempotencyKey")


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ('{"reason": "a"}', "credits"),
        ('{"credits": 1}', "reason"),
        *((f'{{"credits": {bad}, "reason": "a"}}', "credits") for bad in (
            "0", "-1", "0.001", "1.005", "1e308", "1e-9", "NaN", "-Infinity", "true", '"1"', "null", "[1]", "1e10",
        )),
        *((f'{{"credits": 1, "reason": {bad}}}', "reason") for bad in (
            '""', '" "', "7", "null", json.dumps("x" * 201), '"a\\nb"', '"a\\u0000b"', '"\\ud800"',
        )),
        ('{"credits": 1, "reason": "a", "tokens": 5}', "tokens"),
    ],
)  # fmt: skip
async def test_400_names_the_wrong_field(caller, stub_ledger, raw: str, field: str):
    answer = await caller.post(CONSUME, content=raw, headers={**KEY, "content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["details"][0]["field"] == field
    assert stub_ledger.calls == []


async def test_401_for_a_stranger(client):
    answer = await client.post(CONSUME, json={"credits": 1, "reason": "a"}, headers=KEY)
    assert (answer.status_code, answer.json()["error"]) == (401, "auth_required")
