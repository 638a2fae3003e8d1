"""Webhooks to customers and alerts of a low balance. Part of the Ledger deployment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import alerts, deliveries, webhooks
from gateway.webhook_ports import Delivery, DueDelivery, Endpoint, Event, LowBalance, NewSecret, Outcome
from kit.settings import Settings
from ledger import keys, scopes
from ledger.keys import Credential

P = ParamSpec("P")
T = TypeVar("T")


class LedgerWebhooks:
    """The use cases of `LedgerServer` around what a person is told of."""

    _settings: Settings
    _run: Callable[..., Awaitable[Any]]

    async def low_balance(self, credential: Credential) -> LowBalance | None:
        """Return the caller's alert."""
        return await self._of_account("low_balance", credential, alerts.alert)

    async def set_low_balance(
        self, credential: Credential, threshold_tokens: int | None, webhook_url: str | None
    ) -> LowBalance | None:
        """Set the caller's alert, or take it away."""
        if threshold_tokens is None:
            return await self._of_account("drop_low_balance", credential, alerts.drop)
        return await self._of_account(
            "set_low_balance", credential, alerts.set_alert, threshold_tokens, webhook_url
        )

    async def add_endpoint(
        self, credential: Credential, url: str | None, events: tuple[Event, ...] | None
    ) -> NewSecret:
        """Add an endpoint."""

        async def add(conn: AsyncConnection, account_id: int) -> NewSecret:
            return await webhooks.add(conn, self._webhook_root, account_id, url, events)

        return await self._of_account("add_endpoint", credential, add)

    async def endpoints(self, credential: Credential) -> list[Endpoint]:
        """Return the caller's endpoints."""
        return await self._of_account("endpoints", credential, webhooks.endpoints)

    async def rotate_endpoint(self, credential: Credential, endpoint_id: str, overlap_s: int) -> NewSecret:
        """Give an endpoint a new secret."""

        async def rotate(conn: AsyncConnection, account_id: int) -> NewSecret:
            overlap = timedelta(seconds=overlap_s)
            return await webhooks.rotate(conn, self._webhook_root, account_id, endpoint_id, overlap)

        return await self._of_account("rotate_endpoint", credential, rotate)

    async def drop_endpoint(self, credential: Credential, endpoint_id: str) -> None:
        """Delete an endpoint with its deliveries."""
        await self._of_account("drop_endpoint", credential, webhooks.drop, endpoint_id)

    async def deliveries(
        self, credential: Credential, limit: int, before: str | None, job_id: str | None
    ) -> list[Delivery]:
        """Return a page of the caller's deliveries."""
        return await self._of_account("deliveries", credential, deliveries.deliveries, limit, before, job_id)

    async def replay_delivery(self, credential: Credential, delivery_id: str) -> Delivery:
        """Have a delivery sent anew."""
        return await self._of_account("replay_delivery", credential, deliveries.replay, delivery_id)

    # -- the runner's calls ------------------------------------------------------------------------------------

    async def take_deliveries(self, limit: int, busy: list[str]) -> list[DueDelivery]:
        """Take deliveries that are due."""
        taken: list[DueDelivery] = await self._run(
            "take_deliveries", deliveries.take_due, limit, busy, self._webhook_root
        )
        return taken

    async def finish_delivery(self, outcome: Outcome) -> None:
        """Note what became of an attempt."""
        await self._run("finish_delivery", deliveries.finish, outcome)

    # -- inside ------------------------------------------------------------------------------------------------

    @property
    def _webhook_root(self) -> bytes:
        return self._settings.secret.get_secret_value().encode()

    async def _of_account(
        self,
        method: str,
        credential: Credential,
        work: Callable[Concatenate[AsyncConnection, int, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        async def of_account(conn: AsyncConnection) -> T:
            caller = await keys.caller_of(conn, credential, scopes.ANY)
            caller.require_full()
            return await work(conn, caller.account_id, *args, **kwargs)

        answer: T = await self._run(method, of_account)
        return answer
