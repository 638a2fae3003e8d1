"""What a twin of a crypto provider remembers: payments, what arrived of them, and the events that tell of it.

Pure, as the Stripe twin's state is: no files, no network, no await; a change is all or nothing to every other task.
Invariants:
- money that arrived stays arrived: nothing but a refund takes it away;
- every event has its deliveries queued in the same change, and its body never changes afterwards.

Units: amounts are decimal text in the price's currency.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Literal, Protocol

from sandbox.stripe_shapes import Json
from sandbox.stripe_state import Faults, WebhookControls

# Raised when the document's layout changes; a file of another format starts afresh.
FORMAT = 1
_TABLES = ("payments", "events", "deliveries", "saved_answers")

# What can happen to a payment; each provider has its own words for some of it.
Happening = Literal[
    "created", "received", "processing", "confirmed", "settled", "expired", "failed", "refunded", "marked"
]


class NoSuchPayment(LookupError):
    """There is no payment of that name."""


class WrongState(Exception):
    """What was asked for cannot happen to a payment in its state; the text says why."""


class House(Protocol):
    """A provider: how it spells ids and events, and whether late money makes its payment whole."""

    late_settles: bool

    def new_id(self, token: Callable[[int], str]) -> str:
        """Make a payment's id from random letters and digits."""

    def events(self, happening: Happening, payment: Json, token: Callable[[int], str]) -> list[Json]:
        """Give what is told of a happening: each event with its `type` and its `body`."""


def empty_document() -> Json:
    """Give the document of a twin that nothing has happened to yet."""
    return {"format": FORMAT, "sequence": 0, **{table: {} for table in _TABLES}}


def is_document(value: Any) -> bool:
    """Tell whether a parsed file has this document's layout."""
    return (
        isinstance(value, dict)
        and value.get("format") == FORMAT
        and isinstance(value.get("sequence"), int)
        and all(isinstance(value.get(table), dict) for table in _TABLES)
    )


class CryptoState:
    """The twin's memory; every method is one step that cannot be interrupted."""

    def __init__(
        self,
        document: Json,
        house: House,
        *,
        clock: Callable[[], float],
        new_token: Callable[[int], str],
        sends_webhooks: bool,
    ) -> None:
        self.document = document
        self.controls = WebhookControls()
        self.faults = Faults()
        self.house = house
        self.token = new_token
        self._clock = clock
        self._sends_webhooks = sends_webhooks

    def now(self) -> float:
        """Give the present moment, in seconds since 1970."""
        return self._clock()

    # Payments

    def open(self, order: Json, expires_in_s: float) -> Json:
        """Begin to wait for a payment: `order` holds the amount, the currency and what the shop said."""
        now = self.now()
        payment = {
            **order,
            "id": self.house.new_id(self.token),
            "state": "open",
            "arrivals": [],
            "refunds": [],
            "marked": None,
            "created": now,
            "updated": now,
            "expires_at": now + expires_in_s,
        }
        self.document["payments"][payment["id"]] = payment
        self.emit("created", payment)
        return payment

    def get(self, payment_id: str) -> Json:
        """Give the payment itself. Raises: NoSuchPayment."""
        found: Json | None = self.document["payments"].get(payment_id)
        if found is None:
            raise NoSuchPayment(payment_id)
        return found

    def expire_overdue(self) -> bool:
        """Close every payment that still waits past its time; tell whether there was one."""
        now = self.now()
        overdue = [
            payment
            for payment in self.document["payments"].values()
            if payment["state"] == "open" and payment["expires_at"] <= now
        ]
        for payment in overdue:
            self.close(payment, "expired")
        return bool(overdue)

    def close(self, payment: Json, how: Literal["expired", "failed"]) -> None:
        """End the wait for a payment."""
        self.change(payment, how)
        self.emit(how, payment)

    def change(self, payment: Json, state: str) -> None:
        """Put a payment into another state."""
        payment.update(state=state, updated=self.now())

    # Events and their deliveries

    def emit(self, happening: Happening, payment: Json) -> None:
        """Tell what happened, and queue its deliveries, both or neither."""
        for told in self.house.events(happening, payment, self.token):
            event = {
                "id": f"evt_{self.token(24)}",
                "type": told["type"],
                "payment": payment["id"],
                "body": copy.deepcopy(told["body"]),
                "created": self.now(),
                "pending_webhooks": 0,
            }
            self.document["events"][event["id"]] = event
            if self._sends_webhooks:
                for number in range(1 + self.controls.duplicate):
                    self._queue(event, number, self.now() + self.controls.delay_s)

    def queue_again(self, event_id: str) -> None:
        """Queue one more delivery of an event. Raises: NoSuchPayment."""
        event = self.document["events"].get(event_id)
        if event is None:
            raise NoSuchPayment(event_id)
        copies = sum(1 for delivery in self.document["deliveries"].values() if delivery["event"] == event_id)
        self._queue(event, copies, self.now())

    def _queue(self, event: Json, number: int, at: float) -> None:
        self.document["sequence"] += 1
        delivery_id = f"whd_{self.token(24)}"
        self.document["deliveries"][delivery_id] = {
            "id": delivery_id,
            "sequence": self.document["sequence"],
            "event": event["id"],
            "type": event["type"],
            "object": event["payment"],
            "copy": number,
            "state": "pending",
            "attempts": 0,
            "next_attempt_at": at,
            "last_status": None,
            "last_error": None,
        }
        event["pending_webhooks"] += 1

    def pending(self) -> Iterator[Json]:
        """Go over the deliveries that still have to arrive, the earliest first."""
        return (d for d in self.document["deliveries"].values() if d["state"] == "pending")


def arrived(payment: Json, *, confirmed: bool) -> Decimal:
    """Give how much arrived of a payment: all of it, or what no chain takes back any more."""
    return sum(
        (Decimal(a["amount"]) for a in payment["arrivals"] if a["confirmed"] or not confirmed), Decimal(0)
    )


def refunded(payment: Json) -> Decimal:
    """Give how much of a payment was sent back."""
    return sum((Decimal(refund["amount"]) for refund in payment["refunds"]), Decimal(0))


def is_whole(payment: Json, *, confirmed: bool = True) -> bool:
    """Tell whether the whole price is there."""
    return arrived(payment, confirmed=confirmed) >= Decimal(payment["amount"])
