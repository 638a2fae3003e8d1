"""Webhooks of Coinbase Commerce, for operators that still receive them. Its API closed on 2026-03-31.

No charge can be opened or read any more: what the signed webhook says is all there is, and it is believed for a
purchase of its own provider alone, whose amount and currency it must match.

Source: Coinbase Commerce, webhooks and charges.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import orjson

from kit.errors import InvalidRequest, NotFound
from kit.settings import several
from payments.amounts import in_minor, number
from payments.checkout import OWN_ID, ProviderSession, SessionRequest
from payments.errors import PaymentsUnavailable
from payments.signatures import is_signed
from payments.webhooks import ProviderEvent, name_of

CLOSED: Final = "Coinbase Commerce has closed; this server opens no checkouts there."
CHARGE_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ENDS: Final = frozenset({"charge:confirmed", "charge:failed", "charge:delayed", "charge:resolved"})
"""Events that tell what arrived. `delayed`: money came after the charge's end. `resolved`: whoever runs the shop at
Commerce closed what stood open there, by taking it or by sending it back: not a word about a payment in full."""
CONFIRMED: Final = frozenset({"CONFIRMED", "COMPLETED"})
"""The states of a payment that no chain takes back; both words were in use."""


class CoinbaseCommerce:
    """Charges that were opened before the end."""

    name: Final = "coinbase_commerce"
    signature_header: Final = "x-cc-webhook-signature"
    session_ids: Final = re.compile(rf"{CHARGE_ID.pattern}|{OWN_ID.pattern}")
    paid_events: Final[frozenset[str]] = frozenset()
    livemode: Final = True
    """Commerce had no test mode."""

    def __init__(self, webhook_secret: str) -> None:
        """Of several secrets with commas between each is valid. None is refused: an empty key verifies anything."""
        self._webhook_secrets = several(webhook_secret)
        if not self._webhook_secrets:
            raise ValueError("Coinbase Commerce needs its webhook secret")

    async def close(self) -> None:
        """There is nothing to close."""

    async def create(self, request: SessionRequest) -> ProviderSession:  # noqa: ARG002  # the interface's
        """Raises: PaymentsUnavailable, always."""
        raise PaymentsUnavailable(CLOSED)

    async def retrieve(self, session_id: str) -> ProviderSession:  # noqa: ARG002  # the interface's
        """Raises: NotFound, always: only webhooks tell of a charge."""
        raise NotFound("checkout session")

    async def session_of(self, event: ProviderEvent) -> ProviderSession | None:
        """Return the charge as the signed event tells of it. Raises: InvalidRequest."""
        if event.object_id is None:
            return None
        try:
            return self._session(orjson.loads(event.body)["event"])
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidRequest("body", "not a charge") from error

    def verify(self, body: bytes, headers: Mapping[str, str]) -> ProviderEvent:
        """Return the event of a rightly signed webhook. Raises: InvalidRequest."""
        if not is_signed(self._webhook_secrets, body, headers.get(self.signature_header, "")):
            raise InvalidRequest("X-CC-Webhook-Signature", "the signature does not verify")
        try:
            event = orjson.loads(body)["event"]
            event_id, kind, charge = name_of(event["id"]), name_of(event["type"]), event["data"]
            about = name_of(charge["id"]) if kind in ENDS else None
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest("body", "not a Coinbase Commerce event") from error
        return ProviderEvent(self.name, event_id, kind, about, body)

    def _session(self, event: dict[str, Any]) -> ProviderSession:
        charge, is_confirmed = event["data"], event["type"] == "charge:confirmed"
        price = charge["pricing"]["local"]
        currency = str(price["currency"]).lower()
        amount = in_minor(price["amount"], currency)
        received = in_minor(_confirmed(charge, currency), currency)
        if is_confirmed:  # Commerce's own word for a payment in full; coins' rounding is its business
            received = max(received, amount)
        return ProviderSession(
            id=str(charge["id"]),
            url="",
            purchase_id=str((charge.get("metadata") or {}).get("purchase_id", "")),
            paid=received >= amount,
            amount_minor=amount,
            currency=currency,
            livemode=self.livemode,
            received_minor=received,
            closed=received < amount,
        )


def _confirmed(charge: dict[str, Any], currency: str) -> str:
    """Return the value of the confirmed payments, as far as it is told in the price's currency."""
    total = Decimal(0)
    for payment in charge.get("payments") or []:
        local = payment["value"]["local"]
        if payment["status"] in CONFIRMED and str(local["currency"]).lower() == currency:
            total += number(local["amount"])
    return f"{total:f}"
