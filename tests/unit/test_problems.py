"""Every error becomes the contract's answer, and nothing else of it leaves."""

from __future__ import annotations

import pickle
from typing import Any

import orjson
import pytest

from gateway.errors import CostExceedsLimit, IdempotencyKeyReused, TooManyFiles, UnknownTask
from gateway.problems import SHOWN_FAULTS, InvalidFields, field_faults, problem_response
from gateway.responses import dump, in_credits
from kit.errors import (
    AppError,
    AuthRequired,
    Forbidden,
    Internal,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Unavailable,
)
from ledger.errors import AmbiguousPrefix, InsufficientCredits


def body(error: AppError) -> dict[str, Any]:
    return orjson.loads(problem_response(error, "/api/v1/balance").body)


def test_insufficient_credits_prints_the_published_fields():
    assert body(InsufficientCredits(5, 2)).items() >= {
        ("ok", False),
        ("error", "insufficient_credits"),
        ("cost_tokens", 5),
        ("balance", 2),
    }


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequest("email", "is required"), 400, "invalid_request"),
        (UnknownTask("image.fly", ["image.generate"]), 400, "invalid_request"),
        (AuthRequired(), 401, "auth_required"),
        (InsufficientCredits(5, 2), 402, "insufficient_credits"),
        (Forbidden("no"), 403, "forbidden"),
        (NotFound("job"), 404, "not_found"),
        (MethodNotAllowed("GET, HEAD"), 405, "method_not_allowed"),
        (IdempotencyKeyReused("k"), 409, "idempotency_key_reused"),
        (CostExceedsLimit(100, 50), 409, "cost_exceeds_limit"),
        (AmbiguousPrefix(["ab1", "ab2"]), 409, "ambiguous_prefix"),
        (TooManyFiles(3), 409, "too_many_files"),
        (Internal(), 500, "internal_error"),
        (Unavailable("The ledger", 2), 503, "unavailable"),
    ],
)
def test_every_refusal_has_the_contracts_shape(error: AppError, status: int, code: str):
    response = problem_response(error, "/api/v1/balance")
    answer = orjson.loads(response.body)
    assert response.status_code == status
    assert (answer["ok"], answer["error"]) == (False, code)
    assert answer["message"]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"


def test_headers_say_what_to_do_next():
    assert problem_response(Unavailable("The ledger", 7), "/api/v1/balance").headers["retry-after"] == "7"
    assert problem_response(AuthRequired(), "/api/v1/balance").headers["www-authenticate"] == "Bearer"
    assert problem_response(MethodNotAllowed("GET, HEAD"), "/api/v1/balance").headers["allow"] == "GET, HEAD"


def test_an_ambiguous_prefix_lists_the_matches():
    assert body(AmbiguousPrefix(["ab1", "ab2"]))["details"] == {"matches": ["ab1", "ab2"]}


def test_field_faults_name_fields_and_never_repeat_values():
    faults = field_faults(
        [
            {"type": "missing", "loc": ("body", "email"), "msg": "Field required", "input": "s3cret"},
            {"type": "extra_forbidden", "loc": ("body", "x" * 500), "msg": "Extra", "input": "s3cret"},
            {
                "type": "string_type",
                "loc": ("body", "input", "prompt"),
                "msg": "Input should be a valid string",
            },
        ]
        + [{"type": "missing", "loc": ("body", f"f{n}"), "msg": "Field required"} for n in range(100)]
    )
    assert faults.faults[0] == ("email", "is required")
    assert faults.faults[1] == ("x" * 100, "is not a field of this request")
    assert faults.faults[2] == ("input.prompt", "should be a valid string")
    assert len(faults.faults) == SHOWN_FAULTS
    assert "s3cret" not in orjson.dumps(body(faults)).decode()


def test_invalid_fields_survive_pickling():
    error = InvalidFields([("email", "is required")])
    assert pickle.loads(pickle.dumps(error)).faults == error.faults


@pytest.mark.parametrize(
    ("tokens", "written"),
    [(0, "0.00"), (1, "0.01"), (100, "1.00"), (59_905, "599.05"), (-60_000, "-600.00"), (-5, "-0.05")],
)
def test_credits_are_numbers_with_two_places(tokens: int, written: str):
    assert dump({"credits": in_credits(tokens)}).decode() == f'{{"credits":{written}}}'
