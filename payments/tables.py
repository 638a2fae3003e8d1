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
    UniqueConstraint("provider", "session_id"),
    CheckConstraint("credits_tokens > 0 AND amount_minor > 0", name="amounts"),
    CheckConstraint(
        "(fulfilled_at IS NULL) = (transfer_id IS NULL) AND (fulfilled_at IS NULL) = (user_id IS NULL)"
        " AND (fulfilled_at IS NULL) = (opened_account IS NULL)",
        name="fulfilled_whole",
    ),
    CheckConstraint("(claimed_at IS NULL) = (key_id IS NULL)", name="claimed_whole"),
    CheckConstraint("claimed_at IS NULL OR opened_account", name="claim_needs_new_account"),
)
"""`opened_account`: this very payment created the account, so its payer may claim the first key."""

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
    Index(None, "retry_at", postgresql_where=text("applied_at IS NULL")),
)

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
