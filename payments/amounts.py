"""Money as coin providers write it, read into what the books keep: decimal text in, whole minor units out.

A float never comes between: what a provider sends is parsed as it is written. What arrived is rounded down, so that
a fraction of a cent that is missing is missing; what is asked for has no fraction to round.
"""

from __future__ import annotations

from decimal import ROUND_DOWN, Decimal, InvalidOperation
from typing import Any, Final

from kit.errors import InvalidRequest
from payments.currencies import exponent

MOST: Final = Decimal(10) ** 15
"""Above any payment, and far inside a bigint: a provider that writes more is not believed."""

LEAST_DIGIT: Final = -30
"""The finest coin has eighteen decimals; what is far below is a trick, and costly to print."""


def in_minor(amount: Any, currency: str) -> int:
    """Return a provider's decimal text in whole minor units, rounded down.

    Raises: InvalidRequest for what is no amount of money.
    """
    return int((number(amount) * 10 ** exponent(currency)).to_integral_value(ROUND_DOWN))


def number(amount: Any) -> Decimal:
    """Return a provider's decimal text as it is written. Raises: InvalidRequest."""
    if not isinstance(amount, str) or len(amount) > 64:  # noqa: PLR2004  # longer than any wallet's precision
        raise InvalidRequest("amount", "is not a decimal in quotes")
    try:
        value = Decimal(amount)
    except InvalidOperation as error:
        raise InvalidRequest("amount", "is not a decimal number") from error
    if not value.is_finite() or not 0 <= value < MOST:
        raise InvalidRequest("amount", "is not an amount of money")
    if not value:
        return Decimal(0)  # a zero may be written with an exponent that takes for ever to print
    if value.adjusted() < LEAST_DIGIT:
        raise InvalidRequest("amount", "is not an amount of money")
    return value
