"""Jobs, files, prices, holds of tools, counters of requests, sign-in codes, webhooks and alerts.

A job carries its lease and fence; it ends once, by trigger.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
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
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from kit.db import metadata

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("key_id", Text, ForeignKey("api_keys.id"), nullable=False),
    Column("task", Text, nullable=False),
    Column("tool", Text, nullable=False),
    Column("application", Text, nullable=False),
    Column("input", JSONB, nullable=False),
    Column("status", Text, nullable=False, server_default=text("'queued'")),
    Column("quoted", BigInteger, nullable=False),
    Column("charged", BigInteger),
    Column("hold_id", Text, ForeignKey("holds.id"), nullable=False, unique=True),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("runner", Text),
    Column("fence", BigInteger, nullable=False, server_default=text("0")),
    Column("lease_until", DateTime(timezone=True)),
    Column("cancel_requested_at", DateTime(timezone=True)),
    Column("progress_percent", SmallInteger, nullable=False, server_default=text("0")),
    Column("output", JSONB),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("metrics", JSONB),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("started_at", DateTime(timezone=True)),
    Column("finished_at", DateTime(timezone=True)),
    Column("units_milli", BigInteger),
    Column("priority", SmallInteger, nullable=False, server_default=text("0")),
    Column("deadline", DateTime(timezone=True)),
    Column("webhook_url", Text),
    Column("webhook_events", ARRAY(Text)),
    Column("stages", JSONB),
    CheckConstraint(
        "status IN ('queued', 'running', 'succeeded', 'failed', 'canceled', 'expired')", name="status"
    ),
    CheckConstraint("(status = 'running') = (lease_until IS NOT NULL)", name="running_has_lease"),
    CheckConstraint("(status IN ('queued', 'running')) = (finished_at IS NULL)", name="finished"),
    CheckConstraint("(status = 'succeeded') = (output IS NOT NULL)", name="output"),
    CheckConstraint("(status = 'failed') <= (error_code IS NOT NULL)", name="error"),
    CheckConstraint(
        "(charged IS NULL) = (finished_at IS NULL) AND charged BETWEEN 0 AND quoted"
        " AND (status = 'succeeded' OR charged = 0)",
        name="charged_only_for_success",
    ),
    CheckConstraint("progress_percent BETWEEN 0 AND 100", name="progress"),
    CheckConstraint("units_milli > 0", name="units"),
    CheckConstraint("priority BETWEEN -1 AND 1", name="priority"),
    CheckConstraint("webhook_events IS NULL OR webhook_url IS NOT NULL", name="webhook"),
    Index(
        "jobs_line_idx",
        "application",
        "account_id",
        text("priority DESC"),
        "id",
        postgresql_where=text("status = 'queued'"),
    ),
    Index("jobs_waiting_idx", "expires_at", postgresql_where=text("status = 'queued'")),
    Index("jobs_running_idx", "account_id", "key_id", postgresql_where=text("status = 'running'")),
    Index("jobs_lease_idx", "lease_until", postgresql_where=text("status = 'running'")),
    Index("jobs_account_idx", "account_id", "id"),
)

job_stages = Table(
    "job_stages",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("part", Integer, primary_key=True),
    Column("fence", BigInteger, nullable=False),
    Column("storage_key", Text, nullable=False, unique=True),
    Column("facts", JSONB, nullable=False, server_default=text("'{}'")),
    Column("run_ms", BigInteger, nullable=False),
    Column("gpu_ms", BigInteger, nullable=False),
    Column("peak_memory_bytes", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("part >= 0", name="part"),
    CheckConstraint("run_ms >= 0 AND gpu_ms >= 0 AND peak_memory_bytes >= 0", name="took"),
)
"""What the stages of a job made, in parts, until the job has ended: see `gateway.stage_parts`."""

job_attempts = Table(
    "job_attempts",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("fence", BigInteger, primary_key=True),
    Column("outcome", Text, nullable=False),
    Column("queue_ms", BigInteger, nullable=False),
    Column("run_ms", BigInteger, nullable=False),
    Column("busy_us", BigInteger, nullable=False),
    Column("on_gpu", Boolean, nullable=False),
    Column("peak_memory_bytes", BigInteger),
    Column("batch_size", SmallInteger, nullable=False),
    Column("ended_at", DateTime(timezone=True), nullable=False, server_default=func.now(), index=True),
    CheckConstraint("outcome IN ('succeeded', 'failed', 'canceled')", name="outcome"),
    CheckConstraint(
        "queue_ms >= 0 AND run_ms >= 0 AND busy_us >= 0 AND peak_memory_bytes >= 0 AND batch_size > 0",
        name="measures",
    ),
)
"""What each attempt at a job took: see `gateway.metering`. Units: `busy_us` microseconds of the model's time."""

chat_turns = Table(
    "chat_turns",
    metadata,
    Column("id", Text, primary_key=True),
    Column("hold_id", Text, ForeignKey("holds.id"), nullable=False, unique=True),
    Column("application", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("queue_ms", BigInteger, nullable=False),
    Column("run_ms", BigInteger, nullable=False),
    Column("busy_us", BigInteger, nullable=False),
    Column("on_gpu", Boolean, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("ended_at", DateTime(timezone=True), nullable=False, server_default=func.now(), index=True),
    CheckConstraint("outcome IN ('succeeded', 'failed', 'canceled')", name="outcome"),
    CheckConstraint("queue_ms >= 0 AND run_ms >= 0 AND busy_us >= 0", name="measures"),
    CheckConstraint("prompt_tokens >= 0 AND completion_tokens >= 0", name="tokens"),
)
"""What each turn of a conversation took, by the id of its completion: see `gateway.metering`. Units: the model's own
tokens; `busy_us` microseconds of the engine's time."""

queue_turns = Table(
    "queue_turns",
    metadata,
    Column("application", Text, primary_key=True),
    Column("account_id", BigInteger, primary_key=True),
    Column("begun", BigInteger, nullable=False),
    Column("ended", BigInteger, nullable=False),
    CheckConstraint("begun >= 0 AND ended > begun", name="times"),
    Index("queue_turns_clock_idx", "application", "begun"),
)
"""The last turn of each account at an application, in virtual time: see `gateway.turns`."""

account_shares = Table(
    "account_shares",
    metadata,
    Column("account_id", BigInteger, ForeignKey("accounts.id"), primary_key=True),
    Column("weight", SmallInteger, nullable=False, server_default=text("1")),
    Column("max_running", Integer),
    CheckConstraint("weight BETWEEN 1 AND 100", name="weight"),
    CheckConstraint("max_running > 0", name="running"),
)
"""What an operator gave an account beyond the common share of the models."""

files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("job_id", Text, ForeignKey("jobs.id"), index=True),
    Column("name", Text, nullable=False),
    Column("storage_key", Text, nullable=False, unique=True),
    Column("content_type", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("facts", JSONB, nullable=False, server_default=text("'{}'")),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("deleted_at", DateTime(timezone=True)),
    Column("preview_key", Text, unique=True),
    Column("expires_at", DateTime(timezone=True)),
    Column("purged_at", DateTime(timezone=True)),
    CheckConstraint("size_bytes >= 0", name="size"),
    CheckConstraint("purged_at IS NULL OR deleted_at IS NOT NULL", name="purged"),
    Index("files_account_idx", "account_id", "id", postgresql_where=text("deleted_at IS NULL")),
    Index("files_expires_at_idx", "expires_at", postgresql_where=text("deleted_at IS NULL")),
    Index("files_unpurged_idx", "id", postgresql_where=text("deleted_at IS NOT NULL AND purged_at IS NULL")),
)
"""`job_id` is set for a model's output and empty for a caller's upload. `facts`: width, height, seed, ...
At `expires_at` a file is deleted by itself; at `purged_at` a deleted file's bytes were gone too."""

tool_holds = Table(
    "tool_holds",
    metadata,
    Column("hold_id", Text, ForeignKey("holds.id"), primary_key=True),
    Column("tokens", BigInteger, nullable=False),
    Column("per_units", BigInteger, nullable=False),
    CheckConstraint("tokens > 0 AND per_units > 0", name="price"),
)
"""The price that a tool's hold was quoted at: `tokens` for each `per_units` units. Append-only, by trigger."""

idempotency = Table(
    "idempotency",
    metadata,
    Column("account_id", BigInteger, ForeignKey("accounts.id"), primary_key=True),
    Column("route", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("answer", JSONB, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now(), index=True),
    CheckConstraint("length(key) BETWEEN 1 AND 255", name="key"),
)
"""The first answer of a write, stored in the write's own transaction."""

rate_counters = Table(
    "rate_counters",
    metadata,
    Column("bucket", Text, primary_key=True),
    Column("identity", Text, primary_key=True),
    Column("taken", BigInteger, nullable=False),
    Column("resets_at", DateTime(timezone=True), nullable=False),
    CheckConstraint("taken > 0", name="taken"),
    prefixes=["UNLOGGED"],
)
"""How many requests an identity made in the window that ends at `resets_at`."""

sign_in_codes = Table(
    "sign_in_codes",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("email", Text, nullable=False),
    Column("network", Text),
    Column("code_hmac", LargeBinary, nullable=False),
    Column("tries", SmallInteger, nullable=False, server_default=text("0")),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now(), index=True),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("consumed_at", DateTime(timezone=True)),
    Column("voided_at", DateTime(timezone=True)),
    CheckConstraint("octet_length(code_hmac) = 32", name="hmac_only"),
    CheckConstraint("tries BETWEEN 0 AND 5", name="tries"),
    CheckConstraint("consumed_at IS NULL OR voided_at IS NULL", name="one_end"),
    Index(
        "sign_in_codes_open_idx",
        "email",
        unique=True,
        postgresql_where=text("consumed_at IS NULL AND voided_at IS NULL"),
    ),
)
"""One-time codes; an address has one open code at most. `network`: who asked, for the budgets."""

prices = Table(
    "prices",
    metadata,
    Column("version", Integer, Identity(always=True, start=1001), primary_key=True),
    Column("tool", Text, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("per_units", Integer, nullable=False),
    Column("since", DateTime(timezone=True), nullable=False),
    Column("announced_at", DateTime(timezone=True), nullable=False),
    CheckConstraint("tokens > 0 AND per_units IN (1, 10, 100, 1000)", name="price"),
    CheckConstraint("since >= announced_at + interval '1 minute'", name="announced"),
    Index("prices_tool_idx", "tool", "since", "version"),
)
"""Prices that overlay the catalogue file's, each announced before it begins. The file numbers its versions to 1000."""

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("url", Text),
    Column("events", ARRAY(Text)),
    Column("salt", LargeBinary, nullable=False),
    Column("old_salt", LargeBinary),
    Column("old_until", DateTime(timezone=True)),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("disabled_at", DateTime(timezone=True)),
    UniqueConstraint(
        "account_id", "url", name="webhook_endpoints_account_id_url_key", postgresql_nulls_not_distinct=True
    ),
    CheckConstraint("octet_length(salt) = 32 AND octet_length(old_salt) = 32", name="salts"),
    CheckConstraint("(old_salt IS NULL) = (old_until IS NULL)", name="overlap"),
    CheckConstraint("cardinality(events) > 0", name="events"),
)
"""Where an account is told of events; no `events` are all of them. The one without a URL signs what goes to the URLs
that jobs and alerts name. `old_salt` makes the secret before, which signs too until `old_until`."""

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column(
        "endpoint_id",
        Text,
        ForeignKey("webhook_endpoints.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("url", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("job_id", Text),
    Column("body", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now(), index=True),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("retry_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("delivered_at", DateTime(timezone=True)),
    Column("given_up_at", DateTime(timezone=True)),
    Column("status_code", SmallInteger),
    Column("problem", Text),
    CheckConstraint("attempts >= 0", name="attempts"),
    CheckConstraint("delivered_at IS NULL OR given_up_at IS NULL", name="one_end"),
    Index(
        "webhook_deliveries_due_idx",
        "retry_at",
        postgresql_where=text("delivered_at IS NULL AND given_up_at IS NULL"),
    ),
    Index("webhook_deliveries_account_idx", "account_id", "id"),
)
"""Events on their way to an endpoint: see `gateway.deliveries`."""

balance_alerts = Table(
    "balance_alerts",
    metadata,
    Column("account_id", BigInteger, ForeignKey("accounts.id"), primary_key=True),
    Column("threshold", BigInteger, nullable=False),
    Column("webhook_url", Text),
    Column("armed", Boolean, nullable=False),
    Column("alerted_version", BigInteger),
    Column("alerted_at", DateTime(timezone=True)),
    CheckConstraint("threshold > 0", name="threshold"),
    CheckConstraint("NOT armed OR alerted_version IS NULL", name="armed"),
)
"""The alert of a low balance: see `gateway.alerts`. Units: `threshold` tokens."""

cold_starts = Table(
    "cold_starts",
    metadata,
    Column("application", Text, primary_key=True),
    Column("scale", Text, primary_key=True),
    Column("took_s", ARRAY(Integer), nullable=False),
    CheckConstraint("cardinality(took_s) BETWEEN 1 AND 5 AND 0 < ALL (took_s)", name="took"),
)
"""The last starts of each model: see `gateway.cold_starts`."""
