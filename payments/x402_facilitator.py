"""The facilitator: who tells whether a wallet's signature is good, and who moves its money. Asked over HTTP.

Source: the x402 specification, version 2, facilitator interface (`/verify`, `/settle`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol

import httpx
import structlog

from payments.cdp import CdpKey
from payments.errors import PaymentsUnavailable
from payments.x402_wire import VERSION

log = structlog.get_logger(__name__)

VERIFY_TIMEOUT_S: Final = 10.0
SETTLE_TIMEOUT_S: Final = 30.0
"""A transaction is in a block after seconds; what takes longer is asked about again later."""
PENDING: Final = "settlement_pending"
"""The transaction was sent and is not confirmed: asked again, the facilitator looks at that same transaction."""
SHOWN_REASON_CHARS: Final = 200
FIRST_NAMES: Final[Mapping[str, str]] = {"base": "eip155:8453", "base-sepolia": "eip155:84532"}
"""Networks as version 1 named them. Coinbase's facilitator shows them in its answers to version 2 too."""
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a payment would go through now; `reason` if not."""

    valid: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Settlement:
    """What the facilitator said of a settlement. `pending`: it does not know yet; ask again.

    `transaction` may be set in a failure too: then something was sent to the chain.
    """

    success: bool
    pending: bool
    reason: str
    transaction: str
    payer: str
    network: str


UNANSWERED: Final = Settlement(
    success=False, pending=True, reason="no answer", transaction="", payer="", network=""
)
"""Nobody knows whether the money moved."""


class Facilitator(Protocol):
    """Verifies and settles payments."""

    async def verify(self, payload: Mapping[str, Any]) -> Verdict:
        """Tell whether a payment would go through. Raises: PaymentsUnavailable; nothing was charged."""

    async def settle(self, payload: Mapping[str, Any]) -> Settlement:
        """Move the money; never raises for the network's sake, since money may have moved (`UNANSWERED`)."""

    async def close(self) -> None:
        """Close the connections."""


class HttpFacilitator:
    """A facilitator behind a URL."""

    def __init__(self, url: str, token: str = "", key: CdpKey | None = None) -> None:
        """Connect to nothing yet. `key`: Coinbase's facilitator wants a token of its own for each request."""
        self._url = url.rstrip("/")
        self._key = key
        # No redirects: a signed payment goes where the operator said, and nowhere else.
        self._http = httpx.AsyncClient(
            headers={"authorization": f"Bearer {token}"} if token else {}, follow_redirects=False
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def verify(self, payload: Mapping[str, Any]) -> Verdict:
        try:
            answer = await self._ask("verify", "isValid", payload, VERIFY_TIMEOUT_S)
        except (httpx.HTTPError, ValueError) as error:
            raise PaymentsUnavailable(
                "The payment facilitator does not answer right now; nothing was charged. Try again."
            ) from error
        return Verdict(answer["isValid"], _text(answer.get("invalidReason")))

    async def settle(self, payload: Mapping[str, Any]) -> Settlement:
        try:
            answer = await self._ask("settle", "success", payload, SETTLE_TIMEOUT_S)
        except (httpx.HTTPError, ValueError) as error:
            log.warning("a settlement was not answered", problem=repr(error)[:500])
            return UNANSWERED
        reason = _text(answer.get("errorReason"))
        return Settlement(
            success=answer["success"],
            pending=not answer["success"] and reason == PENDING,
            reason=reason,
            transaction=_text(answer.get("transaction")),
            payer=_text(answer.get("payer")).lower(),
            network=FIRST_NAMES.get(network := _text(answer.get("network")), network),
        )

    async def _ask(
        self, verb: str, verdict: str, payload: Mapping[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        """Return an answer that holds a verdict. A refusal comes as 200 or 4xx; a 5xx is no answer.

        Raises: HTTPError, ValueError.
        """
        body = {"x402Version": VERSION, "paymentPayload": payload, "paymentRequirements": payload["accepted"]}
        place = f"{self._url}/{verb}"
        signed = self._key.authorization("POST", place) if self._key else {}
        answer = await self._http.post(place, json=body, headers=signed, timeout=timeout_s)
        found = json.loads(answer.content)
        decided = isinstance(found, dict) and isinstance(found.get(verdict), bool)
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR or not decided:
            raise ValueError(f"{verb} answered {answer.status_code} without a verdict")
        known: dict[str, Any] = found
        return known


def _text(value: object) -> str:
    """Return a facilitator's word, short and printable: it goes into our books and answers."""
    return _UNPRINTABLE.sub("?", value)[:SHOWN_REASON_CHARS] if isinstance(value, str) else ""
