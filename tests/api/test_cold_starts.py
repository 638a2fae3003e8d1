"""A model without a replica is starting, and says how long that takes: in the health and at each job that waits."""

from __future__ import annotations

import json

from gateway.health import Health
from gateway.ports import ModelState

JOBS = "/api/v1/media/jobs"
FOX = {"task": "image.generate", "input": {"prompt": "a fox"}}


async def test_a_job_that_waits_for_a_start_says_how_long(customer, models):
    models.known["image"] = ModelState("image", "starting", None, asleep=True, starts_in_s=42)
    owner = await customer()
    job_id = (await owner.client.post(JOBS, json=FOX)).json()["jobId"]
    job = (await owner.client.get(f"{JOBS}/{job_id}")).json()
    assert (job["status"], job["startsInSeconds"]) == ("queued", 42)
    await owner.client.post(f"{JOBS}/{job_id}/cancel")
    assert (await owner.client.get(f"{JOBS}/{job_id}")).json()["startsInSeconds"] is None


async def test_a_job_of_a_model_that_works_waits_for_no_start(customer):
    owner = await customer()
    job_id = (await owner.client.post(JOBS, json=FOX)).json()["jobId"]
    assert (await owner.client.get(f"{JOBS}/{job_id}")).json()["startsInSeconds"] is None


async def test_a_model_that_sleeps_makes_nothing_degraded(settings, stub_ledger, models):
    models.known["image"] = ModelState("image", "starting", None, asleep=True, starts_in_s=42)
    health = Health(settings, stub_ledger, models, applications=["image"], version="1", payments="test")
    status, body = await health.probe()
    found = json.loads(body)
    assert (status, found["status"]) == (200, "ready")
    assert found["models"]["image"] == {
        "state": "starting",
        "reason": None,
        "asleep": True,
        "startsInSeconds": 42,
    }
