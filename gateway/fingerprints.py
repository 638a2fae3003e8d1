"""What a caller meant, as one hash: two requests under one idempotency key are the same if it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson


def fingerprint(meaning: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a meaning's canonical JSON: order and notation of fields do not count."""
    return hashlib.sha256(orjson.dumps(meaning, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z)).hexdigest()
