"""The OpenAPI document is whole and true: its requests are accepted, its answers have the described shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from jsonschema import Draft202012Validator

from gateway.documented import ANSWERS, REQUESTS

ROUTES = {
    "GET /api/v1/health",
    "GET /api/v1/packages",
    "POST /api/v1/billing/portal",
    "POST /api/v1/checkout/stripe",
    "POST /api/v1/checkout/x402",
    "POST /api/v1/checkout/settle",
    "GET /api/v1/purchases",
    "POST /api/v1/claim/stripe",
    "POST /api/v1/checkout/crypto",
    "POST /api/v1/claim/crypto",
    "POST /api/v1/webhooks/crypto",
    "GET /api/v1/keys",
    "POST /api/v1/keys",
    "POST /api/v1/keys/rotate",
    "POST /api/v1/keys/revoke",
    "POST /api/v1/test/refill",
    "GET /api/v1/credits/balance",
    "GET /api/v1/balance",
    "POST /api/v1/media/jobs",
    "GET /api/v1/media/jobs",
    "GET /api/v1/media/jobs/{job_id}",
    "GET /api/v1/media/jobs/{job_id}/events",
    "POST /api/v1/media/jobs/{job_id}/cancel",
    "POST /api/v1/files",
    "GET /api/v1/files",
    "GET /api/v1/files/{file_id}",
    "DELETE /api/v1/files/{file_id}",
    "GET /api/v1/files/{file_id}/content",
    "GET /api/v1/files/{file_id}/preview",
    "POST /api/v1/auth/email/start",
    "POST /api/v1/auth/email/verify",
    "GET /api/v1/auth/session",
    "POST /api/v1/auth/sign-out",
    "POST /api/v1/auth/sign-out-everywhere",
    "GET /api/v1/account/export",
    "POST /api/v1/account/delete",
    "POST /api/v1/webhooks/stripe",
    "GET /api/v1/ledger/trial-balance",
    "GET /api/v1/usage",
    "GET /api/v1/statement",
    "GET /api/v1/cost",
    "GET /api/v1/media/jobs/{job_id}/receipt",
    "GET /api/v1/jobs/{job_id}/receipt",
    "GET /.well-known/jwks.json",
    "POST /api/v1/vouchers/redeem",
    "GET /api/v1/alerts",
    "PUT /api/v1/alerts",
    "GET /api/v1/account/auto-topup",
    "PUT /api/v1/account/auto-topup",
    "DELETE /api/v1/account/auto-topup",
    "POST /api/v1/account/auto-topup/card",
    "GET /api/v1/webhook-endpoints",
    "POST /api/v1/webhook-endpoints",
    "POST /api/v1/webhook-endpoints/{endpoint_id}/rotate",
    "DELETE /api/v1/webhook-endpoints/{endpoint_id}",
    "GET /api/v1/webhook-deliveries",
    "POST /api/v1/webhook-deliveries/{delivery_id}/replay",
    "GET /api/v1/operator/revenue",
    "GET /api/v1/operator/reconciliations",
    "GET /api/v1/operator/reconciliations/{reconciliation_id}",
    "POST /api/v1/operator/reconciliations",
    "GET /api/v1/operator/users",
    "GET /api/v1/operator/users/{user_id}",
    "POST /api/v1/operator/users/{user_id}/share",
    "POST /api/v1/operator/users/{user_id}/suspend",
    "POST /api/v1/operator/users/{user_id}/unsuspend",
    "POST /api/v1/operator/users/{user_id}/freeze",
    "POST /api/v1/operator/users/{user_id}/unfreeze",
    "POST /api/v1/operator/users/{user_id}/grants",
    "POST /api/v1/operator/users/{user_id}/adjustments",
    "POST /api/v1/operator/transfers/{transfer_id}/refund",
    "POST /api/v1/operator/transfers/{transfer_id}/reverse",
    "GET /api/v1/operator/holds",
    "POST /api/v1/operator/holds/{hold_id}/void",
    "GET /api/v1/operator/jobs",
    "POST /api/v1/operator/jobs/{job_id}/cancel",
    "POST /api/v1/operator/vouchers",
    "GET /api/v1/operator/vouchers",
    "POST /api/v1/operator/vouchers/{voucher_id}/disable",
    "GET /api/v1/operator/prices",
    "POST /api/v1/operator/prices",
    "GET /api/v1/operator/audit",
    "POST /api/v1/tools/check",
    "POST /api/v1/tools/spend",
    "GET /api/v1/pricing",
    "POST /api/v1/credits/consume",
    "GET /api/v1/referral",
    "POST /api/v1/referral/apply",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "POST /v1/images/generations",
    "POST /v1/images/edits",
    "POST /v1/audio/speech",
    "POST /v1/audio/transcriptions",
    "POST /v1/chat/completions",
}
PUBLIC = {
    "getHealth",
    "listPackages",
    "settleCheckout",
    "claimStripeKey",
    "claimCryptoKey",
    "startSignIn",
    "verifySignIn",
    "receiveStripeWebhook",
    "receiveCryptoWebhook",
    "getTrialBalance",
    "getPricing",
    "getJwks",
}
NEVER_REFUSED = {"listPackages", "getPricing"}


@pytest.fixture
def document(stub_app: FastAPI) -> dict[str, Any]:
    return stub_app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from walk(child)
    elif isinstance(node, list):
        for child in node:
            yield from walk(child)


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


async def test_the_document_is_served_as_openapi_3_1(web: httpx.AsyncClient, document):
    answer = await web.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.json() == document
    assert document["openapi"] == "3.1.0"
    assert document["servers"] == [{"url": "http://farebox.test"}]
    assert document["info"]["version"]


def test_every_route_is_described_and_nothing_else(document, stub_app):
    assert {name for name, _ in operations(document)} == ROUTES
    served = {
        f"{method} {route.path}"
        for route in stub_app.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods
    }
    assert served == ROUTES


def test_every_operation_is_named_tagged_and_explained(document):
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(names) == len(set(names))
    known = {tag["name"] for tag in document["tags"]}
    for name, operation in operations(document):
        assert operation["operationId"].isalnum(), name
        assert operation["summary"], name
        assert operation["description"], name
        assert set(operation["tags"]) <= known, name


def test_every_operation_says_who_may_call_it_and_how_it_refuses(document):
    assert set(document["components"]["securitySchemes"]) == {"bearer", "apiKey", "session"}
    for name, operation in operations(document):
        assert ("security" in operation) is (operation["operationId"] not in PUBLIC), name
        assert "422" not in operation["responses"], name
        assert any(status.startswith("2") for status in operation["responses"]), name
        if operation["operationId"] not in NEVER_REFUSED:
            problem = operation["responses"]["default"]["content"]["application/json"]["schema"]
            shape = "OpenAIProblem" if " /v1/" in name else "Problem"
            assert problem == {"$ref": f"#/components/schemas/{shape}"}, name
        if "security" in operation and {} not in operation["security"]:
            assert {"401", "403", "503"} <= operation["responses"].keys(), name


def test_every_reference_leads_somewhere_and_every_schema_is_valid(document):
    for node in walk(document):
        if isinstance(reference := node.get("$ref"), str):
            target: Any = document
            for part in reference.removeprefix("#/").split("/"):
                target = target[part]
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_path_parameters_are_declared(document):
    for name, operation in operations(document):
        declared = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
        assert declared == {part[1:-1] for part in name.split("/") if part.startswith("{")}, name


def test_refusals_in_the_document_are_refusals(document):
    seen = set()
    for name, operation in operations(document):
        is_openais = " /v1/" in name
        shape = "OpenAIProblem" if is_openais else "Problem"
        problem = validator(document, {"$ref": f"#/components/schemas/{shape}"})
        for status, response in operation["responses"].items():
            examples = response.get("content", {}).get("application/json", {}).get("examples", {})
            for code, example in examples.items():
                problem.validate(example["value"])
                told = example["value"]["error"]
                assert (told["code"] if is_openais else told) == code
                assert not status.startswith("2")
                seen.add(code)
    assert {"insufficient_credits", "cost_exceeds_limit", "account_exists", "ambiguous_prefix"} <= seen


def test_documented_answers_have_the_documented_shape(document):
    found = {operation["operationId"]: operation for _, operation in operations(document)}
    for name, answer in ANSWERS.items():
        responses = found[name]["responses"]
        content = responses.get("202", responses.get("200"))["content"]["application/json"]
        validator(document, content["schema"]).validate(answer)
        assert content["example"] == answer


def test_every_json_answer_and_request_has_an_example_of_its_shape(document):
    for name, operation in operations(document):
        if "/operator/" in name:  # not for callers
            continue
        for status, response in operation["responses"].items():
            content = response.get("content", {}).get("application/json")
            if status.startswith("2") and content:
                assert "example" in content, f"{name} {status}: gateway/documented.py shows answers"
                validator(document, content["schema"]).validate(content["example"])
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content and "/webhooks/" not in name:  # providers document their own
            assert content.get("examples"), f"{name}: gateway/documented.py shows requests"


@pytest.mark.parametrize(
    ("name", "title"), [(name, title) for name, requests in REQUESTS.items() for title in requests]
)
async def test_documented_requests_are_understood(caller, stub_ledger, document, name: str, title: str):
    path, operation = next((n, o) for n, o in operations(document) if o["operationId"] == name)
    content = operation["requestBody"]["content"]["application/json"]
    request = content["examples"][title]["value"]
    validator(document, content["schema"]).validate(request)
    stub_ledger.create_key = stub_ledger.revoke_key = None  # reached, which is what counts here
    method, _, url = path.replace("{endpoint_id}", "hook_01k8z0g1m3n5p7q9r1s3t5v7w9").partition(" ")
    answer = await caller.request(method, url, json=request)
    assert answer.status_code not in {400, 401, 404, 415, 422}, answer.text
