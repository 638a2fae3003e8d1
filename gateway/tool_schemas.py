"""What callers send to the tools and to `credits/consume`. The second document's routes speak snake_case."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from gateway.catalog import TOKENS_PER_CREDIT
from gateway.numbers import whole_as_decimal
from gateway.patterns import LINE, REFERENCE, TEXT
from gateway.quantities import MILLI
from gateway.schemas import Credits, IdempotencyKey, Request, at_most_decimals, one_line, printable

MAX_UNITS: Final = 10**9
"""Thirty years of seconds; times the dearest price that a catalogue may name, it fits the books' 64 bits."""

Units = Annotated[
    Decimal,
    BeforeValidator(whole_as_decimal),
    Field(gt=0, le=MAX_UNITS),
    AfterValidator(at_most_decimals(3)),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": MAX_UNITS, "multipleOf": 0.001}),
]


class _ToolUse(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    tool: Annotated[
        str, Field(max_length=100, description="A `tool` of `GET /api/v1/pricing`.", examples=["chat"])
    ]
    units: Annotated[
        Units,
        Field(
            description="Amount of work in the tool's unit; at most three decimals. The cost is rounded up."
        ),
    ]

    @property
    def units_milli(self) -> int:
        """Thousandths of the tool's unit."""
        return int(self.units * MILLI)


class CheckTool(_ToolUse):
    """A question: what does this work cost, and may it be spent now?"""

    hold: Annotated[
        bool,
        Field(
            description="Set the cost aside until `expires_at`; a spend that names the `hold_id` cannot fail."
        ),
    ] = False


class SpendTool(_ToolUse):
    """A charge for work that was done."""

    reference: Annotated[
        str,
        Field(
            min_length=1,
            max_length=255,
            description="Your idempotency key: the same `tool` and `reference` charge once, for ever.",
            examples=["req_2026-07-03_abc123"],
            json_schema_extra=REFERENCE,
        ),
        AfterValidator(printable),
    ]
    hold_id: Annotated[
        Annotated[str, Field(min_length=1, max_length=100, json_schema_extra=TEXT)] | None,
        Field(
            description="Charge this hold, at the price of its check, and free the rest of it. More than it holds"
            " is refused.",
        ),
    ] = None


class ConsumeCredits(Request):
    """A manual charge. A retry under the same idempotency key charges nothing again."""

    credits: Annotated[Credits, Field(description="At most two decimals.", examples=[1.5])]
    reason: Annotated[
        str,
        Field(
            min_length=1,
            max_length=200,
            description="One line for the statement.",
            examples=["rendering"],
            json_schema_extra=LINE,
        ),
        AfterValidator(one_line),
    ]
    idempotency_key: IdempotencyKey = None

    @property
    def tokens(self) -> int:
        """The credits in tokens."""
        return int(self.credits * TOKENS_PER_CREDIT)
