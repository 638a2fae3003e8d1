"""The customer portal's page: saved cards, and what was paid. Whoever has a portal session's address may use it.

Like the hosted checkout it needs no script, and what it may do is decided by the state when a form comes in.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from sandbox import stripe_cards
from sandbox.stripe_errors import ApiError, missing
from sandbox.stripe_instance import Twin
from sandbox.stripe_pages import read_form, render
from sandbox.stripe_params import Params
from sandbox.stripe_shapes import Json, amount_text
from sandbox.stripe_state import BY_THE_BUYER, TwinState

router = APIRouter()

# Stripe's own sessions end after a while of not being used; an hour is long enough here.
LIFETIME_S = 3600
ACTIONS = ("add", "default", "remove")


@router.get("/p/session/{session_id}")
async def show_portal(request: Request, session_id: str) -> Response:
    """Show a customer's cards and payments."""
    twin: Twin = request.app.state.twin
    async with twin.reading() as state:
        return _page(state, session_id)


@router.post("/p/session/{session_id}")
async def submit_portal(request: Request, session_id: str) -> Response:
    """Add a card, choose the default one, or take one away."""
    twin: Twin = request.app.state.twin
    try:
        params = Params(await read_form(request))
        async with twin.writing() as state:
            _act(state, session_id, params)
    except ApiError as refusal:
        async with twin.reading() as state:
            return _page(state, session_id, message=refusal.message, status=refusal.status)
    # 303: a reload of the page that follows must not send the form again.
    headers = {"Cache-Control": "no-store"}
    return RedirectResponse(f"/p/session/{session_id}", status_code=303, headers=headers)


def _act(state: TwinState, session_id: str, params: Params) -> None:
    customer = _customer_of(state, session_id)
    if customer is None:
        raise ApiError(404, "invalid_request_error", "This billing page is closed.")
    action = params.choice("action", ACTIONS)
    if action is None:
        raise missing("action")
    if action == "add":
        stripe_cards.save(state, customer["id"], params.required_text("card"), BY_THE_BUYER)
        return
    method_id = params.required_text("payment_method")
    if method_id not in {card["id"] for card in stripe_cards.saved(state, customer["id"])}:
        raise ApiError(404, "invalid_request_error", "This card is not saved any more.")
    if action == "default":
        stripe_cards.make_default(state, customer, method_id, BY_THE_BUYER)
    else:
        stripe_cards.detach(state, method_id, BY_THE_BUYER)


def _customer_of(state: TwinState, session_id: str) -> Json | None:
    """Give whose page this is, while it is open."""
    session = state.find("portal_sessions", session_id)
    if session is None or session["created"] + LIFETIME_S < state.now():
        return None
    return state.find("customers", session["customer"])


def _page(state: TwinState, session_id: str, *, message: str | None = None, status: int = 200) -> Response:
    customer = _customer_of(state, session_id)
    if customer is None:
        return render("portal.html", 404, is_open=False)
    default = customer["invoice_settings"]["default_payment_method"]
    return render(
        "portal.html",
        status,
        is_open=True,
        session_id=session_id,
        message=message,
        email=customer["email"],
        customer_id=customer["id"],
        cards=[
            _card(card, default)
            for card in stripe_cards.saved(state, customer["id"])
            if card["type"] == "card"
        ],
        test_cards={name: card for name, card in stripe_cards.CARDS.items() if card.label},
        payments=[_payment(charge) for charge in _charges_of(state, customer["id"])],
        return_url=state.get("portal_sessions", session_id, "session")["return_url"],
    )


def _charges_of(state: TwinState, customer_id: str) -> list[Json]:
    return [charge for charge in state.newest_first("charges") if charge["customer"] == customer_id]


def _card(method: Json, default: str | None) -> dict[str, Any]:
    card = method["card"]
    return {
        "id": method["id"],
        "brand": card["brand"].capitalize(),
        "last4": card["last4"],
        "expires": f"{card['exp_month']:02d} / {card['exp_year'] % 100}",
        "is_default": method["id"] == default,
    }


def _payment(charge: Json) -> dict[str, str]:
    status = charge["status"]
    if charge["amount_refunded"]:
        status = "refunded" if charge["refunded"] else "refunded in part"
    return {
        "date": datetime.fromtimestamp(charge["created"], UTC).strftime("%d %b %Y"),
        "what": charge["description"] or charge["id"],
        "status": "paid" if status == "succeeded" else status,
        "amount": amount_text(charge["amount"], charge["currency"]),
    }
