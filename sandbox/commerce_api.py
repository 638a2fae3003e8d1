"""The API of Coinbase Commerce as it was before it closed, and the webhooks that some operators still receive.

Source: Coinbase Commerce, charges and webhooks.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sandbox import crypto_payments
from sandbox.crypto_instance import Refusal, answer, text_of, twin_of
from sandbox.crypto_state import CryptoState, Happening, arrived, is_whole
from sandbox.stripe_shapes import Json
from sandbox.stripe_webhooks import Dress

router = APIRouter()

EXPIRES_IN_S: Final = 3600.0


class Commerce:
    """Charges with a UUID; one that expired stays so, and what comes late is told as that."""

    late_settles = False
    _TYPES: Final[dict[Happening, str]] = {
        "created": "charge:created",
        "processing": "charge:pending",
        "settled": "charge:confirmed",
        "expired": "charge:failed",
        "failed": "charge:failed",
    }

    def new_id(self, token: Callable[[int], str]) -> str:
        """Make a UUID."""
        return str(uuid.UUID(bytes=hashlib.sha256(token(24).encode()).digest()[:16], version=4))

    def events(self, happening: Happening, payment: Json, token: Callable[[int], str]) -> list[Json]:
        """Tell of a charge's beginning and of its ends."""
        is_late = happening in ("received", "confirmed") and payment["state"] == "expired"
        kind = "charge:delayed" if is_late else self._TYPES.get(happening)
        if kind is None:
            return []
        event_id = str(uuid.UUID(bytes=hashlib.sha256(token(24).encode()).digest()[:16], version=4))
        event = {"id": event_id, "type": kind, "api_version": "2018-03-22", "data": shape(payment)}
        return [{"type": kind, "body": {"attempt_number": 1, "event": event}}]


def shape(payment: Json) -> Json:
    """Print a charge as the API did."""
    price = {"amount": payment["amount"], "currency": payment["currency"]}
    words = {"open": "NEW", "processing": "PENDING", "settled": "COMPLETED", "expired": "EXPIRED"}
    timeline: list[Json] = [
        {"time": _time(payment["created"]), "status": "NEW"},
        {"time": _time(payment["updated"]), "status": words.get(payment["state"], "UNRESOLVED")},
    ]
    if payment["state"] == "expired" and payment["arrivals"] and not is_whole(payment):
        timeline.append({"time": _time(payment["updated"]), "status": "UNRESOLVED", "context": "UNDERPAID"})
    elif payment["state"] == "expired" and payment["arrivals"]:
        timeline.append({"time": _time(payment["updated"]), "status": "UNRESOLVED", "context": "DELAYED"})
    elif arrived(payment, confirmed=True) > Decimal(payment["amount"]):
        timeline[-1]["context"] = "OVERPAID"
    return {
        "id": payment["id"],
        "code": payment["id"][:8].upper(),
        "name": payment["description"],
        "hosted_url": payment["url"],
        "pricing_type": "fixed_price",
        "pricing": {"local": price, "usdc": {"amount": payment["amount"], "currency": "USDC"}},
        "metadata": payment["metadata"],
        "timeline": timeline,
        "payments": [
            {
                "network": "ethereum",
                "transaction_id": arrival["id"],
                "status": "CONFIRMED" if arrival["confirmed"] else "PENDING",
                "value": {"local": {"amount": arrival["amount"], "currency": payment["currency"]}},
            }
            for arrival in payment["arrivals"]
        ],
        "created_at": _time(payment["created"]),
        "expires_at": _time(payment["expires_at"]),
        "redirect_url": payment["success_url"],
        "cancel_url": payment["cancel_url"],
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def dressed(secret: str) -> Dress:
    """Give the deliveries of this twin."""

    def dress(event: Json, delivery: Json, _timestamp: int) -> tuple[bytes, dict[str, str]]:
        body = event["body"] | {"attempt_number": delivery["attempts"] + 1}
        raw = json.dumps(body, separators=(",", ":")).encode()
        digest = hmac.new(secret.encode(), raw, hashlib.sha256).hexdigest()
        return raw, {"Content-Type": "application/json", "X-CC-Webhook-Signature": digest}

    return dress


def _authenticate(request: Request) -> None:
    given = request.headers.get("x-cc-api-key", "")
    if not hmac.compare_digest(given.encode(), twin_of(request).settings.key.encode()):
        raise Refusal(401, {"error": {"type": "authentication_error", "message": "Unknown API key."}})


@router.post("/charges")
async def create_charge(request: Request) -> Response:
    """Open a charge."""
    _authenticate(request)
    twin = twin_of(request)

    def operation(state: CryptoState, body: Json) -> Json:
        price = body.get("local_price") or {}
        crypto_payments.read_amount(text_of(price, "amount"))
        order = {
            "amount": text_of(price, "amount"),
            "currency": text_of(price, "currency"),
            "description": text_of(body, "name", ""),
            "metadata": body.get("metadata") or {},
            "success_url": body.get("redirect_url"),
            "cancel_url": body.get("cancel_url"),
            "url": "",
        }
        payment = state.open(order, EXPIRES_IN_S)
        payment["url"] = twin.page_url(request, payment["id"])
        return {"data": shape(payment)}

    return await answer(request, operation, status=201)


@router.get("/charges/{charge_id}")
async def show_charge(request: Request, charge_id: str) -> Response:
    """Show one charge as it stands."""
    _authenticate(request)
    return await answer(request, lambda state, _: {"data": shape(state.get(charge_id))})
