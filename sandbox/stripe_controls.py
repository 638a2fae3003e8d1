"""The switches of the twin, under `/_twin/`: what tests turn and a person at a dashboard would click.

They have no password, so the twin is bound to loopback. What they order (holding, duplicating, failing) is
forgotten at a restart; what they do to sessions is as lasting as anything else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, ConfigDict, Field

from sandbox import stripe_checkout
from sandbox.stripe_instance import Twin
from sandbox.stripe_pages import choose, read_choice, summary
from sandbox.stripe_state import BY_THE_BUYER, Faults

router = APIRouter(prefix="/_twin")


class Order(BaseModel):
    """What a test orders: strict, no field that is not listed."""

    model_config = ConfigDict(extra="forbid", strict=True)


class WebhookOrder(Order):
    """How webhooks go out from now on; what is left out stays as it is."""

    mode: Literal["deliver", "hold"] | None = None
    duplicate: Annotated[int, Field(ge=0, le=100)] | None = None
    reverse: bool | None = None
    delay_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] | None = None
    concurrent: bool | None = None


class FaultOrder(Order):
    """How many of the next API requests fail, with which status, and whether after their effect."""

    next_requests_fail: Annotated[int, Field(ge=0, le=1000)]
    status: Annotated[int, Field(ge=400, le=599)] = 500
    after_effect: bool = False


class Buyer(Order):
    """Who pays, where the shop did not say; with which discount, and the tax that comes of it, in minor units."""

    email: str | None = None
    country: str | None = None
    card: str | None = None
    discount: Annotated[int, Field(ge=0)] = 0
    tax: Annotated[int, Field(ge=0)] = 0


class Settlement(Order):
    """How a delayed payment ends."""

    outcome: Literal["succeeded", "failed"] = "succeeded"


@router.post("/webhooks")
async def order_webhooks(request: Request, order: WebhookOrder) -> dict[str, Any]:
    """Change how webhooks are delivered and give the settings that hold from now on."""
    twin: Twin = request.app.state.twin
    async with twin.writing() as state:
        for name, value in order.model_dump(exclude_none=True).items():
            setattr(state.controls, name, value)
        return dict(vars(state.controls))


@router.post("/webhooks/release")
async def release_webhooks(request: Request) -> dict[str, Any]:
    """End a hold: everything that waited goes out, in the order that `reverse` says."""
    twin: Twin = request.app.state.twin
    async with twin.writing() as state:
        state.controls.mode = "deliver"
        return {"released": sum(1 for _ in state.pending())}


@router.get("/deliveries")
async def list_deliveries(request: Request) -> dict[str, Any]:
    """Show every delivery with its tries, the earliest first."""
    twin: Twin = request.app.state.twin
    async with twin.reading() as state:
        return {"data": [dict(delivery) for delivery in state.deliveries()]}


@router.post("/events/{event_id}/resend")
async def resend_event(request: Request, event_id: str) -> dict[str, Any]:
    """Deliver an event once more, also one that arrived long ago or was given up on."""
    twin: Twin = request.app.state.twin
    async with twin.writing() as state:
        event = state.get("events", event_id, "id", in_path=True)
        state.queue_again(event)
        return {"id": event_id, "pending_webhooks": event["pending_webhooks"]}


@router.post("/faults")
async def order_faults(request: Request, order: FaultOrder) -> dict[str, Any]:
    """Make the next API requests fail."""
    twin: Twin = request.app.state.twin
    async with twin.writing() as state:
        state.faults = Faults(**order.model_dump())
        return order.model_dump()


@router.post("/sessions/{session_id}/expire")
async def expire_session(request: Request, session_id: str) -> dict[str, Any]:
    """Let a session's time run out now."""
    twin: Twin = request.app.state.twin
    async with twin.writing() as state:
        return summary(stripe_checkout.expire(state, session_id, BY_THE_BUYER))


@router.post("/sessions/{session_id}/settle")
async def settle_session(
    request: Request, session_id: str, settlement: Annotated[Settlement | None, Body()] = None
) -> dict[str, Any]:
    """End the wait of a delayed payment: the money came, or it did not."""
    twin: Twin = request.app.state.twin
    outcome = (settlement or Settlement()).outcome
    async with twin.writing() as state:
        return summary(stripe_checkout.settle(state, session_id, succeeded=outcome == "succeeded"))


@router.post("/sessions/{session_id}/{outcome}")
async def act_as_buyer(
    request: Request,
    session_id: str,
    outcome: Literal["pay", "decline", "delayed", "cancel"],
    buyer: Annotated[Buyer | None, Body()] = None,
) -> dict[str, Any]:
    """Do what a buyer does on the hosted page, without the page."""
    twin: Twin = request.app.state.twin
    who = buyer or Buyer()
    choice = read_choice(
        {"outcome": outcome, **who.model_dump(include={"email", "country", "card"}, exclude_none=True)}
    )
    async with twin.writing() as state:
        return choose(state, session_id, **choice, extras=stripe_checkout.Extras(who.discount, who.tax))
