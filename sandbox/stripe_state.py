"""What the Stripe twin remembers: one JSON document, and the rules by which it may be read and changed.

Pure: no files, no network, no clock or randomness of its own, and no await, so that a change is all or
nothing to every other task. Invariants:
- every event that is emitted has its deliveries queued in the same change;
- an event's body never changes after it is emitted (`pending_webhooks` excepted, as with Stripe);
- lists are newest first, in the order of creation.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from sandbox import stripe_shapes as shapes
from sandbox.stripe_errors import key_reused, no_such, wrong_state
from sandbox.stripe_shapes import Json

# Raised when the document's layout changes; a file of another format starts afresh.
FORMAT = 3

Collection = Literal[
    "sessions",
    "payment_intents",
    "charges",
    "refunds",
    "disputes",
    "warnings",
    "customers",
    "payment_methods",
    "setup_intents",
    "portal_sessions",
    "events",
]
COLLECTIONS: tuple[Collection, ...] = (
    "sessions",
    "payment_intents",
    "charges",
    "refunds",
    "disputes",
    "warnings",
    "customers",
    "payment_methods",
    "setup_intents",
    "portal_sessions",
    "events",
)
# `orders` holds what Stripe keeps of a session's creation and does not print in the session.
_TABLES = (*COLLECTIONS, "orders", "deliveries", "saved_answers")

KINDS: dict[Collection, str] = {
    "sessions": "checkout.session",
    "payment_intents": "payment_intent",
    "charges": "charge",
    "refunds": "refund",
    "disputes": "dispute",
    "warnings": "radar.early_fraud_warning",
    "customers": "customer",
    "payment_methods": "payment_method",
    "setup_intents": "setup_intent",
    "portal_sessions": "billing_portal.session",
    "events": "event",
}

# Stripe forgets idempotency keys after 24 hours and events after 30 days; so does the twin.
SAVED_ANSWER_LIFETIME_S = 24 * 3600
EVENT_LIFETIME_S = 30 * 24 * 3600
# Finished deliveries are kept to be looked at, not for ever: the whole document is written at each change.
FINISHED_DELIVERIES_KEPT = 1_000


@dataclass(frozen=True)
class Origin:
    """The API request that caused an event; both are None when the buyer or the clock did."""

    request_id: str | None
    idempotency_key: str | None


BY_THE_BUYER = Origin(None, None)


@dataclass
class WebhookControls:
    """How tests bend the delivery of webhooks; the defaults are the honest behaviour."""

    mode: Literal["deliver", "hold"] = "deliver"
    duplicate: int = 0
    reverse: bool = False
    delay_s: float = 0.0
    concurrent: bool = False


@dataclass
class Faults:
    """How many of the next API requests fail, how, and whether their effect takes place first."""

    next_requests_fail: int = 0
    status: int = 500
    after_effect: bool = False


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


class TwinState:
    """The twin's memory; every method is one step that cannot be interrupted."""

    def __init__(
        self,
        document: Json,
        *,
        clock: Callable[[], float],
        new_token: Callable[[int], str],
        sends_webhooks: bool,
    ) -> None:
        self.document = document
        self.controls = WebhookControls()
        self.faults = Faults()
        self._clock = clock
        self._new_token = new_token
        self._sends_webhooks = sends_webhooks

    def now(self) -> float:
        """Give the present moment, in seconds since 1970."""
        return self._clock()

    def new_id(self, prefix: str, length: int = 24) -> str:
        """Make an id such as `pi_...`; `length` counts the characters after the prefix."""
        return prefix + self._new_token(length)

    # Objects

    def add(self, collection: Collection, item: Json) -> Json:
        """Remember a new object."""
        self.document[collection][item["id"]] = item
        return item

    def find(self, collection: Collection, object_id: str) -> Json | None:
        """Give the object itself, or nothing."""
        found: Json | None = self.document[collection].get(object_id)
        return found

    def get(self, collection: Collection, object_id: str, param: str, *, in_path: bool = False) -> Json:
        """Give the object itself.

        Raises: ApiError `resource_missing` that names `param`.
        """
        found = self.find(collection, object_id)
        if found is None:
            raise no_such(KINDS[collection], object_id, param, in_path=in_path)
        return found

    def newest_first(self, collection: Collection) -> list[Json]:
        """Give all objects of a kind, the latest created first."""
        return list(reversed(self.document[collection].values()))

    def order_of(self, session_id: str) -> Json:
        """Give what was asked for when the session was created."""
        order: Json = self.document["orders"][session_id]
        return order

    # Events and their deliveries

    def emit(self, event_type: str, subject: Json, origin: Origin) -> Json:
        """Record that something happened and queue its webhooks, both or neither."""
        now = self.now()
        event = shapes.event(
            self.new_id("evt_1", 23),
            event_type,
            copy.deepcopy(subject),
            {"id": origin.request_id, "idempotency_key": origin.idempotency_key},
            int(now),
        )
        self.add("events", event)
        if self._sends_webhooks:
            for copy_number in range(1 + self.controls.duplicate):
                self._queue(event, copy_number, now + self.controls.delay_s)
        self._forget(now)
        return event

    def queue_again(self, event: Json) -> None:
        """Queue one more delivery of an event, as an operator does from a dashboard.

        Raises: ApiError if this twin sends no webhooks.
        """
        if not self._sends_webhooks:
            raise wrong_state("This twin was started without a webhook address.")
        copies = sum(1 for delivery in self.deliveries() if delivery["event"] == event["id"])
        self._queue(event, copies, self.now())

    def _queue(self, event: Json, copy_number: int, at: float) -> None:
        self.document["sequence"] += 1
        delivery_id = self.new_id("whd_")
        self.document["deliveries"][delivery_id] = {
            "id": delivery_id,
            "sequence": self.document["sequence"],
            "event": event["id"],
            "type": event["type"],
            "object": event["data"]["object"]["id"],
            "copy": copy_number,
            "state": "pending",
            "attempts": 0,
            "next_attempt_at": at,
            "last_status": None,
            "last_error": None,
        }
        event["pending_webhooks"] += 1

    def deliveries(self) -> list[Json]:
        """Give every delivery still remembered, the earliest first."""
        return list(self.document["deliveries"].values())

    def pending(self) -> Iterator[Json]:
        """Go over the deliveries that still have to arrive, the earliest first."""
        return (
            delivery for delivery in self.document["deliveries"].values() if delivery["state"] == "pending"
        )

    def _forget(self, now: float) -> None:
        finished = [delivery for delivery in self.deliveries() if delivery["state"] != "pending"]
        for delivery in finished[:-FINISHED_DELIVERIES_KEPT]:
            del self.document["deliveries"][delivery["id"]]
        still_needed = {delivery["event"] for delivery in self.pending()}
        for event in list(self.document["events"].values()):
            if event["created"] >= now - EVENT_LIFETIME_S:
                break
            if event["id"] not in still_needed:
                del self.document["events"][event["id"]]

    # Sessions that nobody paid

    def expire_overdue(self) -> bool:
        """Close every open session past its time, with its event; tell whether there was one."""
        now = self.now()
        overdue = [
            session
            for session in self.document["sessions"].values()
            if session["status"] == "open" and session["expires_at"] <= now
        ]
        for session in overdue:
            self.close_as_expired(session, BY_THE_BUYER)
        return bool(overdue)

    def close_as_expired(self, session: Json, origin: Origin) -> None:
        """Close an open session unpaid, with its event."""
        session.update(status="expired", url=None)
        self.emit("checkout.session.expired", session, origin)

    # Idempotency keys

    def saved_answer(self, key: str, fingerprint: str) -> Json | None:
        """Give the answer that this key was given before, if it was for the same request.

        Raises: ApiError `idempotency_error` if the key came with another request.
        """
        oldest = self.now() - SAVED_ANSWER_LIFETIME_S
        saved: Json | None = self.document["saved_answers"].get(key)
        if saved is None or saved["created"] < oldest:
            return None
        if saved["fingerprint"] != fingerprint:
            raise key_reused(key)
        return saved

    def save_answer(self, key: str, fingerprint: str, request_id: str, status: int, body: Json) -> None:
        """Remember an answer, as it was sent, for the key's lifetime."""
        answers = self.document["saved_answers"]
        oldest = self.now() - SAVED_ANSWER_LIFETIME_S
        for old_key in [name for name, saved in answers.items() if saved["created"] < oldest]:
            del answers[old_key]
        answers[key] = {
            "fingerprint": fingerprint,
            "request_id": request_id,
            "status": status,
            "body": copy.deepcopy(body),
            "created": self.now(),
        }


def fingerprint(method: str, path: str, params: Json) -> str:
    """Give the same digest for the same route and parameters, in whatever order those were sent."""
    text = orjson.dumps([method, path, params], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()
