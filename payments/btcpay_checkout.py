"""BTCPay Server behind our provider interface: the operator's own node takes the coins.

Only `Settled` is BTCPay's word for a payment in full. An invoice that expired may still be paid: what arrived late is
counted from its confirmed payments, and grants if it is the whole price. Webhooks only say where to look.

Source: BTCPay Server's Greenfield API, invoices and webhooks.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from urllib.parse import quote, urlencode

import orjson

from kit.errors import InvalidRequest
from kit.settings import several
from payments.amounts import in_minor, number
from payments.checkout import OWN_ID, ProviderSession, SessionRequest
from payments.currencies import amount_text
from payments.errors import PaymentsUnavailable
from payments.provider_api import NOT_UNDERSTOOD, ProviderApi
from payments.signatures import is_signed
from payments.webhooks import ProviderEvent, name_of

EXPIRATION_MINUTES: Final = 60
"""An hour to pay, as with the other providers; rates are fixed for that long."""
PAGE: Final = 100
"""Invoices in one answer."""
INVOICE_ID: Final = re.compile(r"[1-9A-HJ-NP-Za-km-z]{16,23}")
"""Base58 of sixteen bytes."""


class BtcpayCheckout:
    """Invoices of one store."""

    name: Final = "btcpay"
    signature_header: Final = "btcpay-sig"
    session_ids: Final = re.compile(rf"{INVOICE_ID.pattern}|{OWN_ID.pattern}")
    paid_events: Final = frozenset({"InvoiceSettled"})
    livemode: Final = True
    """Its API does not tell a test network from the real one: whoever configures a server says that it is money."""

    def __init__(self, url: str, store_id: str, api_key: str, webhook_secret: str) -> None:
        """Connect to nothing yet. Of several webhook secrets with commas between each is valid.

        None is refused: an empty key verifies anything.
        """
        self._webhook_secrets = several(webhook_secret)
        if not url or not store_id or not api_key or not self._webhook_secrets:
            raise ValueError("BTCPay needs its address, a store, an API key and the webhook's secret")
        self._store_id = store_id
        self._api_key = api_key
        self._api = ProviderApi(url)
        self._invoices = f"/api/v1/stores/{quote(store_id, safe='')}/invoices"

    async def close(self) -> None:
        """Close the connections to the server."""
        await self._api.close()

    async def create(self, request: SessionRequest) -> ProviderSession:
        """Open an invoice. Not repeated by itself: BTCPay would open a second one. Raises: PaymentsUnavailable."""
        currency = request.package.currency
        order = {
            "amount": amount_text(request.package.price_minor, currency),
            "currency": currency.upper(),
            "metadata": {
                "orderId": request.purchase_id,
                "itemDesc": request.product_name,
                "buyerEmail": request.email,
            },
            "checkout": {
                "redirectURL": f"{request.success_url}?by=crypto&session_id={request.purchase_id}",
                "expirationMinutes": EXPIRATION_MINUTES,
            },
        }
        invoice = await self._api.ask("POST", self._invoices, self._authorization, order, repeatable=False)
        return self._session(invoice, [])

    async def retrieve(self, session_id: str) -> ProviderSession:
        """Read an invoice and its payments as BTCPay has them now. Raises: NotFound, PaymentsUnavailable."""
        path = f"{self._invoices}/{session_id}"
        invoice = await self._api.ask("GET", path, self._authorization, repeatable=True)
        methods = await self._api.ask("GET", f"{path}/payment-methods", self._authorization, repeatable=True)
        return self._session(invoice, methods)

    async def payments(self, since: datetime, until: datetime) -> AsyncIterator[ProviderSession]:
        """Go over the invoices of a span, each as it stands now. Raises: PaymentsUnavailable.

        New ones may push others to the next page, where they come a second time; none is missed.
        """
        span = {"startDate": int(since.timestamp()), "endDate": math.ceil(until.timestamp()), "take": PAGE}
        skip = 0
        while True:
            path = f"{self._invoices}?{urlencode(span | {'skip': skip})}"
            page = await self._api.ask("GET", path, self._authorization, repeatable=True)
            if not isinstance(page, list):
                raise PaymentsUnavailable(NOT_UNDERSTOOD)
            for invoice in page:
                yield await self.retrieve(quote(str(invoice.get("id")), safe=""))
            if len(page) < PAGE:
                return
            skip += PAGE

    async def session_of(self, event: ProviderEvent) -> ProviderSession | None:
        """Read the invoice that an event names. Raises: NotFound, PaymentsUnavailable."""
        return None if event.object_id is None else await self.retrieve(event.object_id)

    def verify(self, body: bytes, headers: Mapping[str, str]) -> ProviderEvent:
        """Return the event of a rightly signed webhook; a redelivery is the same event. Raises: InvalidRequest."""
        how, _, given = headers.get(self.signature_header, "").partition("=")
        if how != "sha256" or not is_signed(self._webhook_secrets, body, given):
            raise InvalidRequest("BTCPay-Sig", "the signature does not verify")
        try:
            event = orjson.loads(body)
            kind, invoice_id = name_of(event["type"]), str(event.get("invoiceId", ""))
            delivery_id = name_of(event.get("originalDeliveryId") or event["deliveryId"])
            is_ours = str(event.get("storeId", self._store_id)) == self._store_id
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidRequest("body", "not a BTCPay event") from error
        about = invoice_id if is_ours and INVOICE_ID.fullmatch(invoice_id) else None
        return ProviderEvent(self.name, delivery_id, kind, about, body)

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"token {self._api_key}"}

    def _session(self, invoice: Any, methods: Any) -> ProviderSession:
        try:
            currency = str(invoice["currency"]).lower()
            amount, status = in_minor(invoice["amount"], currency), str(invoice["status"])
            received = in_minor(_confirmed(methods), currency)
            if status == "Settled":
                # Its own rounding and the store's tolerance are BTCPay's to decide; an operator's mark counts too.
                received = max(received, amount)
            is_whole = received >= amount
            return ProviderSession(
                id=str(invoice["id"]),
                url=str(invoice["checkoutLink"]),
                purchase_id=str((invoice.get("metadata") or {}).get("orderId") or ""),
                paid=status == "Settled" or (status == "Expired" and is_whole),
                amount_minor=amount,
                currency=currency,
                livemode=self.livemode,
                received_minor=received,
                failed=status == "Invalid" and not received,
                closed=status == "Invalid" or (status == "Expired" and not is_whole),
            )
        except (KeyError, TypeError, AttributeError, InvalidRequest) as error:
            raise PaymentsUnavailable(NOT_UNDERSTOOD) from error


def _confirmed(methods: Any) -> str:
    """Return the value of all confirmed payments in the invoice's currency, at the rates that it fixed."""
    total = Decimal(0)
    for method in methods:
        for payment in method.get("payments") or []:
            if payment["status"] == "Settled":
                # What the shop adds for the network is not the price's.
                net = max(number(payment["value"]) - number(payment.get("fee") or "0"), Decimal(0))
                total += net * number(method["rate"])
    return f"{total:f}"
