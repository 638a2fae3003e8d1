"""Internet addresses as callers, operators and proxies write them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_MAPPED: Final = ip_network("::ffff:0:0/96")
"""IPv4 written as IPv6: what a socket for both kinds says of its peers."""


def network(written: str) -> Network:
    """Read an address or a network in CIDR notation. Raises: ValueError, saying what is wrong."""
    if "%" in written:
        raise ValueError("must not name an interface")
    try:
        found = ip_network(written)
    except ValueError as error:
        try:
            meant = ip_network(written, strict=False)
        except ValueError:
            raise ValueError("must be an IPv4 or IPv6 address, or a network such as 192.0.2.0/24") from error
        raise ValueError(f"has bits beyond its prefix; the network is {meant}") from error
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):  # type: ignore[arg-type]  # both IPv6
        mapped = found.network_address.ipv4_mapped
        assert mapped is not None, "it lies within the mapped range"
        return IPv4Network((mapped, found.prefixlen - 96))
    return found


def spelled(found: Network) -> str:
    """Write a network shortly: an address alone without its prefix."""
    return str(found.network_address) if found.num_addresses == 1 else str(found)


def caller_address(peer: str | None, forwarded_for: str, trusted: Sequence[Network]) -> str | None:
    """Return who called: the nearest hop that is no trusted proxy of ours, or None where none can be told.

    `forwarded_for` is the value of `X-Forwarded-For`, to which each proxy adds its own peer on the right. It is
    believed from right to left for as long as the hop that wrote it is trusted; what a caller put there lies left of
    what the first proxy wrote, and is never reached.
    """
    hop = _address(peer or "")
    for written in reversed(forwarded_for.split(",")) if forwarded_for else ():
        if hop is None or not any(hop in each for each in trusted):
            break
        hop = _address(written.strip())
    return None if hop is None else str(hop)


@lru_cache(4096)  # the same callers come again and again
def _address(written: str) -> Address | None:
    """Read a hop, also with a port as some proxies write it."""
    if written.startswith("["):
        written = written[1:].partition("]")[0]
    elif written.count(":") == 1:
        written = written.partition(":")[0]
    try:
        found = ip_address(written.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped if isinstance(found, IPv6Address) else None) or found
