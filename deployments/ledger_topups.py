"""Automatic top-ups: what an account wishes, and its charges. Part of the Ledger deployment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import Forbidden
from kit.settings import Settings
from ledger import keys, scopes
from ledger.keys import Credential
from payments import auto_topups, topup_charges
from payments.auto_topups import AutoTopup, TopupWish
from payments.packages import Package
from payments.topup_charges import ChargeRefused, DueCharge

P = ParamSpec("P")
T = TypeVar("T")

WISHES_A_SWEEP: Final = 10_000
"""Looked at in some twenty milliseconds; with more than that, each waits for its turn."""


class LedgerTopups:
    """The use cases of automatic top-ups of `LedgerServer`."""

    _settings: Settings
    _run: Callable[..., Awaitable[Any]]
    _topups_after: int = 0
    """Where the next look at wishes begins; only a hint."""

    async def auto_topup(self, credential: Credential) -> AutoTopup | None:
        """Return the caller's automatic top-up."""
        return await self._topup_of("auto_topup", credential, auto_topups.auto_topup)

    async def switch_topup_on(self, credential: Credential, wish: TopupWish) -> AutoTopup:
        """Set the caller's automatic top-up."""
        return await self._topup_of("switch_topup_on", credential, auto_topups.switch_on, wish)

    async def switch_topup_off(self, credential: Credential) -> None:
        """Forget the caller's automatic top-up."""
        await self._topup_of("switch_topup_off", credential, auto_topups.switch_off)

    # -- the runner's calls ------------------------------------------------------------------------------------

    async def begin_topups(self, provider: str, on_sale: Mapping[str, Package] | None) -> int:
        """Write a charge for each account that is short, or pause its wish, in a transaction of its own."""
        due, self._topups_after = await self._run(
            "due_topups", topup_charges.accounts_due, provider, self._topups_after, WISHES_A_SWEEP
        )
        begun = 0
        for account_id in due:
            made = await self._run(
                "begin_topup", topup_charges.begin, account_id, on_sale, self._settings.base_url
            )
            begun += made is not None
        return begun

    async def take_topups(self, provider: str, limit: int) -> list[DueCharge]:
        """Take charges that nobody is at."""
        taken: list[DueCharge] = await self._run("take_topups", topup_charges.take, provider, limit)
        return taken

    async def refuse_topup(self, purchase_id: str, refused: ChargeRefused) -> bool:
        """End a charge that moved no money."""
        ended: bool = await self._run(
            "refuse_topup", topup_charges.refuse, purchase_id, refused, self._settings.base_url
        )
        return ended

    # -- inside ------------------------------------------------------------------------------------------------

    async def _topup_of(
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
            if caller.world != "live":
                raise Forbidden("Test accounts are not topped up by themselves; POST /api/v1/test/refill.")
            return await work(conn, caller.account_id, *args, **kwargs)

        answer: T = await self._run(method, of_account)
        return answer
