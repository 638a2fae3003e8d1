"""Signatures of webhooks as Standard Webhooks has them: HMAC-SHA256 over id, time and body, by a shared secret.

A secret is derived, never stored: from the server's own secret and a random salt of the endpoint.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Sequence
from typing import Final

SALT_BYTES: Final = 32
"""As long as the secret that is made from it; the standard asks for 24 to 64 bytes."""


def new_salt() -> bytes:
    """Return a fresh salt."""
    return secrets.token_bytes(SALT_BYTES)


def derive_key(server_secret: bytes, salt: bytes) -> bytes:
    """Return the key of a salt: the same one wherever the server's secret is the same."""
    return hmac.digest(server_secret, b"farebox webhook secret\n" + salt, "sha256")


def spelled(key: bytes) -> str:
    """Return a key as its owner configures it: `whsec_` and its Base64."""
    return f"whsec_{base64.b64encode(key).decode()}"


def signed_headers(keys: Sequence[bytes], message_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """Return the three headers of a message, with a signature by each key. Units: `at_s` Unix seconds."""
    signed = f"{message_id}.{at_s}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
