"""Webhooks to customers and alerts, as they cross between the routes, the books and the courier.

Units: `*_tokens` tokens, `*_s` seconds. Times are aware datetimes in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from ledger.keys import Credential

Event = Literal["job.succeeded", "job.failed", "job.canceled", "job.expired", "balance.low"]
JobEvent = Literal["job.succeeded", "job.failed", "job.canceled", "job.expired"]
DeliveryStatus = Literal["waiting", "delivered", "given_up"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an account is told of events. No `url`: it signs what goes to the URLs that jobs and alerts name."""

    id: str
    url: str | None
    events: tuple[Event, ...] | None
    created_at: datetime
    disabled_at: datetime | None
    old_until: datetime | None
    """Until when the secret before this one signs too."""


@dataclass(frozen=True, slots=True)
class NewSecret:
    """An endpoint with its secret, which is shown this once."""

    endpoint: Endpoint
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that was told, or is still to be. `answered`: the last answer's status."""

    id: str
    endpoint_id: str
    url: str
    event: Event
    job_id: str | None
    body: str
    created_at: datetime
    attempts: int
    retry_at: datetime
    delivered_at: datetime | None
    given_up_at: datetime | None
    answered: int | None
    problem: str | None

    @property
    def status(self) -> DeliveryStatus:
        """What became of it so far."""
        if self.delivered_at is not None:
            return "delivered"
        return "waiting" if self.given_up_at is None else "given_up"


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """A delivery to be sent now, with the keys that sign it. `attempt` must come with the note of its outcome."""

    id: str
    endpoint_id: str
    url: str
    body: str
    attempt: int
    keys: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attempt. No `answered`: nobody answered. No `problem`: the receiver took it."""

    delivery_id: str
    endpoint_id: str
    attempt: int
    answered: int | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class LowBalance:
    """The alert of an account. `armed`: the next fall below the threshold is told."""

    threshold_tokens: int
    webhook_url: str | None
    armed: bool
    alerted_at: datetime | None


class Webhooks(Protocol):
    """What a person may set up to be told. All but a job's own URL is refused to a limited key: Forbidden."""

    async def low_balance(self, credential: Credential) -> LowBalance | None:
        """Return the account's alert of a low balance."""

    async def set_low_balance(
        self, credential: Credential, threshold_tokens: int | None, webhook_url: str | None
    ) -> LowBalance | None:
        """Set the alert, or take it away with no threshold. The same threshold again leaves its state."""

    async def add_endpoint(
        self, credential: Credential, url: str | None, events: tuple[Event, ...] | None
    ) -> NewSecret:
        """Add an endpoint. Raises: EndpointExists, TooManyEndpoints."""

    async def endpoints(self, credential: Credential) -> list[Endpoint]:
        """Return the account's endpoints, newest first."""

    async def rotate_endpoint(self, credential: Credential, endpoint_id: str, overlap_s: int) -> NewSecret:
        """Give an endpoint a new secret; the one before signs beside it for `overlap_s`. Raises: NotFound."""

    async def drop_endpoint(self, credential: Credential, endpoint_id: str) -> None:
        """Delete an endpoint with its deliveries. Raises: NotFound."""

    async def deliveries(
        self, credential: Credential, limit: int, before: str | None, job_id: str | None
    ) -> list[Delivery]:
        """Return up to `limit` deliveries, newest first."""

    async def replay_delivery(self, credential: Credential, delivery_id: str) -> Delivery:
        """Have a delivery sent anew, under its own id. Raises: NotFound, EndpointDisabled."""
