"""Deletion of an account: the person is forgotten, the books stay.

What goes: the e-mail (also in purchases, codes and mails), keys, sessions, labels, jobs' inputs, files, webhooks. What
stays: transfers, entries, holds and purchases, under an id that names nobody. All of it, in both worlds, is one
transaction.

Locks: purchases, user, account, then keys, holds, jobs and files - a fulfilment and a spend keep the same order.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import alerts, files, idempotency, jobs, sign_in, webhooks
from gateway.errors import AccountInUse, BalanceLeft
from kit import outbox
from kit.errors import InvalidRequest
from ledger import accounts, grants, sessions, users
from ledger.credits import adjust
from ledger.errors import AccountFrozen
from ledger.keys import Caller
from payments import auto_topups, customers, purchases

FORFEITED: Final = "account deleted"
"""The reference of the transfer that takes a forfeited balance: at most one for each account."""


async def delete_account(conn: AsyncConnection, caller: Caller, email: str, *, forfeit: bool) -> list[str]:
    """Forget a user; returns the storage keys of the bytes that may be deleted once this has committed.

    Raises: InvalidRequest when another e-mail was typed; AccountFrozen while a debt is open; AccountInUse while
    something is held that can't be cancelled here; BalanceLeft unless `forfeit`.
    """
    if email != caller.email:
        raise InvalidRequest("email", "is not this account's e-mail")
    await purchases.lock_of_user(conn, caller.user_id)
    await users.forget(conn, caller.user_id)
    theirs = sorted(await accounts.lock_by_user(conn, caller.user_id))
    for account_id in theirs:
        await _empty(conn, account_id, forfeit=forfeit)
    await sessions.revoke_everything(conn, caller.user_id)
    await purchases.forget_payer(conn, caller.user_id, users.nameless(caller.user_id))
    await customers.forget_customers(conn, caller.user_id)
    await sign_in.forget_address(conn, caller.email)
    await outbox.forget_recipient(conn, caller.email)
    left: list[str] = []
    for account_id in theirs:
        await alerts.drop(conn, account_id)
        await auto_topups.switch_off(conn, account_id)
        await webhooks.forget_account(conn, account_id)
        await idempotency.forget_account(conn, account_id)
        await jobs.forget_inputs(conn, account_id)
        left += await files.delete_all(conn, account_id)
    return left


async def _empty(conn: AsyncConnection, account_id: int, *, forfeit: bool) -> None:
    """Take what is left of an account, if nothing is held or owed. Test credits, and test debts, are nobody's loss."""
    await jobs.cancel_queued(conn, account_id)
    purse = await accounts.lock_one(conn, account_id)
    await grants.start_early(conn, purse)  # what was promised is given up too, in the books
    if purse.frozen and purse.world == "live":
        raise AccountFrozen(purse.debt)
    if purse.held:
        raise AccountInUse(purse.held)
    if purse.balance:
        if not forfeit and purse.world == "live":
            raise BalanceLeft(purse.balance)
        await adjust(
            conn,
            account_id,
            amount_tokens=-purse.balance,
            reference=FORFEITED,
            reason="forfeited by its owner with the account",
        )
