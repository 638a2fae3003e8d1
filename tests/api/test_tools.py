"""Check and spend over the real books: the printed answers, once for a reference, holds from check to spend."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import text

from gateway.catalog import Price
from gateway.tool_answers import ToolChecked, ToolSpent
from gateway.tool_holds import PlaceHold
from ledger import accounts
from ledger.keys import Credential, hash_key

CHECK = "/api/v1/tools/check"
SPEND = "/api/v1/tools/spend"
JSON = {"content-type": "application/json"}
TURN = {"tool": "chat", "units": 1}


async def check(owner, tool="chat", units: float = 1, **more: Any) -> httpx.Response:
    return await owner.client.post(CHECK, json={"tool": tool, "units": units, **more})


async def spend(owner, reference="r", tool="chat", units: float = 1, **more: Any) -> httpx.Response:
    body = {"tool": tool, "units": units, "reference": reference, **more}
    return await owner.client.post(SPEND, json=body)


async def hold(owner, tool="chat", units: float = 2) -> str:
    answer = await check(owner, tool, units, hold=True)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["hold_id"])


async def sql(db, statement: str) -> Any:
    async with db.transaction() as conn:
        result = await conn.execute(text(statement))
        return result.all() if result.returns_rows else None


@pytest_asyncio.fixture
async def owner(customer):
    """A customer with 10,000 tokens."""
    return await customer(10_000)


# -- the document's own examples -------------------------------------------------------------------------------


async def test_the_printed_check_and_spend_come_back_as_printed(owner):
    checked = await owner.client.post(CHECK, json={"tool": "chat", "units": 1})
    assert checked.json() == {"ok": True, "allowed": True, "cost_tokens": 5, "balance_after": 9995}
    body = {"tool": "chat", "units": 1, "reference": "req_2026-07-03_abc123"}
    spent = await owner.client.post(SPEND, json=body)
    assert spent.json() == {"ok": True, "charged": 5, "balance_after": 9995}
    ToolChecked.model_validate_json(checked.content)
    ToolSpent.model_validate_json(spent.content)
    assert checked.headers["cache-control"] == spent.headers["cache-control"] == "no-store"


async def test_the_printed_402_comes_back_as_printed(customer):
    owner = await customer(2)
    answer = await spend(owner)
    assert answer.status_code == 402
    printed = {"ok": False, "error": "insufficient_credits", "cost_tokens": 5, "balance": 2}
    assert answer.json() == printed | {"message": answer.json()["message"]}
    assert await owner.tokens() == 2


# -- check -----------------------------------------------------------------------------------------------------


async def test_a_check_never_charges_or_holds(owner, db):
    for _ in range(3):
        assert (await check(owner, "image", 3)).json()["balance_after"] == 9_700
    assert await owner.tokens() == 10_000
    assert await sql(db, "SELECT * FROM holds") == []


@pytest.mark.parametrize(
    ("tool", "units", "cost"),
    [
        ("chat", 3, 15),
        ("dub", 0.5, 100),
        ("dub", 0.001, 1),
        ("music", 0.501, 2),
        ("sfx", 1.5, 5),
        ("audio.speak", 2.1, 3),
        ("translate", 100, 1),
        ("translate", 101, 2),
        ("translate", 0.001, 1),
        ("speech2text", 1.0, 10),
    ],
)
async def test_a_cost_is_rounded_up_once(owner, tool: str, units: float, cost: int):
    assert (await check(owner, tool, units)).json()["cost_tokens"] == cost
    assert (await spend(owner, "r", tool, units)).json()["charged"] == cost


@pytest.mark.parametrize("wants_hold", [False, True])
async def test_too_poor_is_not_allowed_and_the_balance_is_unchanged(customer, db, wants_hold: bool):
    owner = await customer(4)
    answer = await check(owner, hold=wants_hold)
    assert answer.status_code == 200
    ToolChecked.model_validate_json(answer.content)
    assert answer.json() == {
        "ok": True,
        "allowed": False,
        "cost_tokens": 5,
        "balance_after": 4,
        "reason": "insufficient_credits",
    }
    assert await sql(db, "SELECT * FROM holds") == []


@pytest.mark.parametrize("wants_hold", [False, True])
@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE accounts SET frozen_at = now() WHERE kind = 'user'", "account_frozen"),
        ("UPDATE api_keys SET cap_tokens = 4, cap_per = 'total'", "key_limit_reached"),
    ],
)
async def test_a_check_says_what_a_spend_would_say(owner, db, statement: str, reason: str, wants_hold: bool):
    await sql(db, statement)
    answer = (await check(owner, hold=wants_hold)).json()
    assert (answer["allowed"], answer["reason"], answer["balance_after"]) == (False, reason, 10_000)
    assert "hold_id" not in answer
    refused = await spend(owner)
    assert (refused.status_code, refused.json()["error"]) == (403, reason)


# -- spend -----------------------------------------------------------------------------------------------------


async def test_the_same_reference_is_charged_once_and_answered_alike(owner, db, assert_sound):
    first = await spend(owner, "a")
    await spend(owner, "b", units=7)
    again = await spend(owner, "a", units=1.000)
    assert again.status_code == 200
    assert again.json() == first.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert await owner.tokens() == 10_000 - 40
    await assert_sound(db)


async def test_409_for_the_same_reference_with_other_units(owner):
    await spend(owner, "a")
    answer = await spend(owner, "a", units=1.001)
    assert (answer.status_code, answer.json()["error"]) == (409, "idempotency_key_reused")
    assert await owner.tokens() == 9_995


async def test_a_reference_belongs_to_one_tool_and_one_account(owner, customer):
    other = await customer(10_000)
    answers = [await spend(owner, "a"), await spend(owner, "a", "sfx"), await spend(other, "a")]
    assert [answer.json()["charged"] for answer in answers] == [5, 3, 5]


async def test_concurrent_spends_of_one_reference_are_one(owner):
    answers = await asyncio.gather(*(spend(owner, "a") for _ in range(12)))
    assert {answer.json()["balance_after"] for answer in answers} == {9_995}
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 11
    assert await owner.tokens() == 9_995


async def test_concurrent_spends_never_go_below_zero(customer, db, assert_sound):
    owner = await customer(23)
    answers = await asyncio.gather(*(spend(owner, f"r{n}") for n in range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] * 4 + [402] * 8
    assert await owner.tokens() == 3
    await assert_sound(db)


async def test_a_402_leaves_the_reference_free(customer):
    owner = await customer(9)
    assert (await spend(owner, "a", units=2)).status_code == 402
    assert (await spend(owner, "a", units=1)).json() == {"ok": True, "charged": 5, "balance_after": 4}


@pytest.mark.parametrize(
    "reference", ["r", "x" * 255, "заказ 7", "火狐\N{FOX FACE}", "a/b?c=d&e", " ", "'; DROP TABLE x"]
)
async def test_a_reference_is_any_printable_text(owner, reference: str):
    first, again = await spend(owner, reference), await spend(owner, reference)
    assert (first.status_code, again.status_code) == (200, 200), first.text
    assert "idempotent-replayed" in again.headers
    assert await owner.tokens() == 9_995


# -- hostile bodies --------------------------------------------------------------------------------------------

BAD_UNITS = [
    "0", "-1", "0.0", "0.0001", "1.2345", "1e-4", "1e308", "1e400", "1000000000.001", "NaN", "Infinity", "-Infinity",
    "true", '"1"', "null", "[1]", "{}",
]  # fmt: skip


@pytest.mark.parametrize("path", [CHECK, SPEND])
@pytest.mark.parametrize("units", BAD_UNITS)
async def test_400_names_units(caller, stub_ledger, path: str, units: str):
    more = ', "reference": "r"' if path == SPEND else ""
    answer = await caller.post(path, content=f'{{"tool": "chat", "units": {units}{more}}}', headers=JSON)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"] == "invalid_request"
    assert answer.json()["details"][0]["field"] == "units"
    assert stub_ledger.calls == []


@pytest.mark.parametrize(
    "units", ["1", "1.0", "1.0000", "1e0", "10e-1", "1.000000000000000000000000000000000000"]
)
async def test_units_mean_the_same_in_any_notation(owner, units: str):
    raw = f'{{"tool": "chat", "units": {units}, "reference": "r"}}'
    assert (await owner.client.post(SPEND, content=raw, headers=JSON)).json()["charged"] == 5
    assert (await spend(owner, "r")).headers["idempotent-replayed"] == "true"


async def test_the_most_units_are_a_plain_402(owner):
    answer = await spend(owner, "r", "dub", 10**9)
    assert (answer.status_code, answer.json()["cost_tokens"]) == (402, 200 * 10**9)


@pytest.mark.parametrize(
    ("path", "changes", "field"),
    [
        (CHECK, {"tool": 1}, "tool"),
        (CHECK, {"tool": "fly"}, "tool"),
        (CHECK, {"tool": "x" * 101}, "tool"),
        (CHECK, {"tool": "consume"}, "tool"),
        (CHECK, {"tool": "chat\0"}, "tool"),
        (CHECK, {"hold": "yes"}, "hold"),
        (CHECK, {"hold": 1}, "hold"),
        (CHECK, {"reference": "r"}, "reference"),
        (CHECK, {"Units": 1}, "Units"),
        (SPEND, {}, "reference"),
        (SPEND, {"reference": ""}, "reference"),
        (SPEND, {"reference": 7}, "reference"),
        (SPEND, {"reference": "x" * 256}, "reference"),
        (SPEND, {"reference": "a\nb"}, "reference"),
        (SPEND, {"reference": "a\tb"}, "reference"),
        (SPEND, {"reference": "a\u2028b"}, "reference"),
        (SPEND, {"reference": "a\0b"}, "reference"),
        (SPEND, {"reference": "\ud800"}, "reference"),
        (SPEND, {"reference": "r", "tool": "grant"}, "tool"),
        (SPEND, {"reference": "r", "hold_id": ""}, "hold_id"),
        (SPEND, {"reference": "r", "hold_id": 7}, "hold_id"),
        (SPEND, {"reference": "r", "holdId": "hold_1"}, "holdId"),
    ],
)
async def test_400_names_the_wrong_field(caller, stub_ledger, path: str, changes: Any, field: str):
    answer = await caller.post(path, content=json.dumps(TURN | changes), headers=JSON)
    assert answer.status_code == 400, answer.text
    assert answer.json()["details"][0]["field"] == field
    assert stub_ledger.calls == []


async def test_an_unknown_tool_lists_those_on_sale(caller):
    answer = await caller.post(CHECK, json={"tool": "fly", "units": 1})
    assert answer.json()["message"].startswith("tool: unknown tool; on sale are chat, image, ")


async def test_all_wrong_fields_are_told_at_once(caller):
    answer = await caller.post(SPEND, json={"tool": 1, "units": "1", "surprise": True})
    faults = {fault["field"] for fault in answer.json()["details"]}
    assert faults == {"tool", "units", "reference", "surprise"}


@pytest.mark.parametrize("path", [CHECK, SPEND])
async def test_401_comes_before_any_look_at_the_body(web, caller, path: str):
    answer = await web.post(path, content=b"{", headers=JSON)
    assert (answer.status_code, answer.json()["error"]) == (401, "auth_required")
    assert (await caller.post(path, content=b"{", headers=JSON)).status_code == 400
    assert (await caller.post(path, content=b"{}", headers={"content-type": "text/plain"})).status_code == 415
    assert (await caller.post(path, content=b" " * 30_000, headers=JSON)).status_code == 413
    assert (await caller.get(path)).status_code == 405


async def test_a_revoked_key_can_neither_check_nor_spend(owner, db):
    held = await hold(owner)
    await sql(db, "UPDATE api_keys SET revoked_at = now()")
    answers = [
        await check(owner),
        await check(owner, hold=True),
        await spend(owner),
        await spend(owner, hold_id=held),
    ]
    assert {(answer.status_code, answer.json()["error"]) for answer in answers} == {(401, "auth_required")}


async def test_403_for_a_suspended_user(owner, db):
    await sql(db, "UPDATE users SET suspended_at = now()")
    for answer in (await check(owner), await check(owner, hold=True), await spend(owner)):
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")


# -- holds -----------------------------------------------------------------------------------------------------


async def test_a_hold_sets_the_cost_aside(owner, db, assert_sound):
    answer = await check(owner, "image", 3, hold=True)
    assert answer.status_code == 200
    ToolChecked.model_validate_json(answer.content)
    held = answer.json()
    assert held | {"hold_id": "", "expires_at": ""} == {
        "ok": True,
        "allowed": True,
        "cost_tokens": 300,
        "balance_after": 9_700,
        "hold_id": "",
        "expires_at": "",
    }
    balance = (await owner.client.get("/api/v1/credits/balance")).json()
    assert (balance["tokens"], balance["held"]["tokens"]) == (9_700, 300)
    lifetime = "SELECT extract(epoch FROM expires_at - created_at) BETWEEN 599 AND 601 FROM holds"
    assert (await sql(db, lifetime))[0][0]
    await assert_sound(db)


async def test_a_spend_out_of_a_hold_charges_the_actual_cost_and_frees_the_rest(owner, db, assert_sound):
    held = await hold(owner, "dub", 10)
    assert await owner.tokens() == 8_000
    answer = await spend(owner, "a", "dub", 2.5, hold_id=held)
    assert answer.json() == {"ok": True, "charged": 500, "balance_after": 9_500}
    assert await owner.tokens() == 9_500
    row = (await sql(db, "SELECT * FROM transfers WHERE kind = 'capture'"))[0]
    assert (row.reference, row.amount, row.units_milli, row.hold_id) == ("a", -500, 2500, held)
    await assert_sound(db)


async def test_a_spend_out_of_a_hold_needs_no_free_credits(customer):
    owner = await customer(10)
    held = await hold(owner)
    assert (await spend(owner, "a")).status_code == 402
    assert (await spend(owner, "a", units=2, hold_id=held)).json()["balance_after"] == 0


async def test_a_freeze_or_a_cap_after_the_hold_does_not_take_it_back(owner, db):
    held = await hold(owner)
    await sql(db, "UPDATE accounts SET frozen_at = now() WHERE kind = 'user'")
    await sql(db, "UPDATE api_keys SET cap_tokens = 0, cap_per = 'total'")
    assert (await spend(owner, "a")).status_code == 403
    assert (await spend(owner, "a", hold_id=held)).status_code == 200


@pytest.mark.parametrize("names_hold", [True, False])
async def test_a_repeat_after_the_capture_is_answered_alike(owner, names_hold: bool):
    held = await hold(owner)
    first = await spend(owner, "a", hold_id=held)
    await spend(owner, "b", units=9)
    again = await spend(owner, "a", **({"hold_id": held} if names_hold else {}))
    assert again.json() == first.json() == {"ok": True, "charged": 5, "balance_after": 9_995}
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    other = await spend(owner, "a", units=2, **({"hold_id": held} if names_hold else {}))
    assert (other.status_code, other.json()["error"]) == (409, "idempotency_key_reused")


async def test_concurrent_captures_charge_the_hold_once(owner, db, assert_sound):
    held = await hold(owner)
    answers = await asyncio.gather(*(spend(owner, f"r{n % 2}", hold_id=held) for n in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 4 + [409] * 4
    assert await owner.tokens() == 9_995
    await assert_sound(db)


async def test_a_spend_above_the_hold_is_refused_and_the_hold_stays(owner):
    held = await hold(owner)
    answer = await spend(owner, "a", units=2.001, hold_id=held)
    assert (answer.status_code, answer.json()["error"]) == (409, "cost_exceeds_limit")
    assert (answer.json()["cost_tokens"], answer.json()["held_tokens"]) == (11, 10)
    assert await owner.tokens() == 9_990
    assert (await spend(owner, "a", units=2, hold_id=held)).json()["charged"] == 10


async def test_a_hold_is_spent_once(owner):
    held = await hold(owner)
    await spend(owner, "a", hold_id=held)
    answer = await spend(owner, "b", hold_id=held)
    assert (answer.status_code, answer.json()["error"]) == (409, "hold_resolved")
    assert await owner.tokens() == 9_995


async def test_404_for_a_hold_of_another_account_a_job_or_nobody(owner, customer, db):
    other = await customer(10_000)
    foreign = await hold(other)
    job = {"task": "image.generate", "input": {"prompt": "fox"}}
    assert (await owner.client.post("/api/v1/media/jobs", json=job)).status_code == 202
    [of_job] = await sql(db, "SELECT hold_id FROM jobs")
    for hold_id, tool in ((foreign, "chat"), (of_job.hold_id, "image"), ("hold_1", "chat")):
        answer = await spend(owner, "a", tool, hold_id=hold_id)
        assert (answer.status_code, answer.json()["message"]) == (404, "No such hold.")
    assert (await spend(other, "a", hold_id=foreign)).status_code == 200


async def test_400_for_a_hold_of_another_tool(owner):
    held = await hold(owner, "image", 1)
    answer = await spend(owner, "a", "chat", hold_id=held)
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (400, "hold_id")
    assert await owner.tokens() == 9_900


async def test_any_key_of_the_account_may_spend_the_hold(owner, client):
    held = await hold(owner)
    key = (await owner.client.post("/api/v1/keys", json={"label": "b"})).json()["apiKey"]
    body = {**TURN, "reference": "a", "hold_id": held}
    assert (await client.post(SPEND, json=body, headers={"x-api-key": key})).status_code == 200


async def test_the_reference_of_a_job_under_way_cannot_be_taken_by_a_capture(owner, db):
    job = {"task": "image.generate", "input": {"prompt": "fox"}}
    job_id = (await owner.client.post("/api/v1/media/jobs", json=job)).json()["jobId"]
    held = await hold(owner, "image", 1)
    answer = await spend(owner, job_id, "image", hold_id=held)
    assert (answer.status_code, answer.json()["error"]) == (409, "idempotency_key_reused")


async def test_an_expired_hold_is_refused_at_once_and_freed_by_the_sweep(owner, server, db, assert_sound):
    held = await hold(owner)
    await sql(db, "UPDATE holds SET expires_at = now() - interval '1 second'")
    for swept in (False, True):
        if swept:
            await server.sweep()
        answer = await spend(owner, "a", hold_id=held)
        assert (answer.status_code, answer.json()["error"]) == (409, "hold_resolved")
        assert "expired" in answer.json()["message"]
        assert await owner.tokens() == (10_000 if swept else 9_990)
    assert (await spend(owner, "a")).status_code == 200
    await assert_sound(db)


async def test_a_hold_that_lives_is_not_swept(owner, server):
    held = await hold(owner)
    await server.sweep()
    assert (await spend(owner, "a", hold_id=held)).status_code == 200


async def test_a_hold_keeps_the_price_of_its_check(owner, ledger):
    """Placed at 3 tokens a turn, version 7; today's price is 5."""
    held = await ledger.hold_tool(
        PlaceHold(Credential(hash_key(owner.key)), "chat", 2000, Price(3, 1, 7), None, "")
    )
    assert held.cost_tokens == 6
    answer = await spend(owner, "a", units=1.5, hold_id=held.hold_id)
    assert answer.json() == {"ok": True, "charged": 5, "balance_after": 9_995}


async def test_a_captured_hold_counts_on_the_key_s_cap_what_it_cost(owner, db):
    await sql(db, "UPDATE api_keys SET cap_tokens = 20, cap_per = 'total'")
    held = await hold(owner, units=3)
    assert (await check(owner, units=2)).json()["reason"] == "key_limit_reached"
    await spend(owner, "a", units=1, hold_id=held)
    assert (await check(owner, units=3)).json()["allowed"] is True


async def test_what_comes_free_pays_a_debt_first_and_the_answer_says_so(owner, db):
    held = await hold(owner, "image", 100)  # all there is
    async with db.transaction() as conn:
        [account] = (await conn.execute(text("SELECT id FROM accounts WHERE kind = 'user'"))).all()
        await accounts.ensure_house(conn, f"debt:{account.id}")
        await conn.execute(text("UPDATE accounts SET debt = 700 WHERE kind = 'user'"))
    answer = await spend(owner, "a", "image", 90, hold_id=held)
    assert answer.json() == {"ok": True, "charged": 9_000, "balance_after": 300}
    assert await owner.tokens() == 300


# -- retried holds ---------------------------------------------------------------------------------------------


async def held_under(owner, key: str, units: float = 2, header: str = "x-idempotency-key") -> httpx.Response:
    body = {"tool": "chat", "units": units, "hold": True}
    return await owner.client.post(CHECK, json=body, headers={header: key})


async def test_a_retried_hold_is_the_same_hold(owner, db):
    first = await held_under(owner, "k")
    await spend(owner, "a", hold_id=first.json()["hold_id"])
    again = await held_under(owner, "k", 2.0, "idempotency-key")
    assert again.json() == first.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert len(await sql(db, "SELECT * FROM holds")) == 1


async def test_concurrent_holds_under_one_key_are_one(owner, db, assert_sound):
    answers = await asyncio.gather(*(held_under(owner, "k") for _ in range(8)))
    assert len({answer.json()["hold_id"] for answer in answers}) == 1
    assert await owner.tokens() == 9_990
    await assert_sound(db)


async def test_409_for_a_held_key_with_another_meaning(owner):
    await held_under(owner, "k")
    answer = await held_under(owner, "k", 3)
    assert (answer.status_code, answer.json()["error"]) == (409, "idempotency_key_reused")
    assert await owner.tokens() == 9_990


async def test_a_refused_hold_leaves_its_key_free(customer, db):
    owner = await customer(9)
    assert (await held_under(owner, "k")).json()["allowed"] is False
    answer = await held_under(owner, "k", 1)
    assert (answer.json()["allowed"], answer.json()["balance_after"]) == (True, 4)


async def test_concurrent_holds_never_hold_more_than_there_is(customer, db, assert_sound):
    owner = await customer(35)
    answers = await asyncio.gather(*(check(owner, units=2, hold=True) for _ in range(8)))
    assert sum(answer.json()["allowed"] for answer in answers) == 3
    assert {a.json()["balance_after"] for a in answers if not a.json()["allowed"]} == {5}
    await assert_sound(db)


async def test_400_for_a_key_that_cannot_be(caller):
    answer = await held_under(type("Owner", (), {"client": caller}), "k" * 256)
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (400, "idempotencyKey")
