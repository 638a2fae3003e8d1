"""A caller without an account pays for one call: offer, verify, settle, grant - and only then is the call served.

The facilitator is asked between transactions, never within one. A payment that was written down is settled to its end
by whoever comes first: its caller, who sends the same request again, or the runner's upkeep.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final, Protocol

import structlog

from kit.errors import InvalidRequest, Unavailable
from kit.settings import Settings
from payments.cdp import CdpKey
from payments.errors import PaymentRequired, SettlementPending, SettlementUnclear
from payments.x402_facilitator import Facilitator, HttpFacilitator, Settlement
from payments.x402_payments import Bill, Outcome, Paid, Refused, Settling, Unknown
from payments.x402_wire import (
    ASSETS,
    USDC_PLACES,
    Call,
    Payment,
    Till,
    parse_payment,
    quote_hash,
)

log = structlog.get_logger(__name__)

ASK: Final = "This call costs money: send a key, or pay with x402 what `details.accepts` says."
CONCLUDE_PAUSES_S: Final = (0.2, 1.0, 3.0)
"""An answer that cannot be stored is worth a few seconds: the facilitator may not give it again."""
MINOR_PER_USDC: Final = 10**USDC_PLACES
MINOR_PER_CENT: Final = MINOR_PER_USDC // 100


class X402Books(Protocol):
    """The transactions of a wallet's payment; see `gateway.ports.Ledger` for their guarantees."""

    async def resume_x402(self, bill: Bill) -> Outcome | None: ...

    async def begin_x402(self, bill: Bill) -> Outcome: ...

    async def conclude_x402(self, payment_id: str, attempt: int, said: Settlement) -> Outcome: ...

    async def due_x402(self, limit: int) -> list[Settling]: ...


class X402Checkout:
    """Sells single calls, and packages, to wallets."""

    def __init__(
        self,
        books: X402Books,
        facilitator: Facilitator,
        till: Till,
        tokens_per_usdc: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._books = books
        self._facilitator = facilitator
        self._till = till
        self._tokens_per_usdc = tokens_per_usdc
        self._clock = clock

    async def close(self) -> None:
        """Close the connections to the facilitator."""
        await self._facilitator.close()

    def price_minor(self, tokens: int) -> int:
        """Return what tokens cost in millionths of a USDC, rounded up once."""
        return -(-tokens * MINOR_PER_USDC // self._tokens_per_usdc)

    async def pay(  # noqa: PLR0913  # what is bought, and by whom
        self,
        call: Call,
        url: str,
        header: str | None,
        retry_key: str | None,
        *,
        key_label: str,
        key_days: int | None,
        admit: Callable[[str], Awaitable[None]],
        topup_user_id: str | None = None,
    ) -> Paid:
        """Return the payment of this call once it is settled and granted, however often it is sent.

        `admit` is told the payer of a new payment whose signature holds, before anything is written.
        Raises: what `admit` does; PaymentRequired with a fresh offer, when nothing was paid; InvalidRequest,
        PaymentReused, SettlementPending, SettlementUnclear, PaymentsUnavailable.
        """
        if header is None:
            raise self._required(call, url, ASK)
        payment = parse_payment(header)
        bill = replace(self._bill(call, payment, retry_key, key_label, key_days), topup_user_id=topup_user_id)
        # Before the offer is looked at: a payment that was sent in time is answered later, too.
        outcome = await self._books.resume_x402(bill)
        if outcome is None:
            try:
                payload = self._till.payload(call, payment, url, int(self._clock()))
            except InvalidRequest as differs:
                raise self._required(call, url, f"The payment {differs.problem}.") from differs
            verdict = await self._facilitator.verify(payload)
            if not verdict.valid:
                raise self._required(call, url, f"The facilitator refuses the payment: {verdict.reason}.")
            await admit(payment.payer)
            outcome = await self._books.begin_x402(replace(bill, payload=payload))
        if isinstance(outcome, Settling):
            outcome = await self._settle(outcome)
        match outcome:
            case Paid():
                return outcome
            case Refused():
                raise self._required(call, url, f"The payment was not settled: {outcome.reason}.")
            case Unknown(unclear=True):
                raise SettlementUnclear(outcome.payment_id)
            case Unknown() | Settling():
                raise SettlementPending(outcome.payment_id)

    async def settle_due(self, limit: int) -> None:
        """Ask again about payments whose outcome nobody knows; one at a time, so that each has its whole lease."""
        for _ in range(limit):
            for settling in (taken := await self._books.due_x402(1)):
                await self._settle(settling)
            if not taken:
                return

    async def _settle(self, settling: Settling) -> Outcome:
        said = await self._facilitator.settle(settling.payload)
        if said.transaction:  # should the books be away for long, this line still tells where the money is
            log.info("an x402 payment moved", payment_id=settling.payment_id, transaction=said.transaction)
        for pause_s in CONCLUDE_PAUSES_S:
            with suppress(Unavailable):
                return await self._books.conclude_x402(settling.payment_id, settling.attempt, said)
            await asyncio.sleep(pause_s)
        return await self._books.conclude_x402(settling.payment_id, settling.attempt, said)

    def _bill(
        self, call: Call, payment: Payment, retry_key: str | None, key_label: str, key_days: int | None
    ) -> Bill:
        return Bill(
            network=self._till.asset.network,
            asset=self._till.asset.address.lower(),
            payer=payment.payer,
            nonce=payment.nonce,
            quote_hash=quote_hash(payment.quote),
            resource=call.resource,
            fingerprint=call.fingerprint,
            retry_key=retry_key,
            package_code=call.package_code,
            price_version=call.price_version,
            credits_tokens=call.credits_tokens,
            amount_minor=call.amount_minor,
            key_label=key_label,
            key_days=key_days,
            payload={},
        )

    def _required(self, call: Call, url: str, problem: str) -> PaymentRequired:
        return PaymentRequired(problem, self._till.required(call, url, problem, int(self._clock())))


def _cdp_key(settings: Settings) -> CdpKey | None:
    secret = settings.x402_cdp_key_secret.get_secret_value()
    return CdpKey(settings.x402_cdp_key_id, secret) if secret else None


def x402_for(settings: Settings, books: X402Books) -> X402Checkout | None:
    """Return the checkout of wallets that the settings configure, or None where no facilitator is."""
    if not settings.x402_facilitator:
        return None
    return X402Checkout(
        books,
        HttpFacilitator(
            settings.x402_facilitator, settings.x402_facilitator_token.get_secret_value(), _cdp_key(settings)
        ),
        Till(
            ASSETS[settings.x402_network], settings.x402_pay_to, settings.secret.get_secret_value().encode()
        ),
        settings.x402_tokens_per_usdc,
    )
