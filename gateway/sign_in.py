"""Sign-in by e-mail: a one-time code proves that an address can be read, and opens a session.

A code has 8 digits, lives ten minutes, takes five tries and works once; a new one voids the old. Only its HMAC is
stored. Nothing here looks at users before a code was right, so that no answer tells whether an address is known.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import delete, false, func, insert, select, text, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.errors import RateLimited, WrongCode
from gateway.ports import SignedIn, VerifySignIn
from gateway.tables import sign_in_codes
from kit.errors import AppError, NotFound
from kit.outbox import enqueue
from ledger import sessions
from ledger.keys import suspended
from ledger.users import account_of_email, require_user

DIGITS: Final = 8
"""With the tries and budgets below, who guesses at every open code is right once in some 20,000 hours."""
LIFETIME: Final = timedelta(minutes=10)
MAX_TRIES: Final = 5
WINDOW: Final = timedelta(hours=1)
CODES_PER_EMAIL: Final = 5
"""In an hour: a person mistypes or loses a mail now and then; a mailbox must not be flooded."""
CODES_PER_NETWORK: Final = 20
"""In an hour: an office behind one address signs in of a morning; a script does more."""
KEPT: Final = timedelta(days=1)
"""The budgets look back an hour; a day answers "did my code leave?"."""
_BUDGET_LOCK: Final = 0x5167_4E49
"""One start at a time counts and writes, so that the budgets are exact; it takes milliseconds."""


@dataclass(frozen=True, slots=True)
class SignInTerms:
    """What the codes of this server depend on."""

    secret: bytes
    base_url: str
    codes_per_hour: int
    """Of all addresses together: what the operator's mail account bears."""


async def start(conn: AsyncConnection, terms: SignInTerms, email: str, network: str | None) -> None:
    """Write a new code and its mail; the address's older code is void. `network`: where the request came from.

    Raises: RateLimited, with nothing written.
    """
    await conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _BUDGET_LOCK})
    await _within_budgets(conn, terms, email, network)
    await conn.execute(
        update(sign_in_codes)
        .where(
            sign_in_codes.c.email == email,
            sign_in_codes.c.consumed_at.is_(None),
            sign_in_codes.c.voided_at.is_(None),
        )
        .values(voided_at=func.now())
    )
    code = f"{secrets.randbelow(10**DIGITS):0{DIGITS}}"
    expires_at = datetime.now(UTC) + LIFETIME
    await conn.execute(
        insert(sign_in_codes).values(
            email=email, network=network, code_hmac=_hmac(terms, email, code), expires_at=expires_at
        )
    )
    minutes = int(LIFETIME.total_seconds()) // 60
    shown = f"{code[:4]} {code[4:]}"
    await enqueue(
        conn,
        email,
        "Your sign-in code",
        f"Your sign-in code is\n\n    {shown}\n\nEnter it at {terms.base_url}/sign-in within {minutes} minutes;"
        " it works once.\n\nIf you did not ask for it, do nothing: without the code nobody gets in.\n",
        expires_at=expires_at,
    )


async def verify(conn: AsyncConnection, terms: SignInTerms, command: VerifySignIn) -> SignedIn | AppError:
    """Redeem a code for a session, once; an address without a user gets one, with an empty account.

    A refusal is returned, not raised: the try that it counts must be committed.
    """
    row = (
        await conn.execute(
            select(sign_in_codes.c.id, sign_in_codes.c.code_hmac)
            .where(
                sign_in_codes.c.email == command.email,
                sign_in_codes.c.consumed_at.is_(None),
                sign_in_codes.c.voided_at.is_(None),
                sign_in_codes.c.expires_at > func.now(),
                sign_in_codes.c.tries < MAX_TRIES,
            )
            .with_for_update()
        )
    ).one_or_none()
    given = _hmac(terms, command.email, command.code)
    if not hmac.compare_digest(bytes(row.code_hmac) if row else bytes(32), given):
        if row:
            await conn.execute(
                update(sign_in_codes)
                .where(sign_in_codes.c.id == row.id)
                .values(tries=sign_in_codes.c.tries + 1)
            )
        return WrongCode()
    assert row is not None, "no HMAC is all zeros"
    used = await conn.execute(
        update(sign_in_codes)
        .where(sign_in_codes.c.id == row.id, sign_in_codes.c.consumed_at.is_(None))
        .values(consumed_at=func.now())
        .returning(sign_in_codes.c.id)
    )
    if used.one_or_none() is None:
        return WrongCode()
    owner = await account_of_email(conn, command.email)
    try:
        user = await require_user(conn, owner.user_id)
    except NotFound:  # deleted between the two statements: a new code opens a new user
        return WrongCode()
    if user.suspended:
        return suspended()
    if command.replaces is not None:
        await sessions.close_session(conn, command.replaces)
    session = await sessions.open_session(conn, user.id, command.session)
    return SignedIn(user.id, user.email, session.expires_at, owner.opened)


async def forget_old(conn: AsyncConnection) -> int:
    """Delete codes that are over."""
    result = await conn.execute(delete(sign_in_codes).where(sign_in_codes.c.created_at < func.now() - KEPT))
    return result.rowcount


async def forget_address(conn: AsyncConnection, email: str) -> None:
    """Delete the codes of a deleted user."""
    await conn.execute(delete(sign_in_codes).where(sign_in_codes.c.email == email))


async def _within_budgets(conn: AsyncConnection, terms: SignInTerms, email: str, network: str | None) -> None:
    """Raises: RateLimited, with the seconds until the oldest code that counts is out of the window."""
    created_at = sign_in_codes.c.created_at
    of_email = sign_in_codes.c.email == email
    of_network = false() if network is None else sign_in_codes.c.network == network
    columns: list[Any] = []
    for counted in (of_email, of_network, true()):
        columns += [func.count().filter(counted), func.min(created_at).filter(counted)]
    # One look at the window's codes, whose number the overall budget bounds.
    row = (await conn.execute(select(func.now(), *columns).where(created_at > func.now() - WINDOW))).one()
    now, *counts = row
    limits = (CODES_PER_EMAIL, CODES_PER_NETWORK, terms.codes_per_hour)
    for limit, count, oldest in zip(limits, counts[::2], counts[1::2], strict=True):
        if count >= limit:
            wait_s = max(1, int((oldest + WINDOW - now).total_seconds()) + 1)
            raise RateLimited("sign_in_codes", limit, int(WINDOW.total_seconds()), wait_s)


def _hmac(terms: SignInTerms, email: str, code: str) -> bytes:
    return hmac.digest(terms.secret, f"farebox sign-in code\n{email}\n{code}".encode(), "sha256")
