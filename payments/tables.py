"""Purchases, the provider's events, vouchers, and referrals.

A purchase is fulfilled at most once and claimed at most once; a voucher is redeemed at most once for each account
and at most `max_redemptions` times in all; an account is referred at most once, and rewarded for that at most once.
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
from sqlalchemy.dialects.postgresql import JSONB

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
    Column("card_fingerprint", Text),
    Column("world", Text, nullable=False, server_default=text("'live'")),
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
    Index(None, "user_id", postgresql_where=text("user_id IS NOT NULL")),
    Index(None, "topup_user_id", postgresql_where=text("topup_user_id IS NOT NULL")),
    CheckConstraint("(fulfilled_at IS NULL) = (paid_minor IS NULL) AND paid_minor >= 0", name="paid"),
    CheckConstraint("returned_minor BETWEEN 0 AND coalesce(paid_minor, 0)", name="returned"),
    CheckConstraint("world = 'live' OR world = 'test' AND topup_user_id IS NOT NULL", name="world"),
    Index(None, "card_fingerprint", postgresql_where=text("card_fingerprint IS NOT NULL")),
)
"""`opened_account`: this very payment created the account, so its payer may claim the first key. `amount_minor`: the
package's price when it was sold; `paid_minor`: what the payer paid, with tax and after discounts; `returned_minor`:
what of it went back. `warned_at`: a card network called the payment fraudulent, and the account was frozen.
`card_fingerprint`: the provider's name for the card, the same wherever that card pays; empty where it has none.
`world`: whose account it fills; only a key to top up says the test world's.

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

referral_codes = Table(
    "referral_codes",
    metadata,
    Column("account_id", BigInteger, ForeignKey("accounts.id"), primary_key=True, autoincrement=False),
    Column("code", Text, nullable=False, unique=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("code ~ '^[0-9A-HJKMNP-TV-Z]{8}$'", name="code"),
)

referrals = Table(
    "referrals",
    metadata,
    Column("id", Text, primary_key=True),
    Column("referee_id", BigInteger, ForeignKey("accounts.id"), nullable=False, unique=True),
    Column("referrer_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("reward", BigInteger, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'applied'")),
    Column("applied_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("purchase_id", Text, ForeignKey("purchases.id"), unique=True),
    Column("ordered_at", DateTime(timezone=True)),
    Column("taken_back_at", DateTime(timezone=True)),
    Column("refusal", Text),
    Column("transfer_id", BigInteger, ForeignKey("transfers.id"), unique=True),
    Column("rewarded_at", DateTime(timezone=True)),
    CheckConstraint("referee_id <> referrer_id", name="self"),
    CheckConstraint("reward > 0", name="reward"),
    CheckConstraint("state IN ('applied', 'ordered', 'rewarded', 'refused', 'reversed')", name="state"),
    CheckConstraint(
        "(state = 'applied') = (purchase_id IS NULL) AND (purchase_id IS NULL) = (ordered_at IS NULL)",
        name="ordered",
    ),
    CheckConstraint(
        "(state IN ('rewarded', 'reversed')) = (transfer_id IS NOT NULL)"
        " AND (transfer_id IS NULL) = (rewarded_at IS NULL)",
        name="rewarded",
    ),
    CheckConstraint(
        "(state = 'refused') = (refusal IS NOT NULL)"
        " AND refusal IN ('taken_back', 'same_person', 'suspended', 'month_cap', 'total_cap')",
        name="refused",
    ),
    CheckConstraint(
        "CASE state WHEN 'reversed' THEN taken_back_at IS NOT NULL WHEN 'rewarded' THEN true"
        " WHEN 'refused' THEN (taken_back_at IS NOT NULL) = (refusal = 'taken_back')"
        " ELSE taken_back_at IS NULL END",
        name="taken_back",
    ),
    Index("referrals_referrer_idx", "referrer_id", "rewarded_at"),
    Index("referrals_ordered_idx", "ordered_at", postgresql_where=text("state = 'ordered'")),
    Index(
        "referrals_taken_back_idx",
        "taken_back_at",
        postgresql_where=text("state = 'rewarded' AND taken_back_at IS NOT NULL"),
    ),
)
"""Who applied whose code, and what became of the reward. No ring, by trigger. `purchase_id`: the referee's first paid
order; `taken_back_at`: when credits of it were first taken back, written by trigger with that very clawback.
Units: `reward` tokens, as promised when the code was applied."""

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

x402_payments = Table(
    "x402_payments",
    metadata,
    Column("id", Text, primary_key=True),
    Column("network", Text, nullable=False),
    Column("asset", Text, nullable=False),
    Column("payer", Text, nullable=False),
    Column("nonce", Text, nullable=False),
    Column("quote_hash", LargeBinary, nullable=False),
    Column("resource", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("retry_key", Text),
    Column("package_code", Text, nullable=False),
    Column("price_version", Integer, nullable=False),
    Column("credits_tokens", BigInteger, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("key_label", Text, nullable=False),
    Column("key_days", Integer),
    Column("topup_user_id", Text, ForeignKey("users.id")),
    Column("payload", JSONB, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'settling'")),
    Column("attempts", Integer, nullable=False, server_default=text("1")),
    Column("due_at", DateTime(timezone=True), nullable=False),
    Column("problem", Text),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("settled_at", DateTime(timezone=True)),
    Column("transaction_hash", Text),
    Column("purchase_id", Text, ForeignKey("purchases.id"), unique=True),
    Column("key_id", Text, ForeignKey("api_keys.id"), unique=True),
    UniqueConstraint("payer", "nonce", "asset", "network"),
    CheckConstraint(
        "payer ~ '^0x[0-9a-f]{40}$' AND nonce ~ '^0x[0-9a-f]{64}$' AND octet_length(quote_hash) = 32",
        name="spelling",
    ),
    CheckConstraint("credits_tokens > 0 AND amount_minor > 0 AND key_days > 0", name="amounts"),
    CheckConstraint("state IN ('settling', 'settled', 'refused', 'unclear') AND attempts > 0", name="state"),
    CheckConstraint(
        "(state = 'settled') = (settled_at IS NOT NULL) AND (state = 'settled') = (transaction_hash IS NOT NULL)"
        " AND (state = 'settled') = (purchase_id IS NOT NULL)"
        " AND (state = 'settled' AND topup_user_id IS NULL) = (key_id IS NOT NULL)",
        name="settled_whole",
    ),
    Index(None, "due_at", postgresql_where=text("state = 'settling'")),
    Index(
        "x402_payments_retry_key_idx",
        "payer",
        "network",
        "resource",
        "retry_key",
        unique=True,
        postgresql_where=text("state <> 'refused'"),
    ),
)
"""A wallet's signed payments. `due_at`: until then one caller settles it; past it, anyone may ask the facilitator
again. `retry_key`: the caller's idempotency key. `payload`: what the facilitator is sent. `key_days`: how long its key
lives; empty: for ever. `topup_user_id`: whose account it fills, who has a key; empty: the wallet's own, and a key
comes with it. Units: `amount_minor` millionths of a USDC."""

reconciliations = Table(
    "reconciliations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("scheduled", Boolean, nullable=False),
    Column("repairs", Boolean, nullable=False),
    Column("since", DateTime(timezone=True), nullable=False),
    Column("until", DateTime(timezone=True), nullable=False),
    Column("began_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("ended_at", DateTime(timezone=True)),
    Column("payments", Integer, nullable=False, server_default=text("0")),
    Column("differences", Integer, nullable=False, server_default=text("0")),
    Column("repaired", Integer, nullable=False, server_default=text("0")),
    Column("report", JSONB),
    CheckConstraint("since < until", name="range"),
    CheckConstraint("payments >= 0 AND differences >= 0 AND repaired >= 0", name="counts"),
    CheckConstraint("repairs OR repaired = 0", name="repaired"),
    CheckConstraint("(ended_at IS NULL) = (report IS NULL)", name="ended_whole"),
    Index("reconciliations_scheduled_idx", "began_at", postgresql_where=text("scheduled")),
)
"""Comparisons of providers' records with the books. `differences`: what was left of them, each in `report`, beside who
could not be asked and what cannot be compared. What ended never changes, by trigger."""

auto_topups = Table(
    "auto_topups",
    metadata,
    Column("account_id", BigInteger, ForeignKey("accounts.id"), primary_key=True, autoincrement=False),
    Column("provider", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("threshold", BigInteger, nullable=False),
    Column("package_code", Text, nullable=False),
    Column("package_name", Text, nullable=False),
    Column("price_version", Integer),
    Column("credits_tokens", BigInteger, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("month_most_minor", BigInteger, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'on'")),
    Column("reason", Text),
    Column("declines", Integer, nullable=False, server_default=text("0")),
    Column("rest_until", DateTime(timezone=True)),
    Column("set_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("threshold > 0 AND threshold <= credits_tokens", name="threshold"),
    CheckConstraint("amount_minor > 0 AND month_most_minor >= amount_minor", name="amounts"),
    CheckConstraint(
        "state IN ('on', 'paused', 'off') AND (state = 'on') = (reason IS NULL)"
        " AND reason IN ('authentication_required', 'card_declined', 'no_card', 'not_offered', 'package_changed')",
        name="state",
    ),
    CheckConstraint("declines >= 0", name="declines"),
)
"""What an account wishes to be topped up with, of the live world by trigger. The package is kept as it was agreed to:
another price charges nothing. `threshold` is at most what the package brings, so that one is enough. `rest_until`:
nothing is charged before, after a decline or with the month's ceiling reached."""

auto_topup_charges = Table(
    "auto_topup_charges",
    metadata,
    Column("id", Text, ForeignKey("purchases.id"), primary_key=True),
    Column("account_id", BigInteger, ForeignKey("accounts.id"), nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("month", Date, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'charging'")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("due_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("problem", Text),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("ended_at", DateTime(timezone=True)),
    CheckConstraint("amount_minor > 0 AND attempts >= 0", name="amount"),
    CheckConstraint("extract(day FROM month) = 1", name="month"),
    CheckConstraint("state IN ('charging', 'paid', 'refused')", name="state"),
    CheckConstraint("(state = 'charging') = (ended_at IS NULL)", name="ended"),
    Index(
        "auto_topup_charges_one_at_a_time_idx",
        "account_id",
        unique=True,
        postgresql_where=text("state = 'charging'"),
    ),
    Index(None, "account_id", "month"),
    Index(None, "due_at", postgresql_where=text("state = 'charging'")),
)
"""Each is a purchase of the same id, which is also the key that keeps the provider from charging twice. One at a time,
and within the month's ceiling, by trigger. `due_at`: when whoever is at it is taken for dead."""
