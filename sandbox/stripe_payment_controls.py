"""The switches of what happens to a payment later, under `/_twin/`: what a bank, a card network or a person at the
dashboard would do. As loopback-only as the other switches.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, ConfigDict, Field

from sandbox import stripe_disputes, stripe_refunds
from sandbox.stripe_instance import Twin
from sandbox.stripe_state import BY_THE_BUYER

router = APIRouter(prefix="/_twin")


class Part(BaseModel):
    """How much of a payment; nothing said: all of it (of a refund: all that is left)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    amount: Annotated[int, Field(ge=1)] | None = None


class Question(Part):
    """A dispute, or an inquiry before one."""

    inquiry: bool = False


@router.post("/payments/{payment_intent_id}/refund")
async def refund_payment(
    request: Request, payment_intent_id: str, part: Annotated[Part | None, Body()] = None
) -> dict[str, Any]:
    """Refund a payment as a person does at the dashboard."""
    twin: Twin = request.app.state.twin
    wish: dict[str, Any] = {
        "amount": (part or Part()).amount,
        "charge": None,
        "metadata": {},
        "payment_intent": payment_intent_id,
        "reason": None,
    }
    async with twin.writing() as state:
        return stripe_refunds.refund(state, wish, BY_THE_BUYER)


@router.post("/refunds/{refund_id}/fail")
async def fail_refund(request: Request, refund_id: str) -> dict[str, Any]:
    """Let the payer's bank send a refund back."""
    twin: Twin = request.app.state.twin
    async with twin.writing() as state:
        return stripe_refunds.fail(state, refund_id)


@router.post("/payments/{payment_intent_id}/dispute")
async def dispute_payment(
    request: Request, payment_intent_id: str, question: Annotated[Question | None, Body()] = None
) -> dict[str, Any]:
    """Open a dispute, or an inquiry."""
    twin: Twin = request.app.state.twin
    asked = question or Question()
    async with twin.writing() as state:
        return stripe_disputes.dispute(state, payment_intent_id, asked.amount, is_inquiry=asked.inquiry)


@router.post("/disputes/{dispute_id}/{step}")
async def advance_dispute(request: Request, dispute_id: str, step: stripe_disputes.Step) -> dict[str, Any]:
    """Take a dispute one step on."""
    twin: Twin = request.app.state.twin
    async with twin.writing() as state:
        return stripe_disputes.advance(state, dispute_id, step)


@router.post("/payments/{payment_intent_id}/warn")
async def warn_of_payment(request: Request, payment_intent_id: str) -> dict[str, Any]:
    """Send an early fraud warning."""
    twin: Twin = request.app.state.twin
    async with twin.writing() as state:
        return stripe_disputes.warn(state, payment_intent_id)


@router.post("/customers/{customer_id}/delete")
async def delete_customer(request: Request, customer_id: str) -> dict[str, Any]:
    """Delete a customer, as a person does at the dashboard."""
    twin: Twin = request.app.state.twin
    async with twin.writing() as state:
        state.get("customers", customer_id, "customer", in_path=True)
        del state.document["customers"][customer_id]
        return {"id": customer_id, "object": "customer", "deleted": True}
