"""What a checkout or a claim refuses, and why."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from kit.errors import AppError
from payments.currencies import amount_text


@dataclass
class PaymentsUnavailable(AppError):
    """No provider is configured, or it does not answer. Nothing was charged."""

    reason: str
    code = "payments_unavailable"
    status = 503
    retryable = True

    @property
    def message(self) -> str:
        return self.reason

    @property
    def retry_after_s(self) -> int:
        return 30


@dataclass
class PaymentPending(AppError):
    """The session is known and not paid yet."""

    code = "payment_pending"
    status = 409
    retryable = True

    @property
    def message(self) -> str:
        return "This payment has not arrived yet; claim again once it is paid."


@dataclass
class PaymentIncomplete(AppError):
    """The checkout ended with less than its price. Nothing was granted; an operator refunds or completes it."""

    purchase_id: str
    received_minor: int
    amount_minor: int
    currency: str
    code = "payment_incomplete"
    status = 409

    @property
    def message(self) -> str:
        return (
            f"{amount_text(self.received_minor, self.currency)} of {amount_text(self.amount_minor, self.currency)}"
            f" {self.currency.upper()} arrived before this checkout closed, and no credits were granted;"
            f" write to support with {self.purchase_id}."
        )


@dataclass
class PaymentFailed(AppError):
    """The session is known and will never be paid: it expired, or the money did not come."""

    code = "payment_failed"
    status = 409

    @property
    def message(self) -> str:
        return "This payment was not completed and nothing was granted; start a new checkout."


@dataclass
class AlreadyClaimed(AppError):
    """The first key of this payment was handed out; it is shown once."""

    code = "already_claimed"
    status = 409

    @property
    def message(self) -> str:
        return "The key of this payment was claimed before and is shown only once."


@dataclass
class ClaimExpired(AppError):
    """The payment was not claimed in time: whoever holds its link gets no key any more. Its credits are kept."""

    days: int
    code = "claim_expired"
    status = 409

    @property
    def message(self) -> str:
        return (
            f"The key of this payment had to be claimed within {self.days} days. The credits are safe: sign in with "
            "the e-mail address that paid."
        )


@dataclass
class AccountExists(AppError):
    """The payer's e-mail owned an account before: the credits went there, and no key is given out."""

    code = "account_exists"
    status = 409

    @property
    def message(self) -> str:
        return "The credits are on the account that this e-mail already owns; use a key of that account."


@dataclass
class PaymentMismatch(AppError):
    """The provider's session does not match what was sold: amount, currency or mode. Nothing was granted."""

    purchase_id: str
    what: str
    code = "payment_mismatch"
    status = 409

    @property
    def message(self) -> str:
        return (
            f"The payment's {self.what} differs from the purchase; write to support with {self.purchase_id}."
        )


@dataclass
class NotRefundable(AppError):
    """The payment can't be given back so. No money was moved."""

    reason: str
    code = "not_refundable"
    status = 409

    @property
    def message(self) -> str:
        return f"This payment can't be refunded: {self.reason}."


@dataclass
class VoucherClosed(AppError):
    """The voucher is used up, expired or disabled. Nothing was granted."""

    state: str
    code = "voucher_closed"
    status = 409

    @property
    def message(self) -> str:
        return f"This voucher is {self.state.replace('_', ' ')}."

    @property
    def details(self) -> dict[str, str]:
        return {"state": self.state}


@dataclass
class SelfReferral(AppError):
    """The code is the caller's own, or that of another account of theirs. Nothing was written."""

    code = "self_referral"
    status = 409

    @property
    def message(self) -> str:
        return "This code is your own; a referral takes two people."


@dataclass
class AlreadyReferred(AppError):
    """The account applied another code before, which stands."""

    code = "already_referred"
    status = 409

    @property
    def message(self) -> str:
        return "This account has applied another referral code, and that one stands."


@dataclass
class ReferralTooLate(AppError):
    """An order of the account was paid before. Nothing was written."""

    code = "referral_too_late"
    status = 409

    @property
    def message(self) -> str:
        return "A referral code must be applied before the account's first paid order."


@dataclass
class ReferralRing(AppError):
    """The code's owner came by the caller, directly or over others. Nothing was written."""

    code = "referral_ring"
    status = 409

    @property
    def message(self) -> str:
        return "The owner of this code was referred by you, or by someone whom you referred."


@dataclass
class PaymentRequired(AppError):
    """This call costs money, and nobody's account was named: what to sign is in `details` and in the header.

    `required`: the x402 object, as its header carries it. Nothing was settled.
    """

    reason: str
    required: str
    code = "payment_required"
    status = 402

    @property
    def message(self) -> str:
        return self.reason

    @property
    def details(self) -> Any:
        return json.loads(base64.b64decode(self.required))

    @property
    def headers(self) -> dict[str, str]:
        return {"payment-required": self.required}


@dataclass
class PaymentReused(AppError):
    """A signed payment, or its idempotency key, belongs to another request. Nothing was settled."""

    what: str
    code = "payment_reused"
    status = 409

    @property
    def message(self) -> str:
        return f"This {self.what} was used for another request; send that one again, or pay anew."


@dataclass
class SettlementPending(AppError):
    """The payment is being settled, and its outcome is not known yet. Nothing was granted so far."""

    payment_id: str
    code = "settlement_pending"
    status = 409
    retryable = True

    @property
    def message(self) -> str:
        return (
            f"Payment {self.payment_id} is being settled; send the same request with the same payment again,"
            " and do not sign another."
        )

    @property
    def retry_after_s(self) -> int:
        return 5


@dataclass
class SettlementUnclear(AppError):
    """The facilitator does not say whether the money moved: a person must look at the chain. Nothing was granted."""

    payment_id: str
    code = "settlement_unclear"
    status = 409

    @property
    def message(self) -> str:
        return f"It is not clear whether payment {self.payment_id} arrived; write to support with this id."
