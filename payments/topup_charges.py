"""Charges of automatic top-ups, each written down before the provider hears of it.

A charge is a purchase of the same id. It is granted by the very fulfilment that grants any other, from the provider's
answer or its webhook, whichever comes first. What is refused moves nothing: the customer is told by mail, and the wish
rests, pauses or ends.

Locks: a purchase, then its charge, then the account's wish. A new charge is written under the wish's lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import func, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit import outbox
from kit.ids import new_id
from payments.auto_topups import Reason, queries
from payments.packages import Package
from payments.purchases import OpenPurchase, open_purchase
from payments.tables import auto_topup_charges, auto_topups, purchases
from payments.topup_mails import ceiling_mail, refusal_mail

Refusal = Literal["authentication_required", "card_declined", "no_card", "not_offered", "not_charged"]

DECLINES_MOST: Final = 3
"""One decline is an empty account on the wrong day; after three in a row the card is dead, and banks count tries."""
DECLINE_RESTS: Final = (timedelta(days=1), timedelta(days=3))
"""After the first decline and the second: pay day may lie between."""
LEASE_S: Final = 180
"""Three calls of ten seconds with their repeats fit in; then whoever was at it is taken for dead."""
REPEATABLE_S: Final = 20 * 3600
"""Stripe keeps an idempotency key for a day. Past this a charge is looked for, and never asked for again."""


@dataclass(frozen=True, slots=True)
class DueCharge:
    """A charge to be brought to its end. Units: minor units.

    `attempt` above 1: an earlier try may have charged, so look first. `only_look`: and ask for nothing new.
    """

    purchase_id: str
    customer_id: str
    email: str
    description: str
    amount_minor: int
    currency: str
    attempt: int
    begun_at: datetime
    only_look: bool


@dataclass(frozen=True, slots=True)
class ChargeRefused:
    """No money moved and none will. `problem`: the provider's words, for the operator and the mail."""

    reason: Refusal
    problem: str


async def accounts_due(conn: AsyncConnection, provider: str, after: int, limit: int) -> tuple[list[int], int]:
    """Return the accounts to top up among the next `limit` with a wish, and where to go on."""
    row = (await conn.execute(queries["due"], {"provider": provider, "after": after, "limit": limit})).one()
    return list(row.due), row.up_to or 0


async def begin(
    conn: AsyncConnection, account_id: int, on_sale: Mapping[str, Package] | None, base_url: str
) -> str | None:
    """Write the charge of an account that is short, and return its id; None where nothing may be charged.

    Under the wish's lock, so that of two sweeps one writes. A package that is sold otherwise now pauses the wish, and
    so does `on_sale` None: saved cards are not charged here any more. A month's ceiling that leaves no room lets the
    wish rest until the next. The customer is told of each, once.
    """
    await conn.execute(queries["lock_wish"], {"account_id": account_id})
    wish = (await conn.execute(queries["as_it_stands"], {"account_id": account_id})).one_or_none()
    if wish is None or not wish.is_due:
        return None
    package = _agreed(wish)
    if on_sale is None or not _is_sold(package, on_sale):
        reason: Reason = "not_offered" if on_sale is None else "package_changed"
        await _change(conn, account_id, state="paused", reason=reason)
        await outbox.enqueue(conn, wish.email, *refusal_mail(reason, package, base_url))
        return None
    if wish.spent_minor + package.price_minor > wish.month_most_minor:
        await _change(conn, account_id, rest_until=wish.next_month)
        mail = ceiling_mail(package, wish.month_most_minor, wish.next_month, base_url)
        await outbox.enqueue(conn, wish.email, *mail)
        return None
    order = OpenPurchase(new_id("pur"), wish.provider, wish.email, package, None)
    purchase = await open_purchase(conn, order, wish.user_id)
    await conn.execute(
        insert(auto_topup_charges).values(
            id=purchase.id,
            account_id=account_id,
            customer_id=wish.customer_id,
            amount_minor=package.price_minor,
            currency=package.currency,
            month=wish.month,
        )
    )
    return purchase.id


async def take(conn: AsyncConnection, provider: str, limit: int) -> list[DueCharge]:
    """Return charges that nobody is at, each to one caller; a dead one's are taken again when its lease is over."""
    facts = {"provider": provider, "limit": limit, "lease_s": LEASE_S, "repeatable_s": REPEATABLE_S}
    return [
        DueCharge(
            purchase_id=row.id,
            customer_id=row.customer_id,
            email=row.email,
            description=f"Automatic top-up: {row.credits_tokens // 100} credits",
            amount_minor=row.amount_minor,
            currency=row.currency,
            attempt=row.attempts,
            begun_at=row.created_at,
            only_look=row.only_look,
        )
        for row in await conn.execute(queries["take"], facts)
    ]


async def refuse(conn: AsyncConnection, purchase_id: str, refused: ChargeRefused, base_url: str) -> bool:
    """End a charge that moved no money; returns whether this call ended it. What was granted meanwhile stays."""
    await conn.execute(select(purchases.c.id).where(purchases.c.id == purchase_id).with_for_update())
    facts = {"id": purchase_id, "problem": refused.problem[:500]}
    charge = (await conn.execute(queries["refuse"], facts)).one_or_none()
    if charge is None:
        return False
    account_id = charge.account_id
    await conn.execute(queries["close_purchase"], {"id": purchase_id})
    await conn.execute(queries["lock_wish"], {"account_id": account_id})
    wish = (await conn.execute(queries["as_it_stands"], {"account_id": account_id})).one_or_none()
    if wish is None or wish.state != "on" or wish.set_at > charge.created_at:
        return True  # switched off meanwhile, or set anew: it starts afresh
    if refused.reason == "not_charged":
        return True  # nobody's card was asked
    reason: Reason = refused.reason
    changes: dict[str, Any] = {"state": "paused", "reason": reason}
    if reason == "card_declined":
        declines = wish.declines + 1
        if declines < DECLINES_MOST:
            rest = DECLINE_RESTS[declines - 1]
            changes = {"declines": declines, "rest_until": func.now() + rest}
        else:
            changes = {"declines": declines, "state": "off", "reason": reason}
    await _change(conn, account_id, **changes)
    mail = refusal_mail(reason, _agreed(wish), base_url, ends="state" in changes)
    await outbox.enqueue(conn, wish.email, *mail)
    return True


def _agreed(wish: Row[Any]) -> Package:
    """Return the package as the customer agreed to it."""
    return Package(
        wish.package_code,
        wish.package_name,
        wish.credits_tokens,
        wish.amount_minor,
        wish.currency,
        wish.price_version,
    )


def _is_sold(agreed: Package, on_sale: Mapping[str, Package]) -> bool:
    """Tell whether the package still brings the same for the same price."""
    now = on_sale.get(agreed.code)
    return now is not None and (now.credits_tokens, now.price_minor, now.currency) == (
        agreed.credits_tokens,
        agreed.price_minor,
        agreed.currency,
    )


async def _change(conn: AsyncConnection, account_id: int, **values: Any) -> None:
    await conn.execute(update(auto_topups).where(auto_topups.c.account_id == account_id).values(**values))
