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
"""Coinbase changes one for the other at par; a settlement in any third currency is not compared with the price."""
PAID: Final = frozenset({"COMPLETED", "EXPIRED", "PARTIALLY_REFUNDED", "REFUNDED"})
"""Paid, if the price arrived: an expired checkout may be paid late, and what went back had come."""
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
            "successRedirectUrl": request.success_url + back,
            "failRedirectUrl": request.cancel_url,
        }
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

        An event is known by its checkout, its type and its refund: Coinbase may send it under several delivery ids. One
        that is about no checkout is known by what it says, and kept.
        """
        verify_hook0(self._webhook_secrets, body, headers, self._clock())
        try:
            event = orjson.loads(body)
            kind, checkout_id = name_of(event["eventType"]), event.get("id")
            if not isinstance(checkout_id, str) or not CHECKOUT_ID.fullmatch(checkout_id):
                said = hashlib.sha256(body).hexdigest()
                return ProviderEvent(self.name, f"{kind[:100]}:{said}", kind, None, body)
            known = name_of(":".join(part for part in (checkout_id, kind, _refund_id(event)) if part))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InvalidRequest("body", "not a Coinbase event") from error
        return ProviderEvent(self.name, known, kind, checkout_id, body)

    def _authorization(self, method: str, path: str) -> dict[str, str]:
        """Return a token that is good for this one request."""
        return self._key.authorization(method, f"{str(self._api.base).rstrip('/')}{path}")

    def _session(self, checkout: Any) -> ProviderSession:
        try:
            currency = str(checkout["currency"]).lower()
            amount, status = in_minor(checkout["amount"], currency), str(checkout["status"])
            done = status in ("COMPLETED", "PARTIALLY_REFUNDED", "REFUNDED")
            received = _received_minor(checkout, currency, amount if done else 0)
            is_whole = received >= amount
            return ProviderSession(
                id=str(checkout["id"]),
                url=str(checkout["url"]),
                purchase_id=str((checkout.get("metadata") or {}).get("purchase_id", "")),
                paid=is_whole and status in PAID,
                amount_minor=amount,
                currency=currency,
                livemode=self.livemode,
                received_minor=received,
                closed=status in OVER or (not is_whole and status in PAID),
                failed=status in OVER and not received,
                returns=_returns(checkout, currency, amount, received),
            )
        except (KeyError, TypeError, AttributeError, InvalidRequest) as error:
            raise PaymentsUnavailable(NOT_UNDERSTOOD) from error


def _received_minor(checkout: dict[str, Any], currency: str, unsaid: int) -> int:
    """Return what arrived, fees included; `unsaid` where the settlement does not tell it in the price's money."""
    settlement = checkout.get("settlement") or {}
    total, settled_in = settlement.get("totalAmount"), str(settlement.get("currency", "")).lower()
    if total is None or not (settled_in == currency or {settled_in, currency} <= SAME_MONEY):
        return unsaid
    return in_minor(total, currency)


def _returns(checkout: dict[str, Any], currency: str, amount: int, received: int) -> tuple[Return, ...]:
    """Return what went back of the price, as one growing refund: what was paid over it goes back first.

    Raises: KeyError where a part went back and Coinbase does not say how much.
    """
    status, refunds = checkout["status"], checkout.get("refunds")
    if status not in ("PARTIALLY_REFUNDED", "REFUNDED"):
        return ()
    if refunds:
        back = sum(in_minor(refund["amount"], currency) for refund in refunds)
    elif status == "REFUNDED":
        back = received
    else:
        raise KeyError("refunds")
    of_price = min(max(back - (received - amount), 0), amount)
    if not of_price:
        return ()
    return (
        Return(f"{checkout['id']}:refunds", "refund", of_price, status, len(refunds or [1]), stands=True),
    )


def _refund_id(event: dict[str, Any]) -> str:
    refunds = event.get("refunds") or [event.get("refund") or {}]
    return str(event.get("refundId") or refunds[-1].get("id") or "")
