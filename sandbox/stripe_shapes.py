"""The JSON objects of Stripe's API, as version `2026-10-28.endive` prints them.

Pure builders: no state, no clock. They hold every field that an integration of one-off Checkout payments
reads, and the fields around those that Stripe always sends; nothing is invented that Stripe does not have.

Source: https://docs.stripe.com/api (objects of the same names) and the types in the `stripe` package.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

API_VERSION = "2026-10-28.endive"


@dataclass(frozen=True)
class Payer:
    """Who pays, as far as the hosted page learned it."""

    email: str
    country: str


@dataclass(frozen=True)
class Charged:
    """The ids and the moment that one confirmed payment is made of."""

    payment_intent_id: str
    charge_id: str
    payment_method_id: str
    customer_id: str | None
    created: int
    is_delayed: bool


def line_item(ids: tuple[str, str, str], row: Json, currency: str, created: int) -> Json:
    """Describe one line of a session with its inline price; `ids` are those of line, price and product."""
    line_id, price_id, product_id = ids
    total = row["unit_amount"] * row["quantity"]
    return {
        "id": line_id,
        "object": "item",
        "amount_discount": 0,
        "amount_subtotal": total,
        "amount_tax": 0,
        "amount_total": total,
        "currency": currency,
        "description": row["name"],
        "metadata": {},
        "price": {
            "id": price_id,
            "object": "price",
            "active": False,
            "billing_scheme": "per_unit",
            "created": created,
            "currency": currency,
            "custom_unit_amount": None,
            "livemode": False,
            "lookup_key": None,
            "metadata": {},
            "nickname": None,
            "product": product_id,
            "recurring": None,
            "tax_behavior": row["tax_behavior"],
            "tiers_mode": None,
            "transform_quantity": None,
            "type": "one_time",
            "unit_amount": row["unit_amount"],
            "unit_amount_decimal": str(row["unit_amount"]),
        },
        "quantity": row["quantity"],
    }


def customer_details(email: str | None, country: str | None) -> Json:
    """Describe the buyer; before payment only the pre-filled e-mail address is known."""
    return {
        "address": None if country is None else address(country),
        "business_name": None,
        "email": email,
        "individual_name": None,
        "name": None if country is None else "Sandbox Buyer",
        "phone": None,
        "tax_exempt": "none",
        "tax_ids": None if country is None else [],
    }


def address(country: str) -> Json:
    """Give the billing address that a card form collects at least: country and postal code."""
    return {
        "city": None,
        "country": country,
        "line1": None,
        "line2": None,
        "postal_code": None,
        "state": None,
    }


def session(session_id: str, order: Json, url: str, created: int, expires_at: int) -> Json:
    """Describe a Checkout Session as it stands right after its creation: open and unpaid."""
    email = order["customer_email"]
    amount = order["amount_total"]
    return {
        "id": session_id,
        "object": "checkout.session",
        "adaptive_pricing": {"enabled": False},
        "after_expiration": None,
        "allow_promotion_codes": order["allow_promotion_codes"],
        "allowed_payment_method_types": order["allowed_payment_method_types"],
        "amount_subtotal": amount,
        "amount_total": amount,
        "automatic_tax": {
            "enabled": order["automatic_tax"],
            "liability": {"type": "self"} if order["automatic_tax"] else None,
            "provider": "stripe" if order["automatic_tax"] else None,
            "status": "requires_location_inputs" if order["automatic_tax"] else None,
        },
        "billing_address_collection": order["billing_address_collection"],
        "cancel_url": order["cancel_url"],
        "client_reference_id": order["client_reference_id"],
        "client_secret": None,
        "collected_information": None,
        "consent": None,
        "consent_collection": None,
        "created": created,
        "currency": order["currency"],
        "currency_conversion": None,
        "custom_fields": [],
        "custom_text": {
            "after_submit": None,
            "shipping_address": None,
            "submit": None,
            "terms_of_service_acceptance": None,
        },
        "customer": order["customer"],
        "customer_account": None,
        "customer_creation": None if order["customer"] else order["customer_creation"],
        "customer_details": None if email is None else customer_details(email, None),
        "customer_email": email,
        "discounts": [],
        "excluded_payment_method_types": None,
        "expires_at": expires_at,
        "invoice": None,
        "invoice_creation": {
            "enabled": order["invoice_creation"],
            "invoice_data": {
                "account_tax_ids": None,
                "custom_fields": None,
                "description": None,
                "footer": None,
                "issuer": None,
                "metadata": {},
                "rendering_options": None,
            },
        },
        "livemode": False,
        "locale": order["locale"],
        "metadata": order["metadata"],
        "mode": "payment",
        "origin_context": None,
        "payment_intent": None,
        "payment_link": None,
        "payment_method_collection": "if_required",
        "payment_method_configuration_details": None,
        "payment_method_options": {"card": {"request_three_d_secure": "automatic"}},
        "payment_method_types": order["allowed_payment_method_types"] or ["card"],
        "payment_status": "unpaid",
        "permissions": None,
        "phone_number_collection": {"enabled": False},
        "recovered_from": None,
        "saved_payment_method_options": None,
        "setup_intent": None,
        "shipping_address_collection": None,
        "shipping_cost": None,
        "shipping_options": [],
        "status": "open",
        "submit_type": order["submit_type"],
        "subscription": None,
        "success_url": order["success_url"],
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": url,
        "wallet_options": None,
    }


def payment_intent(ids: Charged, of_session: Json, intent_data: Json) -> Json:
    """Describe the payment of a session: `succeeded`, or `processing` where the method is a delayed one."""
    amount = of_session["amount_total"]
    method = "us_bank_account" if ids.is_delayed else "card"
    return {
        "id": ids.payment_intent_id,
        "object": "payment_intent",
        "amount": amount,
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": 0 if ids.is_delayed else amount,
        "application": None,
        "application_fee_amount": None,
        "automatic_payment_methods": None,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": "automatic_async",
        "client_secret": None,  # a secret of the browser's side; no server should come to rely on it
        "confirmation_method": "automatic",
        "created": ids.created,
        "currency": of_session["currency"],
        "customer": ids.customer_id,
        "customer_account": None,
        "description": intent_data["description"],
        "last_payment_error": None,
        "latest_charge": ids.charge_id,
        "livemode": False,
        "metadata": intent_data["metadata"],
        "next_action": None,
        "on_behalf_of": None,
        "payment_method": ids.payment_method_id,
        "payment_method_configuration_details": None,
        "payment_method_options": {},
        "payment_method_types": [method],
        "processing": None,
        "receipt_email": intent_data["receipt_email"],
        "review": None,
        "setup_future_usage": intent_data["setup_future_usage"],
        "shipping": None,
        "source": None,
        "statement_descriptor": intent_data["statement_descriptor"],
        "statement_descriptor_suffix": intent_data["statement_descriptor_suffix"],
        "status": "processing" if ids.is_delayed else "succeeded",
        "transfer_data": None,
        "transfer_group": None,
    }


def charge(ids: Charged, of_intent: Json, payer: Payer) -> Json:
    """Describe the attempt to move the money: `succeeded`, or `pending` for a delayed method."""
    amount = of_intent["amount"]
    card = {
        "brand": "visa",
        "country": payer.country,
        "fingerprint": hashlib.sha256(payer.email.casefold().encode()).hexdigest()[
            :16
        ],  # each buyer has one card
        "funding": "credit",
        "last4": "4242",
    }
    bank = {"bank_name": "SANDBOX BANK", "last4": "6789"}
    return {
        "id": ids.charge_id,
        "object": "charge",
        "amount": amount,
        "amount_captured": 0 if ids.is_delayed else amount,
        "amount_refunded": 0,
        "application": None,
        "application_fee": None,
        "application_fee_amount": None,
        "balance_transaction": None,
        "billing_details": {
            "address": address(payer.country),
            "email": payer.email,
            "name": "Sandbox Buyer",
            "phone": None,
            "tax_id": None,
        },
        "captured": not ids.is_delayed,
        "created": ids.created,
        "currency": of_intent["currency"],
        "customer": of_intent["customer"],
        "description": of_intent["description"],
        "disputed": False,
        "failure_code": None,
        "failure_message": None,
        "livemode": False,
        "metadata": of_intent["metadata"],
        "paid": not ids.is_delayed,
        "payment_intent": of_intent["id"],
        "payment_method": of_intent["payment_method"],
        "payment_method_details": (
            {"type": "us_bank_account", "us_bank_account": bank}
            if ids.is_delayed
            else {"type": "card", "card": card}
        ),
        "receipt_email": of_intent["receipt_email"],
        "receipt_number": None,
        "receipt_url": None,
        "refunded": False,
        "review": None,
        "shipping": None,
        "status": "pending" if ids.is_delayed else "succeeded",
        "transfer_data": None,
        "transfer_group": None,
    }


def customer(customer_id: str, email: str | None, name: str | None, metadata: Json, created: int) -> Json:
    """Describe a customer: an e-mail address with an id."""
    return {
        "id": customer_id,
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": created,
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "email": email,
        "invoice_prefix": customer_id[-8:].upper(),
        "invoice_settings": {"custom_fields": None, "default_payment_method": None, "footer": None},
        "livemode": False,
        "metadata": metadata,
        "name": name,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }


def refund(refund_id: str, of_charge: Json, amount: int, wish: Json, created: int) -> Json:
    """Describe a refund, done at once as card refunds are in Stripe's test mode."""
    return {
        "id": refund_id,
        "object": "refund",
        "amount": amount,
        "balance_transaction": None,
        "charge": of_charge["id"],
        "created": created,
        "currency": of_charge["currency"],
        "destination_details": {
            "card": {
                "reference_status": "pending",
                "reference_type": "acquirer_reference_number",
                "type": "refund",
            },
            "type": "card",
        },
        "metadata": wish["metadata"],
        "payment_intent": of_charge["payment_intent"],
        "reason": wish["reason"],
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": "succeeded",
        "transfer_reversal": None,
    }


def event(event_id: str, event_type: str, subject: Json, origin: Json, created: int) -> Json:
    """Describe that something happened to `subject`, which must be a copy: an event never changes."""
    return {
        "id": event_id,
        "object": "event",
        "api_version": API_VERSION,
        "created": created,
        "data": {"object": subject},
        "livemode": False,
        "pending_webhooks": 0,
        "request": origin,
        "type": event_type,
    }


# Currencies without minor units, of those that Stripe takes.
_ZERO_DECIMAL = frozenset(
    (
        "bif",
        "clp",
        "djf",
        "gnf",
        "jpy",
        "kmf",
        "krw",
        "mga",
        "pyg",
        "rwf",
        "ugx",
        "vnd",
        "vuv",
        "xaf",
        "xof",
        "xpf",
    )
)
_SIGNS = {"usd": "$", "eur": "€", "gbp": "£", "jpy": "¥"}


def amount_text(amount_minor: int, currency: str) -> str:
    """Write an amount for a person, as in `$12.00`; whole-number arithmetic only."""
    if currency in _ZERO_DECIMAL:
        figure = f"{amount_minor:,}"
    else:
        figure = f"{amount_minor // 100:,}.{amount_minor % 100:02d}"
    sign = _SIGNS.get(currency)
    return f"{sign}{figure}" if sign else f"{figure} {currency.upper()}"
