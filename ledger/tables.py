"""The tables of the books. The database is the last guard: CHECKs, unique keys and triggers hold without this code.

`accounts`   a user's purse, or a house account, in one of two worlds: a user has at most one in each, and both sides of
             a transfer are of one, by trigger. A house account (revenue by tool, clearing by provider, promotion,
             mint, and `debt` for what a user owes) keeps entries and no running balance: a row that every spend
             updates would be the hot spot.
`transfers`  one movement; unique by `(account_id, tool, reference)`, for ever.
`grants`     credits by source, with the order in which they burn; `draws` says which debit took from which grant.
`chain_blocks`, `chain_mark`  the SHA-256 chain over transfers and entries, and how far the next block may reach.
`entries`    the two sides of each transfer. A user's entries are numbered without a gap and carry the balance
             after; a house entry takes its transfer's id as its number. Append-only, and both sides or none, by
             trigger: a foreign key would lock the house account's row.
`holds`      money set aside; resolved once, by trigger.
`users`, `api_keys`  who may move it: kept beside the books because a key's validity is part of the same decision.
`operators`, `operator_actions`  who looks after it, and what each did: append-only.

Units: every `amount`, `balance`, `held`, `captured` is in tokens.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
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
from sqlalchemy.dialects.postgresql import ARRAY, CIDR, JSONB

from kit.db import metadata

_now = func.now()

users = Table(
    "users",
    metadata,
    Column("id", Text, primary_key=True),
    Column("email", Text, nullable=False, unique=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("suspended_at", DateTime(timezone=True)),
    Column("deleted_at", DateTime(timezone=True)),
    CheckConstraint("email = lower(email) AND length(email) BETWEEN 3 AND 254", name="email"),
    CheckConstraint(
        "deleted_at IS NULL OR email = 'deleted-' || id || '@invalid'", name="deleted_is_nameless"
    ),
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("user_id", Text, ForeignKey("users.id")),
    Column("code", Text),
    Column("balance", BigInteger, nullable=False, server_default=text("0")),
    Column("held", BigInteger, nullable=False, server_default=text("0")),
    Column("version", BigInteger, nullable=False, server_default=text("0")),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("debt", BigInteger, nullable=False, server_default=text("0")),
    Column("frozen_at", DateTime(timezone=True)),
    Column("allocated_version", BigInteger, nullable=False, server_default=text("0")),
    Column("due_at", DateTime(timezone=True)),
    Column("world", Text, nullable=False, server_default=text("'live'")),
    UniqueConstraint("user_id", "world"),
    UniqueConstraint("code", "world"),
    CheckConstraint("world IN ('live', 'test')", name="world"),
    CheckConstraint("kind IN ('user', 'revenue', 'clearing', 'promotion', 'mint', 'debt')", name="kind"),
    CheckConstraint(
        "(kind = 'user') = (user_id IS NOT NULL) AND (kind = 'user') = (code IS NULL)", name="owner"
    ),
    CheckConstraint("0 <= held AND held <= balance", name="never_overdrawn"),
    CheckConstraint(
        "kind = 'user' OR (balance = 0 AND held = 0 AND version = 0 AND debt = 0)", name="house_is_never_hot"
    ),
    CheckConstraint("debt >= 0", name="debt"),
    CheckConstraint("allocated_version BETWEEN 0 AND version", name="allocated"),
    Index(None, "due_at", postgresql_where=text("due_at IS NOT NULL")),
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
    Column("key_id", Text),
    Column("cap_window", Date),
    UniqueConstraint("account_id", "tool", "reference"),
    CheckConstraint("amount > 0 AND captured BETWEEN 0 AND amount", name="captured_within"),
    CheckConstraint("state IN ('pending', 'captured', 'voided', 'expired')", name="state"),
    CheckConstraint("(state = 'captured') = (captured > 0)", name="captured_state"),
    CheckConstraint("(state = 'pending') = (resolved_at IS NULL)", name="resolved"),
    Index(None, "account_id", postgresql_where=text("state = 'pending'")),
    Index(None, "expires_at", postgresql_where=text("state = 'pending'")),
)
"""`cap_window`: the UTC day on which it counted against the caps of its key and that key's ancestors."""

transfers = Table(
    "transfers",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("tool", Text, nullable=False),
    Column("reference", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("hold_id", Text, ForeignKey("holds.id")),
    Column("price_version", Integer),
    Column("reason", Text),
    Column("event_at", DateTime(timezone=True), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("reverses_id", BigInteger, ForeignKey("transfers.id")),
    Column("key_id", Text),
    Column("units_milli", BigInteger),
    Column("free_after", BigInteger),
    UniqueConstraint("account_id", "tool", "reference"),
    CheckConstraint(
        "kind IN ('purchase', 'grant', 'referral', 'refund', 'spend', 'capture', 'expiry', 'clawback', 'debt',"
        " 'debt_payment', 'adjustment', 'reversal', 'reinstatement')",
        name="kind",
    ),
    CheckConstraint("amount <> 0", name="amount"),
    CheckConstraint(
        "kind IN ('adjustment', 'reversal', 'debt')"
        " OR (amount > 0) = (kind IN ('purchase', 'grant', 'referral', 'refund', 'reinstatement'))",
        name="direction",
    ),
    CheckConstraint("(kind = 'capture') = (hold_id IS NOT NULL)", name="capture_has_hold"),
    CheckConstraint(
        "(kind IN ('refund', 'reversal', 'reinstatement')) = (reverses_id IS NOT NULL)", name="reverses"
    ),
    CheckConstraint(
        "(units_milli IS NULL) = (free_after IS NULL) AND CASE kind WHEN 'spend' THEN units_milli IS NOT NULL"
        " WHEN 'capture' THEN true ELSE units_milli IS NULL END",
        name="spend",
    ),
    CheckConstraint("units_milli > 0 AND free_after >= 0", name="units"),
    Index("transfers_hold_id_idx", "hold_id", unique=True, postgresql_where=text("hold_id IS NOT NULL")),
    Index("transfers_reverses_id_idx", "reverses_id", postgresql_where=text("reverses_id IS NOT NULL")),
    Index("transfers_reversal_idx", "reverses_id", unique=True, postgresql_where=text("kind = 'reversal'")),
)
"""`key_id`: who asked. `units_milli`: thousandths of the tool's unit. `free_after`: what a spend left free to spend,
kept so that a repeat is answered alike; a captured hold has both if a spend named it. `event_at`: when it happened;
`created_at`: when it was written."""

grants = Table(
    "grants",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("source", Text, nullable=False),
    Column("reference", Text, nullable=False),
    Column("house", Text, nullable=False),
    Column("reason", Text),
    Column("purchase_id", Text),
    Column("amount", BigInteger, nullable=False),
    Column("remaining", BigInteger, nullable=False),
    Column("clawed", BigInteger, nullable=False, server_default=text("0")),
    Column("priority", SmallInteger, nullable=False),
    Column("starts_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True)),
    Column("transfer_id", BigInteger, ForeignKey("transfers.id"), unique=True),
    Column("opened_version", BigInteger),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    UniqueConstraint("account_id", "source", "reference"),
    CheckConstraint("source IN ('purchase', 'grant', 'referral', 'adjustment')", name="source"),
    CheckConstraint("amount > 0 AND remaining BETWEEN 0 AND amount", name="remaining"),
    CheckConstraint("clawed BETWEEN 0 AND amount", name="clawed"),
    CheckConstraint("(transfer_id IS NULL) = (opened_version IS NULL)", name="opened"),
    CheckConstraint("expires_at > starts_at", name="expires"),
    Index("grants_live_idx", "account_id", postgresql_where=text("remaining > 0")),
    Index(
        "grants_purchase_id_idx",
        "purchase_id",
        "account_id",
        unique=True,
        postgresql_where=text("purchase_id IS NOT NULL"),
    ),
)
"""`remaining` is what is left once the account's entries are worked out up to `accounts.allocated_version`. A grant
that starts later has no transfer yet: its credits are not in the balance."""

draws = Table(
    "draws",
    metadata,
    Column("account_id", BigInteger, ForeignKey("accounts.id"), primary_key=True),
    Column("from_version", BigInteger, primary_key=True),
    Column("grant_id", BigInteger, ForeignKey("grants.id"), primary_key=True, index=True),
    Column("to_version", BigInteger, nullable=False),
    Column("amount", BigInteger, nullable=False),
    CheckConstraint("amount <> 0", name="amount"),
    CheckConstraint("from_version <= to_version", name="run"),
)

chain_blocks = Table(
    "chain_blocks",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("after_id", BigInteger, nullable=False),
    Column("to_id", BigInteger, nullable=False),
    Column("transfers", BigInteger, nullable=False),
    Column("entries", BigInteger, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("prev_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("sealed_at", DateTime(timezone=True), nullable=False),
    CheckConstraint("number >= 1 AND after_id < to_id AND transfers > 0 AND entries >= 0", name="range"),
    CheckConstraint(
        "octet_length(content) = 32 AND octet_length(prev_hash) = 32 AND octet_length(hash) = 32",
        name="digests",
    ),
)

chain_mark = Table(
    "chain_mark",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column("up_to", BigInteger, nullable=False),
    Column("xid", BigInteger, nullable=False),
    CheckConstraint("one", name="one"),
)

entries = Table(
    "entries",
    metadata,
    Column("account_id", BigInteger, primary_key=True, autoincrement=False),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("transfer_id", BigInteger, nullable=False, index=True),
    Column("amount", BigInteger, nullable=False),
    Column("balance_after", BigInteger),
    CheckConstraint("amount <> 0", name="amount"),
    CheckConstraint("balance_after >= 0", name="never_overdrawn"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, nullable=False, index=True),
    Column("label", Text, nullable=False),
    Column("prefix", Text, unique=True),
    Column("secret_hash", LargeBinary, nullable=False, unique=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("expires_at", DateTime(timezone=True)),
    Column("revoked_at", DateTime(timezone=True)),
    Column("cap_tokens", BigInteger),
    Column("cap_per", Text),
    Column("cap_window", Date),
    Column("cap_used", BigInteger, nullable=False, server_default=text("0")),
    Column("parent_id", Text, ForeignKey("api_keys.id")),
    Column("scopes", ARRAY(Text)),
    Column("allowed_ips", ARRAY(CIDR)),
    Column("last_used_at", DateTime(timezone=True)),
    Column("kind", Text, nullable=False, server_default=text("'key'")),
    Column("world", Text, nullable=False, server_default=text("'live'")),
    ForeignKeyConstraint(["user_id", "world"], ["accounts.user_id", "accounts.world"]),
    CheckConstraint("octet_length(secret_hash) = 32", name="hash_only"),
    CheckConstraint("kind IN ('key', 'session')", name="kind"),
    CheckConstraint("(kind = 'key') = (prefix IS NOT NULL)", name="prefix"),
    CheckConstraint(
        "kind = 'key' OR expires_at IS NOT NULL AND num_nonnulls(parent_id, scopes, allowed_ips, cap_tokens) = 0",
        name="session",
    ),
    CheckConstraint("length(label) BETWEEN 1 AND 100", name="label"),
    CheckConstraint(
        "(cap_tokens IS NULL) = (cap_per IS NULL) AND cap_tokens >= 0 AND cap_per IN ('day', 'month', 'total')",
        name="cap",
    ),
    CheckConstraint("cap_used BETWEEN 0 AND coalesce(cap_tokens, cap_used)", name="within_cap"),
    CheckConstraint("parent_id <> id", name="parent"),
    CheckConstraint("cardinality(scopes) > 0 AND cardinality(allowed_ips) > 0", name="lists"),
    Index("api_keys_parent_id_idx", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
)
"""`parent_id`: the limited key that made it. A child is never wider than its parent and ends with it, by trigger;
what it spends counts against every ancestor's cap. `last_used_at` is written at most once a minute. A session
(`ledger.sessions`) is a row of another kind: without a prefix or a limit, and with an end. Both speak for their user's
account in their `world`."""

operators = Table(
    "operators",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("secret_hash", LargeBinary, nullable=False, unique=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("revoked_at", DateTime(timezone=True)),
    Column("last_used_at", DateTime(timezone=True)),
    CheckConstraint("octet_length(secret_hash) = 32", name="hash_only"),
    CheckConstraint("length(name) BETWEEN 1 AND 100", name="name"),
    Index("operators_live_name_idx", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
)

operator_actions = Table(
    "operator_actions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("operator_id", Text, ForeignKey("operators.id")),
    Column("name", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("user_id", Text, ForeignKey("users.id")),
    Column("before", JSONB(none_as_null=True)),
    Column("after", JSONB(none_as_null=True)),
    Column("reason", Text),
    Column("request_id", Text),
    CheckConstraint("length(name) > 0 AND length(action) > 0 AND length(target) > 0", name="named"),
    Index("operator_actions_user_idx", "user_id", "id"),
)
"""`operator_id` is empty for the command line, where `name` is the system's user. `target`: the id that was acted on;
`user_id`: whom it concerned."""
