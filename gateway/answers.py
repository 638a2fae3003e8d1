"""What callers get back, as models for the OpenAPI document. Tests hold every real answer against them.

Money appears twice: as credits, a number with two places, and as tokens, the whole number in the books.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from gateway.stages import StageState
from ledger.accounts import World

Credits = Annotated[
    float, Field(description="Credits, with two places; 1 credit is 100 tokens.", examples=[1.00])
]
Tokens = Annotated[
    int, Field(description="The smallest unit of money, the only one in the books.", examples=[100])
]
State = Literal["ready", "starting", "unavailable"]
Mode = Annotated[World, Field(description="`test`: the test world, which has books of its own.")]


class Answer(BaseModel):
    """A JSON object of ours: camelCase, no field that is not listed."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, serialize_by_alias=True)


class Ok(Answer):
    """Every answer that is not a refusal."""

    ok: Literal[True]


class Fault(Answer):
    """A wrong field, and what is wrong with it."""

    field: str
    message: str


class Problem(BaseModel):
    """Every refusal has this shape. `error` is stable and meant for programs, `message` for people."""

    model_config = ConfigDict(extra="allow")

    ok: Literal[False]
    error: Annotated[str, Field(examples=["invalid_request"])]
    message: Annotated[str, Field(examples=["email: is required"])]
    details: Annotated[
        list[Fault] | dict[str, Any] | None,
        Field(description="The wrong fields, or facts about the refusal."),
    ] = None


class PackageOnSale(Answer):
    """A credit package."""

    code: Annotated[str, Field(examples=["builder_600"])]
    name: str
    credits: Credits
    tokens: Tokens
    price_minor: Annotated[
        int, Field(description="In the currency's minor unit, such as cents.", examples=[5000])
    ]
    currency: Annotated[str, Field(examples=["usd"])]


class Packages(Ok):
    """What is on sale."""

    packages: list[PackageOnSale]
    price_version: int
    since: date


class CheckoutStarted(Ok):
    """A payment page is open."""

    checkout_url: Annotated[str, Field(description="Where the payer goes.")]
    session_id: Annotated[str, Field(description="Claims the key once paid.", examples=["cs_test_..."])]
    package_code: str
    credits: Credits
    tokens: Tokens
    price_minor: int
    currency: str
    email: str


class CheckoutSettled(Ok):
    """How a checkout stands now."""

    paid: Annotated[bool, Field(description="Whether the credits are granted.")]
    key: Annotated[
        Literal["waits", "claimed", "none"],
        Field(
            description="`waits`: claim it. `none`: not paid, or the credits are on an account that was there."
        ),
    ]
    package_code: str
    credits: Credits
    tokens: Tokens


class SpendLimitSet(Answer):
    """The most that a key and its children may spend in a UTC day, a UTC month, or altogether."""

    credits: Credits
    tokens: Tokens
    per: Literal["day", "month", "total"]


class SpendLimitShown(SpendLimitSet):
    """A spend limit, and what of it is used now."""

    used_credits: float
    used_tokens: Annotated[int, Field(description="Spent or held since the window began.")]
    resets_at: Annotated[
        datetime | None, Field(description="When the window ends, in UTC; null for `total`.")
    ]


class KeyFields(Answer):
    """A key as it was made."""

    id: str
    key_prefix: Annotated[
        str, Field(description="First characters after the brand part; names the key in `POST /keys/revoke`.")
    ]
    label: str
    mode: Mode
    created_at: datetime
    expires_at: datetime | None
    parent_id: Annotated[
        str | None,
        Field(
            description="The key that this one is a child of: it ends with it, and spends from its limit too."
        ),
    ]
    scopes: Annotated[list[str] | None, Field(description="Null: everything.")]
    allowed_ips: Annotated[list[str] | None, Field(description="Null: from anywhere.")]


class KeyShown(KeyFields):
    """A key as it may be shown at any time."""

    revoked_at: datetime | None
    last_used_at: Annotated[datetime | None, Field(description="To the minute.")]
    spend_limit: SpendLimitShown | None


class Keys(Ok):
    """The keys that the caller's key may see, newest first: all of the account's, or a limited key's family."""

    keys: list[KeyShown]


class KeyRevoked(Ok):
    """The key does not work any more."""

    key_prefix: str
    revoked: Literal[True]
    key: KeyShown


class KeyCreated(KeyFields, Ok):
    """The only answer that shows this key: only its hash is kept."""

    api_key: Annotated[str, Field(examples=["amai_live_..."])]
    spend_limit: SpendLimitSet | None


class KeyClaimed(KeyCreated):
    """The first key of a payment. It is shown once."""

    email: str
    credits: Annotated[float, Field(description="What the payment granted.")]
    tokens: Tokens
    balance: Annotated[float, Field(description="Credits free to spend now.")]
    balance_tokens: Tokens


class CreditsRefilled(Ok):
    """The test account is full."""

    granted: Annotated[float, Field(description="What it took; 0 if the account was full.")]
    granted_tokens: int
    balance: Annotated[float, Field(description="Credits free to spend now.")]
    balance_tokens: Tokens


class Amount(Answer):
    """An amount of money."""

    credits: Credits
    tokens: Tokens


class BalanceShown(Ok):
    """`credits` and `tokens` are free to spend; what is set aside for jobs under way is in `held`."""

    credits: Credits
    tokens: Tokens
    held: Amount


class Cost(Answer):
    """`held` is set aside while the job runs; `charged` is null until it ends, and 0 unless it succeeded."""

    quoted: Credits
    held: Credits
    charged: float | None
    quoted_tokens: Tokens
    held_tokens: Tokens
    charged_tokens: int | None


class JobUrls(Answer):
    """Where to go on."""

    get: str
    cancel: str
    events: str


class JobAccepted(Ok):
    """The job and its hold are written; poll `urls.get`."""

    job_id: Annotated[str, Field(examples=["job_01k8z0c6m5n7q2r4t6v8x0y2z4"])]
    id: Annotated[str, Field(description="The same as `jobId`.")]
    task: str
    status: Literal["queued"]
    cost: Cost
    balance_after: Annotated[float, Field(description="Credits free to spend after the hold.")]
    balance_after_tokens: Tokens
    created_at: datetime
    urls: JobUrls


class OutputFile(BaseModel):
    """A finished file. Beside these fields come the model's own facts, such as `seed` and `model`."""

    model_config = ConfigDict(extra="allow", alias_generator=to_camel)

    id: str
    url: Annotated[
        str | None,
        Field(description="Downloads without a key until `expiresAt`; read the job again for a new one."),
    ]
    content_type: str
    size_bytes: int
    sha256: str
    expires_at: Annotated[datetime | None, Field(description="When `url` stops to work.")]
    kept_until: Annotated[datetime | None, Field(description="When it is deleted; null: when you do.")] = None
    deleted_at: datetime | None = None
    thumbnail_url: Annotated[str | None, Field(description="A picture, small.")] = None
    poster_url: Annotated[str | None, Field(description="A film's first frame.")] = None
    width: int | None = None
    height: int | None = None


class JobFault(Answer):
    """Why a job failed."""

    code: str
    message: str


class JobStage(Answer):
    """A stage of a job that several models work on. `stopped`: the job ended in it."""

    name: Annotated[str, Field(examples=["translate"])]
    state: StageState
    fraction: Annotated[float, Field(ge=0, le=1)]


class JobFields(Answer):
    """A job in a list."""

    job_id: str
    id: str
    task: str
    status: Literal["queued", "running", "succeeded", "failed", "canceled", "expired"]
    input: dict[str, Any]
    cost: Cost
    progress: Annotated[float, Field(ge=0, le=1)]
    stage: Annotated[str | None, Field(description="The stage at work.", examples=["translate"])]
    stages: Annotated[list[JobStage], Field(description="In order; empty where one model does all the work.")]
    queue_position: Annotated[int | None, Field(description="1 is next; null once it runs.")]
    starts_in_seconds: Annotated[
        int | None, Field(description="The model is starting, which takes about so long; null else.")
    ]
    cancel_requested: bool
    output: list[OutputFile]
    error: JobFault | None
    metrics: Annotated[
        dict[str, Any],
        Field(description="`queueMs`, `runMs`, `gpuSeconds` and further measurements, as they are known."),
    ]
    attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    urls: JobUrls


class JobShown(JobFields, Ok):
    """A job as it stands now."""


class Jobs(Ok):
    """A page of jobs, newest first."""

    data: list[JobFields]
    next_cursor: Annotated[
        str | None, Field(description="Send it as `cursor` for the next page; null on the last.")
    ]


class FileFields(Answer):
    """A file in a list."""

    id: str
    name: str
    content_type: str
    size_bytes: int
    sha256: str
    job_id: Annotated[str | None, Field(description="The job that made it; null for an upload.")]
    created_at: datetime
    url: str
    expires_at: datetime
    kept_until: Annotated[datetime | None, Field(description="When it is deleted; null: when you do.")] = None
    thumbnail_url: str | None = None
    poster_url: str | None = None


class PortalOpened(Ok):
    """A page of the payment provider is open."""

    portal_url: Annotated[str, Field(description="Where the account's owner goes; for them alone.")]


class WebhookReceived(Ok):
    """The event is kept."""

    received: Literal[True]
    duplicate: Annotated[bool, Field(description="Whether this event was kept before.")]


class TrialBalanceLine(Answer):
    """The entries of one kind of account in one world."""

    mode: Mode
    kind: str
    accounts: int
    entries: int
    credits: Credits
    tokens: Tokens


class SealedBlock(Answer):
    """A block of the hash chain over all transfers and entries."""

    number: Annotated[int, Field(description="Counts the blocks, from 1.")]
    up_to_transfer: Annotated[int, Field(description="The last transfer that it seals.")]
    hash: Annotated[
        str,
        Field(description="SHA-256 in hex; vouches for this block and all before.", pattern="^[0-9a-f]{64}$"),
    ]
    sealed_at: datetime


class TrialBalance(Ok):
    """The sum of all entries by world and kind of account. In sound books the total of each world is zero."""

    rows: list[TrialBalanceLine]
    total_tokens: int
    balanced: bool
    last_block: Annotated[SealedBlock | None, Field(description="Null until the first block is sealed.")]
