"""A closed-loop HTTP load: so many connections, each sending its next request when the last is answered.

Written on asyncio's protocol level, so that the generator leaves the cores to what it measures. Loopback only,
bounded in time.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import urlsplit

LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run saw. Units: requests a second, milliseconds."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    answers: int
    failures: int


Request = Callable[[], bytes]
"""Returns the next request of one connection, head and body."""


class _Connection(asyncio.Protocol):
    """One connection: sends, counts the answer, sends again."""

    def __init__(self, request: Request, stop_at: float, ended: asyncio.Future[None]) -> None:
        self._request, self._stop_at, self.ended = request, stop_at, ended
        self._buffer = b""
        self._sent_at = 0.0
        self.times: list[float] = []
        self.failures = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        found = LENGTH.search(head)
        if found is None or len(body) < int(found[1]):
            return
        self.times.append(time.perf_counter() - self._sent_at)
        self.failures += not head.startswith((b"HTTP/1.1 2", b"HTTP/1.0 2"))
        self._buffer = b""
        if time.perf_counter() < self._stop_at:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request())


def _same(connection: _Connection) -> _Connection:
    return connection


def measure(url: str, *, connections: int, seconds: float, headers: dict[str, str] | None = None) -> Measured:
    """Send GETs to a loopback URL for so many seconds."""
    request = head("GET", url, headers or {}) + b"\r\n"
    return exchange(url, [lambda: request] * connections, seconds=seconds)


def exchange(url: str, requests: Sequence[Request], *, seconds: float) -> Measured:
    """Open one connection for each of `requests` and send what they return for so many seconds."""
    return asyncio.run(_exchange(url, requests, seconds))


def head(method: str, url: str, headers: Mapping[str, str]) -> bytes:
    """Return the first lines of a request, without the empty one that ends them."""
    parts = urlsplit(url)
    lines = [
        f"{method} {parts.path} HTTP/1.1",
        f"host: {parts.netloc}",
        *(f"{k}: {v}" for k, v in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n").encode()


async def _exchange(url: str, requests: Sequence[Request], seconds: float) -> Measured:
    parts = urlsplit(url)
    assert parts.hostname in LOOPBACK, "a load test talks to this machine alone"
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    made = []
    for request in requests:
        connection = _Connection(request, began + seconds, loop.create_future())
        await loop.create_connection(partial(_same, connection), parts.hostname, parts.port or 80)
        made.append(connection)
    async with asyncio.timeout(seconds + 30):
        await asyncio.gather(*(connection.ended for connection in made))
    took = time.perf_counter() - began
    times = sorted(each for connection in made for each in connection.times)
    assert times, f"{url} answered nothing"
    return Measured(
        requests_per_s=len(times) / took,
        p50_ms=times[len(times) // 2] * 1000,
        p99_ms=times[int(len(times) * 0.99)] * 1000,
        answers=len(times),
        failures=sum(connection.failures for connection in made),
    )
