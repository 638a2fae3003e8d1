"""The tables of the books. The database is the last guard: CHECKs, unique keys and triggers hold without this code.

`accounts`   a user's purse, or a house account. A house account (revenue by tool, clearing by provider, promotion)
             keeps entries and no running balance: a row that every spend updates would be the hot spot.
`transfers`  one movement; unique by `(account_id, tool, reference)`, for ever.
`entries`    the two sides of each transfer. A user's entries are numbered without a gap and carry the balance
             after; a house entry takes its transfer's id as its number. Append-only, by trigger.
`holds`      money set aside; resolved once, by trigger.
`users`, `api_keys`  who may move it: kept beside the books because a key's validity is part of the same decision.

Units: every `amount`, `balance`, `held`, `captured` is in tokens.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
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

_now = func.now()

users = Table(
    "users",
    metadata,
    Column("id", Text, primary_key=True),
    Column("email", Text, nullable=False, unique=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("suspended_at", DateTime(timezone=True)),
    CheckConstraint("email = lower(email) AND length(email) BETWEEN 3 AND 254", name="email"),
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("user_id", Text, ForeignKey("users.id"), unique=True),
    Column("code", Text, unique=True),
    Column("balance", BigInteger, nullable=False, server_default=text("0")),
    Column("held", BigInteger, nullable=False, server_default=text("0")),
    Column("version", BigInteger, nullable=False, server_default=text("0")),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    CheckConstraint("kind IN ('user', 'revenue', 'clearing', 'promotion')", name="kind"),
    CheckConstraint(
        "(kind = 'user') = (user_id IS NOT NULL) AND (kind = 'user') = (code IS NULL)", name="owner"
    ),
    CheckConstraint("0 <= held AND held <= balance", name="never_overdrawn"),
    CheckConstraint("kind = 'user' OR (balance = 0 AND held = 0 AND version = 0)", name="house_is_never_hot"),
)

holds = Table(
    "holds",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("tool", Text, nullable=False),
    Column("reference", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("captured", BigInteger, nullable=False, server_default=text("0")),
    Column("state", Text, nullable=False, server_default=text("'pending'")),
    Column("price_version", Integer, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("expires_at", DateTime(timezone=True)),
    Column("resolved_at", DateTime(timezone=True)),
    UniqueConstraint("account_id", "tool", "reference"),
    CheckConstraint("amount > 0 AND captured BETWEEN 0 AND amount", name="captured_within"),
    CheckConstraint("state IN ('pending', 'captured', 'voided', 'expired')", name="state"),
    CheckConstraint("(state = 'captured') = (captured > 0)", name="captured_state"),
    CheckConstraint("(state = 'pending') = (resolved_at IS NULL)", name="resolved"),
    Index(None, "account_id", postgresql_where=text("state = 'pending'")),
    Index(None, "expires_at", postgresql_where=text("state = 'pending'")),
)

transfers = Table(
    "transfers",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("tool", Text, nullable=False),
    Column("reference", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("hold_id", Text, ForeignKey("holds.id"), unique=True),
    Column("price_version", Integer),
    Column("reason", Text),
    Column("event_at", DateTime(timezone=True), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    UniqueConstraint("account_id", "tool", "reference"),
    CheckConstraint("kind IN ('purchase', 'grant', 'capture')", name="kind"),
    CheckConstraint("amount <> 0", name="amount"),
    CheckConstraint("(amount > 0) = (kind IN ('purchase', 'grant'))", name="direction"),
    CheckConstraint("(kind = 'capture') = (hold_id IS NOT NULL)", name="capture_has_hold"),
)

entries = Table(
    "entries",
    metadata,
    Column("account_id", BigInteger, ForeignKey("accounts.id"), primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("transfer_id", BigInteger, ForeignKey("transfers.id"), nullable=False, index=True),
    Column("amount", BigInteger, nullable=False),
    Column("balance_after", BigInteger),
    CheckConstraint("amount <> 0", name="amount"),
    CheckConstraint("balance_after >= 0", name="never_overdrawn"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id"), nullable=False, index=True),
    Column("label", Text, nullable=False),
    Column("prefix", Text, nullable=False, unique=True),
    Column("secret_hash", LargeBinary, nullable=False, unique=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("expires_at", DateTime(timezone=True)),
    Column("revoked_at", DateTime(timezone=True)),
    CheckConstraint("octet_length(secret_hash) = 32", name="hash_only"),
    CheckConstraint("length(label) BETWEEN 1 AND 100", name="label"),
)
