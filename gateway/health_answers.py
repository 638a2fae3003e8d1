"""What `GET /health` answers, as models for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gateway.answers import Answer, Ok, State


class PartState(Answer):
    """Whether a part can work now."""

    state: State
    reason: str | None


class ModelShown(PartState):
    """Whether a model can work now."""

    asleep: Annotated[bool, Field(description="It sleeps because nobody asks; the next job wakes it.")]
    starts_in_seconds: Annotated[
        int | None, Field(description="How long a start takes, measured here; null once it works.")
    ]


class PaymentsState(Answer):
    """Whether purchases can be made, and with what money."""

    state: State
    mode: Annotated[
        Literal["live", "test", "sandbox", "off"],
        Field(description="`sandbox`: play money, no card is charged."),
    ]


class HealthReport(Ok):
    """The state of this server's parts."""

    status: Annotated[
        Literal["ready", "degraded"], Field(description="`degraded`: money moves, a part does not.")
    ]
    version: str
    instance: Annotated[str, Field(description="Changes with each start of the server.")]
    profile: Annotated[
        Literal["tiny", "small", "gpu"], Field(description="`tiny`: real pipelines, meaningless pictures.")
    ]
    sandbox: bool
    ledger: PartState
    payments: PaymentsState
    models: dict[str, ModelShown]
