"""The signature of Coinbase's webhooks, in both its versions; five minutes old at most.

`v0` signs the time and the body, `v1` the values of named headers too. Where `v1` is present it must hold: a right `v0`
beside a wrong `v1` is a webhook whose headers were changed.

Source: Hook0's webhook signatures, which Coinbase sends as `X-Hook0-Signature`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from kit.errors import InvalidRequest
from payments.signatures import is_signed

HEADER: Final = "x-hook0-signature"
TOLERANCE_S: Final = 300
"""A replayed webhook is harmless, and still refused after five minutes, as its makers advise."""
STAMP: Final = re.compile(r"[0-9]{1,12}")
"""Seconds since 1970, for the next thirty thousand years."""
MAX_LENGTH: Final = 4096
"""A signature with all the headers it may name is far shorter."""


def verify_hook0(secrets: Sequence[str], body: bytes, headers: Mapping[str, str], now_s: float) -> None:
    """Return for a webhook that one of the secrets signed; header names are in lower case. Raises: InvalidRequest."""
    parts = _parts(headers.get(HEADER, ""))
    stamp = parts.get("t", "")
    if not (STAMP.fullmatch(stamp) and abs(now_s - int(stamp)) <= TOLERANCE_S):
        raise _refusal("its time is not within five minutes of ours")
    if "v1" in parts:
        named = parts.get("h", "")
        values = [headers.get(name.lower()) for name in named.split(" ") if name]
        present = [value for value in values if value is not None]
        if not present or len(present) < len(values):
            raise _refusal("it names a header that did not come")
        signed = b".".join([stamp.encode(), named.encode(), ".".join(present).encode(), body])
        given = parts["v1"]
    else:
        signed = stamp.encode() + b"." + body
        given = parts.get("v0", "")
    if not is_signed(secrets, signed, given):
        raise _refusal("it does not verify")


def _parts(signature: str) -> dict[str, str]:
    if len(signature) > MAX_LENGTH:
        raise _refusal("it is too long")
    pairs = [part.strip().partition("=") for part in signature.split(",")]
    parts = {name: value for name, _, value in pairs}
    if len(parts) < len(pairs):
        raise _refusal("it says something twice")
    return parts


def _refusal(why: str) -> InvalidRequest:
    return InvalidRequest("X-Hook0-Signature", why)
