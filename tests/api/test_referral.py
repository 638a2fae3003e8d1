"""Referral routes by status: one's code, what it earned, and another's code applied."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from sqlalchemy import text

from gateway.account_answers import ReferralApplied, ReferralShown
from kit.ids import new_id
from ledger.users import account_of_email
from payments import purchases
from payments.packages import Package
from payments.purchases import OpenPurchase, PaidSession

REFERRAL, APPLY = "/api/v1/referral", "/api/v1/referral/apply"
SMALL = Package("small", "Small", 10_000, 500, "usd")


@pytest.fixture
def settings(settings):
    """Orders are rewarded as soon as they are paid."""
    return settings.model_copy(update={"referral_hold_s": 0})


@pytest_asyncio.fixture
async def anna(customer):
    return await customer(0)


@pytest_asyncio.fixture
async def ben(customer):
    return await customer(0)


async def code_of(person):
    return (await person.client.get(REFERRAL)).json()["code"]


async def apply(person, code):
    return await person.client.post(APPLY, json={"code": code})


async def order(db, person):
    async with db.transaction() as conn:
        owner = await account_of_email(conn, person.email)
        purchase_id = new_id("pur")
        await purchases.open_purchase(
            conn, OpenPurchase(purchase_id, "stripe", person.email, SMALL, None), owner.user_id
        )
        await purchases.fulfil(
            conn, PaidSession("stripe", f"cs_{purchase_id}", purchase_id, 500, "usd", False, False)
        )


def refused(answer):
    return answer.status_code, answer.json()["error"]


async def test_200_shows_the_code_and_what_it_brought(anna):
    answer = await anna.client.get(REFERRAL)
    assert answer.status_code == 200, answer.text
    ReferralShown.model_validate_json(answer.content)
    body = answer.json()
    assert body == {
        "ok": True,
        "code": body["code"],
        "earned": {"credits": 0.0, "tokens": 0},
        "pending": {"credits": 0.0, "tokens": 0},
        "reward": {"credits": 10.0, "tokens": 1_000},
        "referrals": {"applied": 0, "ordered": 0, "rewarded": 0},
        "applied": None,
    }
    assert (await anna.client.get(REFERRAL)).json() == body


async def test_200_for_a_code_however_it_is_written_and_again(anna, ben):
    code = await code_of(anna)
    first = await apply(ben, f" {code[:4].lower()}-{code[4:]} ")
    assert first.status_code == 200, first.text
    ReferralApplied.model_validate_json(first.content)
    assert first.json()["applied"]["code"] == code
    assert (await apply(ben, code)).json() == first.json()
    assert (await ben.client.get(REFERRAL)).json()["applied"] == first.json()["applied"]


async def test_a_referral_is_pending_with_the_first_order_and_earned_by_the_sweep(
    db, server, anna, ben, assert_sound
):
    await apply(ben, await code_of(anna))
    await order(db, ben)
    body = (await anna.client.get(REFERRAL)).json()
    assert (body["pending"]["tokens"], body["earned"]["tokens"]) == (1_000, 0)
    assert body["referrals"] == {"applied": 0, "ordered": 1, "rewarded": 0}
    await asyncio.gather(server.sweep(), server.sweep())
    body = (await anna.client.get(REFERRAL)).json()
    assert (body["pending"]["tokens"], body["earned"]["tokens"]) == (0, 1_000)
    assert await anna.tokens() == 1_000
    [line] = (await anna.client.get("/api/v1/statement")).json()["data"]
    assert (line["kind"], line["amount"]["tokens"]) == ("referral", 1_000)
    await assert_sound(db)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"code": ""},
        {"code": "short"},
        {"code": "K7Q29XWU"},
        {"code": "K7Q29XWM" * 5},
        {"code": 12345678},
        {"code": None},
        {"code": ["K7Q29XWM"]},
        {"code": "K7Q29XW\u0000"},
        {"code": "K7Q29XWM", "more": 1},
    ],
)
async def test_400_names_the_field(ben, body):
    answer = await ben.client.post(APPLY, json=body)
    assert refused(answer) == (400, "invalid_request")
    assert answer.json()["details"][0]["field"] == ("more" if "more" in body else "code")


@pytest.mark.parametrize(("method", "path"), [("GET", REFERRAL), ("POST", APPLY)])
async def test_401_without_a_valid_key(client, method, path):
    json = {"code": "K7Q29XWM"} if method == "POST" else None
    assert refused(await client.request(method, path, json=json)) == (401, "auth_required")
    stranger = {"x-api-key": "amai_live_" + "L" * 43}
    assert refused(await client.request(method, path, json=json, headers=stranger)) == (401, "auth_required")


async def test_403_without_the_scope_and_for_the_suspended(db, anna, ben):
    made = await ben.client.post("/api/v1/keys", json={"label": "x", "scopes": ["files"]})
    limited = {"authorization": f"Bearer {made.json()['apiKey']}"}
    assert refused(await ben.client.get(REFERRAL, headers=limited)) == (403, "forbidden")
    code = await code_of(anna)
    answer = await ben.client.post(APPLY, json={"code": code}, headers=limited)
    assert refused(answer) == (403, "forbidden")
    async with db.transaction() as conn:
        await conn.execute(text("UPDATE users SET suspended_at = now() WHERE email = :e"), {"e": ben.email})
    assert refused(await apply(ben, code)) == (403, "forbidden")
    assert refused(await ben.client.get(REFERRAL)) == (403, "forbidden")


async def test_404_for_an_unknown_code_and_for_one_of_the_suspended(db, anna, ben):
    code = await code_of(anna)
    async with db.transaction() as conn:
        await conn.execute(text("UPDATE users SET suspended_at = now() WHERE email = :e"), {"e": anna.email})
    unknown = "00000000" if code != "00000000" else "11111111"
    answers = [await apply(ben, each) for each in (unknown, code)]
    assert [refused(answer) for answer in answers] == [(404, "not_found")] * 2
    assert answers[0].json() == answers[1].json()


async def test_409_says_why_a_code_cannot_be_applied(db, customer, anna, ben):
    carl = await customer(0)
    of_anna, of_ben, of_carl = [await code_of(person) for person in (anna, ben, carl)]
    assert refused(await apply(anna, of_anna)) == (409, "self_referral")
    await apply(ben, of_anna)
    assert refused(await apply(ben, of_carl)) == (409, "already_referred")
    assert refused(await apply(anna, of_ben)) == (409, "referral_ring")
    await order(db, carl)
    assert refused(await apply(carl, of_anna)) == (409, "referral_too_late")


async def test_429_after_sixty_looks_and_ten_applications_in_a_minute(anna):
    looks = [await anna.client.get(REFERRAL) for _ in range(61)]
    assert [look.status_code for look in looks] == [200] * 60 + [429]
    tries = [await apply(anna, "00000000") for _ in range(11)]
    assert [answer.status_code for answer in tries] == [404] * 10 + [429]
    assert refused(tries[-1]) == (429, "rate_limited")
    assert tries[0].headers["ratelimit-policy"] == '"referral_apply";q=10;w=60'


async def test_a_test_key_has_no_part_in_referrals(customer):
    owner, other = await customer(), await customer()
    code = (await other.client.get("/api/v1/referral")).json()["code"]
    made = await owner.client.post("/api/v1/keys", json={"label": "play", "mode": "test"})
    play = {"authorization": f"Bearer {made.json()['apiKey']}"}
    for answer in (
        await owner.client.get("/api/v1/referral", headers=play),
        await owner.client.post("/api/v1/referral/apply", json={"code": code}, headers=play),
    ):
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
    live = await owner.client.post("/api/v1/referral/apply", json={"code": code})
    assert live.status_code == 200, live.text
