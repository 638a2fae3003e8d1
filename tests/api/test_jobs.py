"""Jobs over the real books: held when submitted, charged when they succeed, freed otherwise."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.answers import BalanceShown, JobAccepted, Jobs, JobShown
from gateway.leases import Failure, Settlement
from gateway.ports import ModelState, StoredFile
from kit.ids import new_id

JOBS = "/api/v1/media/jobs"
FOX: dict[str, Any] = {
    "task": "image.generate",
    "input": {"prompt": "cinematic fox astronaut", "aspectRatio": "1:1"},
    "creditsToConsume": 1,
}
PIXELS = b"\x89PNG\r\n\x1a\n" + b"pixels" * 1000


async def finish(server, objects, job_id: str) -> None:
    """Do the Runner's part for one job."""
    claimed = {job.id: job for job in await server.claim_jobs("runner", {"image": 100}, 0.0)}[job_id]
    file = StoredFile(
        id=new_id("file"),
        name=f"{job_id}-0.png",
        storage_key=f"outputs/{job_id}/0.png",
        content_type="image/png",
        size_bytes=len(PIXELS),
        sha256=hashlib.sha256(PIXELS).hexdigest(),
        created_at=datetime.now(UTC),
        job_id=job_id,
        facts={"width": 256, "height": 256, "seed": 7},
    )
    await objects.put(file.storage_key, PIXELS, file.content_type)
    metrics = {"queueMs": 1, "runMs": 2, "gpuSeconds": 0.0}
    await server.settle_job(Settlement(job_id, claimed.fence, [file], claimed.quoted_tokens, metrics))


async def test_the_published_request_is_accepted_and_its_cost_held(customer, db, assert_sound):
    owner = await customer()
    answer = await owner.client.post(JOBS, json=FOX, headers={"x-idempotency-key": "job-001"})
    assert answer.status_code == 202, answer.text
    JobAccepted.model_validate_json(answer.content)
    job = answer.json()
    assert job["jobId"] == job["id"]
    assert b'"balanceAfter":599.00' in answer.content
    assert (job["status"], job["balanceAfterTokens"], job["cost"]["quotedTokens"]) == ("queued", 59_900, 100)
    assert answer.headers["location"] == job["urls"]["get"] == f"http://farebox.test{JOBS}/{job['id']}"
    balance = await owner.client.get("/api/v1/credits/balance")
    BalanceShown.model_validate_json(balance.content)
    assert balance.json() == {
        "ok": True,
        "credits": 599.0,
        "tokens": 59_900,
        "held": {"credits": 1.0, "tokens": 100},
    }
    await assert_sound(db)


async def test_a_retry_of_what_was_accepted_is_answered_when_it_could_not_be_done_any_more(customer, models):
    owner = await customer()
    sent = await owner.client.post("/api/v1/files", files={"file": ("fox.png", PIXELS, "image/png")})
    edit = {"task": "image.edit", "input": {"prompt": "at night", "sourceImageFileId": sent.json()["id"]}}
    orders = [FOX | {"idempotencyKey": "fox"}, edit | {"idempotencyKey": "edit"}]
    first = [(await owner.client.post(JOBS, json=order)).json() for order in orders]
    await owner.client.delete(f"/api/v1/files/{sent.json()['id']}")
    for name in list(models.known):
        models.known[name] = ModelState(name, "unavailable", "its model could not be started.", failed=True)
    for order, answer in zip(orders, first, strict=True):
        again = await owner.client.post(JOBS, json=order)
        assert (again.status_code, again.json()) == (202, answer)
        fresh = await owner.client.post(JOBS, json=order | {"idempotencyKey": "fresh"})
        assert fresh.status_code in {404, 503}
    assert await owner.tokens() == 60_000 - 200


async def test_a_replay_returns_the_same_body_and_holds_nothing_again(customer):
    owner = await customer()
    first = await owner.client.post(JOBS, json=FOX, headers={"x-idempotency-key": "job-001"})
    again = await owner.client.post(JOBS, json={**FOX, "idempotencyKey": "job-001"})
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert await owner.tokens() == 59_900
    other = await owner.client.post(JOBS, json={**FOX, "creditsToConsume": 2, "idempotencyKey": "job-001"})
    assert (other.status_code, other.json()["error"]) == (409, "idempotency_key_reused")
    assert await owner.tokens() == 59_900


async def test_concurrent_retries_are_one_job(customer):
    owner = await customer()
    answers = await asyncio.gather(
        *(owner.client.post(JOBS, json={**FOX, "idempotencyKey": "job-001"}) for _ in range(20))
    )
    assert len({answer.json()["jobId"] for answer in answers}) == 1
    assert await owner.tokens() == 59_900


async def test_too_little_money_gets_402_and_the_same_key_works_after_a_top_up(customer, db):
    owner = await customer(99)
    refused = await owner.client.post(JOBS, json={**FOX, "idempotencyKey": "k"})
    assert refused.status_code == 402
    assert (
        refused.json().items() >= {"error": "insufficient_credits", "cost_tokens": 100, "balance": 99}.items()
    )
    assert (await owner.client.get(JOBS)).json()["data"] == []
    await db.run(_grant_one, owner.email)
    accepted = await owner.client.post(JOBS, json={**FOX, "idempotencyKey": "k"})
    assert accepted.status_code == 202
    assert "idempotent-replayed" not in accepted.headers


async def test_of_many_submits_exactly_as_many_pass_as_are_paid_for(customer, db, assert_sound):
    owner = await customer(1_000)
    answers = await asyncio.gather(*(owner.client.post(JOBS, json=FOX) for _ in range(40)))
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(202), statuses.count(402)) == (10, 30)
    assert await owner.tokens() == 0
    await assert_sound(db)


async def test_a_finished_job_is_charged_and_its_output_downloads_without_a_key(  # noqa: PLR0917
    client, customer, server, objects, db, assert_sound
):
    owner = await customer()
    job_id = (await owner.client.post(JOBS, json=FOX)).json()["jobId"]
    queued = (await owner.client.get(f"{JOBS}/{job_id}")).json()
    assert (queued["status"], queued["queuePosition"], queued["cost"]["charged"]) == ("queued", 1, None)
    await finish(server, objects, job_id)

    answer = await owner.client.get(JOBS, params={"jobId": job_id})
    JobShown.model_validate_json(answer.content)
    job = answer.json()
    assert (await owner.client.get(f"{JOBS}/{job_id}")).json().keys() == job.keys()
    assert (job["status"], job["progress"], job["queuePosition"]) == ("succeeded", 1.0, None)
    assert (job["cost"]["chargedTokens"], job["cost"]["heldTokens"]) == (100, 0)
    output = job["output"][0]
    assert (output["contentType"], output["width"], output["seed"]) == ("image/png", 256, 7)
    address = urlsplit(output["url"])
    download = await client.get(f"{address.path}?{address.query}")
    assert download.status_code == 200
    assert download.content == PIXELS
    assert download.headers["content-type"] == "image/png"
    assert download.headers["content-disposition"].startswith("inline;")
    assert download.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in download.headers["content-security-policy"]
    assert await owner.tokens() == 59_900
    await assert_sound(db)


async def test_a_failed_job_costs_nothing_and_says_why(customer, server, db, assert_sound):
    owner = await customer()
    job_id = (await owner.client.post(JOBS, json=FOX)).json()["jobId"]
    claimed = (await server.claim_jobs("runner", {"image": 1}, 0.0))[0]
    await server.fail_job(Failure(job_id, claimed.fence, "model_failed", "The model failed.", False, {}))
    job = (await owner.client.get(f"{JOBS}/{job_id}")).json()
    assert job["status"] == "failed"
    assert job["error"] == {"code": "model_failed", "message": "The model failed."}
    assert (job["cost"]["chargedTokens"], job["cost"]["heldTokens"]) == (0, 0)
    assert await owner.tokens() == 60_000
    await assert_sound(db)


async def test_a_canceled_job_frees_its_hold_and_canceling_again_changes_nothing(customer, db, assert_sound):
    owner = await customer()
    job_id = (await owner.client.post(JOBS, json=FOX)).json()["jobId"]
    for _ in range(2):
        answer = await owner.client.post(f"{JOBS}/{job_id}/cancel")
        assert answer.status_code == 200
        JobShown.model_validate_json(answer.content)
        assert answer.json()["status"] == "canceled"
    assert await owner.tokens() == 60_000
    await assert_sound(db)


async def test_jobs_are_listed_in_pages_newest_first(customer):
    owner = await customer()
    made = [(await owner.client.post(JOBS, json=FOX)).json()["jobId"] for _ in range(5)]
    await owner.client.post(f"{JOBS}/{made[0]}/cancel")
    seen: list[str] = []
    cursor = None
    for _ in range(3):
        answer = await owner.client.get(JOBS, params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
        Jobs.model_validate_json(answer.content)
        seen += [job["id"] for job in answer.json()["data"]]
        cursor = answer.json()["nextCursor"]
    assert seen == made[::-1]
    assert cursor is None
    canceled = await owner.client.get(JOBS, params={"status": "canceled"})
    assert [job["id"] for job in canceled.json()["data"]] == [made[0]]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"status": "done"}, "status"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "job_\x00"}, "cursor"),
    ],
)
async def test_a_wrong_query_is_named(customer, params, field):
    owner = await customer()
    answer = await owner.client.get(JOBS, params=params)
    assert answer.status_code == 400, answer.text
    assert answer.json()["details"][0]["field"] == field


@pytest.mark.parametrize(
    "name", ["job_01k8z0c6m5n7q2r4t6v8x0y2z4", "1", "job_%00", "job_%F0%9F%A6%8A", "..%2fkeys", "x" * 3000]
)
async def test_a_job_that_is_not_there_is_404(customer, name: str):
    owner = await customer()
    for answer in (
        await owner.client.get(f"{JOBS}/{name}"),
        await owner.client.post(f"{JOBS}/{name}/cancel"),
    ):
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


async def test_another_accounts_job_is_404(customer):
    owner, stranger = await customer(), await customer()
    job_id = (await owner.client.post(JOBS, json=FOX)).json()["jobId"]
    for answer in (
        await stranger.client.get(f"{JOBS}/{job_id}"),
        await stranger.client.post(f"{JOBS}/{job_id}/cancel"),
    ):
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    assert (await stranger.client.get(JOBS)).json()["data"] == []
    assert (await owner.client.get(f"{JOBS}/{job_id}")).json()["status"] == "queued"


async def _grant_one(conn, email: str) -> None:
    from ledger.credits import credit
    from ledger.users import account_of_email

    owner = await account_of_email(conn, email)
    await credit(
        conn, owner.account_id, kind="grant", house="promotion:test", amount_tokens=1, reference="top-up"
    )
