"""One's own data: an export holds all of it, a deletion leaves the books and nobody's name."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from sqlalchemy import text

from gateway.account_schemas import AccountDeleted, AccountExport, Purchases
from kit.errors import NotFound
from ledger.credits import schedule
from ledger.keys import Credential, hash_key
from payments import purchases
from payments.packages import Package
from payments.purchases import OpenPurchase, PaidSession
from payments.returns import Return

FOX = {"task": "image.generate", "input": {"prompt": "a very personal fox"}}
PACKAGE = Package("starter_100", "Starter", 10_000, 1000, "usd")


async def run(db, statement, **values):
    async with db.transaction() as conn:
        return await conn.execute(text(statement), values)


async def someone_waits(db):
    waiting = await run(
        db,
        "SELECT count(*) > 0 FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    return waiting.scalar_one()


def paid(purchase_id: str, session_id: str) -> PaidSession:
    return PaidSession("stripe", session_id, purchase_id, 1000, "usd", livemode=False, expect_livemode=False)


@pytest_asyncio.fixture
async def resident(person, customer, ledger):
    """Somebody with 300 tokens, a key, a purchase, a queued job and a file, signed in."""
    owner = await customer(300)
    browser = await person(owner.email)
    await ledger.open_purchase(OpenPurchase("pur_1", "stripe", owner.email, PACKAGE, None))
    await ledger.attach_session("pur_1", "cs_test_1")
    await ledger.fulfil(paid("pur_1", "cs_test_1"))
    submitted = await browser.post("/media/jobs", FOX)
    assert submitted.status_code == 202
    uploaded = await owner.client.post("/api/v1/files", files={"file": ("my cat.png", b"cat")})
    assert uploaded.status_code == 200
    browser.key = owner
    browser.job_id = submitted.json()["jobId"]
    browser.file_id = uploaded.json()["id"]
    return browser


async def delete(browser, **fields):
    return await browser.post("/account/delete", {"email": browser.email, "confirm": True, **fields})


async def test_an_export_holds_everything_and_no_secret(resident):
    answer = await resident.get("/account/export")
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == 'attachment; filename="farebox-export.json"'
    assert answer.headers["cache-control"] == "no-store"
    export = AccountExport.model_validate_json(answer.content)
    assert export.user.email == resident.email
    assert [key.label for key in export.keys] == ["test"]
    assert len(export.sessions) == 1
    assert [(bought.package_code, bought.paid_minor) for bought in export.purchases] == [
        ("starter_100", 1000)
    ]
    assert export.auto_topup is None
    assert [(line.kind, line.amount.tokens) for line in export.statement] == [
        ("purchase", 10_000),
        ("grant", 300),
    ]
    assert [job.input["prompt"] for job in export.jobs] == ["a very personal fox"]
    assert [file.name for file in export.files] == ["my cat.png"]
    assert resident.key.key not in answer.text
    assert (await resident.key.client.get("/api/v1/account/export")).status_code == 200, "by key too"


async def test_an_export_is_whole_beyond_one_page_and_nobody_elses(resident, customer, monkeypatch):
    monkeypatch.setattr("gateway.routes.account.PAGE", 2)
    stranger = await customer(100)
    await stranger.client.post("/api/v1/files", files={"file": ("theirs.png", b"x")})
    for n in range(5):
        await resident.key.client.post("/api/v1/files", files={"file": (f"{n}.png", b"x")})
    export = (await resident.get("/account/export")).json()
    assert [file["name"] for file in export["files"]] == [
        "4.png",
        "3.png",
        "2.png",
        "1.png",
        "0.png",
        "my cat.png",
    ]
    assert [line["number"] for line in export["statement"]] == [2, 1]


async def test_purchases_are_listed_in_pages_with_what_went_back_and_to_nobody_else(
    resident, customer, ledger, db
):
    for number in range(2, 5):
        purchase_id = f"pur_{number:026}"
        await ledger.open_purchase(OpenPurchase(purchase_id, "stripe", resident.email, PACKAGE, None))
        await ledger.fulfil(paid(purchase_id, f"cs_test_{number}"))
    await ledger.fulfil(
        replace(
            paid(f"pur_{4:026}", "cs_test_4"),
            returns=(Return("re_1", "refund", 400, "succeeded", 1, stands=True),),
        )
    )
    first = await resident.get("/purchases?limit=3")
    page = Purchases.model_validate_json(first.content)
    assert [(each.paid, each.paid_minor, each.returned_minor) for each in page.data] == [
        (True, 1000, 0),
        (True, 1000, 400),
        (True, 1000, 0),
    ]
    rest = (await resident.get(f"/purchases?limit=3&cursor={page.next_cursor}")).json()
    assert ([each["id"] for each in rest["data"]], rest["nextCursor"]) == ([f"pur_{2:026}"], None)
    export = (await resident.get("/account/export")).json()
    assert len(export["purchases"]) == 4
    stranger = await customer(100)
    assert (await stranger.client.get("/api/v1/purchases")).json()["data"] == []
    limited = await resident.key.client.post("/api/v1/keys", json={"label": "x", "scopes": ["read"]})
    headers = {"authorization": f"Bearer {limited.json()['apiKey']}"}
    assert (await stranger.client.get("/api/v1/purchases", headers=headers)).status_code == 403
    assert (await resident.get("/purchases?cursor=nonsense")).status_code == 400


async def test_a_deletion_forgets_the_person_and_keeps_the_books(resident, db, assert_sound, objects):
    stored = (await run(db, "SELECT storage_key FROM files WHERE job_id IS NULL")).scalar_one()
    answer = await delete(resident, forfeit=True)
    assert answer.status_code == 200, answer.text
    AccountDeleted.model_validate_json(answer.content)
    assert "max-age=0" in answer.headers["set-cookie"].lower()

    assert (await resident.key.client.get("/api/v1/balance")).status_code == 401
    assert (await resident.get("/auth/session")).status_code == 401
    assert not await objects.exists(stored)
    user = (await run(db, "SELECT * FROM users WHERE id = :id", id=resident.user_id)).one()
    assert user.email == f"deleted-{resident.user_id}@invalid"
    tables = ("users", "purchases", "sign_in_codes", "outbox", "api_keys", "jobs", "files")
    for table in tables:
        rows = " ".join(str(row) for row in (await run(db, f"SELECT * FROM {table}")).all())
        for word in (resident.email, "very personal", "my cat", "'test'"):
            assert word not in rows, table
    moves = await run(db, "SELECT kind, amount FROM transfers ORDER BY id")
    assert [tuple(row) for row in moves] == [("grant", 300), ("purchase", 10_000), ("adjustment", -10_300)]
    assert (await run(db, "SELECT status FROM jobs")).scalar_one() == "canceled"
    assert (await run(db, "SELECT state FROM holds")).scalar_one() == "voided"
    await assert_sound(db)


async def test_the_same_address_may_come_back_as_somebody_new(resident, person, db):
    await delete(resident, forfeit=True)
    again = await person(resident.email)
    assert again.user_id != resident.user_id
    assert (await again.get("/balance")).json()["tokens"] == 0
    assert (await again.get("/account/export")).json()["purchases"] == []


async def test_a_balance_is_forfeited_only_when_that_is_said(resident, db):
    answer = await delete(resident)
    assert (answer.status_code, answer.json()["error"]) == (409, "balance_left")
    assert answer.json()["balance"] == 10_300
    assert (await resident.get("/balance")).json()["tokens"] == 10_200, (
        "the job is still queued and its hold stands"
    )
    assert (await resident.get(f"/media/jobs/{resident.job_id}")).json()["status"] == "queued"
    assert (await resident.key.client.get(f"/api/v1/files/{resident.file_id}")).status_code == 200


async def test_an_empty_account_needs_no_forfeit(person):
    assert (await delete(await person())).status_code == 200


async def test_a_deletion_forgets_the_addresses_of_whole_families_of_keys(resident, db):
    made = {"apiKey": resident.key.key}
    for label in ("parent", "child", "grandchild"):
        body = {"label": label, "allowedIps": ["127.0.0.1"]}
        headers = {"x-api-key": made["apiKey"]}
        answer = await resident.client.post("/api/v1/keys", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        made = answer.json()
    assert made["parentId"] is not None
    moved = "UPDATE api_keys SET prefix = prefix || 'x' WHERE label = 'parent'"
    await run(db, moved)  # the row now lies behind its children's, which are then the first to be forgotten
    assert (await delete(resident, forfeit=True)).status_code == 200
    left = "SELECT count(*) FROM api_keys WHERE revoked_at IS NULL OR allowed_ips IS NOT NULL OR label <> 'deleted'"
    assert (await run(db, left)).scalar_one() == 0


async def test_nothing_is_deleted_while_a_job_runs(resident, server, db):
    await server.claim_jobs("run_1", {"image": 1}, 0)
    answer = await delete(resident, forfeit=True)
    assert (answer.status_code, answer.json()["error"]) == (409, "account_in_use")
    assert (await resident.get("/balance")).status_code == 200


async def test_a_debt_is_not_left_behind(person, db):
    browser = await person()
    await run(db, "UPDATE accounts SET debt = 5 WHERE kind = 'user'")
    answer = await delete(browser, forfeit=True)
    assert (answer.status_code, answer.json()["error"]) == (403, "account_frozen")


async def test_the_address_must_be_typed_again(resident, customer):
    other = await customer()
    for email in ("someone@example.com", other.email):
        answer = await resident.post("/account/delete", {"email": email, "confirm": True, "forfeit": True})
        assert answer.status_code == 400
        assert answer.json()["details"][0]["field"] == "email"
    for confirm in (False, None, "true", 1):
        answer = await resident.post("/account/delete", {"email": resident.email, "confirm": confirm})
        assert answer.json()["details"][0]["field"] == "confirm"
    assert (await resident.get("/auth/session")).status_code == 200


async def test_a_key_can_not_delete_the_account(resident):
    body = {"email": resident.email, "confirm": True, "forfeit": True}
    answer = await resident.key.client.post("/api/v1/account/delete", json=body)
    assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
    with_both = await resident.client.post(
        "/api/v1/account/delete",
        json=body,
        headers={"x-csrf-token": resident.csrf_token, "x-api-key": resident.key.key},
    )
    assert with_both.status_code == 403


async def test_credits_that_were_promised_go_with_the_account(person, db, server, assert_sound):
    browser = await person()
    account = "SELECT id FROM accounts WHERE user_id = :id"
    account_id = (await run(db, account, id=browser.user_id)).scalar_one()
    async with db.transaction() as conn:
        await schedule(
            conn,
            account_id,
            kind="grant",
            house="promotion:test",
            amount_tokens=50,
            reference="r",
            starts_at=datetime.now(UTC) + timedelta(days=7),
        )
    assert (await delete(browser)).json()["balance"] == 50
    assert (await delete(browser, forfeit=True)).status_code == 200
    await server.sweep()
    assert (await run(db, "SELECT balance FROM accounts WHERE id = :id", id=account_id)).scalar_one() == 0
    await assert_sound(db)


async def test_a_top_up_that_is_paid_after_the_deletion_opens_a_new_account(person, ledger, db, assert_sound):
    browser = await person()
    credential = Credential(hash_key(browser.client.cookies["farebox_session"].partition(".")[0]))
    await ledger.open_purchase(OpenPurchase("pur_2", "stripe", browser.email, PACKAGE, credential))
    await ledger.attach_session("pur_2", "cs_test_2")
    assert (await delete(browser)).status_code == 200
    await ledger.fulfil(paid("pur_2", "cs_test_2"))
    owners = await run(
        db, "SELECT u.email, a.balance FROM users u JOIN accounts a ON a.user_id = u.id ORDER BY a.balance"
    )
    assert [tuple(row) for row in owners] == [
        (f"deleted-{browser.user_id}@invalid", 0),
        (browser.email, 10_000),
    ]
    assert (await ledger.claim("stripe", "cs_test_2", "first")).email == browser.email
    await assert_sound(db)


async def test_a_claim_gives_no_key_to_a_deleted_account(person, ledger, db, code_of, client):
    await ledger.open_purchase(OpenPurchase("pur_3", "stripe", "ada@example.com", PACKAGE, None))
    await ledger.attach_session("pur_3", "cs_test_3")
    await ledger.fulfil(paid("pur_3", "cs_test_3"))
    browser = await person("ada@example.com")
    assert (await delete(browser, forfeit=True)).status_code == 200
    with pytest.raises(NotFound):
        await ledger.claim("stripe", "cs_test_3", "first")
    assert (await run(db, "SELECT count(*) FROM api_keys WHERE revoked_at IS NULL")).scalar_one() == 0


async def test_a_payment_that_is_granted_beside_a_deletion_is_somebodys(
    person, ledger, db, monkeypatch, assert_sound
):
    browser = await person("ada@example.com")
    await ledger.open_purchase(OpenPurchase("pur_4", "stripe", "ada@example.com", PACKAGE, None))
    await ledger.attach_session("pur_4", "cs_test_4")
    credit, deletions = purchases.credit, []

    async def beside_a_deletion(*args, **facts):
        deletions.append(asyncio.create_task(delete(browser)))
        async with asyncio.timeout(60):
            while not deletions[0].done() and not await someone_waits(db):
                await asyncio.sleep(0.02)
        return await credit(*args, **facts)

    monkeypatch.setattr(purchases, "credit", beside_a_deletion)
    await ledger.fulfil(paid("pur_4", "cs_test_4"))
    assert (await deletions[0]).json()["error"] == "balance_left"
    owners = await run(db, "SELECT u.email, a.balance FROM users u JOIN accounts a ON a.user_id = u.id")
    assert [tuple(row) for row in owners] == [("ada@example.com", 10_000)]
    await assert_sound(db)


async def test_no_key_and_no_session_outlives_a_deletion_that_races_with_it(
    person, customer, code_of, client, db
):
    owner = await customer()
    browser = await person(owner.email)
    code = await code_of(owner.email)
    await asyncio.gather(
        delete(browser, forfeit=True),
        *(owner.client.post("/api/v1/keys", json={"label": f"k{n}"}) for n in range(6)),
        client.post("/api/v1/auth/email/verify", json={"email": owner.email, "code": code}),
    )
    live = await run(
        db,
        "SELECT count(*) FROM api_keys k JOIN users u ON u.id = k.user_id"
        " WHERE u.deleted_at IS NOT NULL AND k.revoked_at IS NULL",
    )
    assert live.scalar_one() == 0
    assert (await run(db, "SELECT count(*) FROM users WHERE deleted_at IS NOT NULL")).scalar_one() == 1
