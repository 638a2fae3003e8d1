"""What callers send and get around webhooks and alerts."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from gateway.answers import Amount, Answer, JobFault, Ok
from gateway.numbers import decimal_as_whole
from gateway.schemas import MAX_OVERLAP_S, Credits, Request, WebhookUrl, each_once
from gateway.webhook_ports import DeliveryStatus, Event, JobEvent


class LowBalanceWish(Request):
    """Tell when what is free to spend falls below so many credits."""

    credits: Annotated[Credits, Field(description="At most two decimals.")]
    webhook_url: Annotated[
        WebhookUrl | None, Field(description="Told beside the account's webhook endpoints, and the mail.")
    ] = None


class SetAlerts(Request):
    """What to be told of; null switches an alert off."""

    low_balance: LowBalanceWish | None


class AddEndpoint(Request):
    """A URL that is told of events."""

    url: Annotated[
        WebhookUrl | None,
        Field(
            description="Without it, an endpoint that signs what goes to the URLs that jobs and alerts name; it is made"
            " by the first of those, if not before."
        ),
    ] = None
    events: Annotated[
        Annotated[list[Event], Field(min_length=1, max_length=10), AfterValidator(each_once)] | None,
        Field(description="Without it, all events."),
    ] = None


class RotateEndpoint(Request):
    """A new secret for an endpoint."""

    overlap_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_OVERLAP_S,
            description="How long the old secret signs beside the new one; 0: not at all, as after a leak.",
        ),
        BeforeValidator(decimal_as_whole),
    ]


class LowBalanceShown(Answer):
    """The alert of a low balance."""

    threshold: Amount
    webhook_url: str | None
    armed: Annotated[
        bool, Field(description="Whether the next fall is told. After one, a top-up over the threshold arms it again.")
    ]  # fmt: skip
    alerted_at: Annotated[datetime | None, Field(description="When a fall was last told.")]


class Alerts(Ok):
    """What the account is told of."""

    low_balance: LowBalanceShown | None


class EndpointFields(Answer):
    """A webhook endpoint. Its secret is not shown again."""

    id: str
    url: Annotated[
        str | None, Field(description="Null: it signs what goes to URLs that jobs and alerts name.")
    ]
    events: Annotated[list[Event] | None, Field(description="Null: all events.")]
    created_at: datetime
    disabled_at: Annotated[
        datetime | None, Field(description="When it answered 410; nothing is sent any more.")
    ]
    old_secret_until: Annotated[
        datetime | None, Field(description="Until when the secret before this one signs too.")
    ]


class Endpoints(Ok):
    """The account's webhook endpoints, newest first."""

    data: list[EndpointFields]


class EndpointSecret(Ok, EndpointFields):
    """An endpoint and its secret, which only this answer shows."""

    secret: Annotated[str, Field(description="`whsec_` and Base64, as Standard Webhooks libraries read it.")]


class EndpointDeleted(Ok):
    """The endpoint is gone, with its deliveries."""

    id: str
    deleted: Literal[True]


class ToldFile(BaseModel):
    """A file that the job made, with the model's own facts beside; `GET /api/v1/files/{id}` says where it is."""

    model_config = ConfigDict(extra="allow", alias_generator=to_camel)

    id: str
    content_type: str
    size_bytes: int
    sha256: str


class JobTold(Answer):
    """A job as it ended."""

    job_id: str
    task: str
    status: Literal["succeeded", "failed", "canceled", "expired"]
    quoted: Amount
    charged: Amount
    output: list[ToldFile]
    error: JobFault | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime


class JobEnded(Answer):
    """What is posted when a job has ended."""

    type: JobEvent
    timestamp: datetime
    data: JobTold


class BalanceTold(Answer):
    """What was free to spend when it was found below the threshold."""

    free: Amount
    threshold: Amount


class BalanceLow(Answer):
    """What is posted when the balance fell below the alert's threshold."""

    type: Literal["balance.low"]
    timestamp: datetime
    data: BalanceTold


class DeliveryFields(Answer):
    """An event on its way to an endpoint. Its `id` is the `webhook-id` of every attempt."""

    id: str
    endpoint_id: str
    url: str
    event: Event
    job_id: str | None
    status: DeliveryStatus
    attempts: int
    answered: Annotated[int | None, Field(description="The status of the last answer.")]
    problem: Annotated[str | None, Field(description="What kept it last time.")]
    payload: Annotated[JobEnded | BalanceLow, Field(description="The body that is sent.")]
    created_at: datetime
    next_attempt_at: datetime | None
    delivered_at: datetime | None


class DeliveryShown(Ok, DeliveryFields):
    """A delivery."""


class Deliveries(Ok):
    """A page of the account's deliveries, newest first."""

    data: list[DeliveryFields]
    next_cursor: Annotated[
        str | None, Field(description="Send it as `cursor` for the next page; null on the last.")
    ]
