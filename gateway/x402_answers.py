"""What wallets send and get back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from gateway.answers import Answer, JobAccepted, JobShown, KeyCreated, Ok, Tokens
from gateway.patterns import LINE
from gateway.schemas import Label, Request


class BuyWithX402(Request):
    """Buy a package from a wallet."""

    package_code: Annotated[
        str, Field(max_length=64, description="A `code` of `GET /api/v1/packages`.", json_schema_extra=LINE)
    ]
    key_label: Label = "Primary key"


class PaymentShown(Answer):
    """A settled x402 payment."""

    payer: Annotated[str, Field(description="The wallet, in lower case.")]
    network: Annotated[str, Field(examples=["eip155:84532"])]
    transaction: Annotated[str, Field(description="On that chain, as the facilitator named it.")]
    amount: Annotated[str, Field(description="Millionths of a USDC.", examples=["100000"])]
    credits: Annotated[float, Field(description="What the payment granted.")]
    tokens: Tokens


class JobPayment(PaymentShown):
    """The payment of a job. The key reads this job and its files, and spends what the wallet has left."""

    api_key: Annotated[str, Field(description="Shown in the answers to this very payment alone.")]
    api_key_expires_at: datetime


class PaidJobAccepted(JobAccepted):
    """A job that its own submit paid for."""

    payment: JobPayment


class PaidJobShown(JobShown):
    """The same, already ended."""

    payment: JobPayment


class PackageBought(KeyCreated):
    """A full key to the wallet's account, with the payment that bought its credits."""

    package_code: str
    payment: PaymentShown


class AccountToppedUp(Ok):
    """A package into the account of the key that it was bought with: no further key comes with it."""

    package_code: str
    payment: PaymentShown
