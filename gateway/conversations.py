"""A turn of a chat: what crosses from the HTTP surface to the model and back, and the two ports that a turn needs.

A turn's money is held before the model works, taken once when the turn ends, and freed when it fails. Who leaves after
words were delivered has had the turn: it is charged, and the model stops.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from gateway.catalog import Price
from kit.errors import AppError
from ledger.keys import Credential

FinishReason = Literal["stop", "length", "tool_calls"]
Outcome = Literal["succeeded", "failed", "canceled"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the model is to answer. `max_tokens`: None for as many as fit. Units: the model's own tokens."""

    id: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    stop: list[str]
    seed: int | None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class Took:
    """What a turn took of its engine so far. Every event has it: whoever leaves early has heard how it stood.

    Units: the model's own tokens, which have nothing to do with those of money; `busy_s` seconds of the engine's time,
    divided between the turns that it worked on at once. `beside`: how many these are now, this one counted.
    """

    on_gpu: bool
    prompt_tokens: int
    completion_tokens: int
    busy_s: float
    beside: int


@dataclass(frozen=True, slots=True)
class Began:
    """The conversation was accepted. `notice`: what a reader must know of these weights, if there is something."""

    model: str
    notice: str | None
    took: Took


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of the answer: text, or the calls of tools that it ends with. Pieces that gathered travel as one."""

    text: str
    tool_calls: list[dict[str, Any]]
    took: Took


@dataclass(frozen=True, slots=True)
class Ended:
    """The last word of a turn."""

    finish_reason: FinishReason
    took: Took


Event = Began | Said | Ended


class Chats(Protocol):
    """The chat models."""

    def stream(self, application: str, conversation: Conversation) -> AsyncGenerator[Event, None]:
        """Yield that it began, what the model says as it says it, and how it ended; leaving early stops the model.

        Raises: ChatBusy when too many wait; Unavailable before it began; the model's own AppError.
        """


@dataclass(frozen=True, slots=True)
class BeginTurn:
    """A turn to be held for. `completion_id` is the charge's reference.

    `refusal`: why there is no model for it now. A repeat of what was answered before is answered all the same.
    """

    credential: Credential
    completion_id: str
    price: Price
    idempotency_key: str | None
    fingerprint: str
    refusal: AppError | None = None


@dataclass(frozen=True, slots=True)
class TurnBegun:
    """The turn's money is set aside; or `answer` is what the same key was answered before, and nothing was held."""

    hold_id: str
    answer: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class TurnCharged:
    """What a turn cost, and what is free after it. Units: tokens of money."""

    cost_tokens: int
    balance_after_tokens: int


@dataclass(frozen=True, slots=True)
class MeteredTurn:
    """What a turn took that a model worked on, and how it ended for its caller. `id`: the completion's.

    `canceled`: its caller left. Units: `busy_us` microseconds of the engine's time, as `Took` divides it.
    """

    id: str
    application: str
    model: str
    outcome: Outcome
    queue_ms: int
    run_ms: int
    busy_us: int
    on_gpu: bool
    prompt_tokens: int
    completion_tokens: int


class TurnBooks(Protocol):
    """The books, as far as turns need them."""

    async def begin_turn(self, command: BeginTurn) -> TurnBegun:
        """Hold the cost of a turn, or say what its key was answered.

        Raises: AuthRequired, Forbidden, AccountFrozen, InsufficientCredits, KeyCapReached, IdempotencyKeyReused,
        TurnUnderWay, or the command's own refusal.
        """

    async def finish_turn(
        self, hold_id: str, turn: MeteredTurn, answer: dict[str, Any] | None
    ) -> TurnCharged:
        """Charge a turn and write down what it took, once however often this is called; keep the answer for its key.

        Raises: HoldResolved when the hold is over: nothing is charged.
        """

    async def abandon_turn(self, hold_id: str, turn: MeteredTurn | None) -> None:
        """Free what a turn held and write down what it took, if a model worked; one that was charged stays so."""


@dataclass
class ChatBusy(AppError):
    """As many turns wait as may. Nothing was held or is charged."""

    wait_s: int
    code = "rate_limited"
    status = 429
    retryable = True

    @property
    def message(self) -> str:
        return f"The chat model has more to do than it can; try again in {self.wait_s} s."

    @property
    def retry_after_s(self) -> int:
        return self.wait_s


@dataclass
class TurnUnderWay(AppError):
    """The same idempotency key's first request is still being answered. Nothing was held again."""

    key: str
    code = "request_under_way"
    status = 409
    retryable = True

    @property
    def message(self) -> str:
        return f"The first request with the idempotency key {self.key!r} is still being answered; try again soon."

    @property
    def retry_after_s(self) -> int:
        return 2


@dataclass
class ChatFailed(AppError):
    """The model failed in the middle of the turn. Nothing is charged."""

    reason: str
    code = "model_failed"
    status = 500

    @property
    def message(self) -> str:
        return f"{self.reason} Nothing was charged."
