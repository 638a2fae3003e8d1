"""A package for a wallet: paid over HTTP, without a checkout page, an e-mail or a claim."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.bodies import StrictRoute
from gateway.deps import SECURED, OptionalKey, Parts, PartsOf, RetryKey
from gateway.fingerprints import fingerprint
from gateway.openapi import PAID, REPLAYED, X402, problems
from gateway.responses import REPLAY, json_response
from gateway.routes.keys import with_secret
from gateway.x402 import paid_call, payment_headers, payment_shown
from gateway.x402_answers import AccountToppedUp, BuyWithX402, PackageBought
from kit.errors import InvalidRequest
from ledger import scopes
from ledger.keys import Credential, NewApiKey
from payments.errors import PaymentsUnavailable
from payments.x402 import MINOR_PER_CENT
from payments.x402_wire import Call

router = APIRouter(prefix="/api/v1", route_class=StrictRoute)


@router.post(
    "/checkout/x402",
    tags=["Purchases"],
    operation_id="buyWithX402",
    summary="Buy a package from a wallet",
    response_model=PackageBought | AccountToppedUp,
    responses={
        200: {"headers": PAID | REPLAYED},
        **problems(
            "invalid_request",
            "payload_too_large",
            "unsupported_media_type",
            "auth_required",
            "payment_required",
            "payment_reused",
            "settlement_pending",
            "settlement_unclear",
            "forbidden",
            "unavailable",
            "payments_unavailable",
        ),
    },
    openapi_extra=X402 | {"security": [{}, *SECURED["security"]]},
)
async def buy_package(
    request: Request, body: BuyWithX402, header_key: RetryKey, credential: OptionalKey, parts: PartsOf
) -> Response:
    """Answers 402 with the package's price in USDC; sent again with the payment, it shows a full key, once.

    Sent with an API key or while signed in, it tops that account up and shows no key; the offer is for that account
    alone. Without, the credits are the wallet's: whoever pays from it again gets a further key to the same account.
    """
    if parts.x402 is None:
        raise PaymentsUnavailable("Payments from wallets are not configured on this server.")
    package = parts.catalog.package(body.package_code)
    if package.currency != "usd":
        raise InvalidRequest("packageCode", "is not sold for US dollars, and so not for USDC")
    topup = None if credential is None else await _topped_up(parts, credential)
    wanted = {"package": package.code, "label": body.key_label} | ({"account": topup} if topup else {})
    call = Call(
        resource=f"POST {request.url.path}",
        description=f"{package.name}: {package.credits_tokens // 100} credits",
        fingerprint=fingerprint(wanted),
        package_code=package.code,
        price_version=parts.catalog.price_version,
        credits_tokens=package.credits_tokens,
        amount_minor=package.price_minor * MINOR_PER_CENT,
    )
    paid = await paid_call(
        request, parts, call, header_key, key_label=body.key_label, key_days=None, topup_user_id=topup
    )
    key = {} if paid.key is None else with_secret(NewApiKey(paid.key, paid.secret, paid.replayed))
    return json_response(
        {
            "ok": True,
            **key,
            "packageCode": package.code,
            "payment": payment_shown(paid),
        },
        headers=payment_headers(paid) | (REPLAY if paid.replayed else {}),
    )


async def _topped_up(parts: Parts, credential: Credential) -> str:
    """Return whose account the caller may top up. Raises: AuthRequired, Forbidden, PaymentsUnavailable."""
    if credential.world == "test":
        raise PaymentsUnavailable("Wallets pay into live accounts; POST /api/v1/test/refill costs nothing.")
    return (await parts.ledger.whoami(credential, scopes.CHECKOUT)).user_id
