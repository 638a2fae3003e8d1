"""x402 version 2 as it goes over HTTP: the offer in a 402, and the signed payment that answers it.

The signature covers sender, receiver, amount, time and a nonce, and becomes public with the transaction. It does not
cover what is bought: an offer's `quote` does, which only we can make and which never reaches the chain.

Source: the x402 specification, version 2, scheme `exact` on EVM chains (EIP-3009 `transferWithAuthorization`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kit.errors import InvalidRequest

VERSION: Final = 2
SIGNATURE_HEADER: Final = "PAYMENT-SIGNATURE"
USDC_PLACES: Final = 6
"""One USDC is a million of its smallest unit, in which all amounts are written."""
OFFER_S: Final = 300
"""How long an offer stands, and so a signature: time enough for a person to confirm it."""
MAX_HEADER_BYTES: Final = 16_384
"""A signed payment has two thousand; one of a contract wallet carries its code."""

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_NONCE: Final = re.compile(r"0x[0-9a-fA-F]{64}")
_SIGNATURE: Final = re.compile(r"0x([0-9a-fA-F]{2}){1,4096}")
_WHOLE: Final = re.compile(r"[0-9]{1,78}", re.ASCII)
_QUOTE: Final = re.compile(r"([0-9]{10})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Asset:
    """A token on a chain; `name` and `version` are what its contract's signatures are made over."""

    network: str
    address: str
    name: str
    version: str


ASSETS: Final[Mapping[str, Asset]] = {
    asset.network: asset
    for asset in (
        Asset("eip155:8453", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USD Coin", "2"),
        Asset("eip155:84532", "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC", "2"),
    )
}
"""USDC by chain. Source: Circle's list of contract addresses."""


@dataclass(frozen=True, slots=True)
class Call:
    """What is sold: this very call. `fingerprint`: the SHA-256 of what its body means.

    Units: `amount_minor` millionths of a USDC.
    """

    resource: str
    description: str
    fingerprint: str
    package_code: str
    price_version: int
    credits_tokens: int
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Payment:
    """A signed payment as its header carries it, well formed and otherwise unchecked."""

    accepted: dict[str, Any]
    authorization: dict[str, str]
    signature: str

    @property
    def payer(self) -> str:
        """The wallet, in lower case."""
        return self.authorization["from"].lower()

    @property
    def nonce(self) -> str:
        """What makes it unique for its wallet."""
        return self.authorization["nonce"].lower()

    @property
    def quote(self) -> str:
        """The quote that its offer carried."""
        extra = self.accepted.get("extra")
        quote = extra.get("quote") if isinstance(extra, dict) else None
        return quote if isinstance(quote, str) else ""


class Till:
    """Makes offers and tells its own from others: where money goes, in what, and the secret of its quotes."""

    def __init__(self, asset: Asset, pay_to: str, secret: bytes) -> None:
        self.asset = asset
        self._pay_to = pay_to
        self._secret = secret

    def required(self, call: Call, url: str, problem: str, now: int) -> str:
        """Return the header of a 402: a fresh offer for this call."""
        expires = now + OFFER_S
        nonce = secrets.token_urlsafe(16)
        quote = f"{expires}.{nonce}.{self._mac(call, str(expires), nonce)}"
        return encode(
            {
                "x402Version": VERSION,
                "error": problem,
                "resource": _resource(call, url),
                "accepts": [self._requirements(call, quote)],
            }
        )

    def payload(self, call: Call, payment: Payment, url: str, now: int) -> dict[str, Any]:
        """Return what a facilitator is asked about a payment that answers an offer of ours for this very call.

        Raises: InvalidRequest, naming what differs.
        """
        found = _QUOTE.fullmatch(payment.quote)
        if found is None or not hmac.compare_digest(self._mac(call, found[1], found[2]), found[3]):
            raise InvalidRequest(SIGNATURE_HEADER, "answers another offer, or the price changed since")
        if int(found[1]) <= now:
            raise InvalidRequest(SIGNATURE_HEADER, "answers an offer that is over")
        requirements = self._requirements(call, payment.quote)
        if payment.accepted != requirements:
            raise InvalidRequest(SIGNATURE_HEADER, "`accepted` differs from what was offered")
        signed = payment.authorization
        if signed["to"].lower() != self._pay_to.lower():
            raise InvalidRequest(SIGNATURE_HEADER, "pays somebody else")
        if int(signed["value"]) != call.amount_minor:
            raise InvalidRequest(SIGNATURE_HEADER, "pays another amount")
        if not int(signed["validAfter"]) <= now < int(signed["validBefore"]):
            raise InvalidRequest(SIGNATURE_HEADER, "is not valid now")
        return {
            "x402Version": VERSION,
            "resource": _resource(call, url),
            "accepted": requirements,
            "payload": {"signature": payment.signature, "authorization": signed},
        }

    def _requirements(self, call: Call, quote: str) -> dict[str, Any]:
        return {
            "scheme": "exact",
            "network": self.asset.network,
            "amount": str(call.amount_minor),
            "asset": self.asset.address,
            "payTo": self._pay_to,
            "maxTimeoutSeconds": OFFER_S,
            # `upfront`: settled before the work begins, so that nobody takes the money back while we work.
            "extra": {
                "name": self.asset.name,
                "version": self.asset.version,
                "paymentFlow": "upfront",
                "quote": quote,
            },
        }

    def _mac(self, call: Call, expires: str, nonce: str) -> str:
        bound = json.dumps(
            [
                "farebox x402 quote", expires, nonce, self.asset.network, self.asset.address, self._pay_to,
                call.resource, call.fingerprint, call.package_code, call.price_version, call.credits_tokens,
                call.amount_minor,
            ]
        )  # fmt: skip
        mac = hmac.digest(self._secret, bound.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")


def quote_hash(quote: str) -> bytes:
    """Return what is stored of a quote: who shows it again holds the first answer's request."""
    return hashlib.sha256(quote.encode(errors="surrogatepass")).digest()


def encode(value: Mapping[str, Any]) -> str:
    """Write an object as an x402 header."""
    return base64.b64encode(json.dumps(value, separators=(",", ":")).encode()).decode()


def parse_payment(header: str) -> Payment:
    """Return the payment that a header carries, every field of its form. Raises: InvalidRequest."""
    if len(header) > MAX_HEADER_BYTES:
        raise InvalidRequest(SIGNATURE_HEADER, f"is longer than {MAX_HEADER_BYTES} bytes")
    try:
        sent = json.loads(base64.b64decode(header, validate=True))
        if sent["x402Version"] != VERSION:
            raise InvalidRequest(SIGNATURE_HEADER, f"is not of x402 version {VERSION}")
        signed = sent["payload"]["authorization"]
        payment = Payment(
            sent["accepted"], {name: signed[name] for name in _FIELDS}, sent["payload"]["signature"]
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidRequest(SIGNATURE_HEADER, "is not the base64 of a payment by `exact`") from error
    if not isinstance(payment.accepted, dict):
        raise InvalidRequest(SIGNATURE_HEADER, "`accepted` must be an object")
    for name, form in _FIELDS.items():
        value = payment.authorization[name]
        if not isinstance(value, str) or not form.fullmatch(value):
            raise InvalidRequest(SIGNATURE_HEADER, f"`{name}` is not of its form")
    if not isinstance(payment.signature, str) or not _SIGNATURE.fullmatch(payment.signature):
        raise InvalidRequest(SIGNATURE_HEADER, "`signature` is not of its form")
    return payment


_FIELDS: Final = {
    "from": _ADDRESS,
    "to": _ADDRESS,
    "value": _WHOLE,
    "validAfter": _WHOLE,
    "validBefore": _WHOLE,
    "nonce": _NONCE,
}


def _resource(call: Call, url: str) -> dict[str, str]:
    return {"url": url, "description": call.description, "mimeType": "application/json"}
