"""Amounts as Stripe writes them: the minor unit, but for two currencies that lost theirs.

Source: https://docs.stripe.com/currencies, "Special cases".
"""

from __future__ import annotations

from typing import Final

WRITTEN_IN_HUNDREDTHS: Final = frozenset({"isk", "ugx"})
"""They have no minor unit any more, and Stripe goes on writing 500 for 5 of them."""


def to_stripe(amount_minor: int, currency: str) -> int:
    """Return our amount as Stripe wants it."""
    return amount_minor * 100 if currency.lower() in WRITTEN_IN_HUNDREDTHS else amount_minor


def from_stripe(amount: int, currency: str) -> int:
    """Return Stripe's amount as ours, rounded up, so that a fraction that cannot be is never lost."""
    return -(-amount // 100) if currency.lower() in WRITTEN_IN_HUNDREDTHS else amount
