"""What the books refuse, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kit.errors import AppError


@dataclass
class InsufficientCredits(AppError):
    """The balance less what is held does not cover the cost. Nothing was held or charged."""

    cost_tokens: int
    balance: int
    code = "insufficient_credits"
    status = 402

    @property
    def message(self) -> str:
        return f"This costs {self.cost_tokens} tokens and {self.balance} are free to spend; top up and try again."

    @property
    def extra(self) -> dict[str, Any]:
        return {"cost_tokens": self.cost_tokens, "balance": self.balance}


@dataclass
class ReferenceConflict(AppError):
    """The reference was used for another amount; the first use stands."""

    reference: str
    code = "idempotency_key_reused"
    status = 409

    @property
    def message(self) -> str:
        return f"The reference {self.reference!r} was used before with other contents; use a new one."


@dataclass
class AmbiguousPrefix(AppError):
    """Several keys begin so; none was revoked."""

    matches: list[str]
    code = "ambiguous_prefix"
    status = 409

    @property
    def message(self) -> str:
        return f"{len(self.matches)} of your keys begin with that prefix; nothing was revoked. Send more characters."

    @property
    def details(self) -> dict[str, list[str]]:
        return {"matches": self.matches}


@dataclass
class HoldResolved(AppError):
    """The hold was captured, voided or expired before; its first resolution stands."""

    state: str
    code = "hold_resolved"
    status = 409

    @property
    def message(self) -> str:
        return f"This hold is already {self.state}."
