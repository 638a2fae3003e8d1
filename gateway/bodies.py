"""Request bodies: JSON read strictly, so that what a caller sent is what we understood or a 400 says why not.

Refused: other content types, other encodings than UTF-8, NaN and Infinity, a name twice in one object
(parsers keep one of the two in silence), NUL and other controls, lone surrogates. Fractions are `Decimal`s.
Size is the edge's business (`middleware`): it counts the bytes while they are read.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Mapping
from decimal import Decimal
from inspect import signature
from typing import Any, Final, get_type_hints

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.responses import Response
from starlette.routing import request_response

from gateway.deps import (
    caller_key,
    credential_of,
    operator_credential_of,
    operator_key,
    parts_of,
    paying_credential_of,
    paying_key,
    retry_key_of,
    session_caller,
)
from gateway.problems import SHOWN_NAME_CHARS, field_faults
from kit.errors import InvalidRequest, UnsupportedMediaType

BODY_TIMEOUT_S: Final = 30.0
"""A megabyte on a poor mobile line; a slower sender holds a connection, and nothing else, for no longer."""
JSON_TYPE: Final = "application/json (curl: -H 'Content-Type: application/json')"
"""The hint is for curl, which calls every `-d` body a form."""

_SUSPECT: Final = re.compile(r"\\[bfu]|[\x7f-\x9f]|NaN|Infinity")
"""Only these notations can bring in what is forbidden: the parser itself refuses raw controls."""
_FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Controls other than tab and line ends, and half characters: no text has them, Postgres takes no NUL."""


MAX_DEPTH: Final = 100
"""No request of ours is nested deeper than five times. Parsers of 3.11 recurse in C, where the interpreter may give up
for good in place of raising."""

_NESTING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[][{}]', re.DOTALL)
"""A string that does not end reaches to the end of the body: no part of it is looked at twice."""


def parse_json(raw: bytes) -> dict[str, Any]:
    """Return the object that a body holds, or say what is wrong with it. Raises: InvalidRequest."""
    if not raw.strip():
        raise InvalidRequest("body", "is empty; send a JSON object")
    if _is_too_deep(raw):
        raise InvalidRequest("body", "is nested too deeply")
    try:
        text = raw.decode()
        value = _read(text)
        if _SUSPECT.search(text):
            _refuse_forbidden(value, "")
    except UnicodeDecodeError as error:
        raise InvalidRequest("body", "is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            "body", f"is not JSON: {error.msg.lower()} at line {error.lineno}, column {error.colno}"
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequest("body", "must be a JSON object")
    return value


def _is_too_deep(raw: bytes) -> bool:
    """Tell whether brackets stand too deep in each other; what has few of them is not looked at."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for token in _NESTING.finditer(raw):
        first = raw[token.start()]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif first in b"]}":
            depth -= 1
    return False


async def read_body(request: Request) -> bytes:
    """Return the whole body.

    Raises: InvalidRequest when it does not arrive in time; PayloadTooLarge from the edge.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.body()
    except TimeoutError as error:
        raise InvalidRequest("body", f"did not arrive within {BODY_TIMEOUT_S:.0f} s") from error


def require_json(request: Request) -> None:
    """Refuse a body that does not call itself JSON. Raises: UnsupportedMediaType."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaType(JSON_TYPE)
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("application/json without Content-Encoding")


class StrictRoute(APIRoute):
    """A route whose JSON body is read by `parse_json`. A stranger hears 401 before the body is looked at."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler
        presented: list[Callable[[Request], object]] = [
            credential
            for key, credential in (
                (caller_key, credential_of),
                (paying_key, paying_credential_of),
                (operator_key, operator_credential_of),
            )
            if _depends_on(self.dependant, key)
        ]
        needs_session = _depends_on(self.dependant, session_caller)

        async def strict(request: Request) -> Response:
            for credential in presented:
                credential(request)
            if needs_session:
                await session_caller(request)
            require_json(request)
            raw = await read_body(request)
            return await handler(_ReadRequest(request, raw, parse_json(raw)))

        return strict


class LeanRoute(APIRoute):
    """A documented route whose endpoint is called without FastAPI's machinery.

    That machinery (three exit stacks, dependency and parameter solving) costs half of a balance read. The endpoint
    takes `request`, `credential`, `header_key`, `parts` by these names and no others, and a `body`, which is read
    strictly, after the key. Its successes are logged at the level of debugging.
    """

    is_called_often: Final = True

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        names = list(signature(endpoint).parameters)
        given = [(name, _GIVEN[name]) for name in names if name != "body"]
        model: type[BaseModel] = get_type_hints(endpoint)["body"] if "body" in names else BaseModel

        async def lean(request: Request) -> Response:
            values = {name: of(request) for name, of in given}
            if self.body_field is not None:
                require_json(request)
                values["body"] = _checked(model, parse_json(await read_body(request)))
            answer: Response = await endpoint(**values)
            return answer

        self.app = request_response(lean)


_GIVEN: Final[Mapping[str, Callable[[Request], Any]]] = {
    "request": lambda request: request,
    "credential": credential_of,
    "header_key": retry_key_of,
    "parts": parts_of,
}
"""What an endpoint of a LeanRoute may ask for, and where it comes from."""


def _checked(model: type[BaseModel], sent: dict[str, Any]) -> BaseModel:
    try:
        return model.model_validate(sent)
    except ValidationError as error:
        raise field_faults(error.errors(include_url=False, include_input=False)) from error


class _ReadRequest(Request):
    """A request whose body was read and parsed already."""

    def __init__(self, request: Request, raw: bytes, parsed: dict[str, Any]) -> None:
        super().__init__(request.scope, request.receive)
        self._raw = raw
        self._parsed = parsed

    async def body(self) -> bytes:
        return self._raw

    async def json(self) -> Any:
        return self._parsed


def _depends_on(dependant: Dependant, call: Callable[..., Any]) -> bool:
    return any(child.call is call or _depends_on(child, call) for child in dependant.dependencies)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise InvalidRequest(_shown(name), "appears twice")
            seen.add(name)
    return found


def _read(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, ArithmeticError):  # a number that nothing here can hold: read again to find its name
        value = _BOUNDED.decode(text)
        _refuse_forbidden(value, "")
        return value


def _whole(number: str) -> object:
    try:
        return int(number)
    except ValueError:
        return _BOUNDLESS


def _decimal(number: str) -> object:
    try:
        return Decimal(number)
    except ArithmeticError:
        return _BOUNDLESS


def refuse_controls(value: str, field: str) -> None:
    """Refuse a text that holds what no text has. Raises: InvalidRequest."""
    if _FORBIDDEN.search(value):
        raise InvalidRequest(_shown(field), "holds control characters or half a character")


def _refuse_forbidden(value: Any, path: str) -> None:
    if value is _BOUNDLESS:
        raise InvalidRequest(path or "body", "is a number out of all bounds")
    if isinstance(value, Decimal) and not value.is_finite():
        raise InvalidRequest(path or "body", f"{value} is not a number in JSON")
    if isinstance(value, str):
        refuse_controls(value, path or "body")
    elif isinstance(value, dict):
        for name, item in value.items():
            here = f"{path}.{name}" if path else name
            _refuse_forbidden(name, _shown(here))
            _refuse_forbidden(item, here)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _refuse_forbidden(item, f"{path}.{place}" if path else str(place))


def _shown(name: str) -> str:
    """Make a caller's field name fit to be repeated."""
    return _FORBIDDEN.sub("?", name)[:SHOWN_NAME_CHARS]


_BOUNDLESS: Final = object()
"""Stands for a number past the bounds of Python's own."""
_BOUNDED: Final = json.JSONDecoder(
    parse_int=_whole, parse_float=_decimal, parse_constant=Decimal, object_pairs_hook=_object
)
_DECODER: Final = json.JSONDecoder(parse_float=Decimal, parse_constant=Decimal, object_pairs_hook=_object)
