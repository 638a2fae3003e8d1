"""Refusals in OpenAI's shape, on every path under `/v1`; which paths those are.

`{"error": {"message", "type", "param", "code", ...}}`: `code` is the stable code of this server, or OpenAI's own where
clients look for it; `param` is the field at fault. What the contract prints beside a refusal (`cost_tokens`) stands
beside `code`.

OpenAI's clients send a refused request again by themselves. `x-should-retry: false` keeps them from it where that
would do the work twice, or nothing else than before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from kit.errors import AppError

PREFIX: Final = "/v1"
TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}
"""By status. Every other refusal is an `invalid_request_error` below 500 and a `server_error` from there on."""
CODES: Final[Mapping[str, str]] = {"auth_required": "invalid_api_key", "rate_limited": "rate_limit_exceeded"}
"""Ours, and what OpenAI calls the same. Source: platform.openai.com/docs/guides/error-codes."""


def speaks_openai(path: str) -> bool:
    """Tell whether this path answers in OpenAI's shapes."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def openai_body(error: AppError) -> dict[str, Any]:
    """Return what an error tells a client of OpenAI."""
    details = error.details
    fields = [each["field"] for each in details if "field" in each] if isinstance(details, list) else []
    told: dict[str, Any] = {
        "message": error.message,
        "type": openai_type(error.status),
        "param": fields[0] if fields else None,
        "code": openai_code(error),
    }
    if details is not None:
        told["details"] = details
    return {"error": told | error.extra}


def openai_type(status: int) -> str:
    """Return OpenAI's name for what kind of refusal a status is."""
    other = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return TYPES.get(status, other)


def openai_code(error: AppError) -> str:
    """Return the code under which OpenAI's clients know an error."""
    return CODES.get(error.code, error.code)


def openai_headers(error: AppError) -> dict[str, str]:
    """Return what keeps OpenAI's clients from asking again in vain."""
    if error.retryable or error.status == HTTPStatus.TOO_MANY_REQUESTS:
        return {}
    return {"x-should-retry": "false"}


@dataclass
class ModelNotFound(AppError):
    """No model by that name does what the route does; those that do are named. Nothing was held."""

    model: str
    known: list[str]
    code = "model_not_found"
    status = 404

    @property
    def message(self) -> str:
        offered = ", ".join(self.known) or "none"
        return f"model: {self.model!r} is not on offer here; there is {offered}."

    @property
    def details(self) -> list[dict[str, str]]:
        return [{"field": "model", "message": "is not on offer here"}]


@dataclass
class JobRunning(AppError):
    """The work goes on and this answer waited long enough. It is charged when it succeeds, and only then."""

    job_id: str
    waited_s: int
    code = "job_running"
    status = 504

    @property
    def message(self) -> str:
        return (
            f"{self.job_id} was not done after {self.waited_s} s and goes on: fetch it at"
            f" /api/v1/media/jobs/{self.job_id}, or send this request again under the Idempotency-Key that it had."
        )

    @property
    def extra(self) -> dict[str, Any]:
        return {"job_id": self.job_id}


@dataclass
class JobRefused(AppError):
    """The input cannot be worked on, as the work itself showed; nothing was charged. `field`: empty if it is none."""

    job_id: str
    field: str
    reason: str
    code = "invalid_request"
    status = 400

    @property
    def message(self) -> str:
        return f"{self.field}: {self.reason}" if self.field else self.reason

    @property
    def details(self) -> list[dict[str, str]] | None:
        return [{"field": self.field, "message": self.reason}] if self.field else None

    @property
    def extra(self) -> dict[str, Any]:
        return {"job_id": self.job_id}


@dataclass
class JobFailed(AppError):
    """The work failed, as often as it was tried. Nothing was charged."""

    job_id: str
    why: str
    reason: str
    code = "job_failed"
    status = 500

    @property
    def message(self) -> str:
        return f"{self.job_id} failed and costs nothing: {self.reason}"

    @property
    def extra(self) -> dict[str, Any]:
        return {"job_id": self.job_id, "reason": self.why}


@dataclass
class JobEnded(AppError):
    """The work was canceled, or nobody came to do it in time. Nothing was charged."""

    job_id: str
    state: str
    code = "job_ended"
    status = 409

    @property
    def message(self) -> str:
        return f"{self.job_id} is {self.state} and costs nothing; send the request anew."

    @property
    def extra(self) -> dict[str, Any]:
        return {"job_id": self.job_id}
