"""What callers may send, field by field: strict types, no unknown fields, limits with their reasons.

A misspelt field is refused rather than ignored: a `creditToConsume` that nobody reads would lift the caller's
own ceiling in silence. Numbers are never made from strings, and fractions stay `Decimal`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from email_validator import EmailNotValidError, validate_email
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel

from gateway.catalog import TOKENS_PER_CREDIT
from gateway.numbers import decimal_as_whole, whole_as_decimal
from gateway.patterns import LINE, NETWORK, SENT_RETRY_KEY, TEXT
from gateway.task_schemas import INPUTS
from gateway.webhook_ports import JobEvent
from kit.addresses import network, spelled
from kit.post import MAX_URL_CHARS
from ledger.accounts import World
from ledger.keys import Limits
from payments.referrals import CODE_CHARS, read_code

MAX_LISTED: Final = 50
"""Scopes or addresses of one key: each is looked at on each of its uses."""
MAX_OVERLAP_S: Final = 30 * 24 * 3600
"""A month covers the slowest of releases; an old secret that lives longer was not rotated."""
MAX_CREDITS: Final = 10**9
"""A ceiling that no job comes near; it keeps a `1e999999` from becoming a number of a million digits."""


def one_line(value: str) -> str:
    """Trim a name that people read in lists and keep it to one line."""
    if re.search(r"[\t\n\r]", value):
        raise ValueError("must be one line")
    if not (trimmed := value.strip()):
        raise ValueError("must not be blank")
    return trimmed


def printable(value: str) -> str:
    """Refuse what would break a line of a statement: controls, half characters, line and paragraph separators."""
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in value):
        raise ValueError("must not hold control characters or line ends")
    return value


def _email(value: str) -> str:
    """Check the form of an address; whether it receives mail, the provider's receipt will tell."""
    try:
        return validate_email(value, check_deliverability=False).normalized
    except EmailNotValidError as error:
        raise ValueError(f"is not an e-mail address: {error}") from error


def at_most_decimals(places: int) -> Callable[[Decimal], Decimal]:
    """Return a check for finer fractions. Digits are looked at, not computed with: arithmetic would round."""

    def checked(value: Decimal) -> Decimal:
        _, digits, exponent = value.as_tuple()
        past = -int(exponent) - places
        if past > 0 and any(digits[-past:]):
            raise ValueError(f"must have at most {places} decimals")
        return value

    return checked


def _future_instant(value: object) -> datetime:
    """Read an RFC 3339 time that has its offset and is still to come."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        instant = moment.astimezone(UTC) if moment is not None and moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        instant = None
    if instant is None:
        raise ValueError("must be a time with its offset, such as 2027-01-31T00:00:00Z")
    if instant <= datetime.now(UTC):
        raise ValueError("must lie in the future")
    return instant


def _referral_code(value: str) -> str:
    if (code := read_code(value)) is None:
        raise ValueError(f"must be a referral code: {CODE_CHARS} letters and digits")
    return code


def _network(value: str) -> str:
    return spelled(network(value))


def each_once(values: list[str]) -> list[str]:
    """Drop what is listed twice."""
    return sorted(set(values))


Scope = Annotated[
    str, Field(pattern=r"^(read|files|keys|checkout|billing|(tools|tasks):(\*|[a-z0-9][a-z0-9_.-]{0,63}))$")
]
FutureInstant = Annotated[datetime, BeforeValidator(_future_instant)]
Label = Annotated[str, Field(min_length=1, max_length=100, json_schema_extra=LINE), AfterValidator(one_line)]
Credits = Annotated[
    Decimal,
    BeforeValidator(whole_as_decimal),
    Field(gt=0, le=MAX_CREDITS),
    AfterValidator(at_most_decimals(2)),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": MAX_CREDITS, "multipleOf": 0.01}),
]
WebhookUrl = Annotated[
    str,
    Field(
        max_length=MAX_URL_CHARS,
        description="An https URL of the public internet.",
        json_schema_extra={"format": "uri"},
    ),
]
IdempotencyKey = Annotated[
    Annotated[str, Field(json_schema_extra=SENT_RETRY_KEY)] | None,
    Field(description="The same as the `X-Idempotency-Key` header; when both are sent, they must be equal."),
]


Email = Annotated[
    str,
    Field(min_length=3, max_length=254, json_schema_extra={"format": "email"}),
    AfterValidator(_email),
]


class Request(BaseModel):
    """A body of the first document's routes: camelCase, strict, no field that is not listed."""

    model_config = ConfigDict(strict=True, extra="forbid", alias_generator=to_camel)


class StartCheckout(Request):
    """Buy a package. With an API key it tops up that key's account; without, it opens one for the e-mail."""

    email: Email
    package_code: Annotated[str, Field(max_length=64, description="A `code` of `GET /api/v1/packages`.")]


class SettleCheckout(Request):
    """Name a checkout."""

    session_id: Annotated[
        str,
        Field(
            min_length=1, max_length=255, description="From the checkout's answer.", json_schema_extra=TEXT
        ),
    ]


class ClaimKey(SettleCheckout):
    """Claim the first API key of a payment."""

    key_label: Label = "Primary key"


class SpendLimit(Request):
    """The most that a key and its children may spend together in a UTC day, a UTC month, or altogether."""

    credits: Annotated[Credits, Field(description="At most two decimals.")]
    per: Literal["day", "month", "total"]


class CreateKey(Request):
    """A further key for the account, such as one per environment or agent."""

    label: Label
    mode: Annotated[
        World | None,
        Field(
            description="`test`: a key to the test world, with the same API, books of its own, the tiny models, and"
            " credits that cost nothing. Without it, as the key that asks; a test key makes test keys alone."
        ),
    ] = None
    scopes: Annotated[
        Annotated[list[Scope], Field(min_length=1, max_length=MAX_LISTED), AfterValidator(each_once)] | None,
        Field(
            description="What the key may be used for; without it, everything. `read`: balance, statements, usage,"
            " jobs, files, keys. `tools:<tool>` or `tools:*`: check and spend; `tools:consume`: consume credits."
            " `tasks:<task>` or `tasks:*`: submit and cancel jobs, look at jobs, read and upload files. `files`: read,"
            " upload and delete files. `keys`: list, make, rotate and revoke keys. `checkout`: top the account up, by a"
            " payment or a voucher. `billing`: open the billing portal.",
            examples=[["tasks:image.generate", "read"]],
        ),
    ] = None
    allowed_ips: Annotated[
        Annotated[
            list[Annotated[str, Field(max_length=49, json_schema_extra=NETWORK), AfterValidator(_network)]],
            Field(min_length=1, max_length=MAX_LISTED),
            AfterValidator(each_once),
        ]
        | None,
        Field(
            description="IPv4 and IPv6 addresses, or networks in CIDR notation, from which alone the key works.",
            examples=[["203.0.113.7", "2001:db8::/32"]],
        ),
    ] = None
    spend_limit: SpendLimit | None = None
    expires_at: Annotated[
        FutureInstant | None,
        Field(description="RFC 3339 with an offset; the key stops working then. Without it, never."),
    ] = None
    idempotency_key: IdempotencyKey = None

    @property
    def limits(self) -> Limits:
        """What narrows the key, as the books have it."""
        cap = self.spend_limit
        return Limits(
            scopes=None if self.scopes is None else tuple(self.scopes),
            allowed_ips=None if self.allowed_ips is None else tuple(self.allowed_ips),
            cap_tokens=None if cap is None else int(cap.credits * TOKENS_PER_CREDIT),
            cap_per=None if cap is None else cap.per,
            expires_at=self.expires_at,
        )


KeyPrefix = Annotated[
    str,
    Field(
        pattern=r"^[0-9A-Za-z]{1,10}$",
        description="First characters of a key after its brand part, as `GET /api/v1/keys` shows them.",
    ),
]


class RotateKey(Request):
    """Give the one key that begins so a new secret; a prefix of several keys rotates none."""

    key_prefix: KeyPrefix
    overlap_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_OVERLAP_S,
            description="How long the old secret works on; 0: it ends at once, as after a leak.",
        ),
        BeforeValidator(decimal_as_whole),
    ]
    idempotency_key: IdempotencyKey = None


class RevokeKey(Request):
    """Revoke the one key that begins so; a prefix of several keys revokes none."""

    key_prefix: KeyPrefix


class ApplyReferral(Request):
    """The code of whoever brought you."""

    code: Annotated[
        str,
        Field(
            max_length=32,
            description="As it was given to you: upper or lower case, with or without hyphens and spaces.",
        ),
        AfterValidator(_referral_code),
    ]


def _complete_schema(schema: dict[str, Any]) -> None:
    """Show with each task its own input, where the job's `input` stands in the OpenAPI document."""
    schema["properties"]["input"] = {
        "type": "object",
        "title": "Input",
        "description": "The fields of the task.",
    }
    schema["anyOf"] = [
        {"properties": {"task": {"const": task}, "input": {"$ref": f"#/components/schemas/{model.__name__}"}}}
        for task, model in INPUTS.items()
    ]


class SubmitJob(Request):
    """A media job: a task and its input."""

    model_config = ConfigDict(json_schema_extra=_complete_schema)

    task: Annotated[str, Field(max_length=100, description="What to do.", examples=list(INPUTS))]
    input: dict[str, Any]
    credits_to_consume: Annotated[
        Credits | None,
        Field(
            description="The most that you agree to pay, never the price: a quote above it gets 409"
            " `cost_exceeds_limit` and nothing is held. At most two decimals.",
        ),
    ] = None
    priority: Annotated[
        Literal["low", "normal", "high"],
        Field(description="Among your own jobs; between accounts, models take turns."),
    ] = "normal"
    deadline_seconds: Annotated[
        Annotated[int, Field(ge=1, le=86_400), BeforeValidator(decimal_as_whole)] | None,
        Field(
            description="A job that has not ended after so many seconds is ended, at no cost.",
        ),
    ] = None
    webhook_url: Annotated[
        WebhookUrl | None,
        Field(
            description="An https URL that is told of the job's end, beside the account's webhook endpoints. Signed by"
            " the endpoint without a URL."
        ),
    ] = None
    webhook_events: Annotated[
        Annotated[list[JobEvent], Field(min_length=1, max_length=10), AfterValidator(each_once)] | None,
        Field(description="Which ends `webhookUrl` is told of; without it, every end."),
    ] = None
    idempotency_key: IdempotencyKey = None

    @model_validator(mode="after")
    def _events_need_a_url(self) -> SubmitJob:
        if self.webhook_events is not None and self.webhook_url is None:
            raise ValueError("webhookEvents says what webhookUrl is told of; send both")
        return self

    @property
    def terms(self) -> dict[str, Any]:
        """What was asked for beyond the usual, as part of what the request means."""
        return self.model_dump(
            include={"priority", "deadline_seconds", "webhook_url", "webhook_events"}, exclude_defaults=True
        )

    @property
    def rank(self) -> int:
        """The priority as a number: 1 goes first, -1 last."""
        return ("low", "normal", "high").index(self.priority) - 1

    @property
    def deadline(self) -> datetime | None:
        """When the job must have ended, counted from now."""
        if self.deadline_seconds is None:
            return None
        return datetime.now(UTC) + timedelta(seconds=self.deadline_seconds)

    @property
    def limit_tokens(self) -> int | None:
        """The ceiling in tokens."""
        return None if self.credits_to_consume is None else int(self.credits_to_consume * TOKENS_PER_CREDIT)
