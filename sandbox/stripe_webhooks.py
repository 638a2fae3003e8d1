"""Webhooks as Stripe sends them: signed, at least once, retried with growing pauses, in no promised order."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import httpx

from sandbox.stripe_shapes import Json
from sandbox.stripe_state import WebhookControls

logger = logging.getLogger(__name__)

# The first pause is short, because a receiver on the same machine is usually just starting; twelve tries
# then span two and a half minutes, longer than any start.
RETRY_FIRST_S = 0.2
RETRY_MOST_S = 30.0
ATTEMPTS_MOST = 12
# Stripe gives a receiver some ten seconds.
RECEIVER_TIMEOUT_S = 10.0
# Looks at least this often, so that sessions expire on time although nobody asks about them.
IDLE_MOST_S = 5.0
# With `concurrent` switched on: enough to race a receiver, not enough to drown it.
CONCURRENT_MOST = 16
# How much of a refusal is kept to be looked at.
ERROR_MAX_LENGTH = 300


class Queue(Protocol):
    """What the sender needs of a twin's memory."""

    document: Json
    controls: WebhookControls

    def now(self) -> float:
        """Give the present moment."""

    def pending(self) -> Iterator[Json]:
        """Go over the deliveries that still have to arrive, the earliest first."""


Transaction = Callable[[], AbstractAsyncContextManager[Queue]]
Dress = Callable[[Json, Json, int], tuple[bytes, dict[str, str]]]
"""Gives the body and the headers of a delivery of an event, as the provider signs them at a time."""


def signature_header(secret: str, timestamp: int, body: bytes) -> str:
    """Sign a webhook's body the way Stripe does: HMAC-SHA256 over `timestamp.body`, in the `v1` scheme."""
    digest = hmac.new(secret.encode(), b"%d." % timestamp + body, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


def retry_pause_s(attempts: int) -> float:
    """Give the pause after so many failed tries: doubling, and bounded."""
    return min(RETRY_FIRST_S * 2.0 ** (attempts - 1), RETRY_MOST_S)


def event_body(event: Json) -> bytes:
    """Print an event as Stripe does: indented, so that a receiver who re-prints JSON cannot verify it."""
    return json.dumps(event, indent=2, ensure_ascii=False).encode()


def dressed_by_stripe(secret: str) -> Dress:
    """Give the deliveries of a Stripe twin, signed with this secret."""

    def dress(event: Json, _delivery: Json, timestamp: int) -> tuple[bytes, dict[str, str]]:
        body = event_body(event)
        return body, {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature_header(secret, timestamp, body),
            "User-Agent": "Stripe/1.0 (Farebox sandbox)",
        }

    return dress


class WebhookSender:
    """Brings every queued delivery to the receiver, or gives up on it after a bounded number of tries."""

    def __init__(
        self,
        *,
        url: str,
        dress: Dress,
        reading: Transaction,
        writing: Transaction,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self._url = url
        self._dress = dress
        self._reading = reading
        self._writing = writing
        self._transport = transport
        self._wake = asyncio.Event()
        self._one_pass_at_a_time = asyncio.Lock()

    def wake(self) -> None:
        """Say that something may be due now."""
        self._wake.set()

    async def start_over(self) -> None:
        """Make everything pending due now: after a restart the receiver may be back as well."""
        async with self._writing() as state:
            for delivery in state.pending():
                delivery["next_attempt_at"] = min(delivery["next_attempt_at"], state.now())

    async def run(self) -> None:
        """Deliver for ever; cancel to stop. What is pending then stays queued for the next start."""
        while True:
            self._wake.clear()
            try:
                pause_s = await self.deliver_due()
            except Exception:  # the edge of a background task: the disk is full, say; go on when it is not
                logger.exception("delivering webhooks failed; trying again")
                pause_s = IDLE_MOST_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def deliver_due(self) -> float:
        """Try every delivery that is due, once, and give the pause until the next one is."""
        async with self._one_pass_at_a_time:
            async with self._reading() as state:
                batch = _due(state)
                is_concurrent = state.controls.concurrent
            if batch:
                await self._try_all(batch, at_once=CONCURRENT_MOST if is_concurrent else 1)
            async with self._reading() as state:
                return _pause_s(state)

    async def _try_all(self, batch: list[str], *, at_once: int) -> None:
        slots = asyncio.Semaphore(at_once)  # first come, first served: one slot keeps the batch's order

        async def try_one(client: httpx.AsyncClient, delivery_id: str) -> None:
            async with slots:
                await self._try(client, delivery_id)

        async with (
            httpx.AsyncClient(
                transport=self._transport,
                timeout=RECEIVER_TIMEOUT_S,
                # A proxy from the environment has no business between two local servers.
                trust_env=False,
                # Loading the certificate store costs more than the delivery; plain http needs none.
                verify=self._url.startswith("https:"),
            ) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for delivery_id in batch:
                tasks.create_task(try_one(client, delivery_id))

    async def _try(self, client: httpx.AsyncClient, delivery_id: str) -> None:
        async with self._reading() as state:
            if state.controls.mode == "hold":  # it came after this pass began
                return
            delivery = state.document["deliveries"][delivery_id]
            event = state.document["events"][delivery["event"]]
            body, headers = self._dress(event, delivery, int(state.now()))
        status, error = await self._send(client, body, headers)
        async with self._writing() as state:
            _record(delivery, event, status, error, state.now())

    async def _send(
        self, client: httpx.AsyncClient, body: bytes, headers: dict[str, str]
    ) -> tuple[int | None, str | None]:
        try:
            response = await client.post(self._url, content=body, headers=headers)
        except httpx.HTTPError as error:
            return None, f"{type(error).__name__}: {error}"[:ERROR_MAX_LENGTH]
        # Only 2xx counts: providers take a redirect for a failure too.
        return response.status_code, None if response.is_success else response.text[:ERROR_MAX_LENGTH]


def _due(state: Queue) -> list[str]:
    if state.controls.mode == "hold":
        return []
    now = state.now()
    ready = [delivery["id"] for delivery in state.pending() if delivery["next_attempt_at"] <= now]
    return ready[::-1] if state.controls.reverse else ready


def _pause_s(state: Queue) -> float:
    if state.controls.mode == "hold":
        return IDLE_MOST_S
    soonest = min((delivery["next_attempt_at"] for delivery in state.pending()), default=float("inf"))
    return max(0.0, min(soonest - state.now(), IDLE_MOST_S))


def _record(delivery: Json, event: Json, status: int | None, error: str | None, now: float) -> None:
    delivery["attempts"] += 1
    delivery.update(last_status=status, last_error=error)
    if error is None:
        delivery["state"] = "delivered"
        event["pending_webhooks"] -= 1
    elif delivery["attempts"] >= ATTEMPTS_MOST:
        delivery["state"] = "failed"
        logger.warning(
            "gave up on webhook %s of %s: %s", delivery["type"], delivery["event"], error or status
        )
    else:
        delivery["next_attempt_at"] = now + retry_pause_s(delivery["attempts"])
