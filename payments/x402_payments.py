"""A wallet's payment from its writing down to its grant. Each function is one step of one transaction.

A payment is written down, with a lease, before the facilitator hears of it; its answer is stored together with the
grant and the key. Of many callers with one nonce, the one with the lease asks; when no answer came, the lease runs out
and the next one asks again. A success is believed whoever brings it; a refusal is final only if it is the answer to the
first question: after a question without an answer, the money may have moved.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import structlog
from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import NotFound
from kit.ids import new_id
from kit.outbox import NOBODYS
from ledger import keys
from ledger.errors import AccountFrozen
from ledger.grants import clock
from ledger.keys import ApiKey, Limits
from ledger.tables import accounts, users
from ledger.users import account_of_email, require_user
from payments import purchases
from payments.currencies import USDC
from payments.errors import PaymentReused
from payments.packages import Package
from payments.purchases import OpenPurchase, PaidSession
from payments.tables import x402_payments
from payments.x402_facilitator import Settlement

log = structlog.get_logger(__name__)

PROVIDER: Final = "x402"
LEASE: Final = timedelta(seconds=60)
"""Twice what one question to the facilitator may take."""
PAUSE_S: Final = 5
LONGEST_PAUSE_S: Final = 3600
"""Between questions about one payment: as long as a block or two at first, then doubled each time."""
JOB_KEY_SCOPES: Final = ("read", "files", "tasks:*", "tools:*")
"""What a key that came with a job may: look, fetch, and spend what the wallet has left. It makes no keys."""


@dataclass(frozen=True, slots=True)
class Bill:
    """A verified payment and what it buys; `payload` is what the facilitator is sent.

    Units: `amount_minor` millionths of a USDC. `key_days`: how long its key lives and is limited; None: a full key.
    `topup_user_id`: whose account it fills, without any key; None: the wallet's own.
    """

    network: str
    asset: str
    payer: str
    nonce: str
    quote_hash: bytes
    resource: str
    fingerprint: str
    retry_key: str | None
    package_code: str
    price_version: int
    credits_tokens: int
    amount_minor: int
    key_label: str
    key_days: int | None
    payload: dict[str, Any]
    topup_user_id: str | None = None


@dataclass(frozen=True, slots=True)
class Paid:
    """A settled payment, with the key to what it granted; none for a top-up. Units: tokens; millionths of a USDC."""

    payment_id: str
    payer: str
    network: str
    transaction: str
    amount_minor: int
    credits_tokens: int
    price_version: int
    key: ApiKey | None
    secret: str
    replayed: bool


@dataclass(frozen=True, slots=True)
class Settling:
    """A payment that is the caller's to settle now: the `attempt`-th question about it."""

    payment_id: str
    attempt: int
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """A payment that the facilitator refused; no money moved."""

    reason: str | None


@dataclass(frozen=True, slots=True)
class Unknown:
    """A payment whose outcome is not known: asked about now or later, or (`unclear`) for a person to look at."""

    payment_id: str
    unclear: bool


Outcome = Paid | Settling | Refused | Unknown


@dataclass(frozen=True, slots=True)
class Minter:
    """How the keys of payments are made: a function of the payment, so that a repeat shows the same key."""

    brand: str
    secret: bytes

    def root(self, payment_id: str) -> bytes:
        """Return what the key of a payment is derived from."""
        return b"|".join([self.secret, b"x402", payment_id.encode()])


async def resume(conn: AsyncConnection, bill: Bill, minter: Minter) -> Outcome | None:
    """Return how a payment with this nonce stands; None: it was never sent. Raises: PaymentReused.

    Whoever reads the chain knows its signature and may guess the body: only who shows the first request's quote again
    is answered.
    """
    row = await _one(
        conn,
        x402_payments.c.payer == bill.payer,
        x402_payments.c.nonce == bill.nonce,
        x402_payments.c.asset == bill.asset,
        x402_payments.c.network == bill.network,
    )
    if row is None:
        return None
    if (row.quote_hash, row.resource, row.fingerprint) != (bill.quote_hash, bill.resource, bill.fingerprint):
        raise PaymentReused("payment")
    return await _standing(conn, row, minter)


async def begin(conn: AsyncConnection, bill: Bill, minter: Minter) -> Outcome:
    """Write a verified payment down for its caller to settle; of two at once, the second hears of the first.

    A payment under the idempotency key of an earlier one is not settled: the wallet, whose signature was verified,
    hears how the earlier one stands.
    Raises: PaymentReused; Forbidden for a suspended wallet; AccountFrozen for one that could not spend what it bought.
    """
    await _refuse_unserved(conn, bill)
    before = await resume(conn, bill, minter) or await _under_its_key(conn, bill, minter)
    if before is not None:
        return before
    made = (
        await conn.execute(
            insert(x402_payments)
            .values(
                id=new_id("x402"),
                network=bill.network,
                asset=bill.asset,
                payer=bill.payer,
                nonce=bill.nonce,
                quote_hash=bill.quote_hash,
                resource=bill.resource,
                fingerprint=bill.fingerprint,
                retry_key=bill.retry_key,
                package_code=bill.package_code,
                price_version=bill.price_version,
                credits_tokens=bill.credits_tokens,
                amount_minor=bill.amount_minor,
                key_label=bill.key_label,
                key_days=bill.key_days,
                topup_user_id=bill.topup_user_id,
                payload=bill.payload,
                due_at=func.now() + LEASE,
            )
            .on_conflict_do_nothing()
            .returning(x402_payments.c.id)
        )
    ).scalar_one_or_none()
    if made is not None:
        return Settling(made, 1, bill.payload)
    # The conflict waited for the other writer's commit, and the next statement's snapshot is newer than that.
    other = await resume(conn, bill, minter) or await _under_its_key(conn, bill, minter)
    assert other is not None, "what an insert met is there"
    return other


async def conclude(
    conn: AsyncConnection, payment_id: str, attempt: int, said: Settlement, minter: Minter
) -> Outcome:
    """Store what the facilitator said of a payment; a success grants its credits and makes its key, once."""
    row = await _one(conn, x402_payments.c.id == payment_id)
    if row is None:
        raise NotFound("payment")
    if row.state == "settled":
        return await _paid(conn, row, minter)
    if said.success:
        told = (said.payer or row.payer, said.network or row.network)
        if told == (row.payer, row.network) and said.transaction:
            return await _grant(conn, row, said, minter)
        return await _leave_unclear(conn, row, f"settled as {told}, transaction {said.transaction!r}")
    if row.state == "settling" and row.attempts == attempt:
        if said.pending:
            pause = timedelta(seconds=min(PAUSE_S * 2 ** min(attempt - 1, 20), LONGEST_PAUSE_S))
            await _note(conn, row, due_at=func.now() + pause, problem=said.reason)
        elif attempt == 1 and not said.transaction:
            await _note(conn, row, state="refused", problem=said.reason)
            return Refused(said.reason)
        else:
            return await _leave_unclear(conn, row, f"{said.reason} {said.transaction}".strip())
    return Refused(row.problem) if row.state == "refused" else Unknown(row.id, row.state == "unclear")


async def due(conn: AsyncConnection, limit: int) -> list[Settling]:
    """Take payments whose outcome is not known, and of whom nobody asks now."""
    waiting = (
        select(x402_payments.c.id)
        .where(x402_payments.c.state == "settling", x402_payments.c.due_at <= func.now())
        .order_by(x402_payments.c.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = await conn.execute(
        update(x402_payments)
        .where(x402_payments.c.id.in_(waiting.scalar_subquery()))
        .values(attempts=x402_payments.c.attempts + 1, due_at=func.now() + LEASE)
        .returning(x402_payments.c.id, x402_payments.c.attempts, x402_payments.c.payload)
    )
    return [Settling(row.id, row.attempts, row.payload) for row in rows]


async def _under_its_key(conn: AsyncConnection, bill: Bill, minter: Minter) -> Outcome | None:
    """Return how the wallet's payment under this idempotency key stands. Raises: PaymentReused."""
    if bill.retry_key is None:
        return None
    row = await _one(
        conn,
        x402_payments.c.payer == bill.payer,
        x402_payments.c.network == bill.network,
        x402_payments.c.resource == bill.resource,
        x402_payments.c.retry_key == bill.retry_key,
        x402_payments.c.state != "refused",
    )
    if row is None:
        return None
    if row.fingerprint != bill.fingerprint:
        raise PaymentReused("idempotency key")
    return await _standing(conn, row, minter)


async def _standing(conn: AsyncConnection, row: Row[Any], minter: Minter) -> Outcome:
    """Tell how a locked payment stands, and take it for its caller to settle when nobody else does."""
    if row.state == "settled":
        return await _paid(conn, row, minter)
    if row.state == "refused":
        return Refused(row.problem)
    if row.state == "unclear" or row.due_at > await clock(conn):
        return Unknown(row.id, row.state == "unclear")
    await _note(conn, row, attempts=row.attempts + 1, due_at=func.now() + LEASE)
    return Settling(row.id, row.attempts + 1, row.payload)


async def _refuse_unserved(conn: AsyncConnection, bill: Bill) -> None:
    """Take no money of whom we would not serve: a package pays a debt, the work of a call would not begin.

    Raises: Forbidden, AccountFrozen.
    """
    found = (
        await conn.execute(
            select(users.c.suspended_at, accounts.c.frozen_at, accounts.c.debt)
            .join(accounts, accounts.c.user_id == users.c.id)
            .where(users.c.email == address_of(bill.payer, bill.network), accounts.c.world == "live")
        )
    ).one_or_none()
    if found is None:
        return
    if found.suspended_at is not None:
        raise keys.suspended()
    if bill.key_days is not None and (found.frozen_at is not None or found.debt):
        raise AccountFrozen(found.debt)


async def _grant(conn: AsyncConnection, row: Row[Any], said: Settlement, minter: Minter) -> Paid:
    package = Package(
        row.package_code, row.package_code, row.credits_tokens, row.amount_minor, USDC, row.price_version
    )
    email = address_of(row.payer, row.network)
    topup: str | None = None
    if row.topup_user_id is not None:
        # The credits of an account that was deleted meanwhile are the wallet's own.
        with suppress(NotFound):
            user = await require_user(conn, row.topup_user_id)
            topup, email = user.id, user.email
    opened = await purchases.open_purchase(
        conn, OpenPurchase(new_id("pur"), PROVIDER, email, package, None), topup
    )
    await purchases.fulfil(
        conn,
        PaidSession(
            PROVIDER, row.id, opened.id, row.amount_minor, USDC, livemode=False, expect_livemode=False
        ),
    )
    minted = None if row.topup_user_id is not None else await _minted(conn, row, email, minter)
    settled = (
        await conn.execute(
            update(x402_payments)
            .where(x402_payments.c.id == row.id)
            .values(
                state="settled",
                settled_at=func.now(),
                transaction_hash=said.transaction,
                purchase_id=opened.id,
                key_id=None if minted is None else minted.key.id,
            )
            .returning(x402_payments)
        )
    ).one()
    if minted is None:
        return _shown(settled, None, "", replayed=False)
    return _shown(settled, minted.key, minted.secret, replayed=False)


async def _minted(conn: AsyncConnection, row: Row[Any], email: str, minter: Minter) -> keys.NewApiKey:
    """Make the key of a wallet's payment."""
    owner = await account_of_email(conn, email)
    limits = Limits()
    if row.key_days is not None:
        limits = Limits(scopes=JOB_KEY_SCOPES, expires_at=await clock(conn) + timedelta(days=row.key_days))
    return await keys.mint(
        conn, owner.user_id, row.key_label, brand=minter.brand, limits=limits, derive_from=minter.root(row.id)
    )


async def _paid(conn: AsyncConnection, row: Row[Any], minter: Minter) -> Paid:
    if row.key_id is None:
        return _shown(row, None, "", replayed=True)
    key = await keys.find(conn, row.key_id)
    secret = keys.spelled(minter.brand, key.world, keys.derive_secret(minter.root(row.id), key.id))
    return _shown(row, key, secret, replayed=True)


def _shown(row: Row[Any], key: ApiKey | None, secret: str, *, replayed: bool) -> Paid:
    return Paid(
        payment_id=row.id,
        payer=row.payer,
        network=row.network,
        transaction=row.transaction_hash,
        amount_minor=row.amount_minor,
        credits_tokens=row.credits_tokens,
        price_version=row.price_version,
        key=key,
        secret=secret,
        replayed=replayed,
    )


def address_of(payer: str, network: str) -> str:
    """Return what stands for the e-mail of a wallet's user: no mail reaches it (RFC 2606), and no form takes it."""
    return f"{payer}.{network.replace(':', '-')}{NOBODYS}"


async def _leave_unclear(conn: AsyncConnection, row: Row[Any], problem: str) -> Unknown:
    """Leave a payment to a person."""
    log.error("an x402 payment is unclear: look at the chain", payment_id=row.id, problem=problem)
    await _note(conn, row, state="unclear", problem=problem)
    return Unknown(row.id, unclear=True)


async def _note(conn: AsyncConnection, row: Row[Any], **values: Any) -> None:
    await conn.execute(update(x402_payments).where(x402_payments.c.id == row.id).values(**values))


async def _one(conn: AsyncConnection, *terms: ColumnElement[bool]) -> Row[Any] | None:
    """Return the one payment by these terms, locked."""
    return (await conn.execute(select(x402_payments).where(*terms).with_for_update())).one_or_none()
