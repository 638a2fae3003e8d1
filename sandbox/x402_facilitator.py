"""A twin of an x402 facilitator: verifies and settles payments in play money, and fails on demand.

It speaks the facilitator's protocol of x402 version 2: `GET /supported`, `POST /verify`, `POST /settle`. A nonce moves
money once. Signatures of real wallets are checked where `eth-account` is installed; a wallet of its own, for those who
have none, signs at `POST /_twin/sign`. Under `/_twin/` a test also arranges failures and looks at what moved.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from sandbox.coinbase_tokens import token_problem

NETWORKS = ("eip155:84532",)
"""Play money never lives on a chain of real money."""

START_MINOR = 1_000_000_000
"""A thousand USDC: what a wallet has that was never seen before."""

DOWN, LOST, SLOW, FAIL, PENDING = "down", "lost", "slow", "fail", "pending"
OUTCOMES = (DOWN, LOST, SLOW, FAIL, PENDING)
"""`down`: 503, nothing moved. `lost`: the money moved, and the answer is a 503. `slow`: the answer waits for
`POST /_twin/release`. `fail`: refused, nothing moved. `pending`: the money moves, and is confirmed when asked again."""


@dataclass
class Chain:
    """What a chain would remember: balances, and the transaction of each nonce that was used."""

    clock: Callable[[], float] = time.time
    forgets: bool = False
    """Whether a settled payment, sent again, is refused for its used nonce; else its first answer comes again."""
    first_names: bool = False
    """Whether answers name the network as version 1 did, as Coinbase's facilitator shows them."""
    balances: dict[str, int] = field(default_factory=dict)
    transactions: dict[tuple[str, str], str] = field(default_factory=dict)
    pending: set[tuple[str, str]] = field(default_factory=set)
    arranged: deque[str] = field(default_factory=deque)
    settles: int = 0
    verifies: int = 0
    wallet_secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def wallet(self) -> str:
        """The address of the twin's own wallet."""
        return f"0x{hashlib.sha256(self.wallet_secret).hexdigest()[:40]}"

    def problem(  # noqa: PLR0911  # one a reason
        self, payment: dict[str, Any], wanted: dict[str, Any]
    ) -> str | None:
        """Say why a payment is not good, in the protocol's words; None when it is."""
        signed = payment["payload"]["authorization"]
        now = self.clock()
        if payment.get("accepted") != wanted or wanted.get("scheme") != "exact":
            return "unsupported_scheme"
        if wanted.get("network") not in NETWORKS:
            return "network_mismatch"
        if signed["to"].lower() != wanted["payTo"].lower():
            return "invalid_exact_evm_payload_recipient_mismatch"
        if signed["value"] != wanted["amount"]:
            return "invalid_exact_evm_payload_authorization_value_mismatch"
        if int(signed["validBefore"]) <= now:
            return "invalid_exact_evm_payload_authorization_valid_before"
        if int(signed["validAfter"]) > now:
            return "invalid_exact_evm_payload_authorization_valid_after"
        if not self._is_signed(payment["payload"]["signature"], signed, wanted):
            return "invalid_exact_evm_payload_signature"
        return None

    def shortage(self, signed: dict[str, str]) -> str | None:
        """Say why the chain would refuse a good payment now."""
        if place_of(signed) in self.transactions:
            return "invalid_exact_evm_nonce_already_used"
        if self.balance(signed["from"]) < int(signed["value"]):
            return "invalid_exact_evm_insufficient_balance"
        return None

    def balance(self, address: str) -> int:
        """Give what a wallet has."""
        return self.balances.get(address.lower(), START_MINOR)

    def move(self, signed: dict[str, str]) -> str:
        """Move the money and give the transaction."""
        value = int(signed["value"])
        self.balances[signed["from"].lower()] = self.balance(signed["from"]) - value
        self.balances[signed["to"].lower()] = self.balances.get(signed["to"].lower(), 0) + value
        transaction = f"0x{secrets.token_hex(32)}"
        self.transactions[place_of(signed)] = transaction
        return transaction

    def sign(self, offer: dict[str, Any]) -> dict[str, Any]:
        """Answer an offer from the twin's own wallet."""
        accepted = offer["accepts"][0]
        signed = {
            "from": self.wallet,
            "to": accepted["payTo"],
            "value": accepted["amount"],
            "validAfter": "0",
            "validBefore": str(int(self.clock()) + accepted["maxTimeoutSeconds"]),
            "nonce": f"0x{secrets.token_hex(32)}",
        }
        return {
            "x402Version": 2,
            "resource": offer["resource"],
            "accepted": accepted,
            "payload": {"signature": self._own_signature(signed), "authorization": signed},
        }

    def _own_signature(self, signed: dict[str, str]) -> str:
        message = json.dumps(signed, sort_keys=True).encode()
        return f"0x{hmac.digest(self.wallet_secret, message, hashlib.sha512).hex()}00"

    def _is_signed(self, signature: str, signed: dict[str, str], wanted: dict[str, Any]) -> bool:
        if signed["from"].lower() == self.wallet:
            return hmac.compare_digest(signature, self._own_signature(signed))
        try:
            from eth_account import Account
            from eth_account.messages import encode_typed_data
        except ImportError:  # the product does not bring it along; its own wallet works without
            return False
        domain = {
            "name": wanted["extra"]["name"],
            "version": wanted["extra"]["version"],
            "chainId": int(wanted["network"].partition(":")[2]),
            "verifyingContract": wanted["asset"],
        }
        message = {
            **signed,
            **{name: int(signed[name]) for name in ("value", "validAfter", "validBefore")},
            "nonce": bytes.fromhex(signed["nonce"][2:]),
        }
        readable = encode_typed_data(domain, _TYPES, message)
        signer: str = Account.recover_message(readable, signature=signature)
        return signer.lower() == signed["from"].lower()


_TYPES = {
    "TransferWithAuthorization": [
        {"name": "from", "type": "address"},
        {"name": "to", "type": "address"},
        {"name": "value", "type": "uint256"},
        {"name": "validAfter", "type": "uint256"},
        {"name": "validBefore", "type": "uint256"},
        {"name": "nonce", "type": "bytes32"},
    ]
}
"""EIP-3009's typed data."""


def place_of(signed: dict[str, str]) -> tuple[str, str]:
    """Give what a chain keeps a used authorization under."""
    return signed["from"].lower(), signed["nonce"].lower()


@dataclass(frozen=True)
class CdpGuard:
    """Lets only requests through that carry a good token of one key, as Coinbase's facilitator does."""

    key_id: str
    key_secret: str = field(repr=False)
    clock: Callable[[], float] = time.time

    async def __call__(self, request: Request) -> None:
        """Refuse a token that is not ours, not for this request, or older than it may be. Raises: HTTPException."""
        if token_problem(request, self.key_id, self.key_secret, self.clock()) is not None:
            raise HTTPException(401, "The token is not for this request.")


def create_facilitator(chain: Chain, guard: CdpGuard | None = None) -> FastAPI:
    """Build the facilitator over a chain; with a guard, what moves or checks money wants its token."""
    app = FastAPI(openapi_url=None)
    behind = [Depends(guard)] if guard else []

    @app.get("/supported")
    async def supported() -> dict[str, Any]:
        kinds = [{"x402Version": 2, "scheme": "exact", "network": network} for network in NETWORKS]
        return {"kinds": kinds, "extensions": [], "signers": {}}

    @app.post("/verify", dependencies=behind)
    async def verify(request: Request) -> Response:
        chain.verifies += 1
        if chain.arranged and chain.arranged[0] == f"verify:{DOWN}":
            chain.arranged.popleft()
            return Response(status_code=503)
        body = await request.json()
        payment, wanted = body["paymentPayload"], body["paymentRequirements"]
        signed = payment["payload"]["authorization"]
        reason = chain.problem(payment, wanted) or chain.shortage(signed)
        answer = {"isValid": reason is None, "payer": signed["from"]}
        return JSONResponse(answer if reason is None else {**answer, "invalidReason": reason})

    @app.post("/settle", dependencies=behind)
    async def settle(request: Request) -> Response:
        body = await request.json()
        return await _settle(chain, body["paymentPayload"], body["paymentRequirements"])

    _add_controls(app, chain)
    return app


async def _settle(  # noqa: PLR0911  # one an outcome
    chain: Chain, payment: dict[str, Any], wanted: dict[str, Any]
) -> Response:
    chain.settles += 1
    signed = payment["payload"]["authorization"]
    place = place_of(signed)
    network = "base-sepolia" if chain.first_names else wanted["network"]
    said = {"payer": signed["from"], "network": network, "transaction": ""}
    outcome = chain.arranged.popleft() if chain.arranged else ""
    if outcome == DOWN:
        return Response(status_code=503)
    before = chain.transactions.get(place)
    if before and (place in chain.pending or not chain.forgets):
        chain.pending.discard(place)
        return JSONResponse({**said, "success": True, "transaction": before})
    if outcome == FAIL:
        return JSONResponse({**said, "success": False, "errorReason": "transaction_failed"})
    reason = chain.problem(payment, wanted) or chain.shortage(signed)
    if reason is not None:
        return JSONResponse({**said, "success": False, "errorReason": reason})
    said["transaction"] = chain.move(signed)
    if outcome == LOST:
        return Response(status_code=503)
    if outcome == PENDING:
        chain.pending.add(place)
        return JSONResponse({**said, "success": False, "errorReason": "settlement_pending"})
    if outcome == SLOW:
        await chain.released.wait()
    return JSONResponse({**said, "success": True})


def _add_controls(app: FastAPI, chain: Chain) -> None:
    @app.post("/_twin/sign")
    async def sign(request: Request) -> dict[str, str]:
        """Answer a `PAYMENT-REQUIRED` header from the twin's own wallet."""
        offer = json.loads(base64.b64decode((await request.json())["paymentRequired"]))
        payment = json.dumps(chain.sign(offer)).encode()
        return {"paymentSignature": base64.b64encode(payment).decode()}

    @app.post("/_twin/next")
    async def arrange(request: Request) -> dict[str, Any]:
        """Arrange what the next settlements do, in order."""
        outcomes = (await request.json())["outcomes"]
        chain.arranged.extend(str(each) for each in outcomes)
        return {"arranged": list(chain.arranged)}

    @app.post("/_twin/release")
    async def release() -> dict[str, bool]:
        """Let slow answers go."""
        chain.released.set()
        return {"released": True}

    @app.get("/_twin/chain")
    async def look() -> dict[str, Any]:
        """Show what moved."""
        return {"balances": chain.balances, "transfers": len(chain.transactions), "settles": chain.settles}
