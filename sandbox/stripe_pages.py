"""The hosted page: where a person, or a script, pays a session, declines it, or walks away.

The page needs no script and nothing from the internet. What it may do is decided by the session's state, not
by the page: an old tab, a double click and a back button all meet the same check.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sandbox import stripe_cards, stripe_checkout
from sandbox.stripe_errors import ApiError, invalid, missing
from sandbox.stripe_instance import Twin
from sandbox.stripe_params import Params, parse_form
from sandbox.stripe_shapes import Json, amount_text
from sandbox.stripe_state import TwinState

router = APIRouter()

# The form has four short fields.
FORM_MOST_BYTES = 16 * 1024
OUTCOMES = ("pay", "decline", "delayed", "cancel")
DECLINED = "Your card was declined. Nothing was charged; you can try again or pay another way."

_COUNTRY = re.compile(r"^[A-Za-z]{2}$")
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


@router.get("/c/pay/{session_id}")
async def show_page(request: Request, session_id: str) -> Response:
    """Show the page on which an open session is paid, or say plainly why this one cannot be."""
    twin: Twin = request.app.state.twin
    async with twin.reading() as state:
        return _page(state, session_id)


@router.post("/c/pay/{session_id}")
async def submit_page(request: Request, session_id: str) -> Response:
    """Do what the buyer chose, once, and send them on; a script gets JSON where a browser gets a redirect."""
    twin: Twin = request.app.state.twin
    wants_json = "application/json" in request.headers.get("accept", "")
    try:
        choice = read_choice(await read_form(request))
        async with twin.writing() as state:
            result = choose(state, session_id, **choice)
    except ApiError as refusal:
        async with twin.reading() as state:
            return _refused(state, session_id, refusal, wants_json=wants_json)
    if wants_json:
        return JSONResponse(result)
    if result["redirect_url"] is not None:
        # 303: the browser must come back with a GET, whatever it came with.
        return RedirectResponse(
            result["redirect_url"], status_code=303, headers={"Cache-Control": "no-store"}
        )
    async with twin.reading() as state:
        return _page(state, session_id, message=result["message"])


def choose(  # noqa: PLR0913  # what a buyer fills in
    state: TwinState,
    session_id: str,
    *,
    outcome: str,
    email: str | None,
    country: str,
    extras: stripe_checkout.Extras = stripe_checkout.NO_EXTRAS,
    card: str = "pm_card_visa",
) -> Json:
    """Apply one of `OUTCOMES` to an open session and tell what came of it and where the buyer goes next.

    Raises: ApiError if the session does not exist or is not open any more.
    """
    message: str | None = None
    found = state.find("sessions", session_id)
    if outcome == "pay" and found and found["mode"] == "setup":
        open_session = stripe_checkout.must_be_open(state, session_id)
        session = stripe_cards.complete_setup(state, open_session, card)
    elif outcome in {"pay", "delayed"}:
        is_delayed = outcome == "delayed"
        session = stripe_checkout.pay(
            state, session_id, email=email, country=country, is_delayed=is_delayed, extras=extras
        )
    else:
        session = stripe_checkout.must_be_open(state, session_id)
        message = DECLINED if outcome == "decline" else "The shop gave no address to return to."
    redirect_url = None
    if outcome != "decline":
        redirect_url = stripe_checkout.return_address(session, paid=outcome != "cancel")
    return summary(session) | {
        "redirect_url": redirect_url,
        "message": None if redirect_url is not None else message,
    }


def summary(session: Json) -> Json:
    """Give what a script wants to know of a session."""
    return {name: session[name] for name in ("id", "status", "payment_status", "payment_intent")}


async def read_form(request: Request) -> dict[str, Any]:
    """Give what a form, or a script's JSON, holds; empty fields left out. Raises: ApiError."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_MOST_BYTES:
            raise ApiError(413, "invalid_request_error", f"At most {FORM_MOST_BYTES} bytes.")
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            values = orjson.loads(bytes(body) or b"{}")
        except orjson.JSONDecodeError as error:
            raise ApiError(400, "invalid_request_error", "The body is not JSON.") from error
        if not isinstance(values, dict):
            raise ApiError(400, "invalid_request_error", "The body is not a JSON object.")
    else:
        values = parse_form(bytes(body))
    return {name: value for name, value in values.items() if value is not None and value != ""}


def read_choice(values: dict[str, Any]) -> dict[str, Any]:
    """Check what a buyer filled in and give it as the arguments of `choose`."""
    params = Params(values)
    outcome = params.choice("outcome", OUTCOMES)
    if outcome is None:
        raise missing("outcome")
    country = params.text("country", max_length=2) or "US"
    if not _COUNTRY.fullmatch(country):
        raise invalid("country", "Two letters, as in US.")
    choice = {"outcome": outcome, "email": params.email("email"), "country": country.upper()}
    card = params.choice("card", tuple(stripe_cards.CARDS))
    return choice if card is None else choice | {"card": card}


def _refused(state: TwinState, session_id: str, refusal: ApiError, *, wants_json: bool) -> Response:
    session = state.find("sessions", session_id)
    is_conflict = session is not None and session["status"] != "open"
    status = 409 if is_conflict else refusal.status
    if wants_json:
        return JSONResponse(refusal.body(), status_code=status)
    return _page(state, session_id, message=refusal.message, status=status)


def _page(state: TwinState, session_id: str, *, message: str | None = None, status: int = 200) -> Response:
    session = state.find("sessions", session_id)
    if session is None:
        return render("closed.html", 404, status="unknown", return_url=None)
    if session["mode"] == "setup":
        return _setup_page(state, session, message, status)
    if session["status"] != "open":
        is_complete = session["status"] == "complete"
        return render(
            "closed.html",
            status,
            status=session["status"],
            payment_status=session["payment_status"],
            return_url=stripe_checkout.return_address(session, paid=is_complete),
            **_what_is_sold(state, session),
        )
    customer = state.find("customers", session["customer"] or "")
    return render(
        "pay.html",
        status,
        session_id=session_id,
        message=message,
        email=session["customer_email"] or (customer and customer["email"]),
        can_return=session["cancel_url"] is not None,
        expires_at=datetime.fromtimestamp(session["expires_at"], UTC).strftime("%d %b %Y, %H:%M UTC"),
        **_what_is_sold(state, session),
    )


def _setup_page(state: TwinState, session: Json, message: str | None, status: int) -> Response:
    is_open = session["status"] == "open"
    customer = state.find("customers", session["customer"])
    return render(
        "save_card.html",
        status,
        session_id=session["id"],
        is_open=is_open,
        message=message,
        email=customer and customer["email"],
        cards={name: card for name, card in stripe_cards.CARDS.items() if card.saves},
        return_url=stripe_checkout.return_address(session, paid=session["status"] == "complete"),
    )


def _what_is_sold(state: TwinState, session: Json) -> dict[str, Any]:
    currency = session["currency"]
    return {
        "amount": amount_text(session["amount_total"], currency),
        "lines": [
            {
                "name": line["description"],
                "quantity": line["quantity"],
                "amount": amount_text(line["amount_total"], currency),
                "each": amount_text(line["price"]["unit_amount"], currency),
            }
            for line in state.order_of(session["id"])["line_items"]
        ],
    }


def render(page: str, status_code: int, **values: Any) -> Response:
    """Draw one of the sandbox's pages."""
    html = _PAGES.get_template(page).render(**values)
    return HTMLResponse(html, status_code=status_code, headers=_HEADERS)
