"""The region block: callers from the listed countries get 403 `forbidden`, from the next request on.

The country is what the trusted front proxy says in a header; a request without that header is not blocked, so nothing
but the proxy may reach the server. Open to all stay health, the pages that hold nothing personal, and the webhooks of
payment providers, which are known by their signatures.
"""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.problems import problem_response
from kit.errors import Forbidden

OPEN_PATHS: Final = frozenset(
    {
        "/",
        "/docs",
        "/docs/receipts",
        "/openapi.json",
        "/pricing",
        "/.well-known/jwks.json",
        "/api/v1/health",
        "/metrics",
    }
)
OPEN_PREFIXES: Final = ("/static/", "/api/v1/webhooks/")


class RegionBlock:
    """A layer that lets nobody from the blocked countries past it."""

    def __init__(self, app: ASGIApp, *, header: str, blocked: str) -> None:
        """Take the header's name and the countries, such as `KP,IR`."""
        self._app = app
        self._header = header
        self._blocked = frozenset(blocked.upper().split(","))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope["path"]):
            told = ",".join(Headers(scope=scope).getlist(self._header))
            if self._blocked & {country.strip().upper() for country in told.split(",")}:
                refusal = Forbidden("This service is not offered in your region.")
                await problem_response(refusal, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)
