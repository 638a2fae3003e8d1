"""A stranger pays for a call: the 402 with its price, and what a paid answer carries beside its own fields."""

from __future__ import annotations

from typing import Any, Final

from fastapi import Request

from gateway.deps import Parts, ip_of
from gateway.limits import limit_by
from gateway.responses import in_credits
from ledger.keys import Credential, hash_key
from payments.x402_payments import Paid
from payments.x402_wire import SIGNATURE_HEADER, Call, encode

JOB_KEY_DAYS: Final = 1
"""A job's key reads the job and spends what a failed one left: a day is longer than any job, and soon over."""


async def paid_call(  # noqa: PLR0913  # what is bought, and how its key is made
    request: Request,
    parts: Parts,
    call: Call,
    retry_key: str | None,
    *,
    key_label: str,
    key_days: int | None,
    topup_user_id: str | None = None,
) -> Paid:
    """Return this call's settled payment. Raises: PaymentRequired and the other refusals of `X402Checkout.pay`."""
    assert parts.x402 is not None, "routes ask for payment where wallets can pay"

    async def admit(payer: str) -> None:
        await limit_by(request, "wallet", payer)

    return await parts.x402.pay(
        call,
        parts.settings.base_url + request.url.path,
        request.headers.get(SIGNATURE_HEADER),
        retry_key,
        key_label=key_label,
        key_days=key_days,
        admit=admit,
        topup_user_id=topup_user_id,
    )


def credential_of_payment(request: Request, parts: Parts, paid: Paid) -> Credential:
    """Return the credential of a payment's own key: what was paid for is done as with any other key."""
    return Credential(hash_key(paid.secret), ip_of(request, parts.proxies))


def payment_shown(paid: Paid) -> dict[str, Any]:
    """Return a payment as an answer shows it."""
    return {
        "payer": paid.payer,
        "network": paid.network,
        "transaction": paid.transaction,
        "amount": str(paid.amount_minor),
        "credits": in_credits(paid.credits_tokens),
        "tokens": paid.credits_tokens,
    }


def payment_headers(paid: Paid) -> dict[str, str]:
    """Return the x402 header of a paid answer."""
    return {
        "payment-response": encode(
            {
                "success": True,
                "transaction": paid.transaction,
                "network": paid.network,
                "payer": paid.payer,
                "amount": str(paid.amount_minor),
            }
        )
    }
