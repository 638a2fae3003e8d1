"""The API of Coinbase Business Checkouts as its twin speaks it: tokens for one request, checkouts, refunds, Hook0.

Source: Coinbase Developer Platform, Checkout APIs and CDP API key authentication.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import ROUND_UP, Decimal
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sandbox import crypto_payments
from sandbox.coinbase_tokens import token_problem
from sandbox.crypto_instance import CryptoTwin, Refusal, answer, text_of, twin_of
from sandbox.crypto_state import CryptoState, Happening, arrived, is_whole, refunded
from sandbox.stripe_shapes import Json
from sandbox.stripe_webhooks import Dress

router = APIRouter(prefix="/api/v1")

CURRENCIES: Final = frozenset({"USDC", "USD", "EUR", "SGD", "GBP"})
# Coinbase's own: an hour to pay unless the shop says otherwise.
EXPIRES_IN_S: Final = 3600.0
METADATA_KEYS_MOST: Final = 20
METADATA_VALUE_MOST: Final = 100
DESCRIPTION_MOST: Final = 500
URL_MOST: Final = 2048
AMOUNT_FORM: Final = re.compile(r"\d+(\.\d{1,2})?", re.ASCII)
AMOUNT_MOST: Final = Decimal(100_000_000)
PAGE_MOST: Final = 100
FEE: Final = Decimal("0.01")
# What a unit of each is in USDC, in which alone Coinbase is paid; which day's rates these were means nothing.
IN_USDC: Final = {
    "USDC": Decimal(1), "USD": Decimal(1), "EUR": Decimal("1.1573"), "SGD": Decimal("0.7691"),
    "GBP": Decimal("1.3218"),
}  # fmt: skip
# Signed as Hook0 does; the twin takes turns so that receivers meet both versions.
SIGNED_HEADERS: Final = ("content-type", "x-event-id", "x-event-type")


class Coinbase:
    """Checkouts with an id of 24 hexadecimal digits; money that comes late completes an expired one."""

    late_settles = True
    _TYPES: Final[dict[Happening, str]] = {
        "settled": "checkout.payment.success",
        "expired": "checkout.payment.expired",
        "failed": "checkout.payment.failed",
        "refunded": "checkout.refund.success",
    }

    def new_id(self, token: Callable[[int], str]) -> str:
        """Make an id of 24 hexadecimal digits."""
        return hashlib.sha256(token(24).encode()).hexdigest()[:24]

    def events(self, happening: Happening, payment: Json, token: Callable[[int], str]) -> list[Json]:  # noqa: ARG002
        """Tell of what ends a checkout, as the flat checkout with an event type."""
        if happening not in self._TYPES:
            return []
        kind = self._TYPES[happening]
        return [{"type": kind, "body": shape(payment) | {"eventType": kind}}]


def shape(payment: Json) -> Json:
    """Print a checkout as the API does: its amounts in USDC, and what was asked for in a country's money beside."""
    price, there = Decimal(payment["amount"]), arrived(payment, confirmed=True)
    coins = (price * IN_USDC[payment["currency"]]).quantize(Decimal("0.01"), ROUND_UP)
    told: Json = {
        "id": payment["id"],
        "url": payment["url"],
        "amount": f"{coins:f}",
        "currency": "USDC",
        "network": "base",
        "address": "0x742d35Cc6634C0532925a3b844Bc454e4438f44e",
        "tokenAddress": "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
        "status": _status(payment),
        "description": payment["description"],
        "metadata": payment["metadata"],
        "successRedirectUrl": payment["success_url"],
        "failRedirectUrl": payment["cancel_url"],
        "expiresAt": _time(payment["expires_at"]),
        "createdAt": _time(payment["created"]),
        "updatedAt": _time(payment["updated"]),
    }
    in_fiat = payment["currency"] != "USDC"
    if in_fiat:
        told |= {"fiatAmount": payment["amount"], "fiatCurrency": payment["currency"]}
    if there:
        total = _share(coins, there, price)
        fee = (total * FEE).quantize(Decimal("0.000001"))
        told["settlement"] = {
            "totalAmount": f"{total:f}",
            "feeAmount": f"{fee:f}",
            "netAmount": f"{total - fee:f}",
            "currency": "USDC",
        }
        told["transactionHash"] = "0x" + hashlib.sha256(payment["id"].encode()).hexdigest()
    if payment["refunds"]:
        told["refundedAmount"] = f"{_share(coins, refunded(payment), price):f}"
        # Coinbase promises no order: the newest first is what a reader of the last one trips over.
        told["refunds"] = [
            {
                "id": r["id"],
                "checkoutId": payment["id"],
                "amount": f"{_share(coins, Decimal(r['amount']), price):f}",
                "currency": "USDC",
                "status": "COMPLETED",
                "createdAt": _time(r["at"]),
                "completedAt": _time(r["at"]),
            }
            | ({"fiatAmount": r["amount"], "fiatCurrency": payment["currency"]} if in_fiat else {})
            for r in reversed(payment["refunds"])
        ]
    return told


def _share(coins: Decimal, part: Decimal, price: Decimal) -> Decimal:
    """Give a part of the price in coins, to the last of USDC's places."""
    return (coins * part / price).quantize(Decimal("0.000001"), ROUND_UP)


def _status(payment: Json) -> str:
    back = refunded(payment)
    if back:
        return "REFUNDED" if back >= arrived(payment, confirmed=True) else "PARTIALLY_REFUNDED"
    if payment["state"] == "expired" and is_whole(payment):
        return "COMPLETED"
    words = {"open": "ACTIVE", "processing": "PROCESSING", "settled": "COMPLETED"}
    return words.get(payment["state"], str(payment["state"]).upper())


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def dressed(secret: str) -> Dress:
    """Give the deliveries of this twin: every second one is signed in the newer version too."""

    def dress(event: Json, delivery: Json, timestamp: int) -> tuple[bytes, dict[str, str]]:
        body = json.dumps(event["body"], separators=(",", ":")).encode()
        headers = {
            "content-type": "application/json",
            "x-event-id": delivery["id"],
            "x-event-type": event["type"],
        }
        signature = f"t={timestamp},v0={_hmac(secret, b'%d.' % timestamp + body)}"
        if delivery["sequence"] % 2:
            named = " ".join(SIGNED_HEADERS)
            values = ".".join(headers[name] for name in SIGNED_HEADERS)
            signed = f"{timestamp}.{named}.{values}.".encode() + body
            signature += f",h={named},v1={_hmac(secret, signed)}"
        return body, headers | {"X-Hook0-Signature": signature}

    return dress


def _hmac(secret: str, signed: bytes) -> str:
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def _authenticate(request: Request, twin: CryptoTwin) -> None:
    """Refuse a token that is not ours, not for this request, or older than it may be. Raises: Refusal."""
    problem = token_problem(request, twin.settings.key_id, twin.settings.key, twin.now())
    if problem is not None:
        raise Refusal(401, {"errorType": "unauthorized", "errorMessage": problem})


@router.post("/checkouts")
async def create_checkout(request: Request) -> Response:
    """Open a checkout, once under an idempotency key."""
    twin = twin_of(request)
    _authenticate(request, twin)
    key = request.headers.get("x-idempotency-key")
    if key is not None:
        _check_uuid4(key)

    def operation(state: CryptoState, body: Json) -> Json:
        payment = state.open(_order(body), EXPIRES_IN_S)
        payment["url"] = twin.page_url(request, payment["id"])
        return shape(payment)

    return await answer(request, operation, status=201, repeat_key=key)


@router.get("/checkouts")
async def list_checkouts(request: Request) -> Response:
    """List checkouts, newest first, in pages."""
    _authenticate(request, twin_of(request))
    query = request.query_params
    size, start = int(query.get("pageSize", "20")), int(query.get("pageToken", "0"))
    if not 1 <= size <= PAGE_MOST:
        raise Refusal(400, {"errorType": "invalid_request", "errorMessage": "pageSize: 1 to 100."})

    def operation(state: CryptoState, _body: Json) -> Json:
        rows = [shape(payment) for payment in reversed(state.document["payments"].values())]
        rows = [row for row in rows if query.get("status") in (None, row["status"])]
        more = str(start + size) if len(rows) > start + size else ""
        return {"checkouts": rows[start : start + size], "nextPageToken": more}

    return await answer(request, operation)


@router.get("/checkouts/{checkout_id}")
async def show_checkout(request: Request, checkout_id: str) -> Response:
    """Show one checkout as it stands."""
    _authenticate(request, twin_of(request))
    return await answer(request, lambda state, _: shape(state.get(checkout_id)))


@router.post("/checkouts/{checkout_id}/deactivate")
async def deactivate(request: Request, checkout_id: str) -> Response:
    """Close an open checkout."""
    _authenticate(request, twin_of(request))

    def operation(state: CryptoState, _body: Json) -> Json:
        payment = state.get(checkout_id)
        if payment["state"] != "open":
            raise Refusal(409, {"errorType": "conflict", "errorMessage": "The checkout is not active."})
        state.change(payment, "deactivated")
        return shape(payment)

    return await answer(request, operation)


@router.post("/checkouts/{checkout_id}/refund")
async def refund(request: Request, checkout_id: str) -> Response:
    """Send a payment back, whole or in part."""
    _authenticate(request, twin_of(request))

    def operation(state: CryptoState, body: Json) -> Json:
        amount = crypto_payments.read_amount(text_of(body, "amount"))
        checkout = shape(crypto_payments.refund(state, state.get(checkout_id), amount))
        return {"checkout": checkout, "refund": checkout["refunds"][0]}

    return await answer(request, operation, repeat_key=request.headers.get("x-idempotency-key"))


def _order(body: Json) -> Json:
    currency, metadata = text_of(body, "currency"), body.get("metadata", {})
    amount, description = text_of(body, "amount"), text_of(body, "description", "")
    is_metadata = (
        isinstance(metadata, dict)
        and len(metadata) <= METADATA_KEYS_MOST
        and all(isinstance(v, str) and len(v) <= METADATA_VALUE_MOST for v in metadata.values())
    )
    is_good = (
        currency in CURRENCIES
        and AMOUNT_FORM.fullmatch(amount) is not None
        and 0 < Decimal(amount) <= AMOUNT_MOST
        and is_metadata
        and len(description) <= DESCRIPTION_MOST
        and all(
            len(text_of(body, name, "")) <= URL_MOST for name in ("successRedirectUrl", "failRedirectUrl")
        )
        and body.get("network", "base") == "base"
    )
    if not is_good:
        raise Refusal(
            400, {"errorType": "invalid_request", "errorMessage": "An order that Coinbase refuses."}
        )
    return {
        "amount": text_of(body, "amount"),
        "currency": currency,
        "description": text_of(body, "description", ""),
        "metadata": metadata,
        "success_url": body.get("successRedirectUrl"),
        "cancel_url": body.get("failRedirectUrl"),
        "url": "",
    }


def _check_uuid4(key: str) -> None:
    try:
        is_uuid4 = uuid.UUID(key).version == 4  # noqa: PLR2004  # Coinbase takes this version alone
    except ValueError:
        is_uuid4 = False
    if not is_uuid4:
        raise Refusal(400, {"errorType": "invalid_request", "errorMessage": "X-Idempotency-Key: a UUIDv4."})
