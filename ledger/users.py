"""Users: one for each e-mail address, each with one live account, and a test account once they made a test key."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import NotFound
from kit.ids import new_id
from kit.outbox import NOBODYS
from ledger.accounts import World, account_in, open_account
from ledger.tables import accounts, users


@dataclass(frozen=True, slots=True)
class UserAccount:
    """A user with the account that is theirs; `opened` when this call made both."""

    user_id: str
    account_id: int
    opened: bool


@dataclass(frozen=True, slots=True)
class User:
    """A person as the books know them."""

    id: str
    email: str
    suspended: bool


async def account_of_email(conn: AsyncConnection, email: str) -> UserAccount:
    """Return the user of an e-mail address with their live account, making both when there are none; safe in a race.

    They stay undeleted until this transaction ends, as with `require_user`: nothing is given to somebody who is gone.
    """
    address = email.strip().lower()
    while True:
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
                .with_for_update(read=True, key_share=True, of=users)
            )
        ).one_or_none()
        if row is not None:
            return UserAccount(row.id, row.account_id, opened=False)
        # Deleted between the two statements: the address is free again.


async def account_of_user(conn: AsyncConnection, user_id: str, world: World = "live") -> UserAccount:
    """Return a known user's account in a world, which is there."""
    return UserAccount(user_id, await account_in(conn, user_id, world), opened=False)


async def require_user(conn: AsyncConnection, user_id: str) -> User:
    """Return a user who stays undeleted until this transaction ends. Raises: NotFound.

    The row's share lock waits for a deletion under way, and makes a later one wait: nobody gets a key or a session
    beside the deletion that revokes them all.
    """
    row = (
        await conn.execute(
            select(users.c.id, users.c.email, users.c.suspended_at)
            .where(users.c.id == user_id, users.c.deleted_at.is_(None))
            .with_for_update(read=True, key_share=True)
        )
    ).one_or_none()
    if row is None:
        raise NotFound("user")
    return User(row.id, row.email, row.suspended_at is not None)


def nameless(user_id: str) -> str:
    """Return what stands in place of a deleted user's address; no mail reaches it (RFC 2606, `.invalid`)."""
    return f"deleted-{user_id}{NOBODYS}"


async def forget(conn: AsyncConnection, user_id: str) -> None:
    """Replace a user's address by their id, for ever: the books stay and name nobody."""
    await conn.execute(
        update(users)
        .where(users.c.id == user_id, users.c.deleted_at.is_(None))
        .values(email=nameless(user_id), deleted_at=func.now())
    )
