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
class AccountFrozen(AppError):
    """Nothing may be spent: a payment was taken back and its credits were spent, or an operator froze the account."""

    debt_tokens: int
    code = "account_frozen"
    status = 403

    @property
    def message(self) -> str:
        if self.debt_tokens:
            return f"This account owes {self.debt_tokens} tokens for a payment that was taken back; top up to go on."
        return "Spending from this account is stopped; write to support."

    @property
    def extra(self) -> dict[str, Any]:
        return {"debt_tokens": self.debt_tokens}


@dataclass
class KeyCapReached(AppError):
    """The key's own limit does not cover the cost. Nothing was held or charged."""

    cost_tokens: int
    left_tokens: int
    per: str
    code = "key_limit_reached"
    status = 403

    @property
    def message(self) -> str:
        period = "altogether" if self.per == "total" else f"this {self.per}"
        return f"This costs {self.cost_tokens} tokens and the key may spend {self.left_tokens} more {period}."

    @property
    def extra(self) -> dict[str, Any]:
        return {"cost_tokens": self.cost_tokens, "left_tokens": self.left_tokens}


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


@dataclass
class ExceedsOriginal(AppError):
    """A refund or clawback of more than is left of what it takes back. Nothing was moved."""

    asked_tokens: int
    left_tokens: int
    code = "exceeds_original"
    status = 409

    @property
    def message(self) -> str:
        return f"{self.asked_tokens} tokens were asked for and {self.left_tokens} are left to be taken back."


@dataclass
class NotReversible(AppError):
    """The transfer can't be undone so. Nothing was moved."""

    kind: str
    reason: str
    code = "not_reversible"
    status = 409

    @property
    def message(self) -> str:
        return f"This {self.kind} can't be undone: {self.reason}."


@dataclass
class OperatorExists(AppError):
    """A live operator has that name. No key was made."""

    name: str
    code = "operator_exists"
    status = 409

    @property
    def message(self) -> str:
        return f"There is an operator {self.name!r}; revoke that key first, or take another name."
