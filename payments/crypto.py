"""The coin checkouts of this server: one opens new checkouts, each configured one is claimed from and heard.

A session id tells its provider by its form, a webhook by its signature's header.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

from kit.errors import InvalidRequest, NotFound
from kit.settings import Settings, several
from ledger.keys import Credential
from payments.btcpay_checkout import BtcpayCheckout
from payments.checkout import Checkout, Provider, PurchaseBooks, StartedCheckout
from payments.coinbase_checkout import CoinbaseCheckout
from payments.coinbase_commerce import CLOSED, CoinbaseCommerce
from payments.errors import PaymentsUnavailable
from payments.packages import Package
from payments.purchases import Claim, Purchase

T = TypeVar("T")

SIGNATURE_HEADERS: Final = ("X-Hook0-Signature", "BTCPay-Sig", "X-CC-Webhook-Signature")
"""Of every provider that could be configured."""


class CryptoCheckouts:
    """Sells packages through the first of its checkouts; a payment through any of them counts."""

    def __init__(self, checkouts: Sequence[Checkout]) -> None:
        assert checkouts, "none configured is None"
        self.checkouts: Final = tuple(checkouts)

    async def close(self) -> None:
        """Close the connections to the providers."""
        for checkout in self.checkouts:
            await checkout.close()

    @property
    def sells(self) -> bool:
        """Whether a checkout can be opened: a provider that closed is only listened to."""
        return self.checkouts[0].provider.name != CoinbaseCommerce.name

    async def start(self, email: str, package: Package, credential: Credential | None) -> StartedCheckout:
        """Open a checkout. Raises: PaymentsUnavailable, also where nothing but a closed provider is configured."""
        if not self.sells:
            raise PaymentsUnavailable(CLOSED)
        return await self.checkouts[0].start(email, package, credential)

    async def claim(self, session_id: str, label: str) -> Claim:
        """Hand out the first key of a payment; `session_id` may name our purchase too. Raises: as `Checkout.claim`."""
        return await self._first(session_id, lambda checkout: checkout.claim(session_id, label))

    async def arrive(self, session_id: str) -> Purchase:
        """Return the purchase of a payer who comes back; see `Checkout.arrive`."""
        return await self._first(session_id, lambda checkout: checkout.arrive(session_id))

    async def _first(self, session_id: str, ask: Callable[[Checkout], Awaitable[T]]) -> T:
        """Return the answer of the first checkout whose session it is. Raises: NotFound."""
        for checkout in self.checkouts:
            if checkout.knows(session_id):
                try:
                    return await ask(checkout)
                except NotFound:
                    continue
        raise NotFound("checkout session")

    def sender_of(self, headers: Mapping[str, str]) -> Checkout:
        """Return the checkout whose provider signed a webhook.

        Raises: InvalidRequest for an unsigned one; NotFound for a provider that is not configured, whose empty secret
        would verify anything.
        """
        signed_by = [name for name in SIGNATURE_HEADERS if name.lower() in headers]
        if not signed_by:
            raise InvalidRequest(
                SIGNATURE_HEADERS[0], f"is missing, as are {' and '.join(SIGNATURE_HEADERS[1:])}"
            )
        for checkout in self.checkouts:
            if checkout.provider.signature_header == signed_by[0].lower():
                return checkout
        raise NotFound("path")


def crypto_for(settings: Settings, books: PurchaseBooks) -> CryptoCheckouts | None:
    """Return the coin checkouts that the settings configure, or None where none is."""
    found: list[Provider] = []
    if secret := settings.coinbase_api_key_secret.get_secret_value():
        found.append(
            CoinbaseCheckout(
                settings.coinbase_api_key_id,
                secret,
                settings.coinbase_webhook_secret.get_secret_value(),
                settings.coinbase_api_base,
            )
        )
    if api_key := settings.btcpay_api_key.get_secret_value():
        found.append(
            BtcpayCheckout(
                settings.btcpay_url,
                settings.btcpay_store_id,
                api_key,
                settings.btcpay_webhook_secret.get_secret_value(),
            )
        )
    commerce_secret = settings.coinbase_commerce_webhook_secret.get_secret_value()
    if several(commerce_secret):
        found.append(CoinbaseCommerce(commerce_secret))
    checkouts = [Checkout(books, provider, settings.base_url) for provider in found]
    return CryptoCheckouts(checkouts) if checkouts else None
