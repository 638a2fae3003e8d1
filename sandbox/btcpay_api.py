"""The API of BTCPay Server as its twin speaks it: the invoices of one store, and the webhooks that tell of them.

Source: BTCPay Server's Greenfield API.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, Literal, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sandbox import crypto_payments
from sandbox.crypto_instance import CryptoTwin, Refusal, answer, text_of, twin_of
from sandbox.crypto_state import CryptoState, Happening, arrived, is_whole
from sandbox.stripe_shapes import Json
from sandbox.stripe_webhooks import Dress

router = APIRouter(prefix="/api/v1/stores/{store_id}/invoices")

STORE_ID: Final = "9CiNzKoANXxmk5ayZngSXrHTiVvvgCrwrpFQd4m2K776"
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
# Fixed at an invoice's creation; so many of its currency for one coin.
RATE: Final = Decimal(50_000)
EXPIRES_IN_MINUTES: Final = 15
TAKE_DEFAULT: Final = 50


class Btcpay:
    """Invoices with a short id; one that expired stays so, however much comes later."""

    late_settles = False

    def new_id(self, token: Callable[[int], str]) -> str:
        """Make an id of 22 base58 digits."""
        digest = hashlib.sha256(token(24).encode()).digest()
        return "".join(_BASE58[byte % 58] for byte in digest[:22])

    def events(self, happening: Happening, payment: Json, token: Callable[[int], str]) -> list[Json]:  # noqa: ARG002
        """Tell of every step of an invoice."""
        more: dict[str, Json] = {
            "InvoiceReceivedPayment": {"afterExpiration": payment["state"] == "expired"},
            "InvoicePaymentSettled": {"afterExpiration": payment["state"] == "expired"},
            "InvoiceProcessing": {"overPaid": _is_over(payment)},
            "InvoiceSettled": {"overPaid": _is_over(payment), "manuallyMarked": happening == "marked"},
            "InvoiceExpired": {"partiallyPaid": bool(payment["arrivals"])},
            "InvoiceInvalid": {"manuallyMarked": happening == "marked"},
        }
        kind = {
            "created": "InvoiceCreated",
            "received": "InvoiceReceivedPayment",
            "processing": "InvoiceProcessing",
            "confirmed": "InvoicePaymentSettled",
            "settled": "InvoiceSettled",
            "expired": "InvoiceExpired",
            "failed": "InvoiceInvalid",
            "marked": "InvoiceSettled" if payment["marked"] == "Settled" else "InvoiceInvalid",
        }.get(happening)
        if kind is None:
            return []
        body = {
            "type": kind,
            "storeId": STORE_ID,
            "invoiceId": payment["id"],
            "metadata": payment["metadata"],
            **more.get(kind, {}),
        }
        return [{"type": kind, "body": body}]


def shape(payment: Json) -> Json:
    """Print an invoice as the API does."""
    status = {"open": "New", "processing": "Processing", "settled": "Settled", "expired": "Expired"}
    return {
        "id": payment["id"],
        "storeId": STORE_ID,
        "amount": payment["amount"],
        "currency": payment["currency"],
        "type": "Standard",
        "checkoutLink": payment["url"],
        "status": status.get(payment["state"], "Invalid"),
        "additionalStatus": _additional(payment),
        "metadata": payment["metadata"],
        "createdTime": int(payment["created"]),
        "expirationTime": int(payment["expires_at"]),
        "checkout": {"redirectURL": payment["success_url"]},
    }


def payment_methods(payment: Json) -> list[Json]:
    """Print what arrived, in the coin that it arrived in."""
    paid = arrived(payment, confirmed=False) / RATE
    return [
        {
            "paymentMethodId": "BTC-CHAIN",
            "currency": "BTC",
            "destination": "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
            "rate": f"{RATE:f}",
            "paymentMethodPaid": f"{paid:f}",
            "totalPaid": f"{paid:f}",
            "due": f"{Decimal(payment['amount']) / RATE - paid:f}",
            "amount": f"{Decimal(payment['amount']) / RATE:f}",
            "payments": [
                {
                    "id": arrival["id"],
                    "receivedDate": int(arrival["at"]),
                    "value": f"{Decimal(arrival['amount']) / RATE:f}",
                    "fee": "0",
                    "status": "Settled" if arrival["confirmed"] else "Processing",
                }
                for arrival in payment["arrivals"]
            ],
        }
    ]


def _is_over(payment: Json) -> bool:
    return arrived(payment, confirmed=False) > Decimal(payment["amount"])


def _additional(payment: Json) -> str:
    if payment["marked"]:
        return "Marked"
    if payment["state"] == "expired" and payment["arrivals"]:
        return "PaidLate" if is_whole(payment, confirmed=False) else "PaidPartial"
    return "PaidOver" if _is_over(payment) else "None"


def dressed(secret: str) -> Dress:
    """Give the deliveries of this twin; each try is a delivery of its own that names the first."""

    def dress(event: Json, delivery: Json, timestamp: int) -> tuple[bytes, dict[str, str]]:
        again = delivery["copy"] + delivery["attempts"]
        first = event["id"].removeprefix("evt_")
        body: dict[str, Any] = {
            "deliveryId": f"{first}{again or ''}",
            "webhookId": "sandbox",
            "originalDeliveryId": first,
            "isRedelivery": bool(again),
            "timestamp": timestamp,
            **event["body"],
        }
        raw = json.dumps(body, indent=2).encode()
        digest = hmac.new(secret.encode(), raw, hashlib.sha256).hexdigest()
        return raw, {"Content-Type": "application/json; charset=utf-8", "BTCPay-Sig": f"sha256={digest}"}

    return dress


def _authenticate(request: Request, store_id: str) -> CryptoTwin:
    twin = twin_of(request)
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"token {twin.settings.key}".encode()):
        raise Refusal(401, {"code": "unauthenticated", "message": "Authentication is required."})
    if store_id != STORE_ID:
        raise Refusal(403, {"code": "missing-permission", "message": "The key is for another store."})
    return twin


@router.post("")
async def create_invoice(request: Request, store_id: str) -> Response:
    """Open an invoice; asked twice, BTCPay opens two."""
    twin = _authenticate(request, store_id)

    def operation(state: CryptoState, body: Json) -> Json:
        checkout, metadata = body.get("checkout") or {}, body.get("metadata") or {}
        crypto_payments.read_amount(text_of(body, "amount"))
        order = {
            "amount": text_of(body, "amount"),
            "currency": text_of(body, "currency"),
            "description": str(metadata.get("itemDesc", "")),
            "metadata": metadata,
            "success_url": checkout.get("redirectURL"),
            "cancel_url": checkout.get("redirectURL"),
            "url": "",
        }
        minutes = checkout.get("expirationMinutes", EXPIRES_IN_MINUTES)
        payment = state.open(order, float(minutes) * 60)
        payment["url"] = twin.page_url(request, payment["id"])
        return shape(payment)

    return await answer(request, operation)


@router.get("")
async def list_invoices(request: Request, store_id: str) -> Response:
    """List invoices of a stretch of time, newest first, as many as are asked for."""
    _authenticate(request, store_id)
    query = request.query_params
    since, until = float(query.get("startDate", "0")), float(query.get("endDate", "inf"))
    skip, take = int(query.get("skip", "0")), int(query.get("take", str(TAKE_DEFAULT)))

    def operation(state: CryptoState, _body: Json) -> list[Json]:
        rows = [
            shape(payment)
            for payment in reversed(state.document["payments"].values())
            if since <= payment["created"] <= until
        ]
        return rows[skip : skip + take]

    return await answer(request, operation)


@router.get("/{invoice_id}")
async def show_invoice(request: Request, store_id: str, invoice_id: str) -> Response:
    """Show one invoice as it stands."""
    _authenticate(request, store_id)
    return await answer(request, lambda state, _: shape(state.get(invoice_id)))


@router.get("/{invoice_id}/payment-methods")
async def show_payment_methods(request: Request, store_id: str, invoice_id: str) -> Response:
    """Show what arrived of an invoice."""
    _authenticate(request, store_id)
    return await answer(request, lambda state, _: payment_methods(state.get(invoice_id)))


@router.post("/{invoice_id}/status")
async def mark_invoice(request: Request, store_id: str, invoice_id: str) -> Response:
    """Have the operator decide: `Settled` or `Invalid`."""
    _authenticate(request, store_id)

    def operation(state: CryptoState, body: Json) -> Json:
        how = text_of(body, "status")
        if how not in {"Settled", "Invalid"}:
            raise Refusal(422, [{"path": "status", "message": "Settled or Invalid."}])
        return shape(
            crypto_payments.mark(state, state.get(invoice_id), cast('Literal["Settled", "Invalid"]', how))
        )

    return await answer(request, operation)
