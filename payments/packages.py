"""The credit packages on sale. They are data of the catalogue file; this is their shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Package:
    """What a customer buys. Units: `credits_tokens` tokens, `price_minor` the currency's minor unit."""

    code: str
    name: str
    credits_tokens: int
    price_minor: int
    currency: str
