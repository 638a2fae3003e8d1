"""The routes under `/v1` of saved cards and of payments with them, answered as the others are."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sandbox import stripe_cards
from sandbox.stripe_api import answer_read, answer_write, show
from sandbox.stripe_lists import page
from sandbox.stripe_params import Params, names
from sandbox.stripe_shapes import Json
from sandbox.stripe_state import Origin, TwinState

router = APIRouter(prefix="/v1")


@router.post("/payment_intents")
async def create_payment_intent(request: Request) -> Response:
    """Charge a saved card while its owner is away."""

    def operation(state: TwinState, params: Params, origin: Origin) -> Json:
        return stripe_cards.charge(state, stripe_cards.read_charge(params), origin)

    return await answer_write(request, "payment_intent", operation)


@router.get("/setup_intents/{intent_id}")
async def retrieve_setup_intent(request: Request, intent_id: str) -> Response:
    """Show how a card was saved."""
    return await show(request, "setup_intents", intent_id, "intent")


@router.get("/payment_methods")
async def list_payment_methods(request: Request) -> Response:
    """List the cards of a customer, newest first."""

    def operation(state: TwinState, params: Params) -> Json:
        customer_id = params.required_text("customer")
        return page(stripe_cards.saved(state, customer_id), params, request.url.path, ("customer", "type"))

    return await answer_read(request, "list of payment_method", operation)


@router.get("/payment_methods/{method_id}")
async def retrieve_payment_method(request: Request, method_id: str) -> Response:
    """Show one card."""
    return await show(request, "payment_methods", method_id, "payment_method")


@router.post("/payment_methods/{method_id}/attach")
async def attach_payment_method(request: Request, method_id: str) -> Response:
    """Save a card with a customer."""

    def operation(state: TwinState, params: Params, origin: Origin) -> Json:
        return stripe_cards.attach(state, method_id, params, origin)

    return await answer_write(request, "payment_method", operation)


@router.post("/payment_methods/{method_id}/detach")
async def detach_payment_method(request: Request, method_id: str) -> Response:
    """Take a card away from its customer."""

    def operation(state: TwinState, params: Params, origin: Origin) -> Json:
        params.only(names("expand"))
        return stripe_cards.detach(state, method_id, origin)

    return await answer_write(request, "payment_method", operation)


@router.get("/customers/{customer_id}/payment_methods")
async def list_customer_cards(request: Request, customer_id: str) -> Response:
    """List the cards of a customer, newest first."""

    def operation(state: TwinState, params: Params) -> Json:
        state.get("customers", customer_id, "customer", in_path=True)
        return page(stripe_cards.saved(state, customer_id), params, request.url.path, ("type",))

    return await answer_read(request, "list of payment_method", operation)


@router.post("/customers/{customer_id}")
async def update_customer(request: Request, customer_id: str) -> Response:
    """Choose the card that a customer is charged by."""

    def operation(state: TwinState, params: Params, origin: Origin) -> Json:
        params.only(names("expand invoice_settings"), names("email name metadata address phone shipping tax"))
        customer = state.get("customers", customer_id, "customer", in_path=True)
        settings = params.child("invoice_settings")
        if settings is None:
            return customer
        settings.only(names("default_payment_method"))
        method_id = settings.required_text("default_payment_method")
        return stripe_cards.make_default(state, customer, method_id, origin)

    return await answer_write(request, "customer", operation)
