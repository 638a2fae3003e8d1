"""What callers send and get around automatic top-ups."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

from pydantic import BeforeValidator, Field

from gateway.answers import Amount, Answer, Ok, Tokens
from gateway.numbers import decimal_as_whole
from gateway.schemas import Credits, Request
from payments.auto_topups import Reason, State

MONTH_MOST_MINOR: Final = 10**9
"""Far beyond what a card pays in a month, in any currency."""


class SetAutoTopup(Request):
    """When to top up, with what, and how much in a month at most."""

    threshold: Annotated[
        Credits,
        Field(
            description="In credits: below this the package is bought. At most what the package brings, so that one is"
            " enough."
        ),
    ]
    package_code: Annotated[str, Field(min_length=1, max_length=64, examples=["builder_600"])]
    month_most_minor: Annotated[
        int,
        Field(
            ge=1,
            le=MONTH_MOST_MINOR,
            description="What may be charged in a calendar month (UTC), in the minor unit of the package's currency;"
            " at least its price.",
        ),
        BeforeValidator(decimal_as_whole),
    ]


class AutoTopupShown(Answer):
    """Automatic top-up of an account."""

    threshold: Amount
    package_code: str
    credits: Annotated[float, Field(description="What the package brings.")]
    tokens: Tokens
    price_minor: Annotated[int, Field(description="As agreed to: another price is never charged.")]
    currency: str
    month_most_minor: int
    spent_minor: Annotated[int, Field(description="Charged in this calendar month, or under way.")]
    state: Annotated[State, Field(description="`paused` and `off`: nothing is charged until it is set anew.")]
    reason: Annotated[Reason | None, Field(description="Why it is not on.")]
    rest_until: Annotated[
        datetime | None, Field(description="Nothing is charged before: after a decline, or at the ceiling.")
    ]
    set_at: datetime


class AutoTopup(Ok):
    """Automatic top-up; null: it is off."""

    auto_topup: AutoTopupShown | None


class CardPage(Ok):
    """Where a card is saved."""

    card_url: str
