"""What a new Checkout Session is asked to be: the parameters of its creation, checked as Stripe checks them.

Nothing here changes anything. What Stripe does not have is refused as unknown; what Stripe has and this twin
has not is refused too, because ignoring it would make the twin answer differently from the real thing.

Source: https://docs.stripe.com/api/checkout/sessions/create
"""

from __future__ import annotations

import re

from sandbox.stripe_errors import invalid, missing, no_such, unsupported
from sandbox.stripe_params import Params, names
from sandbox.stripe_shapes import Json, amount_text

# Stripe's own bounds of `expires_at`: half an hour to a day after creation, a day by default.
EXPIRES_LEAST_S = 30 * 60
EXPIRES_MOST_S = 24 * 3600
# Stripe's largest amount in most currencies: eight digits.
AMOUNT_MOST_MINOR = 99_999_999
LINE_ITEMS_MOST = 100
QUANTITY_MOST = 999_999
# The least that Stripe charges, in minor units; other currencies are left to the real thing.
AMOUNT_LEAST_MINOR = {"usd": 50, "eur": 50, "gbp": 30, "cad": 50, "aud": 50, "chf": 50, "jpy": 50}

_CURRENCY = re.compile(r"^[a-z]{3}$")
_KNOWN = names("""
    allow_promotion_codes allowed_payment_method_types automatic_tax billing_address_collection cancel_url
    client_reference_id currency customer customer_creation customer_email customer_update expand
    expires_at integration_identifier invoice_creation line_items locale metadata mode payment_intent_data
    submit_type success_url ui_mode
""")
_BEYOND_THE_TWIN = names("""
    adaptive_pricing after_expiration branding_settings consent_collection custom_fields
    custom_text customer_account discounts excluded_payment_method_types managed_payments
    name_collection optional_items origin_context payment_method_collection payment_method_configuration
    payment_method_data payment_method_options permissions phone_number_collection redirect_on_completion
    return_url saved_payment_method_options setup_intent_data shipping_address_collection shipping_options
    subscription_data tax_id_collection wallet_options
""")
_INTENT_KNOWN = names("""
    capture_method description metadata receipt_email setup_future_usage statement_descriptor
    statement_descriptor_suffix
""")
_PRODUCT_KNOWN = names("description images metadata name tax_code tax_details unit_label")
_INTENT_BEYOND = names("application_fee_amount on_behalf_of shipping transfer_data transfer_group")


def read_order(params: Params, now: float) -> Json:
    """Check the parameters of a new session and give them in plain form; changes nothing."""
    params.only(_KNOWN, _BEYOND_THE_TWIN)
    mode = params.choice("mode", ("payment", "setup", "subscription"))
    if mode is None:
        raise missing("mode")
    if mode == "subscription":
        raise unsupported("mode")
    ui_mode = params.choice("ui_mode", ("hosted_page", "embedded_page", "elements"))
    if ui_mode not in {None, "hosted_page"}:
        raise unsupported("ui_mode")
    success_url = params.url("success_url")
    if success_url is None:
        raise missing("success_url")
    customer, email = params.text("customer"), params.email("customer_email")
    if customer is not None and email is not None:
        raise invalid("customer_email", "Send `customer` or `customer_email`, not both.")
    update = params.child("customer_update")
    if update is not None:
        update.only(names("address name shipping"))
        if customer is None:
            raise invalid("customer_update", "`customer_update` can only be used with `customer`.")
    amount: int | None = None
    if mode == "setup":
        lines, currency = _read_nothing_sold(params)
    else:
        lines, currency = _read_lines(params)
        amount = sum(line["unit_amount"] * line["quantity"] for line in lines)
        _check_amount(amount, currency)
    return {
        "allow_promotion_codes": params.flag("allow_promotion_codes") or None,
        "allowed_payment_method_types": params.words("allowed_payment_method_types") or None,
        "amount_total": amount,
        "automatic_tax": _switch(params, "automatic_tax", frozenset({"enabled", "liability"})),
        "billing_address_collection": params.choice("billing_address_collection", ("auto", "required")),
        "cancel_url": params.url("cancel_url"),
        "client_reference_id": params.text("client_reference_id", max_length=200),
        "currency": currency,
        "customer": customer,
        "customer_creation": params.choice("customer_creation", ("always", "if_required")) or "if_required",
        "customer_email": email,
        "expires_at": _read_expiry(params, now),
        "intent_data": _read_intent_data(params),
        "invoice_creation": _switch(params, "invoice_creation", frozenset({"enabled", "invoice_data"})),
        "lines": lines,
        "locale": params.text("locale", max_length=10),
        "metadata": params.metadata(),
        "mode": mode,
        "submit_type": params.choice("submit_type", ("auto", "book", "donate", "pay", "subscribe")),
        "success_url": success_url,
    }


def _read_nothing_sold(params: Params) -> tuple[list[Json], str | None]:
    """Check what a session that only saves a card is asked for; the twin saves cards of known customers."""
    for name in ("line_items", "payment_intent_data", "invoice_creation", "automatic_tax"):
        if params.child(name) is not None:
            raise invalid(name, f"You can not pass `{name}` in `setup` mode.")
    if params.text("customer") is None:
        raise unsupported("mode")
    currency = params.text("currency")
    if currency is None and not params.words("allowed_payment_method_types"):
        raise missing("currency")
    return [], currency and currency.lower()


def _read_lines(params: Params) -> tuple[list[Json], str]:
    rows = params.children("line_items")
    if not rows:
        raise missing("line_items")
    if len(rows) > LINE_ITEMS_MOST:
        raise invalid("line_items", f"At most {LINE_ITEMS_MOST} line items.")
    lines: list[Json] = []
    currencies: set[str] = set()
    for row in rows:
        row.only(
            frozenset({"metadata", "price", "price_data", "quantity"}),
            frozenset({"adjustable_quantity", "tax_rates"}),
        )
        price_id = row.text("price")
        if price_id is not None:  # the twin keeps no catalogue, so no price can exist
            raise no_such("price", price_id, row.full_name("price"))
        price = row.child("price_data")
        if price is None:
            raise missing(row.full_name("price_data"))
        price.only(
            frozenset({"currency", "product", "product_data", "tax_behavior", "unit_amount"}),
            frozenset({"recurring", "unit_amount_decimal"}),
        )
        product_id = price.text("product")
        if product_id is not None:
            raise no_such("product", product_id, price.full_name("product"))
        product = price.child("product_data")
        if product is None:
            raise missing(price.full_name("product_data"))
        product.only(_PRODUCT_KNOWN)
        currencies.add(_read_currency(price))
        lines.append(
            {
                "name": product.required_text("name"),
                "tax_behavior": price.choice("tax_behavior", ("exclusive", "inclusive", "unspecified"))
                or "unspecified",
                "description": product.text("description"),
                "unit_amount": price.required_integer("unit_amount", least=0, most=AMOUNT_MOST_MINOR),
                "quantity": row.required_integer("quantity", least=1, most=QUANTITY_MOST),
            }
        )
    if len(currencies) > 1:
        raise invalid("line_items", "All line items must have the same currency.")
    return lines, currencies.pop()


def _read_currency(price: Params) -> str:
    currency = price.required_text("currency").lower()
    if not _CURRENCY.fullmatch(currency):
        raise invalid(price.full_name("currency"), f"Invalid currency: {currency}")
    return currency


def _check_amount(amount_minor: int, currency: str) -> None:
    least = AMOUNT_LEAST_MINOR.get(currency, 1)
    if amount_minor < least:
        message = f"The session's total must be at least {amount_text(least, currency)}."
        raise invalid("line_items", message, "amount_too_small")
    if amount_minor > AMOUNT_MOST_MINOR:
        message = f"The session's total must be at most {amount_text(AMOUNT_MOST_MINOR, currency)}."
        raise invalid("line_items", message, "amount_too_large")


def _read_expiry(params: Params, now: float) -> int:
    created = int(now)
    expires_at = params.integer("expires_at", least=0, most=2**53)
    if expires_at is None:
        return created + EXPIRES_MOST_S
    if not created + EXPIRES_LEAST_S <= expires_at <= created + EXPIRES_MOST_S:
        raise invalid("expires_at", "`expires_at` must lie between 30 minutes and 24 hours after creation.")
    return expires_at


def _read_intent_data(params: Params) -> Json:
    given = params.child("payment_intent_data") or Params({}, "payment_intent_data")
    given.only(_INTENT_KNOWN, _INTENT_BEYOND)
    if given.choice("capture_method", ("automatic", "automatic_async", "manual")) == "manual":
        raise unsupported(given.full_name("capture_method"))
    return {
        "description": given.text("description", max_length=1000),
        "metadata": given.metadata(),
        "receipt_email": given.email("receipt_email"),
        "setup_future_usage": given.choice("setup_future_usage", ("off_session", "on_session")),
        "statement_descriptor": given.text("statement_descriptor", max_length=22),
        "statement_descriptor_suffix": given.text("statement_descriptor_suffix", max_length=22),
    }


def _switch(params: Params, name: str, known: frozenset[str]) -> bool:
    given = params.child(name)
    if given is None:
        return False
    given.only(known)
    return given.flag("enabled")
