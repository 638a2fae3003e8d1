"""One running twin of a crypto provider: its settings, its state behind one lock, the sender of its webhooks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from sandbox.crypto_state import CryptoState, NoSuchPayment, WrongState
from sandbox.stripe_shapes import Json
from sandbox.stripe_store import Store
from sandbox.stripe_webhooks import WebhookSender

# Above any honest request, small enough to hold in memory without a thought.
BODY_MOST_BYTES = 64 * 1024

Operation = Callable[[CryptoState, Json], Any]


class Refusal(Exception):
    """An answer of the provider's API that is not a success."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


@dataclass(frozen=True)
class CryptoSettings:
    """What a twin is told at its start; `key` is whatever its provider's API is called with.

    `webhook_url` None sends no webhooks. `public_url` None prints page addresses under the host that the API was
    called at. `state_file` None forgets everything at the end.
    """

    key_id: str
    key: str = field(repr=False)
    webhook_secret: str = field(repr=False)
    webhook_url: str | None = None
    public_url: str | None = None
    state_file: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what would make the twin unsafe or useless."""
        if not self.key_id or not self.key or not self.webhook_secret:
            message = (
                "the sandbox needs a key with its id and a webhook secret; an empty one verifies anything"
            )
            raise ValueError(message)


class CryptoTwin:
    """Lets one task at a time at the state, and has what it did on disk before anyone hears of it."""

    def __init__(self, settings: CryptoSettings, state: CryptoState, store: Store) -> None:
        self.settings = settings
        self.sender: WebhookSender | None = None
        self._state = state
        self._store = store
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[CryptoState]:
        """Hold the state still; what time itself changed is saved first."""
        async with self._lock:
            if self._state.expire_overdue():
                self._save()
            yield self._state

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[CryptoState]:
        """Hold the state for one change, and save it."""
        async with self._lock:
            self._state.expire_overdue()
            try:
                yield self._state
            finally:
                self._save()

    def _save(self) -> None:
        self._store.save(self._state.document)
        if self.sender is not None:
            self.sender.wake()

    def now(self) -> float:
        """Give the present moment, by the twin's clock."""
        return self._state.now()

    def page_url(self, request: Request, payment_id: str) -> str:
        """Give the address at which a person pays."""
        # `base_url` leaves out where a mounted twin is.
        here = f"{request.url.scheme}://{request.url.netloc}{request.scope.get('root_path', '')}"
        base = self.settings.public_url or here
        return f"{base.rstrip('/')}/pay/{payment_id}"


def twin_of(request: Request) -> CryptoTwin:
    """Give the twin that a request came to."""
    twin: CryptoTwin = request.app.state.twin
    return twin


async def answer(
    request: Request, operation: Operation, *, status: int = 200, repeat_key: str | None = None
) -> Response:
    """Run an operation of the provider's API on its JSON body; under one repeat key it takes effect once.

    A failure that a test ordered comes before the effect or after it.
    """
    body = await read_json(request)
    async with twin_of(request).writing() as state:
        faults = state.faults
        fails = faults.next_requests_fail > 0
        if fails:
            faults.next_requests_fail -= 1
            if not faults.after_effect:
                return JSONResponse({"message": "A failure that a test ordered."}, faults.status)
        saved = state.document["saved_answers"].get(repeat_key) if repeat_key else None
        if saved is None:
            try:
                made = operation(state, body)
            except NoSuchPayment:
                return JSONResponse({"message": "Not found."}, HTTPStatus.NOT_FOUND)
            except WrongState as error:
                return JSONResponse({"message": str(error)}, HTTPStatus.CONFLICT)
            except Refusal as refusal:
                return JSONResponse(refusal.body, refusal.status)
            saved = orjson.loads(orjson.dumps(made))
            if repeat_key:
                state.document["saved_answers"][repeat_key] = saved
        if fails:
            return JSONResponse({"message": "A failure that a test ordered."}, faults.status)
    return JSONResponse(saved, status)


async def read_json(request: Request) -> Json:
    """Read a JSON object, or nothing as an empty one. Raises: Refusal."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MOST_BYTES:
            raise Refusal(413, {"message": f"At most {BODY_MOST_BYTES} bytes."})
    try:
        values = orjson.loads(bytes(body) or b"{}")
    except orjson.JSONDecodeError as error:
        raise Refusal(400, {"message": "The body is not JSON."}) from error
    if not isinstance(values, dict):
        raise Refusal(400, {"message": "The body is not a JSON object."})
    return values


def text_of(body: Json, name: str, default: str | None = None) -> str:
    """Give a field that must be text. Raises: Refusal."""
    value = body.get(name, default)
    if not isinstance(value, str):
        raise Refusal(400, {"message": f"{name} must be a string."})
    return value
