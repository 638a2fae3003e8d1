"""Purchases, the provider's events, and vouchers.

A purchase is fulfilled at most once and claimed at most once; a voucher is redeemed at most once for each account
and at most `max_redemptions` times in all.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)

from kit.db import metadata

purchases = Table(
    "purchases",
    metadata,
    Column("id", Text, primary_key=True),
    Column("provider", Text, nullable=False),
    Column("session_id", Text),
    Column("email", Text, nullable=False),
    Column("topup_user_id", Text, ForeignKey("users.id")),
    Column("package_code", Text, nullable=False),
    Column("credits_tokens", BigInteger, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("user_id", Text, ForeignKey("users.id")),
    Column("opened_account", Boolean),
    Column("transfer_id", BigInteger, ForeignKey("transfers.id"), unique=True),
    Column("fulfilled_at", DateTime(timezone=True)),
    Column("key_id", Text, ForeignKey("api_keys.id"), unique=True),
    Column("claimed_at", DateTime(timezone=True)),
    Column("received_minor", BigInteger, nullable=False, server_default=text("0")),
    Column("closed_at", DateTime(timezone=True)),
    Column("look_at", DateTime(timezone=True)),
    Column("looks", Integer, nullable=False, server_default=text("0")),
    Column("price_version", Integer),
    Column("payment_id", Text),
    Column("paid_minor", BigInteger),
    Column("returned_minor", BigInteger, nullable=False, server_default=text("0")),
    Column("warned_at", DateTime(timezone=True)),
    UniqueConstraint("provider", "session_id"),
    UniqueConstraint("provider", "payment_id"),
    CheckConstraint("credits_tokens > 0 AND amount_minor > 0", name="amounts"),
    CheckConstraint(
        "(fulfilled_at IS NULL) = (transfer_id IS NULL) AND (fulfilled_at IS NULL) = (user_id IS NULL)"
        " AND (fulfilled_at IS NULL) = (opened_account IS NULL)",
        name="fulfilled_whole",
    ),
    CheckConstraint("(claimed_at IS NULL) = (key_id IS NULL)", name="claimed_whole"),
    CheckConstraint("claimed_at IS NULL OR opened_account", name="claim_needs_new_account"),
    CheckConstraint("received_minor >= 0 AND looks >= 0", name="received"),
    CheckConstraint("look_at IS NULL OR session_id IS NOT NULL", name="look"),
    Index(None, "look_at", postgresql_where=text("look_at IS NOT NULL")),
    CheckConstraint("(fulfilled_at IS NULL) = (paid_minor IS NULL) AND paid_minor >= 0", name="paid"),
    CheckConstraint("returned_minor BETWEEN 0 AND coalesce(paid_minor, 0)", name="returned"),
)
"""`opened_account`: this very payment created the account, so its payer may claim the first key. `amount_minor`: the
package's price when it was sold; `paid_minor`: what the payer paid, with tax and after discounts; `returned_minor`:
what of it went back. `warned_at`: a card network called the payment fraudulent, and the account was frozen.

`received_minor`: the most that the provider was seen to hold of the price, which may be less than it or more.
`closed_at`: the provider's session ended without the whole price. `look_at`: when the provider is asked again."""

payment_returns = Table(
    "payment_returns",
    metadata,
    Column("provider", Text, primary_key=True),
    Column("return_id", Text, primary_key=True),
    Column("purchase_id", Text, ForeignKey("purchases.id"), nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("phase", SmallInteger, nullable=False),
    Column("stands", Boolean, nullable=False),
    Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("kind IN ('refund', 'dispute')", name="kind"),
    CheckConstraint("amount_minor > 0", name="amount"),
)
"""Refunds and disputes. `stands`: the money is gone, or going; a failed refund or a won dispute does not stand."""

provider_customers = Table(
    "provider_customers",
    metadata,
    Column("provider", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id"), primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    UniqueConstraint("provider", "customer_id"),
)
"""Who a user is at a provider: later purchases reuse the saved details, and the portal shows them."""

provider_events = Table(
    "provider_events",
    metadata,
    Column("provider", Text, primary_key=True),
    Column("event_id", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("object_id", Text),
    Column("body", LargeBinary, nullable=False),
    Column("received_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("applied_at", DateTime(timezone=True)),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("retry_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("problem", Text),
    Column("dead_at", DateTime(timezone=True)),
    CheckConstraint("applied_at IS NULL OR dead_at IS NULL", name="outcome"),
    Index(None, "retry_at", postgresql_where=text("applied_at IS NULL AND dead_at IS NULL")),
    Index(None, "received_at"),
)
"""`attempts` counts tries begun; `retry_at` is when the next is due. What was received never changes, by trigger."""

vouchers = Table(
    "vouchers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("code_hash", LargeBinary, nullable=False, unique=True),
    Column("hint", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("max_redemptions", Integer, nullable=False),
    Column("redemptions", Integer, nullable=False, server_default=text("0")),
    Column("expires_at", DateTime(timezone=True)),
    Column("credits_days", Integer),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("disabled_at", DateTime(timezone=True)),
    CheckConstraint("octet_length(code_hash) = 32", name="hash_only"),
    CheckConstraint("amount > 0 AND credits_days > 0", name="amount"),
    CheckConstraint("max_redemptions > 0 AND redemptions BETWEEN 0 AND max_redemptions", name="used_up"),
)
"""`hint`: the code's first characters, to recognise it by. `credits_days`: how long redeemed credits live; empty: for
ever. Units: `amount` tokens."""

voucher_redemptions = Table(
    "voucher_redemptions",
    metadata,
    Column("voucher_id", Text, ForeignKey("vouchers.id"), primary_key=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), primary_key=True),
    Column("transfer_id", BigInteger, ForeignKey("transfers.id"), nullable=False, unique=True),
    Column("free_after", BigInteger, nullable=False),
    Column("credits_expire_at", DateTime(timezone=True)),
    Column("redeemed_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    CheckConstraint("free_after >= 0", name="free"),
)
"""`free_after`: what was free to spend then, kept so that a repeat is answered alike."""
