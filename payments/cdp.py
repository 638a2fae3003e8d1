"""Tokens of a Coinbase Developer Platform key: each is good for one request and two minutes.

Source: Coinbase Developer Platform, CDP API key authentication, and the JWTs of `cdp-sdk`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kit.signing import private_key

TOKEN_LIFE_S: Final = 120
"""What Coinbase accepts at most; each request carries a token of its own."""


class CdpKey:
    """An API key, Ed25519 (base64) or P-256 (PEM)."""

    def __init__(self, key_id: str, key_secret: str, clock: Callable[[], float] = time.time) -> None:
        """Read the key. Raises: BadKeys."""
        self._key_id = key_id
        self._key = private_key(key_secret)
        self._algorithm = "EdDSA" if isinstance(self._key, Ed25519PrivateKey) else "ES256"
        self._clock = clock

    def authorization(self, method: str, url: str | httpx.URL) -> dict[str, str]:
        """Return the header that lets this one request through."""
        place, now = httpx.URL(url), int(self._clock())
        claims = {
            "sub": self._key_id,
            "iss": "cdp",
            "aud": ["cdp_service"],
            "nbf": now,
            "exp": now + TOKEN_LIFE_S,
            "uris": [f"{method} {place.netloc.decode()}{place.path}"],
        }
        header = {"kid": self._key_id, "nonce": secrets.token_hex(16)}
        return {"Authorization": f"Bearer {jwt.encode(claims, self._key, self._algorithm, header)}"}
