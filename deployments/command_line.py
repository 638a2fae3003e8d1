"""What commands on the books share: whose hand it is, whom it concerns, and one transaction.

The hand in the log is the system's user, whom the kernel names and no variable can rename.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import typer
from email_validator import EmailNotValidError, validate_email
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.books import books, in_books
from kit.errors import InvalidRequest, NotFound
from kit.settings import load_settings
from ledger.actions import Actor
from ledger.tables import users
from ledger.users import account_of_email

T = TypeVar("T")

User = Annotated[str, typer.Argument(metavar="USER", help="An e-mail address or a user's id.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the log.", show_default=False)]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many to show.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Moment = Annotated[
    str, typer.Option(metavar="TIME", help="RFC 3339 with its offset, such as 2027-01-31T00:00:00Z.")
]
Reference = Annotated[str, typer.Option(help="Makes a repeat harmless; new for each run when empty.")]


def by_hand() -> Actor:
    """Return whoever runs this command."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:  # a container's user need not have a name
        name = f"uid {uid}"
    return Actor(None, name, None)


def on_books(work: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run one transaction on the books of this data directory."""
    with books(load_settings()) as url:
        return in_books(url, work, *args)


def moment(option: str, text: str) -> datetime | None:
    """Read a time to come, with its offset; None for an empty one. Raises: InvalidRequest."""
    if not text:
        return None
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        read = None
    if read is None or read.tzinfo is None:
        raise InvalidRequest(option, "must be a time with its offset, such as 2027-01-31T00:00:00Z")
    if read <= datetime.now(UTC):
        raise InvalidRequest(option, "must lie in the future")
    return read.astimezone(UTC)


async def user_of_email(conn: AsyncConnection, email: str) -> str:
    """Return the id of the user of an e-mail address, opening the account if there is none.

    Raises: InvalidRequest for what is no address: what is mistyped opens nothing.
    """
    address = email.strip().lower()
    known = await conn.scalar(select(users.c.id).where(users.c.email == address))
    if known is not None:
        return str(known)
    try:
        validate_email(address, check_deliverability=False)
    except EmailNotValidError as error:
        raise InvalidRequest("email", "is not a valid e-mail address") from error
    return (await account_of_email(conn, address)).user_id


async def user_id_of(conn: AsyncConnection, named: str) -> str:
    """Return the id of a user by e-mail address or id. Raises: NotFound."""
    known = (users.c.email == named.strip().lower()) | (users.c.id == named)
    found = (await conn.execute(select(users.c.id).where(known))).scalar_one_or_none()
    if found is None:
        raise NotFound(f"user as {named}")
    return str(found)
