"""What the Ledger does by itself every few seconds: each step is bounded, one transaction, and safe to repeat."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import structlog

from gateway import alerts, deliveries, idempotency, leases, quotas, sign_in, turns
from kit import outbox
from kit.errors import Unavailable
from kit.telemetry import errors_total
from ledger import chain, grants, holds
from payments import referrals, webhooks
from payments.referrals import Programme

log = structlog.get_logger(__name__)

EXPIRED_HOLDS_A_SWEEP: Final = 200
"""Enough to keep up with abandoned holds without one long transaction."""
DUE_ACCOUNTS_A_SWEEP: Final = 100
ACCOUNTS_LOOKED_AT_A_SWEEP: Final = 1_000
"""A slice by id: a look costs microseconds an account, and a refund or an expiry works out the rest itself."""
ALERTS_A_SWEEP: Final = 10_000
"""Looked at in some twenty milliseconds; with more alerts than that, each waits for its turn."""
REFERRALS_A_SWEEP: Final = 50
"""A transaction each; a rush of first orders is worked off within minutes, after days of waiting."""
SEAL_PAUSE_S: Final = 10.0
"""Between blocks that are not full: a steady trickle makes three million small blocks a year, not sixteen."""


class Sweeps:
    """The steps of one sweep, run by `run(name, work, *args)`: the Ledger's own way to run a transaction."""

    def __init__(
        self,
        run: Callable[..., Awaitable[Any]],
        job_attempts: int,
        programme: Programme,
        base_url: str,
    ) -> None:
        self._run = run
        self._job_attempts = job_attempts
        self._programme = programme
        self._base_url = base_url
        self._looked_at = 0
        """Where the next look for accounts with draws to work out begins; only a hint."""
        self._alerts_after = 0
        """The same for alerts."""

    async def jobs(self) -> dict[str, leases.Ended]:
        """End what waited too long, take back what a dead runner held."""
        outcome: dict[str, leases.Ended] = await self._run("sweep_jobs", leases.sweep, self._job_attempts)
        return outcome

    async def alerts(self) -> None:
        """Tell those whose balance fell below what they asked to be told of."""
        moved, self._alerts_after = await self._run(
            "sweep_alerts", alerts.accounts_moved, self._alerts_after, ALERTS_A_SWEEP
        )
        await self._each("decide_alert", alerts.decide, moved, self._base_url)

    async def books(self) -> None:
        """Expire holds, forget what is old, work out grants, settle referrals, seal what was decided since."""
        await self._run("sweep_holds", holds.expire_due, EXPIRED_HOLDS_A_SWEEP)
        await self._run("sweep_idempotency", idempotency.forget_old)
        await self._run("sweep_counters", quotas.forget_old)
        await self._run("sweep_events", webhooks.forget_old)
        await self._run("sweep_turns", turns.forget_turns)
        await self._run("sweep_codes", sign_in.forget_old)
        await self._run("sweep_outbox", outbox.forget_old)
        await self._run("sweep_deliveries", deliveries.forget_old)
        due = await self._run("sweep_due", grants.accounts_due, DUE_ACCOUNTS_A_SWEEP)
        await self._each("settle_due", grants.settle_due, due)
        behind, self._looked_at = await self._run(
            "sweep_behind", grants.accounts_behind, self._looked_at, ACCOUNTS_LOOKED_AT_A_SWEEP
        )
        await self._each("allocate", grants.allocate_behind, behind)
        earned = await self._run("sweep_referrals", referrals.due, self._programme.hold, REFERRALS_A_SWEEP)
        await self._each("settle_referral", referrals.settle, earned, self._programme)
        await self._run("seal", chain.seal, pause_s=SEAL_PAUSE_S)

    async def _each(
        self, name: str, work: Callable[..., Awaitable[Any]], ids: Iterable[Any], *args: object
    ) -> None:
        """Run a step for each; what one breaks on keeps neither the others waiting nor the steps after this one.

        Raises: Unavailable: while the books are away nothing else could be done.
        """
        for each in ids:
            try:
                await self._run(name, work, each, *args)
            except Unavailable:
                raise
            except Exception:
                errors_total.labels("sweeps").inc()
                log.exception("a sweep could not do one", step=name, id=each)
