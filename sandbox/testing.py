"""What a test holds a twin with: a clock that it moves, ids that it can foresee, a receiver of webhooks, and
a real server on a free port. For tests of every tier; no product code imports it.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI, Request
from fastapi.responses import Response

# No server here takes longer than this to come up or down unless it hangs.
SERVER_TIMEOUT_S = 20.0

# A key and a secret of the right form that open nothing anywhere.
SECRET_KEY = "sk_test_0123456789abcdef"  # noqa: S105 - it guards nothing
WEBHOOK_SECRET = "whsec_0123456789abcdef"  # noqa: S105 - it guards nothing

# An Ed25519 key as Coinbase hands it out, seed and public half, and an API key of the other providers' kind.
COINBASE_KEY_ID = "organizations/test/apiKeys/1"
COINBASE_KEY = base64.b64encode(
    bytes(range(32)) + Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
).decode()
API_KEY = "an-api-key-that-opens-nothing"
CRYPTO_WEBHOOK_SECRET = "a-webhook-secret-that-guards-nothing"  # noqa: S105 - as it says

# One package for $12.00, form-encoded as the SDK sends it.
ORDER = {
    "mode": "payment",
    "line_items[0][price_data][currency]": "usd",
    "line_items[0][price_data][unit_amount]": "1200",
    "line_items[0][price_data][product_data][name]": "Builder, 600 credits",
    "line_items[0][quantity]": "1",
    "success_url": "https://shop.example/done?session={CHECKOUT_SESSION_ID}",
    "cancel_url": "https://shop.example/credits",
    "client_reference_id": "pur_1",
    "customer_email": "dev@company.example",
    "metadata[purchase]": "pur_1",
    "payment_intent_data[metadata][purchase]": "pur_1",
}


def client_of(app: FastAPI, key: str | None = SECRET_KEY) -> httpx.AsyncClient:
    """Make an HTTP client that calls an application in process, with this key or with none."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://twin.example", headers=headers)


@dataclass
class ManualClock:
    """A clock that stands still until it is told otherwise."""

    now_s: float = 1_800_000_000.0

    def __call__(self) -> float:
        """Give the present moment."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


def counting_tokens() -> Callable[[int], str]:
    """Make ids that differ from each other and are the same in every run."""
    numbers = itertools.count(1)

    def next_token(length: int) -> str:
        return str(next(numbers)).rjust(length, "0")

    return next_token


@dataclass(frozen=True)
class Received:
    """One webhook as it came over the wire."""

    body: bytes
    headers: dict[str, str]


@dataclass
class Inbox:
    """A receiver of webhooks that remembers all of them, and answers with the statuses it was given."""

    statuses: list[int] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def app(self) -> FastAPI:
        """Give the server that takes webhooks in, at any path."""
        app = FastAPI(openapi_url=None)
        app.add_api_route("/{path:path}", self._take, methods=["POST"])
        return app

    async def _take(self, request: Request) -> Response:
        webhook = Received(await request.body(), dict(request.headers))
        with self._changed:
            self.received.append(webhook)
            self._changed.notify_all()
        return Response(status_code=self.statuses.pop(0) if self.statuses else 200)

    def wait_for(self, count: int, timeout_s: float = SERVER_TIMEOUT_S) -> list[Received]:
        """Give what came in as soon as it is `count` webhooks.

        Raises: TimeoutError if they do not come.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.received) >= count, timeout_s):
                message = f"{len(self.received)} of {count} webhooks came within {timeout_s} s"
                raise TimeoutError(message)
            return list(self.received)


class _AnnouncingServer(uvicorn.Server):
    """Tells another thread when it takes requests."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serve an application on a free port of this machine, in a thread, and give its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _AnnouncingServer(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            if not server.is_up.wait(SERVER_TIMEOUT_S) or not server.started:
                message = "the server did not start"
                raise RuntimeError(message)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(SERVER_TIMEOUT_S)
