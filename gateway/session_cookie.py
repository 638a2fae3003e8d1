"""The session cookie: a random token, signed, so that a forged one never reaches the books.

The books keep the token's SHA-256 alone. The token that guards writes against other sites (CSRF) is a function of the
session's own: it needs no storage, ends with the session, and another site can neither read nor guess it.
"""

from __future__ import annotations

import base64
import hmac
from typing import Final

from starlette.responses import Response

from ledger.keys import new_secret
from ledger.sessions import LIFETIME

CSRF_HEADER: Final = "x-csrf-token"


class SessionCookie:
    """Makes and reads session cookies under the server's secret."""

    def __init__(self, secret: bytes, *, secure: bool) -> None:
        """Keep the secret. `secure`: whether browsers reach us by https."""
        self._secret = secret
        self._secure = secure
        self.name: Final = "__Host-farebox_session" if secure else "farebox_session"
        # The prefix makes browsers refuse such a cookie from a subdomain or over plain http (RFC 6265bis, 4.1.3.2).

    @staticmethod
    def new_token() -> str:
        """Return a token that nobody can guess."""
        return new_secret()

    def token_of(self, value: str) -> str | None:
        """Return the token of a cookie that we signed, or None."""
        token, _, signature = value.partition(".")
        same = hmac.compare_digest(signature.encode(errors="replace"), self._mac("session", token).encode())
        return token if same else None

    def csrf_token(self, token: str) -> str:
        """Return what a write with this session must repeat in `x-csrf-token`."""
        return self._mac("csrf", token)

    def is_csrf_token(self, token: str, given: str) -> bool:
        """Tell whether `given` is this session's CSRF token, in constant time."""
        return hmac.compare_digest(given.encode(errors="replace"), self.csrf_token(token).encode())

    def put(self, response: Response, token: str) -> None:
        """Let the browser keep this session."""
        response.set_cookie(
            self.name,
            f"{token}.{self._mac('session', token)}",
            max_age=int(LIFETIME.total_seconds()),
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )

    def take_back(self, response: Response) -> None:
        """Let the browser forget its session."""
        response.delete_cookie(self.name, path="/", secure=self._secure, httponly=True, samesite="lax")

    def _mac(self, purpose: str, token: str) -> str:
        message = f"farebox {purpose}\n{token}".encode(errors="replace")
        return base64.urlsafe_b64encode(hmac.digest(self._secret, message, "sha256")).decode().rstrip("=")
