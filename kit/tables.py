"""The tables of the floor: the mails that wait to be sent."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)

from kit.db import metadata

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("recipient", Text, nullable=False, index=True),
    Column("subject", Text, nullable=False),
    Column("body", Text),
    Column("html", Text),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now(), index=True),
    Column("expires_at", DateTime(timezone=True)),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("retry_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("sent_at", DateTime(timezone=True)),
    Column("dead_at", DateTime(timezone=True)),
    Column("problem", Text),
    CheckConstraint(r"recipient !~ '[\r\n]' AND subject !~ '[\r\n]'", name="one_line"),
    CheckConstraint("sent_at IS NULL OR dead_at IS NULL", name="one_end"),
    CheckConstraint("(sent_at IS NULL AND dead_at IS NULL) = (body IS NOT NULL)", name="forgets"),
    CheckConstraint("html IS NULL OR body IS NOT NULL", name="forgets_html"),
    Index(None, "retry_at", postgresql_where=text("sent_at IS NULL AND dead_at IS NULL")),
)
"""A mail's text lives until it was sent or given up: what it says (a one-time code) is not kept."""
