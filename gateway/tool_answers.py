"""What the tools and `credits/consume` answer, as models for the OpenAPI document."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.answers import Credits, Ok, Tokens


class _Snake(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ToolChecked(_Snake):
    """What the work costs, and whether it may be spent now."""

    ok: Literal[True]
    allowed: bool
    cost_tokens: Tokens
    balance_after: Annotated[
        int, Field(description="Tokens free after the work; not allowed: what is free now, unchanged.")
    ]
    reason: Annotated[
        Literal["insufficient_credits", "account_frozen", "key_limit_reached"] | None,
        Field(description="Why it is not allowed: the code that a spend would be refused with."),
    ] = None
    hold_id: Annotated[str | None, Field(description="What was set aside, if you asked for it.")] = None
    expires_at: Annotated[datetime | None, Field(description="When an unused hold is free again.")] = None


class ToolSpent(_Snake):
    """The charge is written."""

    ok: Literal[True]
    charged: Tokens
    balance_after: Tokens


class ToolPrice(_Snake):
    """A tool on sale: `tokens` for each `per_units` units."""

    tool: str
    unit: str
    tokens_per_unit: Annotated[float, Field(description="`tokens` by `per_units`.", examples=[5])]
    tokens: int
    per_units: int
    model: Annotated[str, Field(description="What does the work.")]
    licence: str
    since: Annotated[date, Field(description="The day from which this price holds.")]
    price_version: int


class Pricing(_Snake):
    """The prices of all tools."""

    ok: Literal[True]
    price_version: Annotated[int, Field(description="Rises with each change of a price.")]
    since: date
    tools: list[ToolPrice]


class CreditsConsumed(Ok):
    """The charge is written. `consumed` and `tokens` are the same money, as are the balances."""

    consumed: Credits
    tokens: Tokens
    balance: Credits
    balance_tokens: Tokens
