"""Sessions: usable wherever a key is, guarded against other sites, over from the next request on."""

from __future__ import annotations

import httpx
import pytest
from sqlalchemy import text

from gateway.account_schemas import SignedOutEverywhere, WhoAmI
from gateway.app import create_app
from gateway.session_cookie import SessionCookie

COOKIE = "farebox_session"
FOX = {"task": "image.generate", "input": {"prompt": "fox"}}


async def run(db, statement, **values):
    async with db.transaction() as conn:
        return await conn.execute(text(statement), values)


async def test_a_session_works_wherever_a_key_does(person, customer):
    owner = await customer(300)
    browser = await person(owner.email)
    assert (await browser.get("/credits/balance")).json()["tokens"] == 300
    made = await browser.post("/keys", {"label": "from the page"})
    assert made.status_code == 200, made.text
    assert made.json()["parentId"] is None, "a session's own end limits no key that it makes"
    prefix = made.json()["keyPrefix"]
    rotated = await browser.post("/keys/rotate", {"keyPrefix": prefix, "overlapSeconds": 0})
    assert rotated.status_code == 200, rotated.text
    gone = await browser.post("/keys/revoke", {"keyPrefix": rotated.json()["keyPrefix"]})
    assert gone.status_code == 200, gone.text
    listed = (await browser.get("/keys")).json()["keys"]
    assert {key["keyPrefix"] for key in listed} > {prefix, rotated.json()["keyPrefix"]}, "all, as a full key"
    spent = await browser.post("/tools/spend", {"tool": "chat", "units": 1, "reference": "turn-1"})
    assert (spent.status_code, spent.json()["charged"]) == (200, 5), spent.text
    assert '"tokens":5' in (await browser.get("/usage")).text
    assert '"turn-1"' in (await browser.get("/statement")).text
    checkout = {"email": browser.email, "packageCode": "starter_100"}
    assert (await browser.post("/checkout/stripe", checkout)).json()["error"] == "payments_unavailable"
    submitted = await browser.post("/media/jobs", FOX)
    assert submitted.status_code == 202, submitted.text
    job_id = submitted.json()["jobId"]
    assert [job["id"] for job in (await browser.get("/media/jobs")).json()["data"]] == [job_id]
    assert (await browser.post(f"/media/jobs/{job_id}/cancel")).json()["status"] == "canceled"
    uploaded = await browser.client.post(
        "/api/v1/files", files={"file": b"x"}, headers={"x-csrf-token": browser.csrf_token}
    )
    assert uploaded.status_code == 200, uploaded.text
    gone = await browser.client.delete(
        f"/api/v1/files/{uploaded.json()['id']}", headers={"x-csrf-token": browser.csrf_token}
    )
    assert gone.status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/keys"),
        ("POST", "/keys/rotate"),
        ("POST", "/keys/revoke"),
        ("POST", "/media/jobs"),
        ("POST", "/media/jobs/job_01k8z0c6m5n7q2r4t6v8x0y2z4/cancel"),
        ("POST", "/files"),
        ("DELETE", "/files/file_01k8z0d1b3c5d7f9g1h3j5k7m9"),
        ("POST", "/checkout/stripe"),
        ("POST", "/credits/consume"),
        ("POST", "/tools/spend"),
        ("POST", "/auth/sign-out"),
        ("POST", "/auth/sign-out-everywhere"),
        ("POST", "/account/delete"),
    ],
)
async def test_a_write_by_cookie_needs_its_csrf_token(person, method, path):
    browser = await person()
    body = {"email": browser.email, "packageCode": "starter_100"}
    other = SessionCookie(b"the secret of another server", secure=False).csrf_token("x")
    for token in ({}, {"x-csrf-token": ""}, {"x-csrf-token": other}, {"x-csrf-token": b"\xe4"}):
        answer = await browser.client.request(method, f"/api/v1{path}", json=body, headers=token)
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden"), token
    assert (await browser.get("/auth/session")).status_code == 200


async def test_the_csrf_token_of_one_session_is_worth_nothing_in_another(person):
    ada, eve = await person("ada@example.com"), await person("eve@example.com")
    ada.csrf_token = eve.csrf_token
    assert (await ada.post("/keys", {"label": "x"})).status_code == 403


async def test_a_forged_cookie_never_reaches_the_books(web, stub_ledger, settings):
    forged = SessionCookie(b"another secret altogether", secure=False)
    token = forged.new_token()
    for value in ("", "x", "x.y", f"{token}.{forged._mac('session', token)}", f"{token}.", "é.é", "." * 5000):
        answer = await web.get("/api/v1/balance", headers={"cookie": f"{COOKIE}={value}".encode()})
        assert (answer.status_code, answer.json()["error"]) == (401, "auth_required"), value
    assert stub_ledger.calls == []


async def test_a_session_token_is_no_api_key(client, person):
    browser = await person()
    token = browser.client.cookies[COOKIE].partition(".")[0]
    for key in (token, f"amai_live_{token}"):
        answer = await client.get("/api/v1/balance", headers={"x-api-key": key})
        assert answer.status_code == 401


async def test_who_am_i_gives_the_csrf_token_again(person, customer):
    browser, owner = await person(), await customer()
    me = await browser.get("/auth/session")
    WhoAmI.model_validate_json(me.content)
    assert me.json()["csrfToken"] == browser.csrf_token
    by_key = (await owner.client.get("/api/v1/auth/session")).json()
    assert (by_key["via"], by_key["csrfToken"]) == ("key", None)
    both = await browser.client.get("/api/v1/auth/session", headers={"x-api-key": owner.key})
    assert (both.json()["email"], both.json()["via"]) == (owner.email, "key")


async def test_a_key_wins_over_a_cookie(person, customer):
    browser, owner = await person(), await customer(50)
    with_key = {"x-api-key": owner.key}
    assert (await browser.client.get("/api/v1/balance", headers=with_key)).json()["tokens"] == 50
    made = await browser.client.post("/api/v1/keys", json={"label": "x"}, headers=with_key)
    assert made.status_code == 200, "a key's write needs no CSRF token"
    wrong = await browser.client.get("/api/v1/balance", headers={"x-api-key": "amai_live_wrong"})
    assert wrong.status_code == 401


async def test_signing_out_ends_this_session_alone(person):
    first, second = await person(), await person()
    kept = dict(first.client.cookies)
    answer = await first.post("/auth/sign-out")
    assert answer.status_code == 200
    assert "max-age=0" in answer.headers["set-cookie"].lower()
    assert not first.client.cookies
    first.client.cookies.update(kept)
    assert (await first.get("/auth/session")).status_code == 401
    assert (await first.post("/auth/sign-out")).status_code == 200, "signing out twice is no error"
    assert (await second.get("/auth/session")).status_code == 200


async def test_signing_out_everywhere_ends_all_sessions_and_no_key(person, customer):
    owner = await customer(10)
    first, second, other = await person(owner.email), await person(owner.email), await person()
    answer = await first.post("/auth/sign-out-everywhere")
    SignedOutEverywhere.model_validate_json(answer.content)
    assert answer.json()["sessions"] == 2
    assert (await second.get("/auth/session")).status_code == 401
    assert (await other.get("/auth/session")).status_code == 200
    assert await owner.tokens() == 10


@pytest.mark.parametrize(
    "limits",
    [
        {"scopes": ["read", "keys"]},
        {"expiresAt": "2100-01-31T00:00:00Z"},
        {"spendLimit": {"credits": 1, "per": "day"}},
    ],
)
async def test_a_limited_key_has_no_say_in_sessions_and_no_export(person, limits):
    browser = await person()
    made = (await browser.post("/keys", {"label": "limited", **limits})).json()
    by_key = {"x-api-key": made["apiKey"]}
    assert (await browser.client.get("/api/v1/auth/session", headers=by_key)).json()["via"] == "key"
    for method, path in (("POST", "/auth/sign-out-everywhere"), ("GET", "/account/export")):
        refused = await browser.client.request(method, f"/api/v1{path}", headers=by_key)
        assert (refused.status_code, refused.json()["error"]) == (403, "forbidden")
    assert (await browser.get("/auth/session")).status_code == 200


async def test_a_key_outlives_the_session_that_made_it(person, client):
    browser = await person()
    made = (await browser.post("/keys", {"label": "stays"})).json()
    await browser.post("/auth/sign-out")
    assert (await client.get("/api/v1/balance", headers={"x-api-key": made["apiKey"]})).status_code == 200


async def test_a_sign_in_ends_the_session_that_the_browser_had(app, person, code_of):
    browser = await person()
    old = dict(browser.client.cookies)
    code = await code_of(browser.email)
    answer = await browser.client.post(
        "/api/v1/auth/email/verify", json={"email": browser.email, "code": code}
    )
    assert answer.status_code == 200
    assert (await browser.get("/auth/session")).status_code == 200
    browser.client.cookies.update(old)
    assert (await browser.get("/auth/session")).status_code == 401


async def test_a_session_ends_after_thirty_days(person, db):
    browser = await person()
    ends = "SELECT expires_at - created_at = interval '30 days' FROM api_keys WHERE kind = 'session'"
    assert (await run(db, ends)).scalar_one() is True
    await run(db, "UPDATE api_keys SET expires_at = now() WHERE kind = 'session'")
    assert (await browser.get("/auth/session")).status_code == 401


async def test_suspension_holds_from_the_next_request_on_for_keys_and_sessions(person, customer, db):
    owner = await customer(300)
    browser = await person(owner.email)
    await run(db, "UPDATE users SET suspended_at = now() WHERE id = :id", id=browser.user_id)
    for answer in (
        await browser.get("/balance"),
        await browser.post("/media/jobs", FOX),
        await browser.get("/account/export"),
        await owner.client.get("/api/v1/balance"),
    ):
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
    await run(db, "UPDATE users SET suspended_at = NULL")
    assert (await browser.get("/balance")).status_code == 200


async def test_lists_of_keys_and_revocation_by_prefix_never_meet_a_session(person, customer):
    owner = await customer()
    browser = await person(owner.email)
    listed = (await browser.get("/keys")).json()["keys"]
    assert [key["label"] for key in listed] == ["test"]
    token = browser.client.cookies[COOKIE]
    refused = await browser.post("/keys/revoke", {"keyPrefix": token[:10]})
    assert refused.status_code == 404
    for each in "0123456789":
        await browser.post("/keys/revoke", {"keyPrefix": each})
    assert (await browser.get("/auth/session")).status_code == 200


async def test_a_blocked_region_gets_403_everywhere_but_on_health_and_pages(
    settings, ledger, models, objects, customer
):
    owner = await customer(10)
    told = settings.model_copy(update={"country_header": "cf-ipcountry", "blocked_countries": "KP,ir"})
    app = create_app(told, ledger, models, None, objects)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://t", headers={"x-api-key": owner.key}
    ) as web:

        async def status(path: str, country: str | None) -> int:
            return (await web.get(path, headers={"cf-ipcountry": country} if country else {})).status_code

        for path in ("/api/v1/balance", "/api/v1/packages", "/account", "/credits", "/sign-in", "/v1/models"):
            for country in ("KP", "IR", "ir", "FR, KP"):
                assert await status(path, country) == 403, (path, country)
        for path in ("/api/v1/health", "/", "/pricing", "/docs", "/static/farebox.css"):
            assert await status(path, "KP") == 200, path
        assert await status("/api/v1/balance", "FR") == 200
        assert await status("/api/v1/balance", None) == 200
        refused = await web.get("/api/v1/balance", headers={"cf-ipcountry": "KP"})
        assert refused.json()["error"] == "forbidden"
        assert refused.headers["x-request-id"]


async def test_nobody_is_blocked_unless_an_operator_says_so(customer):
    owner = await customer(10)
    answer = await owner.client.get("/api/v1/balance", headers={"cf-ipcountry": "KP"})
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/account", "/credits", "/sign-in"])
async def test_pages_hold_nothing_personal(person, path):
    browser = await person("ada@example.com")
    answer = await browser.client.get(path)
    assert answer.status_code == 200
    assert browser.email not in answer.text
    assert browser.csrf_token not in answer.text


async def test_the_account_page_of_a_stranger_is_the_sign_in_form(client, person):
    assert 'id="ask"' in (await client.get("/account")).text
    browser = await person()
    assert 'id="make"' in (await browser.client.get("/account")).text


@pytest.mark.parametrize("wanted", ["https://evil.example", "//evil.example", "/docs", "javascript:alert(1)"])
async def test_a_sign_in_leads_to_pages_of_ours_alone(web, wanted):
    assert 'data-next="/account"' in (await web.get("/sign-in", params={"next": wanted})).text
    assert 'data-next="/credits"' in (await web.get("/sign-in", params={"next": "/credits"})).text
