"""The switches of a crypto twin, under `/_twin/`: what tests turn. They have no password; the twin is on loopback."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from sandbox import crypto_payments
from sandbox.crypto_instance import twin_of
from sandbox.crypto_pages import summary
from sandbox.stripe_controls import FaultOrder, Order, WebhookOrder
from sandbox.stripe_state import Faults

router = APIRouter(prefix="/_twin")


class Arrival(Order):
    """Coins that arrive at a payment's address."""

    amount: Annotated[str, Field(max_length=64)]
    confirmed: bool = True


class Back(Order):
    """Coins that are sent back."""

    amount: Annotated[str, Field(max_length=64)]


@router.post("/webhooks")
async def order_webhooks(request: Request, order: WebhookOrder) -> dict[str, Any]:
    """Change how webhooks are delivered and give the settings that hold from now on."""
    async with twin_of(request).writing() as state:
        for name, value in order.model_dump(exclude_none=True).items():
            setattr(state.controls, name, value)
        return dict(vars(state.controls))


@router.post("/faults")
async def order_faults(request: Request, order: FaultOrder) -> dict[str, Any]:
    """Make the next API requests fail."""
    async with twin_of(request).writing() as state:
        state.faults = Faults(**order.model_dump())
        return order.model_dump()


@router.get("/deliveries")
async def list_deliveries(request: Request) -> dict[str, Any]:
    """Show every delivery with its tries, the earliest first."""
    async with twin_of(request).reading() as state:
        return {"data": [dict(delivery) for delivery in state.document["deliveries"].values()]}


@router.post("/events/{event_id}/resend")
async def resend_event(request: Request, event_id: str) -> dict[str, Any]:
    """Deliver an event once more."""
    async with twin_of(request).writing() as state:
        state.queue_again(event_id)
        return {"id": event_id}


@router.post("/payments/{payment_id}/receive")
async def receive(request: Request, payment_id: str, arrival: Arrival) -> dict[str, Any]:
    """Have coins arrive."""
    async with twin_of(request).writing() as state:
        amount = crypto_payments.read_amount(arrival.amount)
        payment = state.get(payment_id)
        return summary(crypto_payments.receive(state, payment, amount, confirmed=arrival.confirmed))


@router.post("/payments/{payment_id}/refund")
async def refund(request: Request, payment_id: str, back: Back) -> dict[str, Any]:
    """Send coins back."""
    async with twin_of(request).writing() as state:
        payment = state.get(payment_id)
        return summary(crypto_payments.refund(state, payment, crypto_payments.read_amount(back.amount)))


@router.post("/payments/{payment_id}/{outcome}")
async def act(
    request: Request,
    payment_id: str,
    outcome: Literal["pay", "part", "over", "slow", "confirm", "expire", "fail"],
) -> dict[str, Any]:
    """Do what a payer or the time does, without the page."""
    async with twin_of(request).writing() as state:
        return summary(crypto_payments.choose(state, state.get(payment_id), outcome))
