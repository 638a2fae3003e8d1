"""Fetching what a caller's URL names, without being sent to places that only we can reach.

Invariants:
- A connection goes to an address that was checked, and to no other: the name is resolved once for each hop, every
  address that it has must be public, and the connection is made to one of those. Between check and use no DNS answer
  can change anything; TLS still verifies the certificate against the name.
- A redirect is a new hop with all the same checks, also of its scheme.
- No more than the caller of this module allows is read, and no longer than the time-outs say. The body is taken as it
  was sent: nothing is unpacked that could grow.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import urljoin, urlsplit

import httpx

from kit.addresses import Address
from kit.errors import AppError

MAX_REDIRECTS: Final = 5
"""Object stores and link shorteners take one or two; browsers give up at twenty."""
RESOLVE_TIMEOUT_S: Final = 5.0
TIMEOUTS: Final = httpx.Timeout(10.0, connect=5.0)
"""A server that says nothing for ten seconds is away."""
TOTAL_TIMEOUT_S: Final = 120.0
"""25 MB on a line of two megabits a second."""
HEAD_BYTES: Final = 64
"""Enough for every signature that tells a file's type."""
UNICAST: Final = ip_network("2000::/3")
"""All of IPv6 that is given out on the internet. Outside lie old site-local addresses and most translations of IPv4.

Source: IANA, "Internet Protocol Version 6 Address Space".
"""
TRANSLATED: Final = tuple(ip_network(each) for each in ("2002::/16", "2001::/32"))
"""Ranges in it that carry an IPv4 address inside, which a gateway may lead to a private one.

Source: RFC 3056, RFC 4380.
"""


@dataclass
class InputRefused(AppError):
    """What a URL names cannot be used as an input; trying again cannot help. The text is public."""

    field: str
    problem: str
    code = "input_refused"
    status = 400

    @property
    def message(self) -> str:
        return f"{self.field}: {self.problem}"

    @property
    def details(self) -> list[dict[str, str]]:
        return [{"field": self.field, "message": self.problem}]


@dataclass
class InputUnreachable(AppError):
    """What a URL names could not be had for now; another attempt may work."""

    field: str
    problem: str
    code = "input_unreachable"
    status = 502
    retryable = True

    @property
    def message(self) -> str:
        return f"{self.field}: {self.problem}"


Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
Check = Callable[[bytes], None]


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the open internet, and not ours, our provider's or a translation."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address not in UNICAST or any(address in network for network in TRANSLATED):
            return False
    return address.is_global and not address.is_multicast


async def resolve(host: str, port: int) -> list[Address]:
    """Return every address of a host. Raises: OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(str(where[0]).partition("%")[0]) for *_, where in found]


class Fetcher:
    """Fetches public URLs. Tests give it a resolver and a judge of addresses of their own."""

    def __init__(
        self,
        *,
        resolve: Resolve = resolve,
        may_connect: Callable[[Address], bool] = is_public,
        tls: ssl.SSLContext | bool = True,
    ) -> None:
        self._resolve = resolve
        self._may_connect = may_connect
        self._tls = tls

    async def fetch(self, url: str, field: str, *, max_bytes: int, check: Check) -> bytes:
        """Return what a URL names. `check` sees the first bytes and may refuse them before the rest is read.

        `field` is the caller's name of the URL, for the errors.

        Raises: InputRefused, InputUnreachable, or what `check` raises.
        """
        try:
            async with asyncio.timeout(TOTAL_TIMEOUT_S):
                for _ in range(MAX_REDIRECTS + 1):
                    found = await self._hop(url, field, max_bytes, check)
                    if isinstance(found, bytes):
                        return found
                    url = found
        except TimeoutError as error:
            raise InputUnreachable(field, "took too long") from error
        raise InputRefused(field, f"leads through more than {MAX_REDIRECTS} redirects")

    async def _hop(self, url: str, field: str, max_bytes: int, check: Check) -> bytes | str:
        """Return the body, or the URL of the next hop."""
        pinned, host, port = await self._pinned(url, field)
        named = f"[{host}]" if ":" in host else host
        headers = {
            "Host": named if port is None else f"{named}:{port}",
            "Accept-Encoding": "identity",
            "User-Agent": "Farebox",
        }
        try:
            async with (
                httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=TIMEOUTS) as client,
                # The certificate is verified against the name, though the connection goes to the address.
                client.stream("GET", pinned, headers=headers, extensions={"sni_hostname": host}) as answer,
            ):
                if answer.has_redirect_location:
                    return _joined(url, answer.headers["location"], field)
                self._judge(answer, field, max_bytes)
                return await _body(answer, field, max_bytes, check)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise InputUnreachable(field, f"could not be fetched ({type(error).__name__})") from error

    async def _pinned(self, url: str, field: str) -> tuple[httpx.URL, str, int | None]:
        """Return the URL with a checked address instead of its host, the host's name and the port."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").encode("idna").decode(), parts.port
        except ValueError as error:  # a UnicodeError is one too
            raise InputRefused(field, "is not a URL") from error
        if parts.scheme not in ("http", "https") or not host:
            raise InputRefused(field, "must be an http or https URL, also after a redirect")
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                addresses = await self._resolve(host, port or (443 if parts.scheme == "https" else 80))
        except TimeoutError as error:
            raise InputUnreachable(field, "its host's name took too long to look up") from error
        except OSError as error:
            raise InputUnreachable(field, "its host is not known") from error
        # One private address among public ones is a trap, not an accident.
        if not addresses or not all(self._may_connect(address) for address in addresses):
            raise InputRefused(field, "must name a host of the public internet")
        address = addresses[0]
        literal = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
        authority = literal if port is None else f"{literal}:{port}"
        try:
            pinned = httpx.URL(parts._replace(netloc=authority, fragment="").geturl())
        except httpx.InvalidURL as error:
            raise InputRefused(field, "is not a URL") from error
        return pinned, host, port

    @staticmethod
    def _judge(answer: httpx.Response, field: str, max_bytes: int) -> None:
        """Refuse an answer by its status and headers."""
        status = answer.status_code
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.TOO_MANY_REQUESTS:
            raise InputUnreachable(field, f"its server answered {status}")
        if status != httpx.codes.OK:
            raise InputRefused(field, f"its server answered {status}")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise InputRefused(field, "its server sends it compressed, though asked not to")
        declared = answer.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared) > max_bytes:
            raise InputRefused(field, f"is larger than {max_bytes} bytes")


def _joined(url: str, where: str, field: str) -> str:
    try:
        return urljoin(url, where)
    except ValueError as error:
        raise InputRefused(field, "leads to what is not a URL") from error


async def _body(answer: httpx.Response, field: str, max_bytes: int, check: Check) -> bytes:
    body = bytearray()
    checked = False
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise InputRefused(field, f"is larger than {max_bytes} bytes")
        if not checked and len(body) >= HEAD_BYTES:
            check(bytes(body[:HEAD_BYTES]))
            checked = True
    if not checked:
        check(bytes(body))
    return bytes(body)
