"""Mails about money: one receipt when a purchase is granted, one note when money went back.

Each is written in the very transaction that grants or takes back, by the difference that it makes: an event that comes
twice makes none, and tells nothing. Purchases of the test world are play, and nobody is told of them.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit import outbox
from payments.currencies import amount_text
from payments.purchases import PaidSession, Purchase, fulfil
from payments.tables import purchases

UNTOLD: Final = ("x402",)
"""Wallets have no mailbox."""


async def fulfil_and_tell(conn: AsyncConnection, paid: PaidSession, base_url: str) -> Purchase:
    """Fulfil a payment, as `purchases.fulfil` does, and mail its payer what this changed.

    Raises: NotFound, PaymentMismatch, with nothing written.
    """
    before = (
        await conn.execute(select(purchases).where(purchases.c.id == paid.purchase_id).with_for_update())
    ).one_or_none()
    after = await fulfil(conn, paid)
    assert before is not None, "fulfilment found it"
    if before.world == "live" and after.provider not in UNTOLD:
        await _tell(conn, before, after, base_url)
    return after


async def _tell(conn: AsyncConnection, before: Row[Any], after: Purchase, base_url: str) -> None:
    if before.fulfilled_at is None:
        await outbox.enqueue(conn, after.email, *receipt_mail(after, base_url))
    if after.returned_minor > before.returned_minor:
        back_minor = after.returned_minor - before.returned_minor
        await outbox.enqueue(conn, after.email, *refund_mail(after, back_minor, base_url))


def receipt_mail(purchase: Purchase, base_url: str) -> tuple[str, str]:
    """Say what was bought, and how to come to it."""
    bought = f"{purchase.credits_tokens // 100} credits"
    if purchase.opened_account:
        by = "" if purchase.provider == "stripe" else "by=crypto&"
        how = (
            f"Your first API key is shown once, here:\n{base_url}/checkout/success?{by}session_id="
            f"{purchase.session_id}\n\nWithout it, sign in with this e-mail address"
        )
    else:
        how = "The credits are on the account of this e-mail address, and its keys spend them. Sign in"
    return f"Receipt: {bought}", (
        f"Thank you. {bought} were bought ({purchase.package_code}).\n\n"
        f"{_facts(purchase, purchase.charged_minor, 'Paid')}\n\n"
        f"{how}:\n{_page(purchase, base_url)}\n\nThis receipt is kept there too.\n"
    )


def refund_mail(purchase: Purchase, back_minor: int, base_url: str) -> tuple[str, str]:
    """Say what went back, and that its share of the credits went with it."""
    return "Money back: your purchase", (
        "A payment was given back or disputed, and the same share of its credits was taken back.\n\n"
        f"{_facts(purchase, back_minor, 'Went back')}\n\nYour balance and this purchase:\n"
        f"{_page(purchase, base_url)}\n"
    )


def _facts(purchase: Purchase, amount_minor: int, what: str) -> str:
    money = f"{amount_text(amount_minor, purchase.currency)} {purchase.currency.upper()}"
    return f"{what}: {money}\nBought on: {purchase.created_at:%Y-%m-%d} (UTC)\nPurchase: {purchase.id}"


def _page(purchase: Purchase, base_url: str) -> str:
    """Return where its owner sees a purchase."""
    return f"{base_url}/account#{purchase.id}"
