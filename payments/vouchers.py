"""Vouchers: codes that an operator makes and callers redeem for credits, each account once, at most so many in all.

A code is 80 random bits and works like cash for whoever holds it, so only its SHA-256 is kept: a copy of the
database or of a backup redeems nothing, and at 80 bits a plain hash cannot be searched. It is shown once, when made.

The account's lock comes first, then the voucher's row by its conditional update; the unique key of
`voucher_redemptions` and the voucher's CHECK hold all of it without this code.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import Forbidden, NotFound
from kit.ids import new_id
from ledger import grants, scopes
from ledger.accounts import lock_one
from ledger.credits import credit
from ledger.grants import Terms
from ledger.keys import Credential, caller_of
from payments.errors import VoucherClosed
from payments.tables import voucher_redemptions, vouchers

CODE_CHARS: Final = 16
"""Of 5 bits each: out of reach of guessing, and still something that people type."""
HINT_CHARS: Final = 4
"""Shown in lists: enough to recognise a code by, and 60 unknown bits remain."""
MAX_CODES: Final = 1_000
"""Made at once: one transaction of milliseconds, one answer of some 100 kB."""
HOUSE: Final = "promotion:voucher"
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32: no letter that is taken for another."""
_READ_AS: Final = str.maketrans("OIL", "011", "- ")


@dataclass(frozen=True, slots=True)
class VoucherTerms:
    """What a voucher is worth. Units: tokens; `credits_days` days that redeemed credits live, None: for ever."""

    label: str
    amount_tokens: int
    max_redemptions: int
    expires_at: datetime | None
    credits_days: int | None


@dataclass(frozen=True, slots=True)
class Voucher:
    """A voucher as it may be shown at any time; `hint` is how its code begins."""

    id: str
    hint: str
    terms: VoucherTerms
    redemptions: int
    created_at: datetime
    disabled_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewVoucher:
    """A voucher with its code, for the one answer that shows it."""

    voucher: Voucher
    code: str


@dataclass(frozen=True, slots=True)
class Redemption:
    """What a code gave to an account, as it was answered the first time. Units: tokens."""

    voucher_id: str
    amount_tokens: int
    free_after_tokens: int
    credits_expire_at: datetime | None
    redeemed_at: datetime
    replayed: bool


async def make(conn: AsyncConnection, terms: VoucherTerms, count: int) -> list[NewVoucher]:
    """Make `count` vouchers of the same terms, each with a code of its own."""
    codes = ["".join(secrets.choice(_ALPHABET) for _ in range(CODE_CHARS)) for _ in range(count)]
    rows = await conn.execute(
        insert(vouchers).returning(vouchers, sort_by_parameter_order=True),
        [
            {
                "id": new_id("voucher"),
                "code_hash": hash_code(code),
                "hint": code[:HINT_CHARS],
                "label": terms.label,
                "amount": terms.amount_tokens,
                "max_redemptions": terms.max_redemptions,
                "expires_at": terms.expires_at,
                "credits_days": terms.credits_days,
            }
            for code in codes
        ],
    )
    return [
        NewVoucher(_voucher(row), "-".join(re.findall("....", code)))
        for row, code in zip(rows, codes, strict=True)
    ]


async def list_vouchers(conn: AsyncConnection, limit: int, before: str | None = None) -> list[Voucher]:
    """Return a page of vouchers, newest first."""
    found = select(vouchers).order_by(vouchers.c.id.desc()).limit(limit)
    if before is not None:
        found = found.where(vouchers.c.id < before)
    return [_voucher(row) for row in await conn.execute(found)]


async def voucher(conn: AsyncConnection, voucher_id: str) -> Voucher:
    """Return a voucher. Raises: NotFound."""
    row = (await conn.execute(select(vouchers).where(vouchers.c.id == voucher_id))).one_or_none()
    if row is None:
        raise NotFound("voucher")
    return _voucher(row)


async def disable(conn: AsyncConnection, voucher_id: str) -> bool:
    """Close a voucher to whoever has not redeemed it; returns whether it was open."""
    done = await conn.execute(
        update(vouchers)
        .where(vouchers.c.id == voucher_id, vouchers.c.disabled_at.is_(None))
        .values(disabled_at=func.clock_timestamp())
    )
    return done.rowcount == 1


async def redeem(conn: AsyncConnection, credential: Credential, code: str) -> Redemption:
    """Grant a code's credits to the caller's account, once: a repeat is answered alike, whatever became of the code.

    Raises: AuthRequired, Forbidden; NotFound for no code of ours; VoucherClosed.
    """
    caller = await caller_of(conn, credential, scopes.CHECKOUT)
    if caller.world == "test":
        raise Forbidden("Test keys redeem no vouchers; POST /api/v1/test/refill gives test credits.")
    await lock_one(conn, caller.account_id)
    row = (await conn.execute(select(vouchers).where(vouchers.c.code_hash == hash_code(code)))).one_or_none()
    if row is None:
        raise NotFound("voucher")
    before = (
        await conn.execute(
            select(voucher_redemptions).where(
                voucher_redemptions.c.voucher_id == row.id,
                voucher_redemptions.c.account_id == caller.account_id,
            )
        )
    ).one_or_none()
    if before is not None:
        return _redemption(before, row.amount, replayed=True)
    await _use(conn, row.id)
    now = await grants.clock(conn)
    until = now + timedelta(days=row.credits_days) if row.credits_days else None
    transfer_id = await credit(
        conn,
        caller.account_id,
        kind="grant",
        house=HOUSE,
        amount_tokens=row.amount,
        reference=row.id,
        reason=row.label,
        event_at=now,
        terms=Terms(expires_at=until),
    )
    purse = await lock_one(conn, caller.account_id)
    done = (
        await conn.execute(
            insert(voucher_redemptions)
            .values(
                voucher_id=row.id,
                account_id=caller.account_id,
                transfer_id=transfer_id,
                free_after=purse.free,
                credits_expire_at=until,
            )
            .returning(voucher_redemptions)
        )
    ).one()
    return _redemption(done, row.amount, replayed=False)


async def _use(conn: AsyncConnection, voucher_id: str) -> None:
    """Count one more redemption, or say why there is none left. The update waits for those before it and sees them."""
    now = func.clock_timestamp()
    used = await conn.execute(
        update(vouchers)
        .where(
            vouchers.c.id == voucher_id,
            vouchers.c.disabled_at.is_(None),
            or_(vouchers.c.expires_at.is_(None), vouchers.c.expires_at > now),
            vouchers.c.redemptions < vouchers.c.max_redemptions,
        )
        .values(redemptions=vouchers.c.redemptions + 1)
    )
    if used.rowcount == 1:
        return
    closed = await voucher(conn, voucher_id)
    if closed.disabled_at is not None:
        raise VoucherClosed("disabled")
    if closed.redemptions >= closed.terms.max_redemptions:
        raise VoucherClosed("used_up")
    raise VoucherClosed("expired")


def hash_code(code: str) -> bytes:
    """Return what is kept of a code, however it was typed: case, spaces and hyphens do not count."""
    return hashlib.sha256(code.upper().translate(_READ_AS).encode()).digest()


def _voucher(row: Row[tuple[object, ...]]) -> Voucher:
    terms = VoucherTerms(row.label, row.amount, row.max_redemptions, row.expires_at, row.credits_days)
    return Voucher(row.id, row.hint, terms, row.redemptions, row.created_at, row.disabled_at)


def _redemption(row: Row[tuple[object, ...]], amount_tokens: int, *, replayed: bool) -> Redemption:
    return Redemption(
        row.voucher_id, amount_tokens, row.free_after, row.credits_expire_at, row.redeemed_at, replayed
    )
