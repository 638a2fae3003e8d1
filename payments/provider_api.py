"""JSON over HTTP with a payment provider: bounded in time, repeated where a repeat is safe, its failures ours.

What a provider says of a failure goes to the log; a caller hears what they can do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

import httpx
import orjson
import structlog

from kit.errors import NotFound
from payments.errors import PaymentsUnavailable

log = structlog.get_logger(__name__)

TIMEOUT_S: Final = 10.0
"""Providers answer in under a second; past ten a caller is better served by an error and a retry."""
TRIES: Final = 3
"""One dropped connection is bad luck, three are an outage."""
PAUSE_S: Final = 0.2
"""Before the second try; doubled before the third. A caller is waiting."""
LOGGED_LENGTH: Final = 500
"""Enough of a refusal to see its reason."""

AWAY: Final = "The payment provider does not answer right now; nothing was charged. Try again."
REFUSED: Final = "The payment provider refused this server's credentials; tell the operator."
NOT_UNDERSTOOD: Final = (
    "The payment provider and this server do not understand each other; tell the operator."
)


class ProviderApi:
    """One provider's API under one address."""

    def __init__(self, base_url: str, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self.base = httpx.URL(base_url.rstrip("/"))
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S, headers={"Accept": "application/json"})
        self._sleep = sleep

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        headers: Callable[[], dict[str, str]],
        body: Any = None,
        *,
        repeatable: bool,
    ) -> Any:
        """Return the provider's answer. `headers` are made anew for each try; only a repeatable call is tried again.

        Raises: NotFound, PaymentsUnavailable.
        """
        for left in reversed(range(TRIES if repeatable else 1)):
            try:
                answer = await self._http.request(
                    method,
                    f"{self.base}{path}",
                    headers=headers() | ({"Content-Type": "application/json"} if body is not None else {}),
                    content=None if body is None else orjson.dumps(body),
                )
            except httpx.HTTPError as error:
                if not left:
                    raise PaymentsUnavailable(AWAY) from error
            else:
                if not (left and _passes(answer.status_code)):
                    return _read(answer)
            await self._sleep(PAUSE_S * (TRIES - left))
        raise AssertionError("the last try returns or raises")


def _passes(status: int) -> bool:
    """Tell whether a refusal may be over in a moment."""
    return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _read(answer: httpx.Response) -> Any:
    status = answer.status_code
    if status == HTTPStatus.NOT_FOUND:
        raise NotFound("checkout session")
    if not answer.is_success:
        log.warning("payment provider refused", status=status, answer=answer.text[:LOGGED_LENGTH])
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise PaymentsUnavailable(REFUSED)
        raise PaymentsUnavailable(AWAY if _passes(status) else NOT_UNDERSTOOD)
    try:
        return orjson.loads(answer.content)
    except orjson.JSONDecodeError as error:
        raise PaymentsUnavailable(NOT_UNDERSTOOD) from error
