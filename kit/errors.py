"""The one error tree: what the domain raises and one place (`gateway.problems`) translates to HTTP.

    AppError
     +- InvalidRequest        400   the caller's fault; names the field
     +- AuthRequired          401
     +- Forbidden             403
     +- NotFound              404
     +- MethodNotAllowed      405
     +- PayloadTooLarge       413
     +- UnsupportedMediaType  415
     +- Internal              500
     +- Unavailable           503   try again after `retry_after_s`
     +- (ledger.errors, payments.errors, gateway.errors add the domain's own)

Concrete errors are dataclasses with positional fields, without defaults, `frozen` or `kw_only`: Ray rebuilds an
error that crossed a handle from its positional arguments, and anything else comes out changed or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


class AppError(Exception):
    """An expected failure with a stable code. `message` and `details` are public; log the rest."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    @property
    def message(self) -> str:
        """One sentence that a caller can act on."""
        return "Something went wrong on our side."

    @property
    def details(self) -> Any:
        """Structured facts for the error body's `details`, or None."""
        return None

    @property
    def extra(self) -> dict[str, Any]:
        """Fields that a published document prints beside `error` (such as `cost_tokens`)."""
        return {}

    @property
    def retry_after_s(self) -> int | None:
        """Seconds for the `Retry-After` header, or None."""
        return None

    @property
    def headers(self) -> dict[str, str]:
        """Headers that a protocol wants on the answer."""
        return {}

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@dataclass
class InvalidRequest(AppError):
    """The request cannot be understood; nothing was written."""

    field: str
    problem: str
    code = "invalid_request"
    status = 400

    @property
    def message(self) -> str:
        return f"{self.field}: {self.problem}"

    @property
    def details(self) -> list[dict[str, str]]:
        return [{"field": self.field, "message": self.problem}]


@dataclass
class AuthRequired(AppError):
    """No key or session, a malformed one, or one that is unknown or over: the answer is the same for all."""

    code = "auth_required"
    status = 401

    @property
    def message(self) -> str:
        return "Send a valid API key in 'Authorization: Bearer <key>' or 'x-api-key', or sign in."


@dataclass
class Forbidden(AppError):
    """The caller is known and may not do this."""

    reason: str
    code = "forbidden"
    status = 403

    @property
    def message(self) -> str:
        return self.reason


@dataclass
class NotFound(AppError):
    """Nothing by that name belongs to the caller."""

    what: str
    code = "not_found"
    status = 404

    @property
    def message(self) -> str:
        return f"No such {self.what}."


@dataclass
class MethodNotAllowed(AppError):
    """The path exists, with other methods."""

    allowed: str
    code = "method_not_allowed"
    status = 405

    @property
    def message(self) -> str:
        return (
            f"This path accepts {self.allowed}." if self.allowed else "This path does not accept that method."
        )


@dataclass
class PayloadTooLarge(AppError):
    """The body is over the route's limit; it was not read to its end."""

    limit_bytes: int
    code = "payload_too_large"
    status = 413

    @property
    def message(self) -> str:
        return f"The request body is larger than {self.limit_bytes} bytes."


@dataclass
class UnsupportedMediaType(AppError):
    """The body is of a type that this route does not read."""

    expected: str
    code = "unsupported_media_type"
    status = 415

    @property
    def message(self) -> str:
        return f"Send the body as {self.expected}."


@dataclass
class Internal(AppError):
    """A bug of ours. The cause is in the log under the request id, never in the answer."""

    code = "internal_error"
    status = 500


@dataclass
class Unavailable(AppError):
    """A part that this call needs is away for now; nothing was charged."""

    what: str
    wait_s: int
    code = "unavailable"
    status = 503
    retryable = True

    @property
    def message(self) -> str:
        return f"{self.what} is not available right now; try again in {self.wait_s} s."

    @property
    def retry_after_s(self) -> int:
        return self.wait_s
