"""Addresses: who called, however many proxies lie between, and networks as people write them."""

from __future__ import annotations

import pytest

from kit.addresses import caller_address, network, spelled
from kit.settings import Settings

PROXIES = Settings(trusted_proxies="127.0.0.1, 10.0.0.0/8, 2001:db8:ffff::/48").proxies


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "caller"),
    [
        ("198.51.100.1", "", "198.51.100.1"),
        ("198.51.100.1", "203.0.113.7", "198.51.100.1"),
        ("127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "192.0.2.1, 203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "203.0.113.7, 10.1.2.3", "203.0.113.7"),
        ("127.0.0.1", "192.0.2.1,203.0.113.7,10.1.2.3", "203.0.113.7"),
        ("127.0.0.1", "10.9.9.9", "10.9.9.9"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.7:4711", "203.0.113.7"),
        ("127.0.0.1", "[2001:db8::7]:4711", "2001:db8::7"),
        ("2001:db8:ffff::1", "2001:db8::7", "2001:db8::7"),
        ("::ffff:127.0.0.1", "::ffff:203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "unknown", None),
        ("127.0.0.1", "203.0.113.7, _hidden", None),
        ("127.0.0.1", ", ,", None),
        (None, "203.0.113.7", None),
        ("testclient", "203.0.113.7", None),
    ],
)
def test_the_caller_is_the_nearest_hop_that_no_proxy_of_ours_is(peer, forwarded_for, caller):
    assert caller_address(peer, forwarded_for, PROXIES) == caller


def test_without_proxies_a_forwarded_address_is_never_believed():
    assert caller_address("127.0.0.1", "203.0.113.7", ()) == "127.0.0.1"


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.0/24", "203.0.113.0/24"),
        ("2001:DB8::0007", "2001:db8::7"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_a_network_has_one_spelling(written, canonical):
    assert spelled(network(written)) == canonical


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ("203.0.113.7/24", "the network is 203.0.113.0/24"),
        ("203.0.113", "must be an IPv4 or IPv6 address"),
        ("office", "must be an IPv4 or IPv6 address"),
        ("fe80::1%eth0", "must not name an interface"),
        ("", "must be an IPv4 or IPv6 address"),
        ("203.0.113.0/33", "must be an IPv4 or IPv6 address"),
    ],
)
def test_what_is_no_network_is_refused_with_a_reason(written, fault):
    with pytest.raises(ValueError, match=fault):
        network(written)


def test_a_misspelt_proxy_is_refused_at_the_start():
    with pytest.raises(ValueError, match="trusted_proxies"):
        Settings(trusted_proxies="10.0.0.0/8, proxy.internal")
