"""Referrals in the Ledger deployment: an account's code and what it brought, and another's code applied."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from kit.settings import Settings
from ledger import keys, scopes
from ledger.keys import Credential
from payments import referrals
from payments.referrals import Application, Standing


class LedgerReferrals:
    """The use cases of referrals in `LedgerServer`."""

    _settings: Settings
    _run: Callable[..., Awaitable[Any]]

    async def referral(self, credential: Credential) -> Standing:
        """Return the caller's code and what it has brought."""

        async def look(conn: AsyncConnection) -> Standing:
            caller = await keys.caller_of(conn, credential, scopes.READ)
            caller.require_live()
            return await referrals.standing(conn, caller.account_id, referrals.programme(self._settings))

        standing: Standing = await self._run("referral", look)
        return standing

    async def apply_referral(self, credential: Credential, code: str) -> Application:
        """Note whose code brought the caller."""
        rules = referrals.programme(self._settings)
        application: Application = await self._run("apply_referral", referrals.apply, credential, code, rules)
        return application
