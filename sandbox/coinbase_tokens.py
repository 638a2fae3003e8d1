"""The tokens of a Coinbase Developer Platform key, as its servers check them.

Source: Coinbase Developer Platform, CDP API key authentication.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from fastapi import Request

TOKEN_LIFE_MOST_S: Final = 120
CLOCKS_APART_S: Final = 30


def public_key(secret: str) -> Ed25519PublicKey:
    """Give the public half of an Ed25519 key as CDP hands it out: base64 of seed and public half."""
    try:
        seed = base64.b64decode(secret, validate=True)[:32]
        return Ed25519PrivateKey.from_private_bytes(seed).public_key()
    except (binascii.Error, ValueError) as error:
        message = "the sandbox's Coinbase key must be the base64 of an Ed25519 key"
        raise ValueError(message) from error


def token_problem(request: Request, key_id: str, key_secret: str, now: float) -> str | None:
    """Say why a request's token is refused: not signed by the key, not for this request, or too old."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    try:
        header = jwt.get_unverified_header(token)
        # Its times are checked below, by the twin's own clock.
        claims: Any = jwt.decode(
            token,
            public_key(key_secret),
            ["EdDSA"],
            options={"verify_exp": False, "verify_nbf": False, "verify_aud": False},
            issuer="cdp",
        )
    except jwt.PyJWTError:
        return "The token does not verify."
    place = f"{request.method} {request.url.netloc}{request.url.path}"
    is_good = (
        scheme == "Bearer"
        and header.get("kid") == claims.get("sub") == key_id
        and header.get("typ") == "JWT"
        and bool(header.get("nonce"))
        and claims.get("uris") == [place]
        and claims["exp"] - claims["nbf"] <= TOKEN_LIFE_MOST_S
        and claims["nbf"] - CLOCKS_APART_S <= now < claims["exp"]
    )
    return None if is_good else f"The token is not for {place}."
