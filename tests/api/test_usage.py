"""Usage and costs by HTTP: by day, tool, task and key, in both units, and of the caller's own account alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.account_answers import CostShown, UsageShown
from ledger.keys import Credential, hash_key
from ledger.spends import Spend

USAGE, COST, JOBS = "/api/v1/usage", "/api/v1/cost", "/api/v1/media/jobs"
FOX = {"task": "image.generate", "input": {"prompt": "cinematic fox astronaut"}}


async def spend(ledger, owner, reference, *, tool="chat", units_milli=1500, cost=5):
    return await ledger.spend(Spend(Credential(hash_key(owner.key)), tool, reference, units_milli, cost, 1))


async def test_200_usage_is_split_by_everything_unless_asked_otherwise(customer, ledger):
    owner = await customer()
    await spend(ledger, owner, "a")
    await spend(ledger, owner, "b")
    answer = await owner.client.get(USAGE)
    assert answer.status_code == 200, answer.text
    UsageShown.model_validate_json(answer.content)
    used = answer.json()
    today = datetime.now(UTC).date()
    assert (used["since"], used["until"]) == (str(today - timedelta(days=29)), str(today))
    assert used["groupBy"] == ["day", "tool", "task", "key"]
    (row,) = used["data"]
    key_id = row.pop("keyId")
    assert key_id.startswith("key_")
    assert row == {
        "day": str(today),
        "tool": "chat",
        "task": None,
        "keyPrefix": owner.key.removeprefix("amai_live_")[:10],
        "charges": 2,
        "units": 3,
        "charged": {"credits": 0.1, "tokens": 10},
        "refunded": {"credits": 0, "tokens": 0},
        "net": {"credits": 0.1, "tokens": 10},
    }
    assert b'"credits":0.10' in answer.content
    assert used["total"] == {name: row[name] for name in ("charges", "charged", "refunded", "net")}


async def test_200_rows_have_the_dimensions_that_were_asked_for_in_their_own_order(customer, ledger):
    owner = await customer()
    await spend(ledger, owner, "a")
    await spend(ledger, owner, "a", tool="music")
    by_task = (await owner.client.get(USAGE, params={"groupBy": "task,day"})).json()
    assert by_task["groupBy"] == ["day", "task"]
    (row,) = by_task["data"]
    assert not row.keys() & {"tool", "keyId", "keyPrefix", "units"}, "units of two tools are not one number"
    by_tool = (await owner.client.get(USAGE, params={"groupBy": "tool"})).json()
    assert [(row["tool"], row["units"]) for row in by_tool["data"]] == [("chat", 1.5), ("music", 1.5)]
    assert by_tool["total"]["charged"]["tokens"] == 10


async def test_200_a_period_without_use_is_empty_and_both_its_ends_count(customer, ledger):
    owner = await customer()
    await spend(ledger, owner, "a")
    today = datetime.now(UTC).date()
    days = {str(day): day for day in (today, today - timedelta(days=1))}
    for since, until, rows in [(today, today, 1), (today - timedelta(days=1), today - timedelta(days=1), 0)]:
        used = (await owner.client.get(USAGE, params={"since": str(since), "until": str(until)})).json()
        assert len(used["data"]) == rows
        assert used["since"] in days
    ancient = await owner.client.get(USAGE, params={"until": "0001-01-02"})
    assert (ancient.status_code, ancient.json()["data"]) == (200, [])


async def test_200_another_account_sees_nothing_of_it(customer, ledger):
    owner, stranger = await customer(), await customer()
    await spend(ledger, owner, "a")
    assert (await stranger.client.get(USAGE)).json()["data"] == []
    assert (await stranger.client.get(COST, params={"reference": "a"})).status_code == 404


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-13-01"}, "since"),
        ({"since": "20260101"}, "since"),
        ({"since": "2026-W01-1"}, "since"),
        ({"until": "2026-01-01T00:00:00Z"}, "until"),
        ({"since": "2026-01-02", "until": "2026-01-01"}, "until"),
        ({"since": "2025-01-01", "until": "2026-12-31"}, "until"),
        ({"since": "0001-01-01", "until": "9999-12-31"}, "until"),
        ({"groupBy": "hour"}, "groupBy"),
        ({"groupBy": ""}, "groupBy"),
        ({"groupBy": "day,\x00"}, "groupBy"),
    ],
)
async def test_400_names_the_wrong_field_of_usage(customer, params, field):
    owner = await customer()
    answer = await owner.client.get(USAGE, params=params)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert [fault["field"] for fault in answer.json()["details"]] == [field]


async def test_200_the_cost_of_a_reference(customer, ledger):
    owner = await customer()
    await spend(ledger, owner, "req-1")
    await spend(ledger, owner, "req-1", tool="music", cost=7)
    answer = await owner.client.get(COST, params={"reference": "req-1"})
    CostShown.model_validate_json(answer.content)
    cost = answer.json()
    assert (cost["reference"], cost["jobId"], cost["charged"]["tokens"]) == ("req-1", None, 12)
    assert [line["tool"] for line in cost["lines"]] == ["chat", "music"]
    one = (await owner.client.get(COST, params={"reference": "req-1", "tool": "music"})).json()
    assert one["net"] == {"credits": 0.07, "tokens": 7}


async def test_200_the_cost_of_a_job_is_its_own_even_where_a_spend_has_its_id(customer, ledger):
    owner = await customer()
    job_id = (await owner.client.post(JOBS, json=FOX)).json()["jobId"]
    await spend(ledger, owner, job_id)
    answer = await owner.client.get(COST, params={"jobId": job_id})
    CostShown.model_validate_json(answer.content)
    cost = answer.json()
    assert (cost["jobId"], cost["charged"]["tokens"], cost["held"]["tokens"]) == (job_id, 0, 100)
    await owner.client.post(f"{JOBS}/{job_id}/cancel")
    cost = (await owner.client.get(COST, params={"jobId": job_id})).json()
    assert (cost["held"]["tokens"], cost["lines"]) == (0, [])


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({}, 400),
        ({"reference": "a", "jobId": "job_01k8z0c6m5n7q2r4t6v8x0y2z4"}, 400),
        ({"jobId": "job_01k8z0c6m5n7q2r4t6v8x0y2z4", "tool": "chat"}, 400),
        ({"reference": ""}, 400),
        ({"reference": "\x00"}, 400),
        ({"reference": "a", "tool": "\x00"}, 400),
        ({"reference": "a" * 256}, 400),
        ({"reference": "unknown"}, 404),
        ({"reference": "start"}, 404),
        ({"jobId": "job_01k8z0c6m5n7q2r4t6v8x0y2z4"}, 404),
        ({"jobId": "\x00"}, 404),
    ],
)
async def test_400_and_404_of_a_cost(customer, params, status):
    owner = await customer()
    answer = await owner.client.get(COST, params=params)
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("path", [USAGE, f"{COST}?reference=a", "/api/v1/statement", "/api/v1/balance?at=x"])
async def test_401_without_a_key(client, path):
    assert (await client.get(path)).status_code in {400, 401}
    if "at=" not in path:
        assert (await client.get(path)).json()["error"] == "auth_required"
