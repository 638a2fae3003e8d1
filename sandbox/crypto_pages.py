"""The page on which coins are sent in the sandbox: in full, in part, too many, unconfirmed, or too late.

What may be done is decided by the payment's state, not by the page: an old tab and a double click meet the same check.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sandbox import crypto_payments
from sandbox.crypto_instance import twin_of
from sandbox.crypto_state import CryptoState, NoSuchPayment, WrongState, arrived
from sandbox.stripe_shapes import Json

router = APIRouter()

# The form has one short field.
FORM_MOST_BYTES = 4 * 1024

_PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_HEADERS = {
    "Cache-Control": "no-store",
    # No `form-action`: browsers apply it to the redirect after a form too, and that leads to the shop.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/pay/{payment_id}")
async def show_page(request: Request, payment_id: str) -> Response:
    """Show where an open checkout is paid, or what became of one that is closed."""
    async with twin_of(request).reading() as state:
        return _page(state, payment_id)


@router.post("/pay/{payment_id}")
async def submit_page(request: Request, payment_id: str) -> Response:
    """Do what the payer chose and send them on; a script gets JSON where a browser gets a redirect."""
    wants_json = "application/json" in request.headers.get("accept", "")
    outcome = await _outcome(request)
    message = None
    status = HTTPStatus.OK
    async with twin_of(request).writing() as state:
        try:
            payment = crypto_payments.choose(state, state.get(payment_id), outcome)
        except NoSuchPayment:
            return _page(state, payment_id)
        except WrongState as refusal:
            message, status, payment = str(refusal), HTTPStatus.CONFLICT, state.get(payment_id)
        if wants_json:
            return JSONResponse(summary(payment) | {"message": message}, status)
        address = _return_address(payment, outcome) if message is None else None
        if address is not None:
            # 303: the browser must come back with a GET, whatever it came with.
            return RedirectResponse(address, 303, headers={"Cache-Control": "no-store"})
        return _page(state, payment_id, message=message, status=status)


def summary(payment: Json) -> Json:
    """Give what a script wants to know of a payment."""
    return {
        "id": payment["id"],
        "status": payment["state"],
        "amount": payment["amount"],
        "received": f"{arrived(payment, confirmed=True):f}",
        "redirect_url": _return_address(payment, ""),
    }


def _return_address(payment: Json, outcome: str) -> str | None:
    address = None
    if payment["state"] == "settled":
        address = payment["success_url"]
    elif outcome == "cancel":
        address = payment["cancel_url"]
    return address and str(address).replace("{InvoiceId}", payment["id"])


async def _outcome(request: Request) -> str:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_MOST_BYTES:
            return ""
    return dict(parse_qsl(body.decode(errors="replace"))).get("outcome", "")


def _page(state: CryptoState, payment_id: str, *, message: str | None = None, status: int = 200) -> Response:
    try:
        payment = state.get(payment_id)
    except NoSuchPayment:
        html = _PAGES.get_template("closed.html").render(status="unknown", return_url=None)
        return HTMLResponse(html, 404, headers=_HEADERS)
    here, there = arrived(payment, confirmed=False), arrived(payment, confirmed=True)
    html = _PAGES.get_template("coins.html").render(
        state=payment["state"],
        amount=_money(Decimal(payment["amount"]), payment),
        received=_money(there, payment) if there else None,
        waiting=_money(here - there, payment) if here > there else None,
        description=payment["description"],
        message=message,
        can_return=payment["cancel_url"] is not None,
        return_url=_return_address(payment, ""),
        expires_at=datetime.fromtimestamp(payment["expires_at"], UTC).strftime("%d %b %Y, %H:%M UTC"),
    )
    return HTMLResponse(html, status, headers=_HEADERS)


def _money(amount: Decimal, payment: Json) -> str:
    currency: Any = payment["currency"]
    return f"{amount:,.2f} {currency}"
