"""A stateful twin of Stripe Checkout: the API, the hosted page, signed webhooks, and switches for tests.

`create_twin` builds the FastAPI application. The real `stripe` SDK reaches it through `base_addresses`. No
key of the real Stripe works here and nothing here can reach the real Stripe.

All state stands under one lock, and what a change did is on disk before anything about it is answered or
sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus

import httpx
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from sandbox import (
    stripe_api,
    stripe_cards_api,
    stripe_controls,
    stripe_pages,
    stripe_payment_controls,
    stripe_portal,
)
from sandbox.stripe_errors import ApiError, invalid, unrecognized_url
from sandbox.stripe_instance import Twin, TwinSettings, random_token
from sandbox.stripe_state import TwinState
from sandbox.stripe_store import NoStore, StateFile, Store
from sandbox.stripe_webhooks import WebhookSender, dressed_by_stripe

__all__ = ["TwinSettings", "create_twin"]


def create_twin(
    settings: TwinSettings,
    *,
    clock: Callable[[], float] = time.time,
    new_token: Callable[[int], str] = random_token,
    webhook_transport: httpx.AsyncBaseTransport | None = None,
) -> FastAPI:
    """Build the twin's application, with the state of its last run if there was one.

    Webhooks go out while the application's lifespan runs. A test without a lifespan delivers them itself,
    with `app.state.twin.sender.deliver_due()`.
    """
    store: Store = NoStore() if settings.state_file is None else StateFile(settings.state_file)
    state = TwinState(
        store.load(), clock=clock, new_token=new_token, sends_webhooks=settings.webhook_url is not None
    )
    twin = Twin(settings, state, store)
    if settings.webhook_url is not None:
        twin.sender = WebhookSender(
            url=settings.webhook_url,
            dress=dressed_by_stripe(settings.webhook_secret),
            reading=twin.reading,
            writing=twin.writing,
            transport=webhook_transport,
        )
    # Stripe has no documentation routes: an unknown path must be unknown.
    app = FastAPI(
        title="Sandbox of Stripe Checkout",
        lifespan=_lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.twin = twin
    app.add_api_route("/healthz", _healthz, methods=["GET"])
    app.include_router(stripe_api.router)
    app.include_router(stripe_cards_api.router)
    app.include_router(stripe_pages.router)
    app.include_router(stripe_portal.router)
    app.include_router(stripe_controls.router)
    app.include_router(stripe_payment_controls.router)
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(HTTPException, _answer_unknown_route)
    app.add_exception_handler(RequestValidationError, _answer_bad_control)
    app.add_exception_handler(Exception, _answer_crash)
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


async def _healthz(request: Request) -> JSONResponse:
    return JSONResponse({"ok": True, "instance": request.app.state.twin.settings.instance})


async def _answer_api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = (
        {"WWW-Authenticate": 'Basic realm="Stripe"'} if error.status == HTTPStatus.UNAUTHORIZED else None
    )
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _answer_unknown_route(request: Request, _error: Exception) -> Response:
    refusal = unrecognized_url(request.method, request.url.path)
    return JSONResponse(refusal.body(), status_code=refusal.status)


async def _answer_bad_control(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    refusal = invalid(".".join(str(step) for step in first["loc"][1:]), str(first["msg"]))
    return JSONResponse(refusal.body(), status_code=refusal.status)


async def _answer_crash(_request: Request, _error: Exception) -> Response:
    # The server logs the stack; the answer carries none.
    refusal = ApiError(500, "api_error", "The sandbox failed to answer; its log says why.")
    return JSONResponse(refusal.body(), status_code=refusal.status)
