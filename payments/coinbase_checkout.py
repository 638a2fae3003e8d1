"""Coinbase Business Checkouts behind our provider interface: coins in, the package's own currency in the books.

A webhook only says where to look: what it claims of an amount or a status is never believed, the checkout is read
again from Coinbase before anything is granted.

Source: Coinbase Developer Platform, Checkout APIs (`business.coinbase.com/api/v1`) and CDP API key authentication.
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode

import orjson

from kit.errors import InvalidRequest
from kit.settings import COINBASE_LIVE, several
from payments.amounts import in_minor
from payments.cdp import CdpKey
from payments.checkout import OWN_ID, ProviderSession, SessionRequest
from payments.currencies import amount_text
from payments.errors import PaymentsUnavailable
from payments.hook0 import HEADER, verify_hook0
from payments.provider_api import NOT_UNDERSTOOD, ProviderApi
from payments.returns import Return
from payments.webhooks import ProviderEvent, name_of

PAGE: Final = 100
"""Checkouts in one answer."""
CHECKOUT_ID: Final = re.compile(r"[0-9a-f]{24}")
CURRENCIES: Final = frozenset({"usd", "eur", "sgd", "gbp"})
"""What a checkout may be priced in, beside USDC itself."""
SAME_MONEY: Final = frozenset({"usd", "usdc"})
"""Coinbase changes one for the other at par, where it does not tell a rate; a settlement in any third currency is not
compared with the price."""
PAID: Final = frozenset({"COMPLETED", "EXPIRED", "PARTIALLY_REFUNDED", "REFUNDED"})
"""Paid, if the price arrived: an expired checkout may be paid late, and what went back had come."""
SENT_BACK: Final = frozenset({"PARTIALLY_REFUNDED", "REFUNDED"})
OVER: Final = frozenset({"FAILED", "DEACTIVATED"})
"""Closed by somebody's hand or word: nothing there is a payment."""


class CoinbaseCheckout:
    """Single-use checkouts on Base, paid in USDC."""

    name: Final = "coinbase"
    signature_header: Final = HEADER
    session_ids: Final = re.compile(rf"{CHECKOUT_ID.pattern}|{OWN_ID.pattern}")
    paid_events: Final = frozenset({"checkout.payment.success"})

    def __init__(
        self,
        key_id: str,
        key_secret: str,
        webhook_secret: str,
        api_base: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Connect to nothing yet. Of several webhook secrets with commas between each is valid.

        None is refused: an empty key verifies anything.
        """
        self._webhook_secrets = several(webhook_secret)
        if not key_id or not self._webhook_secrets:
            raise ValueError("Coinbase needs its key's id and secret and its webhook secret")
        self.livemode = (api_base or COINBASE_LIVE).rstrip("/") == COINBASE_LIVE
        self._key = CdpKey(key_id, key_secret, clock)
        self._api = ProviderApi(api_base or COINBASE_LIVE)
        self._clock = clock

    async def close(self) -> None:
        """Close the connections to Coinbase."""
        await self._api.close()

    async def create(self, request: SessionRequest) -> ProviderSession:
        """Open a checkout; repeated for the same purchase it returns the same checkout. Raises: PaymentsUnavailable."""
        currency = request.package.currency
        if currency not in CURRENCIES:
            raise PaymentsUnavailable(f"Coinbase takes no payments priced in {currency.upper()}.")
        back = f"?by=crypto&session_id={request.purchase_id}"
        order = {
            "amount": amount_text(request.package.price_minor, currency),
            "currency": currency.upper(),
            "network": "base",
            "description": request.product_name,
            "metadata": {"purchase_id": request.purchase_id, "package_code": request.package.code},
        }
        if request.success_url.startswith("https:") or self._api.base.scheme == "http":
            # Coinbase refuses an order with a way back without TLS; its twin is without, as the shop beside it.
            order |= {"successRedirectUrl": request.success_url + back, "failRedirectUrl": request.cancel_url}
        # The same purchase, the same key; Coinbase wants a UUID of version 4, which is but a form.
        digest = hashlib.sha256(request.purchase_id.encode()).digest()
        repeat = {"X-Idempotency-Key": str(uuid.UUID(bytes=digest[:16], version=4))}
        answer = await self._api.ask(
            "POST",
            "/checkouts",
            lambda: self._authorization("POST", "/checkouts") | repeat,
            order,
            repeatable=True,
        )
        return self._session(answer)

    async def retrieve(self, session_id: str) -> ProviderSession:
        """Read a checkout as Coinbase has it now. Raises: NotFound, PaymentsUnavailable."""
        path = f"/checkouts/{session_id}"
        answer = await self._api.ask("GET", path, lambda: self._authorization("GET", path), repeatable=True)
        return self._session(answer)

    async def payments(self, since: datetime, until: datetime) -> AsyncIterator[ProviderSession]:
        """Go over the checkouts that were opened or changed in a span, each as it stands now.

        Coinbase sorts its list by nothing that it promises and filters it by no date: all of it is read.
        Raises: PaymentsUnavailable.
        """
        token = ""
        while True:
            query = urlencode({"pageSize": PAGE} | ({"pageToken": token} if token else {}))
            answer = await self._api.ask(
                "GET",
                f"/checkouts?{query}",
                lambda: self._authorization("GET", "/checkouts"),
                repeatable=True,
            )
            try:
                page, token = list(answer["checkouts"]), str(answer.get("nextPageToken") or "")
                moments = [
                    [
                        datetime.fromisoformat(each[name])
                        for name in ("createdAt", "updatedAt")
                        if name in each
                    ]
                    for each in page
                ]
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise PaymentsUnavailable(NOT_UNDERSTOOD) from error
            for each, touched in zip(page, moments, strict=True):
                if any(since <= moment < until for moment in touched) or not touched:
                    yield self._session(each)
            if not token:
                return

    async def session_of(self, event: ProviderEvent) -> ProviderSession | None:
        """Read the checkout that an event names. Raises: NotFound, PaymentsUnavailable."""
        return None if event.object_id is None else await self.retrieve(event.object_id)

    def verify(self, body: bytes, headers: Mapping[str, str]) -> ProviderEvent:
        """Return the event of a webhook whose signature and time are right. Raises: InvalidRequest.

        An event is known by its checkout, its type and its refunds: Coinbase may send it under several delivery ids,
        and promises no order of the refunds. One that is about no checkout is known by what it says, and kept.
        """
        verify_hook0(self._webhook_secrets, body, headers, self._clock())
        try:
            event = orjson.loads(body)
            kind, checkout_id = name_of(event["eventType"]), event.get("id")
            if not isinstance(checkout_id, str) or not CHECKOUT_ID.fullmatch(checkout_id):
                said = hashlib.sha256(body).hexdigest()
                return ProviderEvent(self.name, f"{kind[:100]}:{said}", kind, None, body)
            known = name_of(":".join(part for part in (checkout_id, kind, _refunds_told(event)) if part))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InvalidRequest("body", "not a Coinbase event") from error
        return ProviderEvent(self.name, known, kind, checkout_id, body)

    def _authorization(self, method: str, path: str) -> dict[str, str]:
        """Return a token that is good for this one request."""
        return self._key.authorization(method, f"{str(self._api.base).rstrip('/')}{path}")

    def _session(self, checkout: Any) -> ProviderSession:
        try:
            price, status = _Price.of(checkout), str(checkout["status"])
            amount, done = price.amount_minor, status == "COMPLETED" or status in SENT_BACK
            received = _received_minor(checkout, price)
            if done:
                # Coinbase's own word for a payment in full; how its coins are rounded is its business.
                received = max(received, amount)
            is_whole = received >= amount
            return ProviderSession(
                id=str(checkout["id"]),
                url=str(checkout["url"]),
                purchase_id=str((checkout.get("metadata") or {}).get("purchase_id", "")),
                paid=is_whole and status in PAID,
                amount_minor=amount,
                currency=price.currency,
                livemode=self.livemode,
                received_minor=received,
                closed=status in OVER or (not is_whole and status in PAID),
                failed=status in OVER and not received,
                returns=_returns(checkout, price, received),
            )
        except (KeyError, TypeError, AttributeError, InvalidRequest) as error:
            raise PaymentsUnavailable(NOT_UNDERSTOOD) from error


@dataclass(frozen=True, slots=True)
class _Price:
    """What was asked for, in the money that the shop named, and as Coinbase asks the payer for it. In minor units.

    Coinbase is paid in USDC: it turns a price in a country's money into coins when the checkout opens, and tells the
    price itself as `fiatAmount`.
    """

    amount_minor: int
    currency: str
    asked_minor: int
    asked_in: str

    @classmethod
    def of(cls, checkout: dict[str, Any]) -> _Price:
        asked_in = str(checkout["currency"]).lower()
        asked_minor = in_minor(checkout["amount"], asked_in)
        fiat, currency = checkout.get("fiatAmount"), str(checkout.get("fiatCurrency") or "").lower()
        if fiat is None or not currency:
            return cls(asked_minor, asked_in, asked_minor, asked_in)
        return cls(in_minor(fiat, currency), currency, asked_minor, asked_in)

    def part_minor(self, amount: Any, currency: str) -> int | None:
        """Return a sum in the price's money, at the rate that the checkout fixed; None for a third currency."""
        if currency == self.currency:
            return in_minor(amount, currency)
        if currency == self.asked_in and self.asked_minor:
            return in_minor(amount, currency) * self.amount_minor // self.asked_minor
        return in_minor(amount, self.currency) if {currency, self.currency} <= SAME_MONEY else None


def _received_minor(checkout: dict[str, Any], price: _Price) -> int:
    """Return what arrived, fees included; nothing where the settlement does not tell it in the price's money."""
    settlement = checkout.get("settlement") or {}
    total = settlement.get("totalAmount")
    if total is None:
        return 0
    return price.part_minor(total, str(settlement.get("currency", "")).lower()) or 0


def _returns(checkout: dict[str, Any], price: _Price, received: int) -> tuple[Return, ...]:
    """Return what went back of the price, as one refund that grows with each: what was paid over it goes back first.

    One that failed takes nothing, and gives back what it took while it was under way.
    Raises: KeyError where a part went back and Coinbase does not say how much.
    """
    status, refunds = checkout["status"], checkout.get("refunds") or []
    gone = [refund for refund in refunds if refund.get("status") != "FAILED"]
    if gone and status in SENT_BACK:
        back = sum(_refund_minor(refund, price) for refund in gone)
    elif status == "REFUNDED":
        back = received
    elif status == "PARTIALLY_REFUNDED":
        back = _refund_minor({"amount": checkout["refundedAmount"], "currency": price.asked_in}, price)
    elif gone or not refunds:
        return ()
    else:
        back = sum(_refund_minor(refund, price) for refund in refunds)
    of_price = min(max(back - (received - price.amount_minor), 0), price.amount_minor)
    if not of_price:
        return ()
    # Each refund is news when it begins and when it ends.
    phase = sum(1 if refund.get("status") == "PENDING" else 2 for refund in refunds) or 2
    return (
        Return(f"{checkout['id']}:refunds", "refund", of_price, status, phase, stands=status in SENT_BACK),
    )


def _refund_minor(refund: dict[str, Any], price: _Price) -> int:
    """Return a refund in the price's money. Raises: KeyError where it is told in none that can be compared."""
    if refund.get("fiatAmount") is not None and str(refund.get("fiatCurrency")).lower() == price.currency:
        return in_minor(refund["fiatAmount"], price.currency)
    back = price.part_minor(refund["amount"], str(refund.get("currency") or price.asked_in).lower())
    if back is None:
        raise KeyError("refunds")
    return back


def _refunds_told(event: dict[str, Any]) -> str:
    """Return what tells an event of refunds from another: those that it lists, as they stand, in whatever order.

    One that lists none may name the refund that it is about.
    """
    refunds = event.get("refunds") or [event.get("refund") or {"id": event.get("refundId")}]
    told = sorted(f"{refund['id']}={refund.get('status')}" for refund in refunds if refund["id"])
    return hashlib.sha256("\n".join(told).encode()).hexdigest() if told else ""
