"""An operator's use cases of the Ledger deployment: the key is checked, the work done and logged in one transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import interventions, lookups, prices, shares
from gateway.operator_ports import (
    Adjust,
    GiveBack,
    GiveCredits,
    HoldFound,
    HoldQuery,
    JobFound,
    JobsQuery,
    Movement,
    Share,
    Signed,
    Undo,
    UserFound,
    UserOverview,
    UserQuery,
)
from gateway.prices import NewPrice, PriceVersion
from ledger import actions
from ledger.actions import Actor, LoggedAction
from ledger.keys import Credential
from ledger.operators import actor_of
from payments import reconciliations, vouchers
from payments.reconciliations import Reconciliation, Span
from payments.vouchers import NewVoucher, Redemption, Voucher, VoucherTerms

P = ParamSpec("P")
T = TypeVar("T")


class LedgerDesk:
    """What an operator asks and does, by `gateway.operator_ports.Desk`; and the two calls of everyone's beside it."""

    _run: Callable[..., Awaitable[Any]]

    async def find_users(self, by: Signed, query: UserQuery) -> list[UserFound]:
        """Find users."""
        return await self._look("find_users", by, lookups.find_users, query)

    async def user_overview(self, by: Signed, user_id: str) -> UserOverview:
        """Show all about a user."""
        return await self._look("user_overview", by, lookups.user_overview, user_id)

    async def pending_holds(self, by: Signed, query: HoldQuery) -> list[HoldFound]:
        """List what is set aside."""
        return await self._look("pending_holds", by, lookups.pending_holds, query)

    async def find_jobs(self, by: Signed, query: JobsQuery) -> list[JobFound]:
        """List jobs of all accounts."""
        return await self._look("find_jobs", by, lookups.find_jobs, query)

    async def vouchers(self, by: Signed, limit: int, before: str | None) -> list[Voucher]:
        """List vouchers."""
        return await self._look("vouchers", by, vouchers.list_vouchers, limit, before)

    async def price_history(self, by: Signed) -> list[PriceVersion]:
        """List announced prices."""
        return await self._look("price_history", by, prices.list_prices)

    async def reconciliations(self, by: Signed, limit: int, before: str | None) -> list[Reconciliation]:
        """List comparisons of providers with the books."""
        return await self._look("reconciliations", by, reconciliations.listed, limit, before)

    async def reconciliation(self, by: Signed, reconciliation_id: str) -> Reconciliation:
        """Show one comparison."""
        return await self._look("reconciliation", by, reconciliations.by_id, reconciliation_id)

    async def actions(
        self, by: Signed, limit: int, before: str | None, user_id: str | None
    ) -> list[LoggedAction]:
        """Read the log."""
        return await self._look("actions", by, actions.list_actions, limit, before, user_id)

    async def set_suspended(self, by: Signed, user_id: str, suspended: bool, reason: str) -> UserFound:
        """Suspend a user, or take that back."""
        return await self._act("set_suspended", by, interventions.set_suspended, user_id, suspended, reason)

    async def set_frozen(self, by: Signed, user_id: str, frozen: bool, reason: str) -> UserFound:
        """Stop an account's spending, or let it go on."""
        return await self._act("set_frozen", by, interventions.set_frozen, user_id, frozen, reason)

    async def set_share(self, by: Signed, user_id: str, share: Share, reason: str) -> Share:
        """Set an account's share of the models."""
        return await self._act("set_share", by, shares.set_share, user_id, share, reason)

    async def give_credits(self, by: Signed, command: GiveCredits) -> Movement:
        """Grant credits."""
        return await self._act("give_credits", by, interventions.give_credits, command)

    async def adjust(self, by: Signed, command: Adjust) -> Movement:
        """Correct a balance."""
        return await self._act("adjust", by, interventions.adjust, command)

    async def refund(self, by: Signed, command: GiveBack) -> Movement:
        """Refund a charge."""
        return await self._act("refund", by, interventions.refund, command)

    async def reverse(self, by: Signed, command: Undo) -> Movement:
        """Undo a transfer."""
        return await self._act("reverse", by, interventions.reverse, command)

    async def void_hold(self, by: Signed, hold_id: str, reason: str) -> HoldFound:
        """Free a hold."""
        return await self._act("void_hold", by, interventions.void_hold, hold_id, reason)

    async def end_job(self, by: Signed, job_id: str, reason: str) -> JobFound:
        """Cancel anybody's job."""
        return await self._act("end_job", by, interventions.end_job, job_id, reason)

    async def make_vouchers(
        self, by: Signed, terms: VoucherTerms, count: int, reason: str | None
    ) -> list[NewVoucher]:
        """Make vouchers."""
        return await self._act("make_vouchers", by, interventions.make_vouchers, terms, count, reason)

    async def disable_voucher(self, by: Signed, voucher_id: str, reason: str) -> Voucher:
        """Close a voucher."""
        return await self._act("disable_voucher", by, interventions.disable_voucher, voucher_id, reason)

    async def set_price(self, by: Signed, new: NewPrice) -> PriceVersion:
        """Announce a price."""
        return await self._act("set_price", by, prices.announce, new)

    async def order_reconciliation(
        self, by: Signed, span: Span, provider: str | None, repairs: bool, reason: str
    ) -> Reconciliation:
        """Write down that a comparison begins."""
        return await self._act(
            "order_reconciliation", by, interventions.order_reconciliation, span, provider, repairs, reason
        )

    async def prices(self) -> list[PriceVersion]:
        """Return every announced price, for quotes."""
        found: list[PriceVersion] = await self._run("prices", prices.list_prices)
        return found

    async def redeem_voucher(self, credential: Credential, code: str) -> Redemption:
        """Redeem a code for a caller."""
        redeemed: Redemption = await self._run("redeem_voucher", vouchers.redeem, credential, code)
        return redeemed

    async def _look(
        self,
        method: str,
        by: Signed,
        work: Callable[Concatenate[AsyncConnection, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        async def look(conn: AsyncConnection) -> T:
            await actor_of(conn, by.credential, by.request_id)
            return await work(conn, *args, **kwargs)

        found: T = await self._run(method, look)
        return found

    async def _act(
        self,
        method: str,
        by: Signed,
        work: Callable[Concatenate[AsyncConnection, Actor, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        async def act(conn: AsyncConnection) -> T:
            return await work(conn, await actor_of(conn, by.credential, by.request_id), *args, **kwargs)

        done: T = await self._run(method, act)
        return done
