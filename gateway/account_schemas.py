"""What callers send and get around their account: sign-in, sessions, export, deletion."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gateway.account_answers import StatementLine
from gateway.answers import Answer, Credits, FileFields, JobFields, KeyShown, Ok, Tokens
from gateway.schemas import Email, Request
from gateway.sign_in import DIGITS
from gateway.topup_schemas import AutoTopupShown
from gateway.webhook_schemas import DeliveryFields, EndpointFields, LowBalanceShown


def _digits(value: str) -> str:
    """Read a code as people type it, with spaces and hyphens between the digits."""
    digits = re.sub(r"[\s-]", "", value)
    if not re.fullmatch(rf"[0-9]{{{DIGITS}}}", digits, re.ASCII):
        raise ValueError(f"must be the {DIGITS} digits of the mail")
    return digits


def _is_true(value: bool) -> bool:
    if not value:
        raise ValueError("must be true")
    return value


def _lower(value: str) -> str:
    return value.lower()


OwnEmail = Annotated[Email, AfterValidator(_lower)]
"""As users are known: two spellings of one address are one user."""
Code = Annotated[
    str,
    Field(
        min_length=1,
        max_length=40,
        examples=["1234 5678"],
        json_schema_extra={"pattern": rf"^[ -]*([0-9][ -]*){{{DIGITS}}}$"},
    ),
    AfterValidator(_digits),
]


class StartSignIn(Request):
    """Ask for a sign-in code by e-mail."""

    email: OwnEmail


class VerifySignIn(Request):
    """Redeem the code for a session."""

    email: OwnEmail
    code: Code


class DeleteAccount(Request):
    """Delete the account of this session."""

    email: Annotated[OwnEmail, Field(description="Typed again, against deletions by mistake.")]
    confirm: Annotated[
        bool,
        Field(description="Must be `true`.", json_schema_extra={"const": True}),
        AfterValidator(_is_true),
    ]
    forfeit: Annotated[
        bool, Field(description="Give up what is left of the balance; without it, a balance gets 409.")
    ] = False


class SignInStarted(Ok):
    """If the address can be read, a code arrives. The answer is the same for every address."""

    email: str
    digits: int
    expires_in_s: int


class SignedIn(Ok):
    """The session is in the cookie."""

    user_id: str
    email: str
    csrf_token: Annotated[str, Field(description="Repeat it in `x-csrf-token` with each write.")]
    expires_at: datetime
    opened: Annotated[bool, Field(description="Whether this sign-in opened the account.")]


class SignedOut(Ok):
    """The session is over."""

    signed_out: Literal[True]


class SignedOutEverywhere(Ok):
    """All sessions are over."""

    signed_out: Literal[True]
    sessions: Annotated[int, Field(description="How many were open.")]


class WhoAmI(Ok):
    """Whom this key or session speaks for."""

    user_id: str
    email: str
    via: Literal["key", "session"]
    csrf_token: Annotated[str | None, Field(description="Null for a key, which needs none.")]


class PurchaseShown(Answer):
    """A purchase."""

    id: str
    provider: str
    package_code: str
    credits: Credits
    tokens: Tokens
    price_minor: int
    currency: str
    email: str
    created_at: datetime
    paid: bool
    paid_minor: Annotated[
        int | None, Field(description="With tax and after discounts; null while it is not paid.")
    ]
    returned_minor: Annotated[int, Field(description="What of that was refunded or is disputed.")]


class Purchases(Ok):
    """A page of purchases, newest first."""

    data: list[PurchaseShown]
    next_cursor: Annotated[str | None, Field(description="Send it as `cursor` for the next page.")]


class SessionShown(Answer):
    """A session, open or over."""

    id: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


class ExportedUser(Answer):
    """The person."""

    id: str
    email: str


class AccountExport(Ok):
    """Everything that is kept of a user, newest first. Files come with download URLs; secrets are not kept."""

    user: ExportedUser
    keys: list[KeyShown]
    sessions: list[SessionShown]
    purchases: list[PurchaseShown]
    statement: list[StatementLine]
    jobs: list[JobFields]
    files: list[FileFields]
    low_balance: LowBalanceShown | None
    auto_topup: AutoTopupShown | None
    webhook_endpoints: list[EndpointFields]
    webhook_deliveries: list[DeliveryFields]


class AccountDeleted(Ok):
    """The person is forgotten; the books keep the movements under an id that names nobody."""

    deleted: Literal[True]
