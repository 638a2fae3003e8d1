"""Purchases and the provider's events. A purchase is fulfilled at most once and claimed at most once."""

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
    Column("received_minor", BigInteger, nullable=False, server_default=text("0")),
    Column("closed_at", DateTime(timezone=True)),
    Column("look_at", DateTime(timezone=True)),
    Column("looks", Integer, nullable=False, server_default=text("0")),
    UniqueConstraint("provider", "session_id"),
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
)
"""`opened_account`: this very payment created the account, so its payer may claim the first key.

`received_minor`: the most that the provider was seen to hold of it, which may be less than the price or more.
`closed_at`: the provider's session ended without the whole price. `look_at`: when the provider is asked again.
"""

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
