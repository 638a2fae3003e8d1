"""Posting to URLs that customers name, without being sent to places that only we can reach.

Invariants:
- A connection goes to an address that was checked, and to no other: the name is resolved once, every address that it
  has must be public, and the connection is made to one of those. Between check and use no DNS answer can change
  anything; TLS still verifies the certificate against the name.
- A redirect is an answer like any other: nobody follows it.
- Of an answer no more than its first bytes is read, and all of it takes no longer than the time-out says.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv6Address, ip_address
from typing import Final, cast
from urllib.parse import SplitResult, urlsplit

import httpx

from kit.addresses import Address
from kit.fetch import Resolve, is_public, resolve

TOTAL_TIMEOUT_S: Final = 10.0
"""From the look-up of the name to the end of the answer: a receiver takes the event and works on it afterwards."""
ANSWER_BYTES: Final = 4096
"""Enough for a sentence on what went wrong; nobody reads more."""
MAX_URL_CHARS: Final = 2048


class NotPosted(Exception):
    """Nothing was answered; the text says why, for the owner of the URL."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver answered: its status and how its text begins."""

    status_code: int
    begins: str

    @property
    def accepted(self) -> bool:
        """Whether the receiver took what was posted."""
        return 200 <= self.status_code < 300  # noqa: PLR2004  # what 2xx means


def check_url(url: str, *, private: bool = False) -> None:
    """Refuse what could never be posted to. Whether a name leads to a public address is seen at each post.

    `private`: plain http and private addresses may be named too. Raises: ValueError, saying what is wrong.
    """
    if len(url) > MAX_URL_CHARS or not re.fullmatch(r"[!-~]+", url):
        raise ValueError(f"must be at most {MAX_URL_CHARS} ASCII characters without spaces")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise ValueError("is not a URL") from error
    if parts.scheme not in (("https", "http") if private else ("https",)) or not host:
        raise ValueError(f"must be an {'http or ' if private else ''}https URL")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("must have no user, password or fragment")
    try:
        address = ip_address(host)
    except ValueError:
        return
    if not private and not is_public(address):
        raise ValueError("must name a host of the public internet")


class Poster:
    """Posts to public URLs. `may_connect` judges addresses; tests give it a resolver and a judge of their own."""

    def __init__(
        self, *, resolve: Resolve = resolve, may_connect: Callable[[Address], bool] = is_public
    ) -> None:
        self._resolve = resolve
        self._may_connect = may_connect

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Return what a URL answers to a body, redirects and refusals too. Raises: NotPosted."""
        try:
            async with asyncio.timeout(TOTAL_TIMEOUT_S):
                return await self._post(url, body, headers)
        except TimeoutError as error:
            raise NotPosted(f"took longer than {TOTAL_TIMEOUT_S:.0f} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            raise NotPosted(f"could not be reached ({type(error).__name__})") from error

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        parts = urlsplit(url)
        pinned = await self._pinned(parts)
        named = parts.netloc.rpartition("@")[2]
        # A client of its own for each: a pool would know connections by address and mix up the names behind one.
        async with (
            httpx.AsyncClient(
                verify=self._tls, trust_env=False, follow_redirects=False, timeout=TOTAL_TIMEOUT_S
            ) as client,
            client.stream(
                "POST",
                pinned,
                content=body,
                headers={**headers, "host": named, "accept-encoding": "identity", "user-agent": "Farebox"},
                extensions={"sni_hostname": parts.hostname},
            ) as answer,
        ):
            return Answer(answer.status_code, await _beginning(answer))

    async def _pinned(self, parts: SplitResult) -> httpx.URL:
        """Return the URL with a checked address instead of its host. Raises: NotPosted."""
        assert parts.hostname, "check_url has seen it"
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            addresses = await self._resolve(parts.hostname, port)
        except (OSError, UnicodeError) as error:
            raise NotPosted("its host is not known") from error
        # One private address among public ones is a trap, not an accident.
        if not addresses or not all(self._may_connect(address) for address in addresses):
            raise NotPosted("its host is not one of the public internet")
        address = addresses[0]
        literal = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
        return httpx.URL(parts._replace(netloc=f"{literal}:{port}", fragment="").geturl())

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Made once: reading the certificates takes longer than a post."""
        return httpx.create_ssl_context(trust_env=False)


async def _beginning(answer: httpx.Response) -> str:
    """Return the first bytes of an answer as one line of text."""
    read = bytearray()
    # httpx says less of it than it is; left early, it must be closed.
    async with aclosing(cast("AsyncGenerator[bytes, None]", answer.aiter_raw())) as chunks:
        async for chunk in chunks:
            read += chunk
            if len(read) >= ANSWER_BYTES:
                break
    text = bytes(read[:ANSWER_BYTES]).decode(errors="replace")
    return "".join(char if char.isprintable() else " " for char in text).strip()
