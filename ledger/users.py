"""Users: one for each e-mail address, each with one live account, and a test account once they made a test key."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.ids import new_id
from ledger.accounts import World, account_in, open_account
from ledger.tables import accounts, users


@dataclass(frozen=True, slots=True)
class UserAccount:
    """A user with the account that is theirs; `opened` when this call made both."""

    user_id: str
    account_id: int
    opened: bool


async def account_of_email(conn: AsyncConnection, email: str) -> UserAccount:
    """Return the user of an e-mail address with their live account, making both when there are none; safe in a race."""
    address = email.strip().lower()
    made = (
        await conn.execute(
            insert(users)
            .values(id=new_id("user"), email=address)
            .on_conflict_do_nothing(index_elements=[users.c.email])
            .returning(users.c.id)
        )
    ).scalar_one_or_none()
    if made is not None:
        return UserAccount(made, await open_account(conn, made), opened=True)
    # The conflict waited for the other writer's commit, and this statement's snapshot is newer than that.
    row = (
        await conn.execute(
            select(users.c.id, accounts.c.id.label("account_id"))
            .join(accounts, accounts.c.user_id == users.c.id)
            .where(users.c.email == address, accounts.c.world == "live")
        )
    ).one()
    return UserAccount(row.id, row.account_id, opened=False)


async def account_of_user(conn: AsyncConnection, user_id: str, world: World = "live") -> UserAccount:
    """Return a known user's account in a world, which is there."""
    return UserAccount(user_id, await account_in(conn, user_id, world), opened=False)
