"""Stateful twins of the crypto providers: each speaks its own API and webhooks; the page and the switches are one.

All state of a twin stands under one lock, and what a change did is on disk before anything about it is answered or
sent. Nothing here can reach a real provider, and no key of one works here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal

import httpx
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from sandbox import btcpay_api, coinbase_api, coinbase_tokens, commerce_api, crypto_controls, crypto_pages
from sandbox.crypto_instance import CryptoSettings, CryptoTwin, Refusal
from sandbox.crypto_state import (
    CryptoState,
    House,
    NoSuchPayment,
    WrongState,
    empty_document,
    is_document,
)
from sandbox.stripe_instance import random_token
from sandbox.stripe_store import NoStore, StateFile
from sandbox.stripe_webhooks import Dress, WebhookSender

__all__ = ["CryptoSettings", "create_crypto_twin"]

Provider = Literal["coinbase", "btcpay", "commerce"]


@dataclass(frozen=True)
class _Made:
    """What makes a provider's twin."""

    house: House
    router: APIRouter
    dressed: Callable[[str], Dress]


PROVIDERS: Final[dict[Provider, _Made]] = {
    "coinbase": _Made(coinbase_api.Coinbase(), coinbase_api.router, coinbase_api.dressed),
    "btcpay": _Made(btcpay_api.Btcpay(), btcpay_api.router, btcpay_api.dressed),
    "commerce": _Made(commerce_api.Commerce(), commerce_api.router, commerce_api.dressed),
}


def create_crypto_twin(
    provider: Provider,
    settings: CryptoSettings,
    *,
    clock: Callable[[], float] = time.time,
    new_token: Callable[[int], str] = random_token,
    webhook_transport: httpx.AsyncBaseTransport | None = None,
) -> FastAPI:
    """Build a provider's twin, with the state of its last run if there was one.

    Webhooks go out while the application's lifespan runs. A test without a lifespan delivers them itself, with
    `app.state.twin.sender.deliver_due()`. Raises: ValueError for a key that the provider would not hand out.
    """
    made = PROVIDERS[provider]
    if provider == "coinbase":
        coinbase_tokens.public_key(settings.key)
    store = (
        NoStore()
        if settings.state_file is None
        else StateFile(settings.state_file, empty_document, is_document)
    )
    document = empty_document() if settings.state_file is None else store.load()
    state = CryptoState(
        document,
        made.house,
        clock=clock,
        new_token=new_token,
        sends_webhooks=settings.webhook_url is not None,
    )
    twin = CryptoTwin(settings, state, store)
    if settings.webhook_url is not None:
        twin.sender = WebhookSender(
            url=settings.webhook_url,
            dress=made.dressed(settings.webhook_secret),
            reading=twin.reading,
            writing=twin.writing,
            transport=webhook_transport,
        )
    app = FastAPI(
        title=f"Sandbox of {provider}",
        lifespan=_lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.twin = twin
    for router in (made.router, crypto_pages.router, crypto_controls.router):
        app.include_router(router)
    app.add_exception_handler(Refusal, _answer_refusal)
    app.add_exception_handler(NoSuchPayment, _answer_unknown)
    app.add_exception_handler(WrongState, _answer_wrong_state)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    sender: WebhookSender | None = app.state.twin.sender
    if sender is not None:
        await sender.start_over()
    async with asyncio.TaskGroup() as tasks:
        delivering = None if sender is None else tasks.create_task(sender.run())
        yield
        if delivering is not None:
            delivering.cancel()


async def _answer_refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse(error.body, error.status)


async def _answer_unknown(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"message": "Not found."}, HTTPStatus.NOT_FOUND)


async def _answer_wrong_state(_request: Request, error: Exception) -> Response:
    return JSONResponse({"message": str(error)}, HTTPStatus.CONFLICT)
