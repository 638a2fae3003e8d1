"""Errors to HTTP, in one place: every refusal leaves as `{"ok": false, "error", "message", "details"?, ...}`, and in
OpenAI's shape under `/v1`.

The domain raises `AppError`s, the framework its own; both end here. An answer says only what was written for
the caller: no other exception's text comes this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match

from gateway.openai_errors import openai_body, openai_headers, speaks_openai
from gateway.responses import json_response
from kit.errors import (
    AppError,
    AuthRequired,
    Internal,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    Unavailable,
    UnsupportedMediaType,
)

log = structlog.get_logger(__name__)

SHOWN_FAULTS: Final = 20
"""A body full of misspelt fields gets the first twenty back, not a megabyte."""
SHOWN_NAME_CHARS: Final = 100
"""Field names come from the caller and are repeated in the answer; no field of ours is longer."""


@dataclass
class InvalidFields(AppError):
    """Several fields of one request are wrong, or one; each is named. Nothing was written."""

    faults: list[tuple[str, str]]
    code = "invalid_request"
    status = 400

    @property
    def message(self) -> str:
        field, fault = self.faults[0]
        more = len(self.faults) - 1
        return f"{field}: {fault}" + (f" (and {more} more in details)" if more else "")

    @property
    def details(self) -> list[dict[str, str]]:
        return [{"field": field, "message": fault} for field, fault in self.faults]


def problem_body(error: AppError) -> dict[str, Any]:
    """Return what an error tells its caller."""
    body: dict[str, Any] = {"ok": False, "error": error.code, "message": error.message}
    if error.details is not None:
        body["details"] = error.details
    return body | error.extra


def problem_response(error: AppError, path: str) -> Response:
    """Return the answer that an error means to whoever called this path."""
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, AuthRequired):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed) and error.allowed:
        headers["allow"] = error.allowed
    if speaks_openai(path):
        return json_response(openai_body(error), error.status, headers | openai_headers(error))
    return json_response(problem_body(error), error.status, headers)


def field_faults(errors: Sequence[Any]) -> InvalidFields:
    """Name each wrong field and what is wrong with it, in words that never repeat a value."""
    return InvalidFields([(_field(item["loc"]), _fault(item)) for item in errors[:SHOWN_FAULTS]])


def allowed_methods(routes: Sequence[BaseRoute], request: Request) -> str:
    """Return the methods that any route takes at this path, as the `Allow` header lists them."""
    methods: set[str] = set()
    for route in routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    if "GET" in methods:
        methods.add("HEAD")  # answered by the edge for every GET
    return ", ".join(sorted(methods))


def translate_http(error: HTTPException, request: Request) -> AppError:  # noqa: PLR0911  # one a status
    """Return our error for one that the framework raised."""
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return NotFound("path")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return MethodNotAllowed(allowed_methods(request.app.routes, request))
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return PayloadTooLarge(request.app.state.parts.settings.max_body_bytes)
        case HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
            return UnsupportedMediaType("application/json")
        case status if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return InvalidRequest("body", "cannot be read")
        case HTTPStatus.SERVICE_UNAVAILABLE:
            return Unavailable("This server", 2)
        case _:
            return Internal()


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every expected error in the contract's shape. Unexpected ones are caught at the edge."""

    async def app_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, AppError)
        if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            # One line, not a stack: while a part is away, every request ends here.
            cause = error.__cause__ and repr(error.__cause__)[:500]
            log.warning("answered with an error of ours", error=error.code, text=error.message, cause=cause)
        return problem_response(error, request.scope["path"])

    async def validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(field_faults(error.errors()), request.scope["path"])

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem_response(translate_http(error, request), request.scope["path"])

    app.add_exception_handler(AppError, app_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(HTTPException, http_error)


_PARTS_OF_REQUEST: Final = frozenset({"body", "query", "path", "header"})


def _field(loc: Sequence[Any]) -> str:
    names = [str(part)[:SHOWN_NAME_CHARS] for part in loc]
    if len(names) > 1 and names[0] in _PARTS_OF_REQUEST:
        names = names[1:]
    return ".".join(names) or "body"


def _fault(item: dict[str, Any]) -> str:
    match item["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "is not a field of this request"
        case "value_error":
            return str(item["msg"]).removeprefix("Value error, ")
        case _:
            text = str(item["msg"]).removeprefix("Input ")
            return text[:1].lower() + text[1:]
