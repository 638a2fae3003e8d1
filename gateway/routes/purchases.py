"""From a package to the first key: what is on sale, checkout, claim, and the provider's webhook."""

from __future__ import annotations

import structlog
from fastapi import APIRouter, Request
from starlette.background import BackgroundTask
from starlette.responses import Response

from gateway.answers import CheckoutStarted, KeyClaimed, Packages, PortalOpened, WebhookReceived
from gateway.bodies import StrictRoute, read_body
from gateway.deps import SECURED, CallerKey, OptionalKey, Parts, PartsOf
from gateway.limits import limit_by
from gateway.openapi import READ, WEBHOOK, WRITE, problems
from gateway.responses import in_credits, json_response
from gateway.routes.keys import with_secret
from gateway.schemas import ClaimKey, StartCheckout
from kit.errors import AppError, NotFound
from kit.telemetry import webhooks_total
from ledger.keys import NewApiKey
from payments.cards import CardCheckout
from payments.errors import PaymentsUnavailable
from payments.webhooks import ProviderEvent

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/api/v1", route_class=StrictRoute)


@router.get(
    "/packages",
    tags=["Purchases"],
    operation_id="listPackages",
    summary="List credit packages",
    response_model=Packages,
)
async def list_packages(parts: PartsOf) -> Response:
    """What is on sale. Prices are in the currency's minor unit."""
    catalog = parts.catalog
    return json_response(
        {
            "ok": True,
            "packages": [
                {
                    "code": package.code,
                    "name": package.name,
                    "credits": in_credits(package.credits_tokens),
                    "tokens": package.credits_tokens,
                    "priceMinor": package.price_minor,
                    "currency": package.currency,
                }
                for package in catalog.packages.values()
            ],
            "priceVersion": catalog.price_version,
            "since": catalog.since,
        }
    )


@router.post(
    "/checkout/stripe",
    tags=["Purchases"],
    operation_id="startStripeCheckout",
    summary="Create a Stripe checkout",
    response_model=CheckoutStarted,
    responses=problems(*WRITE, "payments_unavailable"),
    openapi_extra={"security": [{}, *SECURED["security"]]},
)
async def start_checkout(
    request: Request, body: StartCheckout, credential: OptionalKey, parts: PartsOf
) -> Response:
    """Opens a payment page for a package. Sent with an API key or while signed in, the purchase tops up that account.

    A test key pays where no real money moves: 503 `payments_unavailable` on a server that takes real payments.

    Send the payer to `checkoutUrl`; once paid, claim the key with `sessionId`.
    """
    if credential is None:
        await limit_by(request, "email", body.email)
    package = parts.catalog.package(body.package_code)
    started = await _checkout(parts).start(body.email, package, credential)
    return json_response(
        {
            "ok": True,
            "checkoutUrl": started.checkout_url,
            "sessionId": started.session_id,
            "packageCode": package.code,
            "credits": in_credits(package.credits_tokens),
            "tokens": package.credits_tokens,
            "priceMinor": package.price_minor,
            "currency": package.currency,
            "email": started.purchase.email,
        }
    )


@router.post(
    "/claim/stripe",
    tags=["Purchases"],
    operation_id="claimStripeKey",
    summary="Claim the first API key of a payment",
    response_model=KeyClaimed,
    responses=problems(
        "invalid_request",
        "payload_too_large",
        "unsupported_media_type",
        "not_found",
        "payment_pending",
        "payment_failed",
        "already_claimed",
        "account_exists",
        "payment_mismatch",
        "unavailable",
        "payments_unavailable",
    ),
)
async def claim_key(request: Request, body: ClaimKey, parts: PartsOf) -> Response:
    """Shows the account's first key, once per payment.

    409 `payment_pending`: not paid yet, try again. 409 `payment_failed`: it never will be. 409 `already_claimed`:
    shown before. 409 `account_exists`:
    the e-mail owned an account already; the credits are there, and a key of that account spends them.
    """
    await limit_by(request, "session", body.session_id)
    claim = await _checkout(parts).claim(body.session_id, body.key_label)
    return json_response(
        {
            "ok": True,
            **with_secret(NewApiKey(claim.key, claim.secret, replayed=False)),
            "email": claim.email,
            "credits": in_credits(claim.credits_tokens),
            "tokens": claim.credits_tokens,
            "balance": in_credits(claim.balance_tokens),
            "balanceTokens": claim.balance_tokens,
        }
    )


@router.post(
    "/webhooks/stripe",
    tags=["Webhooks"],
    operation_id="receiveStripeWebhook",
    summary="Receive a Stripe event",
    response_model=WebhookReceived,
    responses=problems("invalid_request", "not_found", "payload_too_large", "unavailable"),
    openapi_extra=WEBHOOK,
)
async def receive_stripe_webhook(request: Request, parts: PartsOf) -> Response:
    """For Stripe alone: a rightly signed event is stored once, acknowledged every time, and handled afterwards."""
    # An empty webhook secret would verify anything: without one there is no such route.
    if parts.checkout is None:
        raise NotFound("path")
    body = await read_body(request)
    try:
        event = await parts.checkout.receive_webhook(body, request.headers.get("stripe-signature", ""))
    except AppError as error:
        webhooks_total.labels("stripe", error.code).inc()
        raise
    webhooks_total.labels("stripe", "received" if event else "duplicate").inc()
    answer = json_response({"ok": True, "received": True, "duplicate": event is None})
    if event is not None:
        # Stripe waits for its answer, not for the handling; should this process end first, the Runner goes on.
        answer.background = BackgroundTask(_handle, parts.checkout, event)
    return answer


@router.post(
    "/billing/portal",
    tags=["Purchases"],
    operation_id="openBillingPortal",
    summary="Open the billing portal",
    response_model=PortalOpened,
    responses=problems(*READ, "payments_unavailable"),
    openapi_extra=SECURED,
)
async def open_billing_portal(credential: CallerKey, parts: PartsOf) -> Response:
    """A page of the payment provider for the account's owner: invoices, receipts, saved cards. It lives for minutes.

    Wants a key without scopes, or with `billing`.
    """
    return json_response({"ok": True, "portalUrl": await _checkout(parts).portal(credential)})


async def _handle(checkout: CardCheckout, event: ProviderEvent) -> None:
    try:
        await checkout.apply(event)
    except AppError as error:  # the books are away: the event is kept and due
        log.warning("event left to the runner", event_id=event.event_id, problem=str(error))


def _checkout(parts: Parts) -> CardCheckout:
    if parts.checkout is None:
        raise PaymentsUnavailable("No payment provider is configured on this server.")
    return parts.checkout
