"""Jobs watched: every change once, an end to every stream, and a submit that waits."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from gateway import watching
from gateway.leases import Failure, Heartbeat
from gateway.routes import job_events, media
from kit.errors import Unavailable

JOBS = "/api/v1/media/jobs"
FOX = {"task": "image.generate", "input": {"prompt": "fox"}}


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch):
    monkeypatch.setattr(watching, "LOOK_S", 0.01)


def events(answer: httpx.Response) -> list[tuple[str, str | None, dict]]:
    """Read a whole stream as (event, id, data)."""
    found = []
    for block in answer.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append((fields["event"], fields.get("id"), json.loads(fields["data"])))
    return found


async def submitted(owner) -> str:
    return (await owner.client.post(JOBS, json=FOX)).json()["jobId"]


async def take(server, job_id: str):
    return {job.id: job for job in await server.claim_jobs("runner", {"image": 100}, 0.0)}[job_id]


async def fail(server, job) -> None:
    await server.fail_job(Failure(job.id, job.fence, "model_failed", "No.", retryable=False, metrics={}))


@pytest.fixture
def between_looks(monkeypatch):
    """`between_looks(first, second, ...)` does one of these after each event of the stream."""

    def script(*steps):
        async def stepped(*args):
            left = list(steps)
            async for job in watching.watch(*args):
                yield job
                if job is not None and left:
                    await left.pop(0)()

        monkeypatch.setattr(job_events, "watch", stepped)

    return script


async def test_a_watcher_sees_every_state_once_and_the_stream_ends_with_the_job(
    customer, server, between_looks
):
    owner = await customer()
    job_id = await submitted(owner)
    taken = []

    async def start():
        taken.append(await take(server, job_id))

    async def progress():
        await server.renew_leases([Heartbeat(job_id, taken[0].fence, 40)])

    async def end():
        await fail(server, taken[0])

    between_looks(start, progress, end)
    answer = await owner.client.get(f"{JOBS}/{job_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    seen = events(answer)
    assert [(event, name, data["status"], data["progress"]) for event, name, data in seen] == [
        ("job", "queued-0", "queued", 0.0),
        ("job", "running-0", "running", 0.0),
        ("job", "running-40", "running", 0.4),
        ("job", "failed-40", "failed", 0.4),
    ]
    assert seen[-1][2] == (await owner.client.get(f"{JOBS}/{job_id}")).json()


async def test_whoever_saw_the_end_is_told_to_stay_away(customer, server):
    owner = await customer()
    job_id = await submitted(owner)
    await fail(server, await take(server, job_id))
    last = events(await owner.client.get(f"{JOBS}/{job_id}/events"))[-1]
    again = await owner.client.get(f"{JOBS}/{job_id}/events", headers={"last-event-id": last[1]})
    assert (again.status_code, again.content) == (204, b"")
    other = await owner.client.get(f"{JOBS}/{job_id}/events", headers={"last-event-id": "running-40"})
    assert [data["status"] for _, _, data in events(other)] == ["failed"]


async def test_a_key_revoked_while_it_watches_sees_no_more(customer, between_looks):
    owner = await customer()
    job_id = await submitted(owner)
    made = (await owner.client.post("/api/v1/keys", json={"label": "watcher"})).json()

    async def revoke():
        revoked = await owner.client.post("/api/v1/keys/revoke", json={"keyPrefix": made["keyPrefix"]})
        assert revoked.status_code == 200

    between_looks(revoke)
    answer = await owner.client.get(
        f"{JOBS}/{job_id}/events", headers={"authorization": f"Bearer {made['apiKey']}"}
    )
    assert [event for event, _, _ in events(answer)] == ["job", "error"]
    assert events(answer)[-1][2]["error"] == "auth_required"


async def test_who_asks_for_the_head_of_a_stream_is_answered_at_once(customer):
    owner = await customer()
    job_id = await submitted(owner)
    async with asyncio.timeout(20):
        answer = await owner.client.head(f"{JOBS}/{job_id}/events")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")


async def test_nobody_watches_anothers_job(customer):
    owner, other = await customer(), await customer()
    job_id = await submitted(owner)
    refused = await other.client.get(f"{JOBS}/{job_id}/events")
    assert (refused.status_code, refused.json()["error"]) == (404, "not_found")


async def test_a_submit_that_waits_answers_with_the_ended_job(customer, server):
    owner = await customer()

    async def work():
        while not (jobs := await server.claim_jobs("runner", {"image": 1}, 0.1)):
            continue
        await fail(server, jobs[0])

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        answer = await owner.client.post(JOBS, json=FOX, headers={"prefer": "wait=30"})
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert answer.headers["preference-applied"] == "wait=30"
    assert answer.headers["location"] == answer.json()["urls"]["get"]


async def test_a_wait_that_ends_first_is_a_plain_202(customer):
    owner = await customer()
    answer = await owner.client.post(JOBS, json=FOX, headers={"prefer": "wait=0"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert "preference-applied" not in answer.headers


async def test_a_job_that_was_accepted_is_answered_so_whatever_becomes_of_the_wait(customer, monkeypatch):
    async def away(*args):
        raise Unavailable("The ledger", 2)

    owner = await customer()
    monkeypatch.setattr(media, "ended_within", away)
    answer = await owner.client.post(JOBS, json=FOX, headers={"prefer": "wait=30"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
