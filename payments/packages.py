"""The credit packages on sale. They are data of the catalogue file; this is their shape."""

from __future__ import annotations

from dataclasses import dataclass

from payments.currencies import amount_text


@dataclass(frozen=True, slots=True)
class Package:
    """What a customer buys, under a version of the prices. Units: tokens, the currency's minor unit."""

    code: str
    name: str
    credits_tokens: int
    price_minor: int
    currency: str
    price_version: int | None = None

    @property
    def price_text(self) -> str:
        """The price for people, such as `50.00 USD`."""
        return f"{amount_text(self.price_minor, self.currency)} {self.currency.upper()}"
