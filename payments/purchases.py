"""A purchase from its opening to its claim. Each function is one step of one transaction.

Fulfilment runs from the webhook and from the claim, many times and at once: the purchase row's lock lets one grant,
and the rest see it granted. The credits go to the account of the payer's e-mail; only a payment that opened that
account may claim a key to it.

A payment in coins may come short, over or late. Short, it grants nothing and what arrived is kept; over, it grants the
package and the excess is kept; late, it grants as if it had come in time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, func, insert, or_, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import NotFound
from ledger.accounts import World
from ledger.balances import balance
from ledger.credits import credit
from ledger.grants import Terms
from ledger.keys import ApiKey, Credential, mint
from ledger.users import account_of_email, account_of_user
from payments import referrals
from payments.auto_topups import note_paid
from payments.customers import remember_customer
from payments.errors import (
    AccountExists,
    AlreadyClaimed,
    ClaimExpired,
    PaymentIncomplete,
    PaymentMismatch,
    PaymentPending,
)
from payments.packages import Package
from payments.returns import Return, settle_returns, stop_if_warned
from payments.tables import purchases

FIRST_LOOK: Final = timedelta(minutes=5)
"""Events come within seconds; five minutes later one is late or lost, and the provider is asked itself."""
LOOKS_MOST: Final = 40
"""The pause doubles up to a day, so that a payment is found for a month; later ones are an operator's to find."""


@dataclass(frozen=True, slots=True)
class OpenPurchase:
    """What is about to be sold. `credential` is the key of the account to top up, if one was sent."""

    purchase_id: str
    provider: str
    email: str
    package: Package
    credential: Credential | None


@dataclass(frozen=True, slots=True)
class PaidSession:
    """What the provider says of a paid session and of what became of its payment, read from its API.

    `amount_minor` is the price that was asked, as compared with the package; `paid_minor` what was paid for it, with
    tax and after discounts (None: the price). `warned`: a card network calls the payment fraudulent. In minor units.
    `card_fingerprint`: the provider's name for the card, the same wherever that card pays; None where it has none.
    """

    provider: str
    session_id: str
    purchase_id: str
    amount_minor: int
    currency: str
    livemode: bool
    expect_livemode: bool
    card_fingerprint: str | None = None
    paid_minor: int | None = None
    payment_id: str | None = None
    customer_id: str | None = None
    returns: tuple[Return, ...] = ()
    warned: bool = False
    received_minor: int | None = None
    """What arrived, where the provider says so; None: what was asked for."""


@dataclass(frozen=True, slots=True)
class UnpaidSession:
    """What the provider says of a session that is not paid in full. Units: `received_minor` minor units.

    `closed`: it waits for no more, though a payment may still come late, unless that is `final`.
    """

    provider: str
    session_id: str
    purchase_id: str
    received_minor: int
    closed: bool
    final: bool = False


@dataclass(frozen=True, slots=True)
class Purchase:
    """A purchase as far as it has come. Units: tokens, minor units."""

    id: str
    provider: str
    session_id: str | None
    email: str
    package_code: str
    credits_tokens: int
    amount_minor: int
    currency: str
    created_at: datetime
    paid: bool
    claimed: bool
    opened_account: bool
    received_minor: int
    closed: bool
    payment_id: str | None
    paid_minor: int | None
    returned_minor: int

    @property
    def charged_minor(self) -> int:
        """What a fulfilled one cost its payer: the price, where nothing else is known."""
        return self.amount_minor if self.paid_minor is None else self.paid_minor


@dataclass(frozen=True, slots=True)
class Claim:
    """The first key of a payment, with its secret for the one answer that shows it."""

    secret: str
    key: ApiKey
    email: str
    credits_tokens: int
    balance_tokens: int


async def open_purchase(
    conn: AsyncConnection, command: OpenPurchase, topup_user_id: str | None, world: World = "live"
) -> Purchase:
    """Write down what is about to be sold, before the provider hears of it."""
    package = command.package
    row = (
        await conn.execute(
            insert(purchases)
            .values(
                id=command.purchase_id,
                provider=command.provider,
                email=command.email.strip().lower(),
                topup_user_id=topup_user_id,
                world=world,
                package_code=package.code,
                credits_tokens=package.credits_tokens,
                amount_minor=package.price_minor,
                currency=package.currency,
                price_version=package.price_version,
            )
            .returning(purchases)
        )
    ).one()
    return _purchase(row)


async def attach_session(conn: AsyncConnection, purchase_id: str, session_id: str) -> None:
    """Remember the provider's session; the first one stays."""
    await conn.execute(
        update(purchases)
        .where(purchases.c.id == purchase_id, purchases.c.session_id.is_(None))
        .values(session_id=session_id, look_at=func.now() + FIRST_LOOK)
    )


async def by_session(conn: AsyncConnection, provider: str, session_id: str) -> Purchase:
    """Return the purchase of a session, named by the session's id or its own. Raises: NotFound."""
    row = (await conn.execute(select(purchases).where(_named(provider, session_id)))).one_or_none()
    if row is None:
        raise NotFound("checkout session")
    return _purchase(row)


async def by_id(conn: AsyncConnection, purchase_id: str) -> Purchase:
    """Return a purchase. Raises: NotFound."""
    row = (await conn.execute(select(purchases).where(purchases.c.id == purchase_id))).one_or_none()
    if row is None:
        raise NotFound("purchase")
    return _purchase(row)


async def of_email(conn: AsyncConnection, email: str, limit: int) -> list[Purchase]:
    """Return the newest purchases that were paid, or begun, with an e-mail address."""
    rows = await conn.execute(
        select(purchases)
        .where(purchases.c.email == email.strip().lower())
        .order_by(purchases.c.created_at.desc())
        .limit(limit)
    )
    return [_purchase(row) for row in rows]


async def list_purchases(
    conn: AsyncConnection, user_id: str, limit: int, before: str | None
) -> list[Purchase]:
    """Return a page of what was sold to a user, and of their top-ups that are still open, newest first."""
    page = (
        select(purchases)
        .where(or_(purchases.c.user_id == user_id, purchases.c.topup_user_id == user_id))
        .order_by(purchases.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        page = page.where(purchases.c.id < before)
    return [_purchase(row) for row in await conn.execute(page)]


async def lock_of_user(conn: AsyncConnection, user_id: str) -> None:
    """Lock a user's purchases: before their account, as a fulfilment does."""
    await conn.execute(
        select(purchases.c.id)
        .where(or_(purchases.c.user_id == user_id, purchases.c.topup_user_id == user_id))
        .order_by(purchases.c.id)
        .with_for_update()
    )


async def forget_payer(conn: AsyncConnection, user_id: str, address: str) -> None:
    """Write `address` in place of a deleted user's e-mail; an open top-up, if paid after all, opens a new account.

    One of the test world stays with the account that it was for: no money comes of it.
    """
    fulfilled = and_(purchases.c.user_id == user_id, purchases.c.fulfilled_at.is_not(None))
    open_topup = and_(purchases.c.topup_user_id == user_id, purchases.c.fulfilled_at.is_(None))
    await conn.execute(
        update(purchases)
        .where(or_(fulfilled, and_(open_topup, purchases.c.world == "test")))
        .values(email=address)
    )
    await conn.execute(
        update(purchases).where(open_topup, purchases.c.world == "live").values(topup_user_id=None)
    )


async def fulfil(conn: AsyncConnection, paid: PaidSession) -> Purchase:
    """Grant what was paid for, once, and take back what of the money went back; however often this is called.

    Raises: NotFound for a session that is not of ours; PaymentMismatch, with nothing granted.
    """
    row = await _locked(conn, paid)
    if row.fulfilled_at is None:
        row = await _grant(conn, row, paid)
    else:
        row = await _received(conn, row, _arrived(paid))
    owner = await account_of_user(conn, row.user_id, row.world)
    returned_minor = await settle_returns(conn, row, owner.account_id, paid.returns)
    if paid.warned:
        await stop_if_warned(conn, row, owner.account_id)
    return replace(_purchase(row), returned_minor=returned_minor)


def _arrived(paid: PaidSession) -> int:
    """Return what arrived of the price: all of it, where the provider says no more."""
    return paid.amount_minor if paid.received_minor is None else paid.received_minor


async def _grant(conn: AsyncConnection, row: Row[Any], paid: PaidSession) -> Row[Any]:
    """Grant a purchase that was not granted before; its row is locked. Raises: PaymentMismatch."""
    if paid.currency.lower() != row.currency:
        raise PaymentMismatch(row.id, "currency")
    if paid.amount_minor != row.amount_minor or _arrived(paid) < row.amount_minor:
        raise PaymentMismatch(row.id, "amount")
    if paid.livemode != paid.expect_livemode or (paid.livemode and row.world == "test"):
        raise PaymentMismatch(row.id, "mode")
    if row.topup_user_id is not None:
        owner = await account_of_user(conn, row.topup_user_id, row.world)
    else:
        owner = await account_of_email(conn, row.email)
    transfer_id = await credit(
        conn,
        owner.account_id,
        kind="purchase",
        house=f"clearing:{row.provider}",
        amount_tokens=row.credits_tokens,
        reference=row.id,
        reason=row.package_code,
        terms=Terms(purchase_id=row.id),
    )
    if paid.customer_id and (owner.opened or row.topup_user_id):
        # Whoever else pays for an e-mail address is not its owner: their cards stay theirs.
        await remember_customer(conn, row.provider, owner.user_id, paid.customer_id)
    done = await conn.execute(
        update(purchases)
        .where(purchases.c.id == row.id)
        .values(
            session_id=paid.session_id,
            user_id=owner.user_id,
            opened_account=owner.opened,
            transfer_id=transfer_id,
            fulfilled_at=func.now(),
            payment_id=paid.payment_id,
            card_fingerprint=paid.card_fingerprint,
            paid_minor=row.amount_minor if paid.paid_minor is None else paid.paid_minor,
            received_minor=func.greatest(purchases.c.received_minor, _arrived(paid)),
            look_at=None,
        )
        .returning(purchases)
    )
    granted: Row[Any] = done.one()
    if granted.paid_minor:  # a promotion code for the whole price brings nobody a reward
        await referrals.note_order(conn, owner.account_id, row.id)
    await note_paid(conn, row.id)
    return granted


async def note_unpaid(conn: AsyncConnection, seen: UnpaidSession) -> Purchase:
    """Keep what arrived of a payment that is not whole. Nothing is granted; what was granted before stays.

    What arrived never falls and a closed session stays closed, so that an older reading changes nothing. After a final
    one its provider is not asked again.
    Raises: NotFound for a session that is not of ours.
    """
    row = await _locked(conn, seen)
    ends = row.closed_at is None or (seen.final and row.look_at is not None)
    if row.fulfilled_at is None and seen.closed and ends:
        values = {
            "session_id": seen.session_id,
            "closed_at": func.coalesce(purchases.c.closed_at, func.now()),
        }
        await conn.execute(
            update(purchases)
            .where(purchases.c.id == row.id)
            .values(values | ({"look_at": None} if seen.final else {}))
        )
    return _purchase(await _received(conn, row, seen.received_minor))


async def take_due(conn: AsyncConnection, limit: int) -> list[Purchase]:
    """Return purchases whose provider should be asked again, each to one caller, and set when it is due next."""
    due = (
        select(purchases.c.id)
        .where(purchases.c.look_at <= func.now())
        .order_by(purchases.c.look_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = (await conn.scalars(due)).all()
    if not ids:
        return []
    pause = func.least(FIRST_LOOK * func.power(2, func.least(purchases.c.looks + 1, 12)), timedelta(days=1))
    rows = await conn.execute(
        update(purchases)
        .where(purchases.c.id.in_(ids))
        .values(
            looks=purchases.c.looks + 1,
            look_at=case((purchases.c.looks + 1 < LOOKS_MOST, func.now() + pause)),
        )
        .returning(purchases)
    )
    return [_purchase(row) for row in rows]


async def claim(  # noqa: PLR0913  # what is claimed, and the two settings that decide it
    conn: AsyncConnection, provider: str, session_id: str, label: str, *, brand: str, days: int
) -> Claim:
    """Mint the first key of a payment, once and within `days` of it; of two at the same time one gets it.

    Raises: NotFound, PaymentPending, PaymentIncomplete, AlreadyClaimed, AccountExists, ClaimExpired.
    """
    late = purchases.c.fulfilled_at + timedelta(days=days) <= func.now()
    row = (
        await conn.execute(
            select(purchases, late.label("late")).where(_named(provider, session_id)).with_for_update()
        )
    ).one_or_none()
    if row is None:
        raise NotFound("checkout session")
    if row.fulfilled_at is None:
        if row.closed_at is not None and row.received_minor:
            raise PaymentIncomplete(row.id, row.received_minor, row.amount_minor, row.currency)
        raise PaymentPending
    if row.claimed_at is not None:
        raise AlreadyClaimed
    if not row.opened_account:
        raise AccountExists
    if row.late:
        raise ClaimExpired(days)
    minted = await mint(conn, row.user_id, label, brand=brand)
    await conn.execute(
        update(purchases).where(purchases.c.id == row.id).values(key_id=minted.key.id, claimed_at=func.now())
    )
    owner = await account_of_user(conn, row.user_id)
    stands = await balance(conn, owner.account_id)
    return Claim(minted.secret, minted.key, row.email, row.credits_tokens, stands.available_tokens)


def _named(provider: str, session_id: str) -> ColumnElement[bool]:
    """Match the purchase that a caller names, by its session or by itself."""
    return (purchases.c.provider == provider) & or_(
        purchases.c.session_id == session_id, purchases.c.id == session_id
    )


async def _locked(conn: AsyncConnection, seen: PaidSession | UnpaidSession) -> Row[Any]:
    """Return the purchase of a session, locked. Raises: NotFound for a session that is not of ours."""
    row = (
        await conn.execute(
            select(purchases)
            .where(purchases.c.id == seen.purchase_id, purchases.c.provider == seen.provider)
            .with_for_update()
        )
    ).one_or_none()
    if row is None or row.session_id not in (None, seen.session_id):
        raise NotFound("purchase")
    return row


async def _received(conn: AsyncConnection, row: Row[Any], received_minor: int) -> Row[Any]:
    """Note what arrived of a locked purchase, if it is more than was seen before."""
    noted = await conn.execute(
        update(purchases)
        .where(purchases.c.id == row.id)
        .values(received_minor=func.greatest(purchases.c.received_minor, received_minor))
        .returning(purchases)
    )
    seen: Row[Any] = noted.one()
    return seen


def _purchase(row: Row[Any]) -> Purchase:
    return Purchase(
        id=row.id,
        provider=row.provider,
        session_id=row.session_id,
        email=row.email,
        package_code=row.package_code,
        credits_tokens=row.credits_tokens,
        amount_minor=row.amount_minor,
        currency=row.currency,
        created_at=row.created_at,
        paid=row.fulfilled_at is not None,
        claimed=row.claimed_at is not None,
        opened_account=bool(row.opened_account),
        received_minor=row.received_minor,
        closed=row.closed_at is not None,
        payment_id=row.payment_id,
        paid_minor=row.paid_minor,
        returned_minor=row.returned_minor,
    )
