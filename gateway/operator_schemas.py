"""What an operator may send, and a caller with a voucher. Every change wants its reason: the log keeps it."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from gateway.catalog import TOKENS_PER_CREDIT
from gateway.numbers import whole_as_decimal
from gateway.schemas import (
    MAX_CREDITS,
    Credits,
    FutureInstant,
    Label,
    Request,
    at_most_decimals,
    one_line,
)
from payments.vouchers import MAX_CODES, VoucherTerms

Reason = Annotated[
    str,
    Field(min_length=1, max_length=500, description="One line for the log.", examples=["ticket 17"]),
    AfterValidator(one_line),
]
Reference = Annotated[
    str,
    Field(
        min_length=1,
        max_length=255,
        description="Makes a retry safe: the same reference moves money once, for ever.",
        examples=["ticket-17"],
    ),
    AfterValidator(one_line),
]


def _not_zero(value: Decimal) -> Decimal:
    if not value:
        raise ValueError("must not be zero")
    return value


SignedCredits = Annotated[
    Decimal,
    BeforeValidator(whole_as_decimal),
    Field(ge=-MAX_CREDITS, le=MAX_CREDITS),
    AfterValidator(at_most_decimals(2)),
    AfterValidator(_not_zero),
    WithJsonSchema({"type": "number", "minimum": -MAX_CREDITS, "maximum": MAX_CREDITS, "multipleOf": 0.01}),
]


def in_tokens(value: Decimal) -> int:
    """Return credits of at most two decimals in tokens."""
    return int(value * TOKENS_PER_CREDIT)


class Because(Request):
    """A change that needs nothing but its reason."""

    reason: Reason


class Grant(Request):
    """Credits to give."""

    credits: Credits
    reference: Reference
    reason: Reason
    expires_at: Annotated[FutureInstant | None, Field(description="What is left then is gone.")] = None
    priority: Annotated[
        int | None,
        Field(ge=0, le=1000, description="Lower burns first. Gifts have 50, purchases 100."),
    ] = None


class Adjustment(Request):
    """A correction."""

    credits: Annotated[SignedCredits, Field(description="Negative takes away, at most what is free.")]
    reference: Reference
    reason: Reason


class Refund(Request):
    """Credits to give back of one charge."""

    credits: Annotated[Credits | None, Field(description="Without it, all that is left of the charge.")] = (
        None
    )
    reference: Reference
    reason: Reason


class Reversal(Request):
    """A transfer to undo as a whole."""

    reference: Reference
    reason: Reason


class MakeVouchers(Request):
    """Codes to make, all on the same terms."""

    label: Annotated[Label, Field(description="What they are for; redeemers' statements show it.")]
    credits: Credits
    count: Annotated[int, Field(ge=1, le=MAX_CODES, description="How many codes.")] = 1
    max_redemptions: Annotated[
        int, Field(ge=1, le=1_000_000, description="Per code; each account redeems a code once.")
    ] = 1
    expires_at: Annotated[FutureInstant | None, Field(description="Not redeemed after that.")] = None
    credits_days: Annotated[
        int | None, Field(ge=1, le=3650, description="How long redeemed credits live; without it, for ever.")
    ] = None
    reason: Reason | None = None

    def terms(self) -> VoucherTerms:
        """Return what each code is worth."""
        return VoucherTerms(
            self.label, in_tokens(self.credits), self.max_redemptions, self.expires_at, self.credits_days
        )


class SetPrice(Request):
    """A price to announce: `tokens` for each `perUnits` units, as in the catalogue."""

    tool: Annotated[str, Field(max_length=100, examples=["image"])]
    tokens: Annotated[int, Field(ge=1, le=10**6)]
    per_units: Annotated[
        Literal[1, 10, 100, 1000], WithJsonSchema({"type": "integer", "enum": [1, 10, 100, 1000]})
    ] = 1
    since: Annotated[
        FutureInstant | None,
        Field(description="At least a minute ahead, so that every server knows it; without it, in a minute."),
    ] = None
    reason: Reason


class RedeemVoucher(Request):
    """A voucher's code. Case, spaces and hyphens do not count."""

    code: Annotated[str, Field(min_length=1, max_length=64, examples=["K7QX-2M4P-9TRB-WZ3D"])]
