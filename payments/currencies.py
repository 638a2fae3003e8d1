"""Currencies: how many decimals their minor unit has, and which amounts can be charged.

Amounts are integers of the minor unit everywhere; this is the one place that knows what that is.

Source: ISO 4217, and https://docs.stripe.com/currencies for what card networks make of it.
"""

from __future__ import annotations

from typing import Final

ZERO_DECIMAL: Final = frozenset(
    "bif clp djf gnf isk jpy kmf krw mga pyg rwf ugx vnd vuv xaf xof xpf".split()  # noqa: SIM905  # a table
)
"""No minor unit is used: 500 is 500 yen. (The ariary has one on paper, and nobody charges it.)"""
THREE_DECIMAL: Final = frozenset(
    "bhd iqd jod kwd lyd omr tnd".split()  # noqa: SIM905  # a table
)
USDC: Final = "usdc"
"""A dollar on a chain, in millionths: no card pays in it, wallets do."""
CARD_STEP_MINOR: Final = 10
"""Cards are charged in hundredths also where the currency has thousandths."""


def exponent(currency: str) -> int:
    """Return how many decimals the currency's minor unit has."""
    code = currency.lower()
    if code in ZERO_DECIMAL:
        return 0
    if code == USDC:
        return 6
    return 3 if code in THREE_DECIMAL else 2


def amount_text(amount_minor: int, currency: str) -> str:
    """Write an amount as a decimal, exactly: `12.00`, `500`, `1.250`."""
    places = exponent(currency)
    if not places:
        return str(amount_minor)
    sign = "-" if amount_minor < 0 else ""
    whole, rest = divmod(abs(amount_minor), 10**places)
    return f"{sign}{whole}.{rest:0{places}}"


def chargeable(amount_minor: int, currency: str) -> bool:
    """Tell whether an amount can be charged to a card in this currency."""
    return currency.lower() not in THREE_DECIMAL or amount_minor % CARD_STEP_MINOR == 0
