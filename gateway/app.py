"""The HTTP surface as one ASGI application. It needs no Ray: the books and the models are passed in."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from gateway.catalog import CatalogError, load_catalog
from gateway.conversations import Chats
from gateway.deps import Parts, key_pattern, operator_pattern
from gateway.health import Health, PaymentsMode
from gateway.kept import Kept
from gateway.limits import limited
from gateway.middleware import Edge
from gateway.openapi import document
from gateway.ports import Ledger, Models
from gateway.prices import PriceList
from gateway.problems import add_problem_handlers
from gateway.receipts import receipt_keys
from gateway.regions import RegionBlock
from gateway.routes import (
    account,
    alerts,
    auto_topup,
    balance,
    chat,
    consumption,
    files,
    job_events,
    keys,
    manual,
    media,
    openai_audio,
    openai_images,
    openai_models,
    operations,
    operator_desk,
    operator_reconciliations,
    operator_revenue,
    operator_shares,
    operator_users,
    pages,
    pricing,
    purchases,
    receipts,
    referral,
    refills,
    sign_in,
    tools,
    usage,
    vouchers,
    webhooks,
    x402_purchases,
)
from gateway.session_cookie import SessionCookie
from gateway.task_schemas import INPUTS
from kit.settings import Settings
from kit.storage import ObjectStore, UrlSigner
from payments.cards import CardCheckout
from payments.crypto import CryptoCheckouts
from payments.x402 import X402Checkout

HEALTH_KEPT_S: Final = 1.0
"""A load balancer asks every second or two; a flood of callers must not reach the books."""
TRIAL_BALANCE_KEPT_S: Final = 5.0
"""It sums every entry and is public: at most one such query runs at a time, every five seconds."""
FORM_BYTES: Final = 64 << 10
"""What a form may weigh beside the file in it: boundaries, headers, names."""
UPLOADS: Final = ("/api/v1/files", "/v1/images/edits", "/v1/audio/transcriptions")
"""Paths whose bodies carry a file."""
NO_TELEMETRY: Final = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
"""FastAPI's own OpenTelemetry hooks cost every request and would send what our logs redact."""

ROUTERS: Final = (
    tools, balance, chat, media, job_events, operations, keys, usage, receipts, files, consumption, purchases,
    x402_purchases, refills, pricing, vouchers, referral, sign_in, account, alerts, auto_topup, webhooks, pages, manual,
    operator_users, operator_desk, operator_shares,
    operator_revenue, operator_reconciliations, openai_models, openai_images, openai_audio,
)  # fmt: skip
"""Matched in this order, one after the other: what is called most comes first."""


def create_app(  # noqa: PLR0913  # the parts of the house
    settings: Settings,
    ledger: Ledger,
    models: Models,
    checkout: CardCheckout | None,
    objects: ObjectStore,
    *,
    crypto: CryptoCheckouts | None = None,
    x402: X402Checkout | None = None,
    chats: Chats | None = None,
    names_requests: bool = True,
) -> FastAPI:
    """Build the surface over its parts.

    `names_requests`: whether answers get `x-request-id` here; False behind a front that adds it itself (Ray
    Serve does, from the header that we keep: the answer would carry it twice).

    Raises: CatalogError for a catalogue that sells what this code cannot do; UndeclaredRoute for a public route of
    which nobody said how it is limited.
    """
    catalog = load_catalog()
    if unknown := [name for name in catalog.tasks if name not in INPUTS]:
        raise CatalogError(
            f"tasks.{unknown[0]}: this version knows no such task; it knows {', '.join(INPUTS)}"
        )
    release = _release()
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,  # type: ignore[arg-type]  # a TypedDict of optional switches
    )
    sells_for_coins = crypto is not None and crypto.sells
    mode = payments_mode(settings, takes_payments=checkout is not None or sells_for_coins or x402 is not None)
    health = Health(
        settings,
        ledger,
        models,
        applications=[task.application for task in catalog.tasks.values()],
        version=release,
        payments=mode,
    )
    app.state.parts = Parts(
        settings=settings,
        ledger=ledger,
        checkout=checkout,
        crypto=crypto,
        x402=x402,
        chats=chats,
        objects=objects,
        catalog=catalog,
        signer=UrlSigner(settings.secret.get_secret_value().encode()),
        receipt_keys=receipt_keys(settings),
        price_list=PriceList(catalog, ledger),
        key_pattern=key_pattern(settings.key_brand),
        operator_pattern=operator_pattern(settings.key_brand),
        proxies=settings.proxies,
        health=Kept(health.probe, HEALTH_KEPT_S),
        trial_balance=Kept(ledger.trial_balance, TRIAL_BALANCE_KEPT_S),
        session_cookie=SessionCookie(
            settings.secret.get_secret_value().encode(), secure=settings.base_url.startswith("https://")
        ),
        in_sandbox=mode == "sandbox",
        model_states=Kept(models.states, HEALTH_KEPT_S),
    )
    add_problem_handlers(app)
    if settings.blocked_countries:
        app.add_middleware(RegionBlock, header=settings.country_header, blocked=settings.blocked_countries)
    app.add_middleware(
        Edge,
        max_body_bytes=settings.max_body_bytes,
        larger=dict.fromkeys(UPLOADS, settings.max_upload_bytes + FORM_BYTES),
        names_request=names_requests,
    )
    for module in ROUTERS:  # not include_router, which matches an included route twice for every request
        app.router.routes.extend(limited(route, settings) for route in module.router.routes)
    app.mount("/static/docs", StaticFiles(directory=pages.DOCS_ASSETS))
    app.mount("/static", StaticFiles(directory=pages.STATIC))
    cookie_name = app.state.parts.session_cookie.name
    app.openapi = document(app, catalog, settings.base_url, release, cookie_name)  # type: ignore[method-assign]  # FastAPI's own way
    return app


def payments_mode(settings: Settings, *, takes_payments: bool) -> PaymentsMode:
    """Tell what money this server takes: real, a provider's test money, the sandbox's play money, or none."""
    if not takes_payments:
        return "off"
    if settings.live_payments or (settings.x402_facilitator and settings.x402_live):
        return "live"
    return "sandbox" if settings.sandbox or settings.stripe_api_base else "test"


def _release() -> str:
    try:
        return version("farebox")
    except PackageNotFoundError:  # run from a source tree that was not installed
        return "0+source"
