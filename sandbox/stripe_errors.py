"""Every way in which the Stripe twin says no, in the shape in which Stripe says it.

Source: https://docs.stripe.com/api/errors
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Four characters of a long key identify it to its owner; of a short one they would be most of the key.
KEY_SHOWN_FROM_LENGTH = 16


@dataclass(eq=False)
class ApiError(Exception):
    """A refusal that a Stripe client can parse.

    `executed` tells the two kinds apart that Stripe treats differently under an idempotency key: a request
    whose parameters never passed validation is not remembered, one that ran and was refused is. `more` holds what a
    card's refusal says beside that.
    """

    status: int
    type: str
    message: str
    code: str | None = None
    param: str | None = None
    executed: bool = False
    more: dict[str, Any] | None = None

    def body(self) -> dict[str, Any]:
        """Give the JSON answer; `code` and `param` are left out where they say nothing, as Stripe does."""
        error: dict[str, Any] = {"message": self.message, "type": self.type}
        if self.code is not None:
            error["code"] = self.code
        if self.param is not None:
            error["param"] = self.param
        return {"error": error | (self.more or {})}


def invalid(param: str, message: str, code: str | None = None) -> ApiError:
    """Name a parameter whose value cannot be taken."""
    return ApiError(400, "invalid_request_error", message, code=code, param=param)


def missing(param: str) -> ApiError:
    """Name a required parameter that was not sent."""
    return invalid(param, f"Missing required param: {param}.", "parameter_missing")


def unknown(param: str) -> ApiError:
    """Name a parameter that Stripe does not have."""
    return invalid(param, f"Received unknown parameter: {param}", "parameter_unknown")


def unsupported(param: str) -> ApiError:
    """Refuse what Stripe can do and this twin cannot, rather than answer with something untrue."""
    return invalid(param, f"The sandbox does not support `{param}`; Stripe itself does.")


def no_such(kind: str, object_id: str, param: str, *, in_path: bool = False) -> ApiError:
    """Say that no object of this kind has this id: 404 for one in the path, 400 for one in a parameter."""
    return ApiError(
        404 if in_path else 400,
        "invalid_request_error",
        f"No such {kind}: '{object_id}'",
        code="resource_missing",
        param=param,
        executed=True,
    )


def wrong_state(message: str, code: str | None = None, param: str | None = None) -> ApiError:
    """Refuse a well-formed request that the object's present state does not allow."""
    return ApiError(400, "invalid_request_error", message, code=code, param=param, executed=True)


def unrecognized_url(method: str, path: str) -> ApiError:
    """Say that no such route exists; Stripe answers 404 for a wrong method too."""
    return ApiError(404, "invalid_request_error", f"Unrecognized request URL ({method}: {path}).")


def unauthenticated(presented_key: str | None) -> ApiError:
    """Refuse a missing or wrong key without repeating more of it than its last four characters."""
    if presented_key is None:
        message = "No API key was sent. Send it as 'Authorization: Bearer YOUR_SECRET_KEY'."
    else:
        tail = presented_key[-4:] if len(presented_key) >= KEY_SHOWN_FROM_LENGTH else ""
        message = f"Invalid API Key provided: {'*' * 8}{tail}"
    return ApiError(401, "invalid_request_error", message)


def key_reused(key: str) -> ApiError:
    """Refuse an idempotency key that came before with another route or other parameters."""
    message = f"The idempotency key '{key}' was first used with another endpoint or other parameters."
    return ApiError(400, "idempotency_error", message)
