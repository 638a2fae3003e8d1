"""What the Ledger does by itself every few seconds: each step is bounded, one transaction, and safe to repeat."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from gateway import idempotency, leases, quotas, sign_in, turns
from kit import outbox
from ledger import chain, grants, holds
from payments import referrals, webhooks
from payments.referrals import Programme

EXPIRED_HOLDS_A_SWEEP: Final = 200
"""Enough to keep up with abandoned holds without one long transaction."""
DUE_ACCOUNTS_A_SWEEP: Final = 100
ACCOUNTS_LOOKED_AT_A_SWEEP: Final = 1_000
"""A slice by id: a look costs microseconds an account, and a refund or an expiry works out the rest itself."""
REFERRALS_A_SWEEP: Final = 50
"""A transaction each; a rush of first orders is worked off within minutes, after days of waiting."""
SEAL_PAUSE_S: Final = 10.0
"""Between blocks that are not full: a steady trickle makes three million small blocks a year, not sixteen."""


class Sweeps:
    """The steps of one sweep, run by `run(name, work, *args)`: the Ledger's own way to run a transaction."""

    def __init__(self, run: Callable[..., Awaitable[Any]], job_attempts: int, programme: Programme) -> None:
        self._run = run
        self._job_attempts = job_attempts
        self._programme = programme
        self._looked_at = 0
        """Where the next look for accounts with draws to work out begins; only a hint."""

    async def jobs(self) -> dict[str, leases.Ended]:
        """End what waited too long, take back what a dead runner held."""
        outcome: dict[str, leases.Ended] = await self._run("sweep_jobs", leases.sweep, self._job_attempts)
        return outcome

    async def books(self) -> None:
        """Expire holds, forget old answers, counters, codes and mails, work out grants, settle referrals, seal."""
        await self._run("sweep_holds", holds.expire_due, EXPIRED_HOLDS_A_SWEEP)
        await self._run("sweep_idempotency", idempotency.forget_old)
        await self._run("sweep_counters", quotas.forget_old)
        await self._run("sweep_events", webhooks.forget_old)
        await self._run("sweep_turns", turns.forget_turns)
        await self._run("sweep_codes", sign_in.forget_old)
        await self._run("sweep_outbox", outbox.forget_old)
        for account_id in await self._run("sweep_due", grants.accounts_due, DUE_ACCOUNTS_A_SWEEP):
            await self._run("settle_due", grants.settle_due, account_id)
        behind, self._looked_at = await self._run(
            "sweep_behind", grants.accounts_behind, self._looked_at, ACCOUNTS_LOOKED_AT_A_SWEEP
        )
        for account_id in behind:
            await self._run("allocate", grants.allocate_behind, account_id)
        for referral_id in await self._run(
            "sweep_referrals", referrals.due, self._programme.hold, REFERRALS_A_SWEEP
        ):
            await self._run("settle_referral", referrals.settle, referral_id, self._programme)
        await self._run("seal", chain.seal, pause_s=SEAL_PAUSE_S)
