"""The Courier: takes webhooks that are due from the books, signs and posts them, notes what became of each."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Final

import structlog

from deployments.handles import Call
from gateway.deliveries import EACH
from gateway.webhook_ports import DueDelivery, Outcome
from kit.errors import AppError
from kit.post import NotPosted, Poster
from kit.telemetry import errors_total, webhooks_sent_total
from kit.webhook_signing import signed_headers

log = structlog.get_logger(__name__)

PLACES: Final = 64
"""Posts under way at once: sixteen endpoints that never answer still leave the others their turns."""
ROUND_S: Final = 1.0
"""How often due ones are looked for: a customer waits for their job's end."""
PROBLEM_CHARS: Final = 200
"""Of a receiver's own words."""


class Courier:
    """Carries deliveries from the books to their endpoints, with no transaction open while one travels."""

    def __init__(self, ledger: Call, poster: Poster) -> None:
        self._ledger = ledger
        self._poster = poster
        self._under_way: Counter[str] = Counter()
        """By endpoint."""

    async def run(self) -> None:
        """Deliver until cancelled; what is under way then is taken again later."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self.start_due(group)
                await asyncio.sleep(ROUND_S)

    async def start_due(self, group: asyncio.TaskGroup) -> None:
        """Begin to send what is due now, as far as places are free. A slow endpoint holds up its own alone.

        One with more to hear than is looked at at once is busy after the first taking, and the next sees the others.
        """
        while taken := await self._take():
            for delivery in taken:
                self._under_way[delivery.endpoint_id] += 1
                group.create_task(self._deliver(delivery))

    async def _take(self) -> list[DueDelivery]:
        free = PLACES - self._under_way.total()
        if not free:
            return []
        busy = [endpoint_id for endpoint_id, count in self._under_way.items() if count >= EACH]
        try:
            taken: list[DueDelivery] = await self._ledger("take_deliveries", free, busy)
        except AppError as error:
            log.warning("deliveries not taken", problem=str(error))
            return []
        except Exception:
            errors_total.labels("webhook").inc()
            log.exception("deliveries not taken")
            return []
        return taken

    async def _deliver(self, delivery: DueDelivery) -> None:
        try:
            outcome = await self._attempt(delivery)
            webhooks_sent_total.labels("delivered" if outcome.problem is None else "failed").inc()
            await self._ledger("finish_delivery", outcome)
        except AppError as error:  # it is taken again, under the same id
            log.warning("outcome of a delivery not noted", delivery_id=delivery.id, problem=str(error))
        except Exception:
            errors_total.labels("webhook").inc()
            log.exception("a delivery broke the courier", delivery_id=delivery.id)
        finally:
            self._under_way[delivery.endpoint_id] -= 1
            self._under_way += Counter()  # forgets endpoints with nothing under way

    async def _attempt(self, delivery: DueDelivery) -> Outcome:
        body = delivery.body.encode()
        headers = signed_headers(delivery.keys, delivery.id, int(time.time()), body)
        answered: int | None = None
        problem: str | None
        try:
            answer = await self._poster.post(
                delivery.url, body, {**headers, "content-type": "application/json"}
            )
        except NotPosted as error:
            problem = str(error)
        else:
            answered = answer.status_code
            problem = None if answer.accepted else f"answered {answered}: {answer.begins[:PROBLEM_CHARS]}"
        return Outcome(delivery.id, delivery.endpoint_id, delivery.attempt, answered, problem)
