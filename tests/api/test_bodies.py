"""What a body may be: anything else is refused by name, and nothing of it reaches the ledger."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

JOB: dict[str, Any] = {
    "task": "image.generate",
    "input": {"prompt": "cinematic fox astronaut", "aspectRatio": "1:1"},
    "creditsToConsume": 1,
}
JSON = {"content-type": "application/json"}


async def submit(
    caller: httpx.AsyncClient, raw: str | bytes, headers: dict[str, str] = JSON
) -> httpx.Response:
    return await caller.post("/api/v1/media/jobs", content=raw, headers=headers)


def changed(**fields: Any) -> str:
    return json.dumps({**JOB, **fields})


def with_input(**fields: Any) -> str:
    return json.dumps({**JOB, "input": {**JOB["input"], **fields}})


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ("", "body: is empty"),
        (" \n", "body: is empty"),
        ("{", "body: is not JSON"),
        ('{"task": }', "at line 1, column 10"),
        ("[1]", "body: must be a JSON object"),
        ('"image.generate"', "body: must be a JSON object"),
        ("null", "body: must be a JSON object"),
        ('{"creditsToConsume": NaN}', "NaN is not a number"),
        ('{"creditsToConsume": -Infinity}', "-Infinity is not a number"),
        ('{"creditsToConsume": 1e99999999999999999999}', "creditsToConsume: is a number out of all bounds"),
        ('{"creditsToConsume": ' + "9" * 5000 + "}", "creditsToConsume: is a number out of all bounds"),
        ('{"input": {"a": [1.5, 1e-99999999999999999999]}}', "input.a.1: is a number out of all bounds"),
        ("1e99999999999999999999", "body: is a number out of all bounds"),
        ('{"a": 1e99999999999999999999, "b": ' + "[" * 9000, "nested too deeply"),
        ('{"a": 1e99999999999999999999, "b": }', "body: is not JSON"),
        ('{"task": "a", "task": "b"}', "task: appears twice"),
        ('{"input": {"prompt": "a", "prompt": "b"}}', "prompt: appears twice"),
        ("[" * 9000, "nested too deeply"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "nested too deeply"),
        (b'{"task": "\xff"}', "body: is not UTF-8"),
        ('{"task": "a"}'.encode("utf-16"), "body: is not"),
        (b"\xef\xbb\xbf{}", "body: is not JSON"),
        ('{"task": "a\x01b"}', "body: is not JSON"),
        ('{"task": "a"} x', "body: is not JSON"),
        (with_input(prompt="a\x00b"), "input.prompt: holds control characters"),
        (with_input(prompt="a\x7fb"), "input.prompt: holds control characters"),
        (with_input(prompt="a\x9fb"), "input.prompt: holds control characters"),
        (r'{"input": {"prompt": "\ud800"}}', "input.prompt: holds control characters or half a character"),
        (r'{"input": {"a": ["ok", "\b"]}}', "input.a.1: holds control characters"),
        (r'{"a\u0000b": 1}', "a?b: holds control characters"),
    ],
)
async def test_what_is_not_our_kind_of_json_is_refused(caller, stub_ledger, raw: str | bytes, complaint: str):
    answer = await submit(caller, raw)
    assert answer.status_code == 400
    assert answer.json()["error"] == "invalid_request"
    assert complaint in answer.json()["message"]
    assert stub_ledger.calls == []


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (changed(task=1), "task"),
        (changed(task=None), "task"),
        (changed(task="image.fly"), "task"),
        (changed(task="x" * 200), "task"),
        (changed(input="a fox"), "input"),
        (changed(input=[]), "input"),
        ('{"input": {"prompt": "a"}}', "task"),
        ('{"task": "image.generate"}', "input"),
        (changed(creditsToConsume="1"), "creditsToConsume"),
        (changed(creditsToConsume=True), "creditsToConsume"),
        (changed(creditsToConsume=0), "creditsToConsume"),
        (changed(creditsToConsume=-1), "creditsToConsume"),
        (changed(creditsToConsume=0.001), "creditsToConsume"),
        (changed(creditsToConsume=1.005), "creditsToConsume"),
        (changed(creditsToConsume=1e300), "creditsToConsume"),
        (changed(creditToConsume=1), "creditToConsume"),
        (changed(idempotencyKey=7), "idempotencyKey"),
        (changed(idempotencyKey=""), "idempotencyKey"),
        (changed(idempotencyKey="k" * 256), "idempotencyKey"),
        (changed(idempotencyKey="käse"), "idempotencyKey"),
        (changed(input={}), "input.prompt"),
        (with_input(prompt=""), "input.prompt"),
        (with_input(prompt="  "), "input.prompt"),
        (with_input(prompt="x" * 4001), "input.prompt"),
        (with_input(prompt=None), "input.prompt"),
        (with_input(prompt=7), "input.prompt"),
        (with_input(negativePrompt="x" * 4001), "input.negativePrompt"),
        (with_input(aspectRatio="2:1"), "input.aspectRatio"),
        (with_input(aspect_ratio="1:1"), "input.aspect_ratio"),
        (with_input(seed=-1), "input.seed"),
        (with_input(seed=2**32), "input.seed"),
        (with_input(seed="7"), "input.seed"),
        (with_input(seed=7.5), "input.seed"),
        (with_input(seed=True), "input.seed"),
        (with_input(steps=1), "input.steps"),
        (with_input(steps=51), "input.steps"),
        (with_input(guidance=0.5), "input.guidance"),
        (with_input(guidance="4"), "input.guidance"),
        (with_input(guidance=10.01), "input.guidance"),
        (with_input(guidance=1, negativePrompt="people"), "input"),
        (with_input(outputFormat="gif"), "input.outputFormat"),
        (with_input(n=2), "input.n"),
    ],
)
async def test_a_wrong_field_is_named(caller, stub_ledger, raw: str, field: str):
    answer = await submit(caller, raw)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"] == "invalid_request"
    assert answer.json()["details"][0]["field"] == field
    assert answer.json()["message"].startswith(f"{field}: ")
    assert stub_ledger.calls == []


async def test_an_unknown_task_lists_the_known_ones(caller):
    assert (
        "this server offers image.generate"
        in (await submit(caller, changed(task="image.dance"))).json()["message"]
    )


async def test_all_wrong_fields_are_told_at_once(caller):
    answer = await submit(caller, changed(task=1, creditsToConsume="1", surprise=True))
    assert {fault["field"] for fault in answer.json()["details"]} == {"task", "creditsToConsume", "surprise"}


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "text/plain"},
        {"content-type": "application/jsonp"},
        {"content-type": "text/json"},
        {},
    ],
)
async def test_other_content_types_get_415_with_a_hint(caller, headers: dict[str, str]):
    answer = await submit(caller, json.dumps(JOB), headers)
    assert answer.status_code == 415
    assert answer.json()["error"] == "unsupported_media_type"
    assert "-H 'Content-Type: application/json'" in answer.json()["message"]


async def test_a_compressed_body_gets_415(caller):
    assert (await submit(caller, json.dumps(JOB), JSON | {"content-encoding": "gzip"})).status_code == 415


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"]
)
async def test_json_under_any_of_its_names_is_read(caller, kind: str):
    assert (await submit(caller, json.dumps(JOB), {"content-type": kind})).status_code == 202


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps(JOB),
        changed(creditsToConsume=1.00),
        '{"task":"image.generate","input":{"prompt":"x"},"creditsToConsume":1.0000}',
        changed(creditsToConsume=None, idempotencyKey=None),
        changed(creditsToConsume=10**9),
        with_input(prompt="first line\n\tsecond line\r\n"),
        with_input(prompt="\N{FOX FACE} в скафандре 火狐"),
        json.dumps({**JOB, "input": {"prompt": "\N{FOX FACE} 火"}}, ensure_ascii=False),
        with_input(prompt="x" * 4000, seed=2**32 - 1, steps=50, guidance=10, outputFormat="webp"),
        with_input(seed=0, steps=2, guidance=1, negativePrompt=""),
        with_input(seed=7.0, steps=5.0),
        with_input(negativePrompt="people", guidance=4.5),
    ],
)
async def test_what_the_document_allows_is_accepted(caller, raw: str):
    answer = await submit(caller, raw)
    assert answer.status_code == 202, answer.text


async def test_the_ledger_gets_the_checked_input_with_defaults(caller, stub_ledger):
    await submit(caller, with_input(guidance=4.5, seed=7, negativePrompt=None))
    command = stub_ledger.submitted[0]
    assert command.input == {
        "prompt": "cinematic fox astronaut",
        "aspectRatio": "1:1",
        "seed": 7,
        "guidance": 4.5,
        "outputFormat": "png",
    }
    assert (command.cost_tokens, command.tool, command.application) == (100, "image", "image")


async def test_the_same_meaning_has_the_same_fingerprint_in_any_notation(caller, stub_ledger):
    for raw in (
        json.dumps(JOB),
        (
            '{"creditsToConsume": 1.00, "input": {"aspectRatio": "1:1", "prompt": "cinematic fox astronaut"},'
            ' "task": "image.generate"}'
        ),
        changed(idempotencyKey="other-key"),
        with_input(seed=None),
    ):
        assert (await submit(caller, raw)).status_code == 202
    assert len({command.fingerprint for command in stub_ledger.submitted}) == 1


@pytest.mark.parametrize(
    "raw", [changed(creditsToConsume=2), with_input(seed=1), changed(creditsToConsume=None)]
)
async def test_another_meaning_has_another_fingerprint(caller, stub_ledger, raw: str):
    await submit(caller, json.dumps(JOB))
    await submit(caller, raw)
    first, second = stub_ledger.submitted
    assert first.fingerprint != second.fingerprint


async def test_a_quote_over_the_callers_limit_is_refused_and_holds_nothing(caller, stub_ledger):
    answer = await submit(caller, changed(creditsToConsume=0.99))
    assert answer.status_code == 409
    assert answer.json()["error"] == "cost_exceeds_limit"
    assert answer.json()["cost_tokens"] == 100
    assert stub_ledger.calls == []


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/v1/checkout/stripe", {"email": "dev", "packageCode": "builder_600"}, "email"),
        ("/api/v1/checkout/stripe", {"email": "a@b\n.com", "packageCode": "builder_600"}, "email"),
        (
            "/api/v1/checkout/stripe",
            {"email": "Dev <dev@company.com>", "packageCode": "builder_600"},
            "email",
        ),
        ("/api/v1/checkout/stripe", {"email": "dev@company.com", "packageCode": "gold"}, "packageCode"),
        ("/api/v1/checkout/stripe", {"email": "dev@company.com"}, "packageCode"),
        ("/api/v1/claim/stripe", {"keyLabel": "x"}, "sessionId"),
        ("/api/v1/claim/stripe", {"sessionId": "", "keyLabel": "x"}, "sessionId"),
        ("/api/v1/claim/stripe", {"sessionId": "cs_1", "keyLabel": " "}, "keyLabel"),
        ("/api/v1/keys", {"label": ""}, "label"),
        ("/api/v1/keys", {"label": "x" * 101}, "label"),
        ("/api/v1/keys", {"label": "a\nb"}, "label"),
        ("/api/v1/keys", {"label": "x", "expiresAt": "2001-01-01T00:00:00Z"}, "expiresAt"),
        ("/api/v1/keys", {"label": "x", "expiresAt": "2999-01-01T00:00:00"}, "expiresAt"),
        ("/api/v1/keys", {"label": "x", "expiresAt": "9999-12-31T23:59:59-23:59"}, "expiresAt"),
        ("/api/v1/keys", {"label": "x", "expiresAt": 4102444800}, "expiresAt"),
        ("/api/v1/keys", {"label": "x", "scopes": []}, "scopes"),
        ("/api/v1/keys/revoke", {"keyPrefix": ""}, "keyPrefix"),
        ("/api/v1/keys/revoke", {"keyPrefix": "a%"}, "keyPrefix"),
        ("/api/v1/keys/revoke", {"keyPrefix": "amai_live_abcde"}, "keyPrefix"),
    ],
)
async def test_other_routes_name_their_wrong_fields_too(
    caller, stub_ledger, path: str, body: Any, field: str
):
    answer = await caller.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["details"][0]["field"] == field
    assert stub_ledger.calls == []
