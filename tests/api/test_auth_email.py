"""Sign-in by e-mail: a code is right once, for ten minutes and five tries, and tells nobody who is known."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from sqlalchemy import text

from gateway.account_schemas import SignedIn, SignInStarted
from gateway.app import create_app

START, VERIFY = "/api/v1/auth/email/start", "/api/v1/auth/email/verify"


async def run(db, statement, **values):
    async with db.transaction() as conn:
        return await conn.execute(text(statement), values)


def other_than(code: str) -> str:
    return f"{(int(code) + 1) % 10**8:08}"


async def test_the_right_code_opens_a_session(client, code_of):
    code = await code_of("ada@example.com")
    answer = await client.post(VERIFY, json={"email": "ada@example.com", "code": code})
    assert answer.status_code == 200, answer.text
    SignedIn.model_validate_json(answer.content)
    assert answer.json()["opened"] is True
    assert answer.headers["cache-control"] == "no-store"
    me = await client.get("/api/v1/auth/session")
    assert me.json()["email"] == "ada@example.com"
    assert (await client.get("/api/v1/balance")).json()["tokens"] == 0


async def test_a_code_may_be_typed_with_spaces_and_the_address_in_capitals(client, code_of):
    code = await code_of("ada@example.com")
    typed = f" {code[:4]}-{code[4:6]} {code[6:]} "
    answer = await client.post(VERIFY, json={"email": "Ada@Example.com", "code": typed})
    assert answer.status_code == 200, answer.text


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(client, code_of):
    answer = await client.post(
        VERIFY, json={"email": "a@example.com", "code": await code_of("a@example.com")}
    )
    cookie = answer.headers["set-cookie"].lower()
    assert cookie.startswith("farebox_session=")
    for part in ("httponly", "samesite=lax", "path=/", f"max-age={30 * 24 * 3600}"):
        assert part in cookie
    assert "secure" not in cookie, "this server is reached by plain http"


async def test_under_https_the_cookie_is_secure_and_bound_to_the_host(
    settings, ledger, models, objects, code_of
):
    secure = settings.model_copy(update={"public_url": "https://farebox.test"})
    app = create_app(secure, ledger, models, None, objects)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="https://farebox.test"
    ) as browser:
        code = await code_of("a@example.com")
        answer = await browser.post(VERIFY, json={"email": "a@example.com", "code": code})
        assert answer.headers["set-cookie"].startswith("__Host-farebox_session=")
        assert "secure" in answer.headers["set-cookie"].lower()
        assert (await browser.get("/api/v1/balance")).status_code == 200


async def test_a_code_works_once(client, code_of):
    body = {"email": "ada@example.com", "code": await code_of("ada@example.com")}
    answers = await asyncio.gather(*(client.post(VERIFY, json=body) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400, 400]
    assert {answer.json().get("error") for answer in answers} == {None, "invalid_code"}


async def test_a_new_code_voids_the_old(client, code_of):
    old, new = await code_of("ada@example.com"), await code_of("ada@example.com")
    assert (await client.post(VERIFY, json={"email": "ada@example.com", "code": old})).status_code == 400
    assert (await client.post(VERIFY, json={"email": "ada@example.com", "code": new})).status_code == 200


async def test_after_five_wrong_tries_the_right_code_is_refused_too(client, code_of):
    code = await code_of("ada@example.com")
    for _ in range(4):
        await client.post(VERIFY, json={"email": "ada@example.com", "code": other_than(code)})
    fresh = await code_of("grace@example.com")
    for _ in range(5):
        wrong = await client.post(VERIFY, json={"email": "grace@example.com", "code": other_than(fresh)})
        assert (wrong.status_code, wrong.json()["error"]) == (400, "invalid_code")
    assert (await client.post(VERIFY, json={"email": "ada@example.com", "code": code})).status_code == 200
    assert (await client.post(VERIFY, json={"email": "grace@example.com", "code": fresh})).status_code == 400


async def test_concurrent_guesses_get_five_tries_in_all(client, db, code_of):
    code = await code_of("ada@example.com")
    guesses = [f"{(int(code) + 1 + n) % 10**8:08}" for n in range(12)]
    answers = await asyncio.gather(
        *(client.post(VERIFY, json={"email": "ada@example.com", "code": guess}) for guess in guesses)
    )
    assert {answer.status_code for answer in answers} == {400}
    assert (await run(db, "SELECT tries FROM sign_in_codes")).scalar_one() == 5


async def test_a_code_that_is_over_is_refused(client, db, code_of):
    code = await code_of("ada@example.com")
    await run(db, "UPDATE sign_in_codes SET expires_at = now() - interval '1 second'")
    answer = await client.post(VERIFY, json={"email": "ada@example.com", "code": code})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_code")


async def test_a_code_of_another_address_is_refused(client, code_of):
    code = await code_of("ada@example.com")
    await code_of("eve@example.com")
    assert (await client.post(VERIFY, json={"email": "eve@example.com", "code": code})).status_code == 400


async def test_known_and_unknown_addresses_get_the_same_answers(client, customer, mailbox):
    known = (await customer()).email
    seen = []
    for email in (known, "nobody@example.com"):
        started = await client.post(START, json={"email": email})
        refused = await client.post(VERIFY, json={"email": email, "code": "00000000"})
        SignInStarted.model_validate_json(started.content)
        assert started.json().pop("email") == email
        seen.append((started.status_code, started.text.replace(email, ""), refused.status_code, refused.text))
        assert len(await mailbox(email)) == 1
    assert seen[0] == seen[1]


async def test_a_wrong_code_opens_no_account(client, db, code_of):
    code = await code_of("ada@example.com")
    await client.post(VERIFY, json={"email": "ada@example.com", "code": other_than(code)})
    assert (await run(db, "SELECT count(*) FROM users")).scalar_one() == 0


async def test_sign_in_reaches_the_account_that_the_address_had(client, customer, code_of):
    owner = await customer(700)
    code = await code_of(owner.email)
    answer = await client.post(VERIFY, json={"email": owner.email, "code": code})
    assert answer.json()["opened"] is False
    assert (await client.get("/api/v1/balance")).json()["tokens"] == 700


async def test_the_code_is_stored_as_an_hmac_alone(db, settings, code_of):
    code = await code_of("ada@example.com")
    row = (await run(db, "SELECT * FROM sign_in_codes")).one()
    assert code not in " ".join(str(value) for value in row)
    assert len(row.code_hmac) == 32


async def test_an_address_gets_five_codes_an_hour(client, db, code_of):
    for _ in range(5):
        await code_of("ada@example.com")
    refused = await client.post(START, json={"email": "ada@example.com"})
    assert (refused.status_code, refused.json()["error"]) == (429, "rate_limited")
    assert 3500 < int(refused.headers["retry-after"]) <= 3601
    assert (await client.post(START, json={"email": "grace@example.com"})).status_code == 200
    await run(db, "UPDATE sign_in_codes SET created_at = created_at - interval '1 hour'")
    assert (await client.post(START, json={"email": "ada@example.com"})).status_code == 200


async def test_concurrent_starts_stay_within_the_budget(client, db):
    answers = await asyncio.gather(
        *(client.post(START, json={"email": "ada@example.com"}) for _ in range(12))
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 7
    open_codes = "SELECT count(*) FROM sign_in_codes WHERE consumed_at IS NULL AND voided_at IS NULL"
    assert (await run(db, open_codes)).scalar_one() == 1


async def test_a_network_gets_twenty_codes_an_hour(settings, ledger, models, objects):
    told = settings.model_copy(update={"trusted_proxies": "127.0.0.1,10.0.0.1"})
    app = create_app(told, ledger, models, None, objects)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as web:

        async def start(number: int, address: str) -> int:
            headers = {"x-forwarded-for": f"203.0.113.9, {address}" if address else ""}
            body = {"email": f"user{number}@example.com"}
            return (await web.post(START, json=body, headers=headers)).status_code

        # One household has an IPv6 /64 and all the addresses in it.
        assert {await start(n, f"2606:4700::{n:x}") for n in range(20)} == {200}
        assert await start(20, "2606:4700::ffff") == 429
        assert await start(21, "2606:4700:0:1::1") == 200
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as web:
        assert {await start(30 + n, "") for n in range(25)} == {200}, "a proxy is not a caller"


async def test_all_addresses_together_have_a_budget(server, client):
    server._settings = server._settings.model_copy(update={"sign_in_codes_per_hour": 3})
    statuses = [(await client.post(START, json={"email": f"u{n}@example.com"})).status_code for n in range(4)]
    assert statuses == [200, 200, 200, 429]


async def test_a_suspended_user_can_not_sign_in(client, db, customer, code_of):
    owner = await customer()
    await run(db, "UPDATE users SET suspended_at = now()")
    answer = await client.post(VERIFY, json={"email": owner.email, "code": await code_of(owner.email)})
    assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (START, {}, "email"),
        (START, {"email": "nobody"}, "email"),
        (START, {"email": "a@example.com\r\nbcc: x@example.com"}, "email"),
        (START, {"email": 7}, "email"),
        (START, {"email": "deleted-user_1@invalid"}, "email"),
        (VERIFY, {"email": "a@example.com"}, "code"),
        (VERIFY, {"email": "a@example.com", "code": "123"}, "code"),
        (VERIFY, {"email": "a@example.com", "code": "1234567a"}, "code"),
        (VERIFY, {"email": "a@example.com", "code": "١٢٣٤٥٦٧٨"}, "code"),
        (VERIFY, {"email": "a@example.com", "code": 12345678}, "code"),
    ],
)
async def test_bad_input_is_a_400_that_names_the_field(web, path, body, field):
    answer = await web.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["details"][0]["field"] == field


async def test_a_form_of_another_site_can_not_sign_anybody_in(web):
    answer = await web.post(VERIFY, data={"email": "a@example.com", "code": "12345678"})
    assert answer.status_code == 415
