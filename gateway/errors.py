"""What the HTTP surface and the jobs refuse, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from kit.errors import AppError

AN_OPERATOR_ACTS_S: Final = 300
"""What a caller is told to wait where only an operator can help."""


@dataclass
class IdempotencyKeyReused(AppError):
    """The key was used for another request; the first one stands."""

    key: str
    code = "idempotency_key_reused"
    status = 409

    @property
    def message(self) -> str:
        return f"The idempotency key {self.key!r} was used before with another request; use a new one."


@dataclass
class CostExceedsLimit(AppError):
    """The quote is over what the caller agreed to pay. Nothing was held."""

    cost_tokens: int
    limit_tokens: int
    code = "cost_exceeds_limit"
    status = 409

    @property
    def message(self) -> str:
        return f"This costs {self.cost_tokens} tokens, over your limit of {self.limit_tokens} (creditsToConsume)."

    @property
    def extra(self) -> dict[str, Any]:
        return {"cost_tokens": self.cost_tokens}


@dataclass
class JobNotFinished(AppError):
    """A job that has not ended has no receipt yet."""

    state: str
    code = "job_not_finished"
    status = 409

    @property
    def message(self) -> str:
        return f"The job is {self.state}; its receipt is there once it has ended."


@dataclass
class CostExceedsHold(AppError):
    """The work costs more than was held for it. Nothing was charged; the hold stays."""

    cost_tokens: int
    held_tokens: int
    code = "cost_exceeds_limit"
    status = 409

    @property
    def message(self) -> str:
        return (
            f"This costs {self.cost_tokens} tokens and the hold has {self.held_tokens}; nothing was charged."
        )

    @property
    def extra(self) -> dict[str, Any]:
        return {"cost_tokens": self.cost_tokens, "held_tokens": self.held_tokens}


@dataclass
class UnknownTask(AppError):
    """No such task; the known ones are listed."""

    task: str
    known: list[str]
    code = "invalid_request"
    status = 400

    @property
    def message(self) -> str:
        return f"task: unknown task {self.task!r}; this server offers {', '.join(self.known)}."

    @property
    def details(self) -> list[dict[str, str]]:
        return [{"field": "task", "message": "unknown task"}]


@dataclass
class HoldOfJob(AppError):
    """The hold pays for a job and ends with it. Nothing was freed."""

    job_id: str
    code = "hold_of_job"
    status = 409

    @property
    def message(self) -> str:
        return f"This hold belongs to {self.job_id}; cancel the job, and its hold goes with it."


@dataclass
class RangeNotSatisfiable(AppError):
    """A download was asked for from beyond the file's end."""

    size_bytes: int
    code = "range_not_satisfiable"
    status = 416

    @property
    def message(self) -> str:
        return f"The file has {self.size_bytes} bytes; the Range header asks for others."

    @property
    def headers(self) -> dict[str, str]:
        return {"content-range": f"bytes */{self.size_bytes}"}


@dataclass
class TooManyFiles(AppError):
    """The caller keeps as many uploads as are allowed."""

    limit: int
    code = "too_many_files"
    status = 409

    @property
    def message(self) -> str:
        return f"You keep {self.limit} files already; delete some and try again."


@dataclass
class WrongCode(AppError):
    """No open sign-in code of this address is that one. The answer is the same for every reason."""

    code = "invalid_code"
    status = 400

    @property
    def message(self) -> str:
        return "This code is wrong, used or over. Check it, or ask for a new one."


@dataclass
class RateLimited(AppError):
    """The identity used up its requests of this window. Nothing was done."""

    bucket: str
    limit: int
    window_s: int
    wait_s: int
    code = "rate_limited"
    status = 429

    @property
    def message(self) -> str:
        return (
            f"You may send {self.limit} of these requests in {self.window_s} s ({self.bucket});"
            f" try again in {self.wait_s} s."
        )

    @property
    def retry_after_s(self) -> int:
        return self.wait_s


@dataclass
class TaskUnavailable(AppError):
    """The task's model could not be started: its jobs would wait for nothing. Nothing was held."""

    task: str
    reason: str
    code = "unavailable"
    status = 503

    @property
    def message(self) -> str:
        return f"{self.task} is not available: {self.reason}"

    @property
    def retry_after_s(self) -> int:
        return AN_OPERATOR_ACTS_S


@dataclass
class BalanceLeft(AppError):
    """The account still has credits, and deleting it would forfeit them. Nothing was deleted."""

    balance_tokens: int
    code = "balance_left"
    status = 409

    @property
    def message(self) -> str:
        return (
            f"{self.balance_tokens} tokens are left; send 'forfeit': true to give them up with the account."
        )

    @property
    def extra(self) -> dict[str, Any]:
        return {"balance": self.balance_tokens}


@dataclass
class AccountInUse(AppError):
    """Work is under way on this account. Nothing was deleted."""

    held_tokens: int
    code = "account_in_use"
    status = 409

    @property
    def message(self) -> str:
        return f"{self.held_tokens} tokens are held for work under way; cancel it or wait, then try again."


@dataclass
class EndpointExists(AppError):
    """The account has an endpoint for this URL, whose secret is shown no more. Nothing was made."""

    url: str
    code = "endpoint_exists"
    status = 409

    @property
    def message(self) -> str:
        which = f"for {self.url}" if self.url else "without a URL"
        return f"You have a webhook endpoint {which} already; rotate its secret to see one, or delete it."


@dataclass
class TooManyEndpoints(AppError):
    """The account has as many webhook endpoints as are allowed."""

    limit: int
    code = "too_many_endpoints"
    status = 409

    @property
    def message(self) -> str:
        return f"You have {self.limit} webhook endpoints already; delete some and try again."


@dataclass
class EndpointDisabled(AppError):
    """The receiver answered 410: nothing goes there any more."""

    code = "endpoint_disabled"
    status = 409

    @property
    def message(self) -> str:
        return (
            "This endpoint was disabled when it answered 410; delete it and add it anew to send there again."
        )
