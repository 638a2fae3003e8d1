"""Automatic top-up with a saved card."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from gateway.bodies import StrictRoute
from gateway.catalog import TOKENS_PER_CREDIT
from gateway.deps import SECURED, CallerKey, Parts, PartsOf
from gateway.openapi import READ, WRITE, problems
from gateway.responses import amount, in_credits, json_response
from gateway.topup_schemas import AutoTopup, CardPage, SetAutoTopup
from kit.errors import InvalidRequest
from payments import auto_topups
from payments.cards import CardCheckout
from payments.errors import PaymentsUnavailable

router = APIRouter(prefix="/api/v1/account/auto-topup", tags=["Purchases"], route_class=StrictRoute)


@router.get(
    "",
    operation_id="getAutoTopup",
    summary="Get automatic top-up",
    response_model=AutoTopup,
    responses=problems(*READ),
    openapi_extra=SECURED,
)
async def get_auto_topup(credential: CallerKey, parts: PartsOf) -> Response:
    """How the account is topped up by itself. A limited key may not ask, and a test key neither."""
    return json_response({"ok": True, "autoTopup": shown(await parts.ledger.auto_topup(credential))})


@router.put(
    "",
    operation_id="setAutoTopup",
    summary="Switch automatic top-up on",
    response_model=AutoTopup,
    responses=problems(*WRITE, "card_needed", "payments_unavailable"),
    openapi_extra=SECURED,
)
async def set_auto_topup(body: SetAutoTopup, credential: CallerKey, parts: PartsOf) -> Response:
    """Buys the package with the saved card whenever what is free to spend falls below the threshold.

    409 `card_needed`: save a card first. A declined card is tried again after a day and after three more, and then
    switches this off; a bank that wants its customer pauses it. Either is told by mail and charges nothing. Setting it
    again starts afresh. A frozen account is not topped up, and test accounts never are. 503 `payments_unavailable`
    where tax is worked out at each checkout: buy packages there.
    """
    package = parts.catalog.package(body.package_code)
    tokens = int(body.threshold * TOKENS_PER_CREDIT)
    if tokens > package.credits_tokens:
        raise InvalidRequest(
            "threshold", f"must be at most the {package.credits_tokens // 100} of the package"
        )
    if body.month_most_minor < package.price_minor:
        raise InvalidRequest("monthMostMinor", f"must be at least the package's price, {package.price_minor}")
    found = await _cards(parts).switch_topup_on(credential, package, tokens, body.month_most_minor)
    return json_response({"ok": True, "autoTopup": shown(found)})


@router.delete(
    "",
    operation_id="deleteAutoTopup",
    summary="Switch automatic top-up off",
    response_model=AutoTopup,
    responses=problems(*READ),
    openapi_extra=SECURED,
)
async def delete_auto_topup(credential: CallerKey, parts: PartsOf) -> Response:
    """Nothing more is charged; a charge that was asked for comes to its end. Saved cards stay with the provider."""
    await parts.ledger.switch_topup_off(credential)
    return json_response({"ok": True, "autoTopup": None})


@router.post(
    "/card",
    operation_id="saveCard",
    summary="Open the page that saves a card",
    response_model=CardPage,
    responses=problems(*READ, "payments_unavailable"),
    openapi_extra=SECURED,
)
async def save_card(credential: CallerKey, parts: PartsOf) -> Response:
    """A page of the payment provider; nothing is charged there. Wants a key without scopes, or with `billing`."""
    return json_response({"ok": True, "cardUrl": await _cards(parts).card_page(credential)})


def shown(found: auto_topups.AutoTopup | None) -> dict[str, Any] | None:
    """Return automatic top-up as its owner sees it."""
    if found is None:
        return None
    return {
        "threshold": amount(found.threshold_tokens),
        "packageCode": found.package_code,
        "credits": in_credits(found.credits_tokens),
        "tokens": found.credits_tokens,
        "priceMinor": found.amount_minor,
        "currency": found.currency,
        "monthMostMinor": found.month_most_minor,
        "spentMinor": found.spent_minor,
        "state": found.state,
        "reason": found.reason,
        "restUntil": found.rest_until,
        "setAt": found.set_at,
    }


def _cards(parts: Parts) -> CardCheckout:
    if parts.checkout is None:
        raise PaymentsUnavailable("No card payments are configured on this server.")
    return parts.checkout
