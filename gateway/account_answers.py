"""What callers get back of their account's past: usage, statements, costs, receipts; models for the document."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.answers import Amount, Answer, Credits, Ok, Tokens
from gateway.usage import Dimension
from ledger.transfers import Kind

Units = Annotated[
    float, Field(description="In the tool's unit, with up to three decimals.", examples=[1, 12.5])
]


class PastBalance(Ok):
    """The balance after all that was written up to a time, what was held then included."""

    at: datetime
    credits: Credits
    tokens: Tokens


class UsageFields(Answer):
    """What was used. `day`, `tool`, `task` and `keyId` are there as far as `groupBy` names them."""

    day: Annotated[date | None, Field(description="A UTC day.")] = None
    tool: str | None = None
    task: Annotated[str | None, Field(description="The job's task; null for a charge without a job.")] = None
    key_id: Annotated[str | None, Field(description="Null for a charge without a key.")] = None
    key_prefix: str | None = None
    charges: Annotated[int, Field(description="How many charges there were.")]
    units: Annotated[
        float | None,
        Field(description="Units spent, and quoted for charged jobs; there when `groupBy` names the tool."),
    ] = None
    charged: Amount
    refunded: Annotated[Amount, Field(description="Given back in the period, whenever it was charged.")]
    net: Annotated[Amount, Field(description="Charged less refunded.")]


class UsageShown(Ok):
    """What was used from `since` to `until`, both days included."""

    since: date
    until: date
    group_by: list[Dimension]
    data: list[UsageFields]
    total: UsageFields


class StatementLine(Answer):
    """One movement of the account's money."""

    number: Annotated[int, Field(description="Counts the account's movements from 1, without a gap.")]
    transfer_id: int
    kind: Kind
    tool: str
    reference: str
    reason: str | None
    key_id: str | None
    units: Annotated[float | None, Field(description="Of a spend, in the tool's unit.")]
    price_version: int | None
    amount: Annotated[Amount, Field(description="Negative for what was taken.")]
    balance_after: Amount
    happened_at: Annotated[datetime, Field(description="When it happened, by its caller or provider.")]
    written_at: Annotated[datetime, Field(description="When it was written into the books.")]
    reverses_id: Annotated[int | None, Field(description="The transfer that this one gives back.")]
    hold_id: Annotated[str | None, Field(description="The hold that it was charged from.")]


class StatementShown(Ok):
    """A page of the statement, newest first."""

    data: list[StatementLine]
    next_cursor: Annotated[
        str | None, Field(description="Send it as `cursor` for the next page; null on the last.")
    ]


class TurnTook(Answer):
    """What a turn of `/v1/chat/completions` took of its model, also one whose stream was left."""

    model: str
    outcome: Literal["succeeded", "canceled"]
    prompt_tokens: Annotated[int, Field(description="The model's own tokens, not those of money.")]
    completion_tokens: int
    metrics: Annotated[
        dict[str, float],
        Field(description="`queueMs`, `runMs`, `busySeconds` and `gpuSeconds`, as in a job."),
    ]


class CostShown(Ok):
    """What one reference cost so far."""

    reference: str
    job_id: str | None
    charged: Amount
    refunded: Amount
    net: Annotated[Amount, Field(description="Charged less refunded.")]
    held: Annotated[Amount, Field(description="Set aside for it, not charged yet.")]
    lines: Annotated[list[StatementLine], Field(description="The movements behind it, oldest first.")]
    turn: Annotated[TurnTook | None, Field(description="For the `id` of a chat completion.")]


class Application(Answer):
    """The code of whoever brought this account."""

    code: str
    at: datetime


class ReferralCounts(Answer):
    """Customers who came with the code and are at this point now; refused and reversed ones are in none."""

    applied: Annotated[int, Field(description="No paid order yet.")]
    ordered: Annotated[int, Field(description="Their first order was paid and waits out the holding time.")]
    rewarded: int


class ReferralShown(Ok):
    """An account's referral code, and what it has brought."""

    code: Annotated[str, Field(pattern="^[0-9A-HJKMNP-TV-Z]{8}$")]
    earned: Annotated[Amount, Field(description="Rewards that stand; they are in the statement.")]
    pending: Annotated[Amount, Field(description="Promised for orders that wait out the holding time.")]
    reward: Annotated[Amount, Field(description="What a customer who applies the code today will earn you.")]
    referrals: ReferralCounts
    applied: Annotated[Application | None, Field(description="The code that this account applied.")]


class ReferralApplied(Ok):
    """It is noted who brought this account."""

    applied: Application


class ReceiptOutput(Answer):
    """A file that the job made, as it was when it was made."""

    id: str
    content_type: str
    size_bytes: int
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ReceiptShown(Ok):
    """A signed receipt. Decimals are texts, so that nothing that is signed depends on how a float is written."""

    issuer: Annotated[str, Field(description="This server; its keys are at `/.well-known/jwks.json`.")]
    job_id: str
    task: str
    tool: str
    status: Literal["succeeded", "failed", "canceled", "expired"]
    units: Annotated[str | None, Field(description="As quoted, in the tool's unit.", examples=["1"])]
    price_version: int
    quoted_tokens: Tokens
    quoted_credits: Annotated[str, Field(examples=["1.00"])]
    charged_tokens: Tokens
    charged_credits: Annotated[str, Field(examples=["1.00"])]
    transfer_id: Annotated[
        int | None, Field(description="The charge in the statement; null when nothing was charged.")
    ]
    outputs: list[ReceiptOutput]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime
    jws: Annotated[
        str,
        Field(description="These fields in canonical form (RFC 8785), signed with Ed25519 as compact JWS."),
    ]


class Jwk(BaseModel):
    """A public Ed25519 key (RFC 8037)."""

    model_config = ConfigDict(extra="forbid")

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str
    kid: Annotated[str, Field(description="The key's RFC 7638 thumbprint.")]
    use: Literal["sig"]
    alg: Literal["EdDSA"]


class JwkSet(BaseModel):
    """A JWK Set (RFC 7517). The first key signs new receipts, the others signed older ones."""

    model_config = ConfigDict(extra="forbid")

    keys: list[Jwk]
