"""From a package to the first key: what is on sale, checkout, claim, and the provider's webhook."""

from __future__ import annotations

from typing import Any, Final

import structlog
from fastapi import APIRouter, Request
from starlette.background import BackgroundTask
from starlette.responses import Response

from gateway.account_schemas import Purchases
from gateway.answers import (
    CheckoutSettled,
    CheckoutStarted,
    KeyClaimed,
    Packages,
    PortalOpened,
    WebhookReceived,
)
from gateway.bodies import StrictRoute, read_body
from gateway.deps import SECURED, CallerKey, OptionalKey, Parts, PartsOf, page_before
from gateway.limits import limit_by
from gateway.listing import Limit, PurchaseCursor, page
from gateway.openapi import CRYPTO_WEBHOOK, READ, WEBHOOK, WRITE, problems
from gateway.responses import in_credits, json_response
from gateway.routes.keys import with_secret
from gateway.schemas import ClaimKey, SettleCheckout, StartCheckout
from kit.errors import AppError, NotFound
from kit.telemetry import webhooks_total
from ledger.keys import NewApiKey
from payments.cards import CardCheckout
from payments.checkout import Checkout, StartedCheckout
from payments.crypto import CryptoCheckouts
from payments.errors import PaymentsUnavailable
from payments.packages import Package
from payments.purchases import Claim, Purchase
from payments.webhooks import ProviderEvent

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/api/v1", route_class=StrictRoute)

CLAIM_PROBLEMS: Final = problems(
    "invalid_request",
    "payload_too_large",
    "unsupported_media_type",
    "not_found",
    "payment_pending",
    "payment_incomplete",
    "payment_failed",
    "already_claimed",
    "claim_expired",
    "account_exists",
    "payment_mismatch",
    "unavailable",
    "payments_unavailable",
)
WEBHOOK_PROBLEMS: Final = problems("invalid_request", "not_found", "payload_too_large", "unavailable")


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
    return _started(package, await _checkout(parts).start(body.email, package, credential))


@router.post(
    "/checkout/crypto",
    tags=["Purchases"],
    operation_id="startCryptoCheckout",
    summary="Create a crypto checkout",
    response_model=CheckoutStarted,
    responses=problems(*WRITE, "payments_unavailable"),
    openapi_extra={"security": [{}, *SECURED["security"]]},
)
async def start_crypto_checkout(
    request: Request, body: StartCheckout, credential: OptionalKey, parts: PartsOf
) -> Response:
    """Opens a page where a package is paid in coins; an API key or a session tops its account up, as by card.

    Send the payer to `checkoutUrl`; once paid, claim the key with `sessionId`. What arrives late still counts; what
    arrives short grants nothing until the rest has come.
    """
    if credential is None:
        await limit_by(request, "email", body.email)
    package = parts.catalog.package(body.package_code)
    return _started(package, await _crypto(parts).start(body.email, package, credential))


@router.post(
    "/claim/stripe",
    tags=["Purchases"],
    operation_id="claimStripeKey",
    summary="Claim the first API key of a payment",
    response_model=KeyClaimed,
    responses=CLAIM_PROBLEMS,
)
async def claim_key(request: Request, body: ClaimKey, parts: PartsOf) -> Response:
    """Shows the account's first key, once per payment.

    409 `payment_pending`: not paid yet, try again. 409 `already_claimed`: shown before. 409 `claim_expired`: too
    late, sign in by e-mail. 409 `account_exists`: the e-mail owned an account already; the credits are there, and a
    key of that account spends them.
    """
    await limit_by(request, "session", body.session_id)
    return _claimed(await _checkout(parts).claim(body.session_id, body.key_label))


@router.post(
    "/claim/crypto",
    tags=["Purchases"],
    operation_id="claimCryptoKey",
    summary="Claim the first API key of a crypto payment",
    response_model=KeyClaimed,
    responses=CLAIM_PROBLEMS,
)
async def claim_crypto_key(request: Request, body: ClaimKey, parts: PartsOf) -> Response:
    """Shows the account's first key, once per payment, as `POST /claim/stripe` does.

    409 `payment_pending`: not paid in full yet, or not confirmed. 409 `payment_incomplete`: the checkout closed with
    less than its price; write to support.
    """
    await limit_by(request, "session", body.session_id)
    return _claimed(await _crypto(parts).claim(body.session_id, body.key_label))


@router.post(
    "/checkout/settle",
    tags=["Purchases"],
    operation_id="settleCheckout",
    summary="Have a payment looked at",
    response_model=CheckoutSettled,
    responses=problems(
        "invalid_request",
        "payload_too_large",
        "unsupported_media_type",
        "not_found",
        "payment_failed",
        "payment_mismatch",
        "unavailable",
        "payments_unavailable",
    ),
)
async def settle_checkout(request: Request, body: SettleCheckout, parts: PartsOf) -> Response:
    """Grants the credits of a checkout that was paid, once, also when its webhook has not come yet; no key is shown.

    The page that payers come back to does this. Without it the credits come all the same, some minutes later at most.
    """
    await limit_by(request, "session", body.session_id)
    in_coins = parts.crypto is not None and (
        parts.checkout is None or not parts.checkout.knows(body.session_id)
    )
    purchase = await (_crypto(parts) if in_coins else _checkout(parts)).arrive(body.session_id)
    key = "claimed" if purchase.claimed else "waits" if purchase.paid and purchase.opened_account else "none"
    return json_response(
        {
            "ok": True,
            "paid": purchase.paid,
            "key": key,
            "packageCode": purchase.package_code,
            "credits": in_credits(purchase.credits_tokens),
            "tokens": purchase.credits_tokens,
        }
    )


@router.get(
    "/purchases",
    tags=["Purchases"],
    operation_id="listPurchases",
    summary="List purchases",
    response_model=Purchases,
    responses=problems(*READ, "invalid_request"),
    openapi_extra=SECURED,
)
async def list_purchases(
    credential: CallerKey, parts: PartsOf, limit: Limit = 20, cursor: PurchaseCursor = None
) -> Response:
    """What you bought, newest first, with what was paid and what went back of it. A limited key may not ask."""
    found = await parts.ledger.purchases(credential, limit + 1, page_before("pur", cursor))
    return json_response({"ok": True, **page(found, limit, shown)})


@router.post(
    "/webhooks/stripe",
    tags=["Webhooks"],
    operation_id="receiveStripeWebhook",
    summary="Receive a Stripe event",
    response_model=WebhookReceived,
    responses=WEBHOOK_PROBLEMS,
    openapi_extra=WEBHOOK,
)
async def receive_stripe_webhook(request: Request, parts: PartsOf) -> Response:
    """For Stripe alone: a rightly signed event is stored once, acknowledged every time, and handled afterwards."""
    # An empty webhook secret would verify anything: without one there is no such route.
    if parts.checkout is None:
        raise NotFound("path")
    return await _received(request, parts.checkout)


@router.post(
    "/webhooks/crypto",
    tags=["Webhooks"],
    operation_id="receiveCryptoWebhook",
    summary="Receive an event of a crypto provider",
    response_model=WebhookReceived,
    responses=WEBHOOK_PROBLEMS,
    openapi_extra=CRYPTO_WEBHOOK,
)
async def receive_crypto_webhook(request: Request, parts: PartsOf) -> Response:
    """For the crypto providers alone; the header that signs an event tells whose it is.

    A rightly signed event is stored once, acknowledged every time, and handled afterwards.
    """
    if parts.crypto is None:
        raise NotFound("path")
    return await _received(request, parts.crypto.sender_of(request.headers))


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


async def _received(request: Request, checkout: Checkout) -> Response:
    provider = checkout.provider.name
    body = await read_body(request)
    try:
        event = await checkout.receive_webhook(body, request.headers)
    except AppError as error:
        webhooks_total.labels(provider, error.code).inc()
        raise
    webhooks_total.labels(provider, "received" if event else "duplicate").inc()
    answer = json_response({"ok": True, "received": True, "duplicate": event is None})
    if event is not None:
        # A provider waits for its answer, not for the handling; should this process end first, the Runner goes on.
        answer.background = BackgroundTask(_handle, checkout, event)
    return answer


async def _handle(checkout: Checkout, event: ProviderEvent) -> None:
    try:
        await checkout.apply(event)
    except AppError as error:  # the books are away: the event is kept and due
        log.warning("event left to the runner", event_id=event.event_id, problem=str(error))


def _started(package: Package, started: StartedCheckout) -> Response:
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


def _claimed(claim: Claim) -> Response:
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


def _checkout(parts: Parts) -> CardCheckout:
    if parts.checkout is None:
        raise PaymentsUnavailable("No payment provider is configured on this server.")
    return parts.checkout


def _crypto(parts: Parts) -> CryptoCheckouts:
    if parts.crypto is None:
        raise PaymentsUnavailable("No crypto payment provider is configured on this server.")
    return parts.crypto


def shown(purchase: Purchase) -> dict[str, Any]:
    """Return a purchase as its owner sees it."""
    return {
        "id": purchase.id,
        "provider": purchase.provider,
        "packageCode": purchase.package_code,
        "credits": in_credits(purchase.credits_tokens),
        "tokens": purchase.credits_tokens,
        "priceMinor": purchase.amount_minor,
        "currency": purchase.currency,
        "email": purchase.email,
        "createdAt": purchase.created_at,
        "paid": purchase.paid,
        "paidMinor": purchase.charged_minor if purchase.paid else None,
        "returnedMinor": purchase.returned_minor,
    }
