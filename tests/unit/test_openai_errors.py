"""OpenAI's error shape: the same refusals, in the words that OpenAI's clients read."""

from __future__ import annotations

import httpx
import openai
import orjson
import pytest

from gateway.errors import CostExceedsLimit, IdempotencyKeyReused, RateLimited
from gateway.openai_errors import JobEnded, JobFailed, JobRefused, JobRunning, ModelNotFound, speaks_openai
from gateway.problems import InvalidFields, problem_response
from kit.errors import (
    AppError,
    AuthRequired,
    Forbidden,
    Internal,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    Unavailable,
    UnsupportedMediaType,
)
from ledger.errors import InsufficientCredits

PATH = "/v1/images/generations"


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (InvalidRequest("prompt", "is required"), 400, "invalid_request_error", "prompt", "invalid_request"),
        (InvalidFields([("n", "a"), ("size", "b")]), 400, "invalid_request_error", "n", "invalid_request"),
        (AuthRequired(), 401, "authentication_error", None, "invalid_api_key"),
        (InsufficientCredits(100, 40), 402, "insufficient_quota", None, "insufficient_credits"),
        (Forbidden("No."), 403, "permission_error", None, "forbidden"),
        (NotFound("path"), 404, "invalid_request_error", None, "not_found"),
        (ModelNotFound("x", ["a"]), 404, "invalid_request_error", "model", "model_not_found"),
        (MethodNotAllowed("GET"), 405, "invalid_request_error", None, "method_not_allowed"),
        (IdempotencyKeyReused("k"), 409, "invalid_request_error", None, "idempotency_key_reused"),
        (JobEnded("job_1", "canceled"), 409, "invalid_request_error", None, "job_ended"),
        (PayloadTooLarge(9), 413, "invalid_request_error", None, "payload_too_large"),
        (UnsupportedMediaType("x"), 415, "invalid_request_error", None, "unsupported_media_type"),
        (RateLimited("key", 5, 60, 7), 429, "rate_limit_error", None, "rate_limit_exceeded"),
        (JobRefused("job_1", "", "No sound."), 400, "invalid_request_error", None, "invalid_request"),
        (JobRefused("job_1", "file", "No sound."), 400, "invalid_request_error", "file", "invalid_request"),
        (JobFailed("job_1", "timed_out", "Late."), 500, "server_error", None, "job_failed"),
        (Internal(), 500, "server_error", None, "internal_error"),
        (Unavailable("The ledger", 2), 503, "server_error", None, "unavailable"),
        (JobRunning("job_1", 9), 504, "server_error", None, "job_running"),
    ],
)
def test_every_refusal_under_v1_has_openais_shape(  # what an answer states
    error: AppError, status: int, kind: str, param: str | None, code: str
):
    response = problem_response(error, PATH)
    answer = orjson.loads(response.body)
    assert response.status_code == status
    assert list(answer) == ["error"]
    told = answer["error"]
    assert told["message"] == error.message
    assert (told["type"], told["param"], told["code"]) == (kind, param, code)
    assert response.headers["cache-control"] == "no-store"


def test_what_the_contract_prints_stands_beside_the_code():
    told = orjson.loads(problem_response(InsufficientCredits(100, 40), PATH).body)["error"]
    assert (told["cost_tokens"], told["balance"]) == (100, 40)
    told = orjson.loads(problem_response(JobRunning("job_1", 9), PATH).body)["error"]
    assert told["job_id"] == "job_1"


def test_headers_say_what_to_do_next():
    assert problem_response(Unavailable("The ledger", 7), PATH).headers["retry-after"] == "7"
    assert problem_response(AuthRequired(), PATH).headers["www-authenticate"] == "Bearer"
    assert problem_response(MethodNotAllowed("GET, HEAD"), PATH).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (Unavailable("The ledger", 7), True),
        (RateLimited("key", 5, 60, 7), True),
        (Internal(), False),  # what was done is not known
        (JobRunning("job_1", 9), False),  # another job would be made and paid for
        (JobFailed("job_1", "timed_out", "Late."), False),
        (CostExceedsLimit(100, 50), False),
        (IdempotencyKeyReused("k"), False),
    ],
)
def test_the_client_asks_again_by_itself_only_where_that_makes_sense(error: AppError, again: bool):
    answer = problem_response(error, PATH)
    client = openai.OpenAI(api_key="k", base_url="http://farebox.test/v1")
    heard = httpx.Response(answer.status_code, headers=dict(answer.headers))
    assert client._should_retry(heard) is again


@pytest.mark.parametrize(
    ("path", "openais"),
    [
        ("/v1", True),
        ("/v1/", True),
        ("/v1/nowhere", True),
        ("/v1x", False),
        ("/api/v1/balance", False),
        ("/", False),
    ],
)
def test_only_paths_under_v1_speak_so(path: str, openais: bool):
    assert speaks_openai(path) is openais
    assert ("ok" in orjson.loads(problem_response(NotFound("path"), path).body)) is not openais
