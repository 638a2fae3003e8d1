"""The edge of the HTTP surface: one pure ASGI layer around everything else.

It gives each request an id that the logs and the answer share, stops a body that grows over its route's limit
while it is still being read, answers HEAD wherever there is a GET, turns an exception that nobody expected
into the contract's 500, and counts and logs the request. Nothing here looks at what a request means.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, reset_contextvars

from gateway.problems import problem_response
from kit.errors import Internal, PayloadTooLarge
from kit.ids import new_id
from kit.telemetry import errors_total, request_seconds, requests_total

log = structlog.get_logger(__name__)

SANE_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
"""A caller's request id goes into our logs: no spaces, quotes or line ends."""
KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""A caller may invent methods; a metric label may not."""
PLAIN: Final = re.compile(r"[A-Za-z._-]{0,24}|v[0-9]|[a-z]{2,6}_[0-9a-z]{26}")
"""A path's parts that may stand in a log. Short words: a secret of letters alone is longer."""
SHOWN_PATH_CHARS: Final = 200
READS: Final = frozenset({"GET", "HEAD"})
LINGER_S: Final = 5.0
LINGER_BYTES: Final = 64 << 20
"""After a 413 the rest of the body is read and thrown away, within these bounds: a client that writes all
before it reads would meet a reset connection in place of the answer."""
CHARGED_TO_CLIENT: Final = 499
"""How a caller who hung up is counted; nobody receives it."""


class Edge:
    """The outermost layer of the app."""

    def __init__(
        self, app: ASGIApp, *, max_body_bytes: int, larger: Mapping[str, int], names_request: bool
    ) -> None:
        """Take the limit of every route and those of the paths with `larger` bodies.

        `names_request`: whether answers get their `x-request-id` here; False behind a front that does.
        """
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._larger = larger
        self._names_request = names_request
        self._counters: dict[tuple[str, str, int], Any] = {}
        self._clocks: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit_bytes = self._larger.get(scope["path"], self._max_body_bytes)
        visit = _Visit(scope, receive, send, limit_bytes=limit_bytes, names_request=self._names_request)
        tokens = bind_contextvars(request_id=visit.request_id)
        started = perf_counter()
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._serve(inner, visit)
        finally:
            self._account(inner, visit, perf_counter() - started)
            reset_contextvars(**tokens)

    async def _serve(self, scope: Scope, visit: _Visit) -> None:
        try:
            await self._app(scope, visit.receive, visit.send)
        except ClientDisconnect:  # or who asked for the head alone has it
            visit.status = visit.status or CHARGED_TO_CLIENT
        except Exception:
            errors_total.labels("http").inc()
            log.exception("a request ended in an error that nobody expected", path=shown_path(scope["path"]))
            if visit.status:  # the answer is under way: only a broken connection tells that it is not whole
                raise
            await problem_response(Internal(), scope["path"])(scope, visit.receive, visit.send)

    def _account(self, scope: Scope, visit: _Visit, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or (
            "/static" if scope["path"].startswith("/static/") else "unmatched"
        )
        method = visit.method if visit.method in KNOWN_METHODS else "OTHER"
        status = visit.status or CHARGED_TO_CLIENT
        key = (method, route, status)
        counter = self._counters.get(key)
        if counter is None:  # looking a label up costs more than counting
            counter = self._counters[key] = requests_total.labels(method, route, str(status))
        counter.inc()
        clock = self._clocks.get(route)
        if clock is None:
            clock = self._clocks[route] = request_seconds.labels(route)
        clock.observe(seconds)
        # Polling, checks and spends are most of the traffic, and a line costs a third of what we do for each. A
        # spend leaves its trace in the books.
        often = method in READS or getattr(scope.get("route"), "is_called_often", False)
        level = logging.DEBUG if status < HTTPStatus.BAD_REQUEST and often else logging.INFO
        if _stdlib_log.isEnabledFor(level):
            log.log(
                level,
                "request",
                method=method,
                path=shown_path(scope["path"]),
                route=route,
                status=status,
                ms=round(seconds * 1000, 1),
            )


def shown_path(path: str) -> str:
    """Return a path fit for a log: words and ids of ours as they are, anything else as `*`.

    Keys, codes and card numbers land in paths by mistake, and a log keeps them.
    """
    return "/".join(each if PLAIN.fullmatch(each) else "*" for each in path[:SHOWN_PATH_CHARS].split("/"))


class _Visit:
    """One request on its way through: its id, its size so far, its status once answered."""

    __slots__ = (
        "_declared_bytes",
        "_expects_continue",
        "_limit_bytes",
        "_names_request",
        "_read_bytes",
        "_receive",
        "_send",
        "_too_large",
        "method",
        "request_id",
        "status",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, limit_bytes: int, names_request: bool
    ) -> None:
        self.method: str = scope["method"]
        self.status = 0
        self.request_id = ""
        self._receive, self._send = receive, send
        self._limit_bytes = limit_bytes
        self._names_request = names_request
        self._read_bytes = 0
        self._declared_bytes = 0
        self._expects_continue = False
        self._too_large = False
        for name, value in scope["headers"]:
            if name == b"x-request-id" and SANE_ID.fullmatch(value):
                self.request_id = value.decode()
            elif name == b"content-length" and value.isdigit():
                self._declared_bytes = int(value[:20])
            elif name == b"expect":
                self._expects_continue = True
        if not self.request_id:
            self.request_id = new_id("req")

    async def receive(self) -> Message:
        """Pass on a piece of the body, or stop it at the limit. Raises: PayloadTooLarge."""
        if self.status:  # answered: what still comes is the server's to throw away
            return await self._receive()
        if self._declared_bytes > self._limit_bytes:
            self._too_large = True
            raise PayloadTooLarge(self._limit_bytes)
        message = await self._receive()
        if message["type"] == "http.request":
            self._read_bytes += len(message.get("body", b""))
            if self._read_bytes > self._limit_bytes:
                self._too_large = True
                raise PayloadTooLarge(self._limit_bytes)
        return message

    async def send(self, message: Message) -> None:
        """Pass on a piece of the answer, with the request's id on its first."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message["headers"] = list(message.get("headers", ()))
            headers.append((b"x-content-type-options", b"nosniff"))
            if self._names_request:
                headers.append((b"x-request-id", self.request_id.encode()))
            if self._too_large:
                headers.append((b"connection", b"close"))
        elif self.method == "HEAD":
            await self._send({"type": "http.response.body", "body": b""})
            if message.get("more_body", False):  # a stream of events may go on for hours
                raise ClientDisconnect
            return
        elif self._too_large and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        """Throw the rest of a body away, within bounds. One that waits for '100 Continue' was never sent."""
        if (self._expects_continue and not self._read_bytes) or self._declared_bytes > LINGER_BYTES:
            return
        try:
            async with asyncio.timeout(LINGER_S):
                while self._read_bytes < LINGER_BYTES:
                    message = await self._receive()
                    self._read_bytes += len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return


_stdlib_log: Final = logging.getLogger(__name__)
"""structlog filters by the level of this logger; asking it first saves building the event."""
