"""Prefixed, time-ordered public ids: `job_01k8...` sorts by creation and says what it names."""

from __future__ import annotations

from typing import Literal

from ulid import ULID

Prefix = Literal[
    "user", "key", "pur", "hold", "job", "file", "req", "run", "evt", "ses", "op", "act", "voucher", "ref", "ret",
    "hook", "msg", "x402", "rec",
]  # fmt: skip


def new_id(prefix: Prefix) -> str:
    """Return a fresh id, unique without coordination (80 random bits beside 48 bits of milliseconds).

    Source: the ULID specification; lower case because ids travel in URLs and file names.
    """
    return f"{prefix}_{str(ULID()).lower()}"
