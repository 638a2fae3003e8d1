"""One chat completion, from its hold to its charge: what is said on the way, and money settled however it ends.

- The model failed, or nobody heard a word: the hold is freed.
- The answer is whole: it is charged, before its last chunk leaves.
- The caller of a stream left after words were delivered: the model stops, and the turn is charged.
- A stream's time was up after words were delivered: the same, and it ends as one that reached its length.
- This process dies: the hold runs out, and nothing is charged.

What the turn took is written down with its charge or its release.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final

import anyio
import structlog

from gateway.conversations import (
    Began,
    ChatFailed,
    Chats,
    Conversation,
    Ended,
    Event,
    FinishReason,
    Outcome,
    Said,
    TurnBooks,
    TurnCharged,
)
from gateway.responses import amount
from gateway.turn_meter import TurnMeter
from kit.errors import AppError, Unavailable
from kit.settings import Settings

log = structlog.get_logger(__name__)

TICK_S: Final = 2.0
"""How often a silent wait is told of: proxies close what is silent for longer, and a first failure keeps its status."""
SETTLE_S: Final = 15.0
"""How long a charge is tried; after that the hold runs out and the turn was free."""
AGAIN_S: Final = 0.5
START_AGAIN_S: Final = 30


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing came for a while."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The turn is over and paid for. `body` is the whole completion."""

    body: dict[str, Any]


class Completion:
    """A turn that is held for."""

    def __init__(  # noqa: PLR0913, PLR0917  # what a turn is made of
        self,
        settings: Settings,
        books: TurnBooks,
        chats: Chats,
        application: str,
        conversation: Conversation,
        hold_id: str,
        *,
        streamed: bool,
        kept: bool,
    ) -> None:
        self._settings = settings
        self._books = books
        self._chats = chats
        self._application = application
        self._conversation = conversation
        self._hold_id = hold_id
        self._streamed = streamed
        self._kept = kept
        self.id = conversation.id
        self.created = int(time.time())
        self.model = ""
        self.notice: str | None = None
        self._text: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._meter = TurnMeter(conversation.id, application)

    async def events(self) -> AsyncGenerator[Waiting | Said | Finished, None]:
        """Yield what the model says, then the whole; close it to leave. Raises: AppError, with nothing charged."""
        heard = settled = False
        try:
            async with aclosing(self._listen()) as events:
                async for event in events:
                    if isinstance(event, Began):
                        self.model, self.notice = event.model, event.notice
                    elif isinstance(event, Ended):
                        body = self._body(event.finish_reason)
                        charged = await self._charge(body, "succeeded")
                        settled = True
                        yield Finished(with_cost(body, charged.cost_tokens))
                        return
                    else:
                        if isinstance(event, Said):
                            self._text.append(event.text)
                            self._calls.extend(event.tool_calls)
                        yield event
                        heard = heard or isinstance(event, Said)
        except Exception:
            if not settled:
                settled = True
                await self._free("failed")
            raise
        finally:
            if not settled:  # the caller left
                with anyio.move_on_after(SETTLE_S, shield=True):
                    if heard and self._streamed:
                        with suppress(AppError):
                            await self._charge(self._body("stop"), "canceled")
                    else:
                        await self._free("canceled")

    async def _listen(self) -> AsyncGenerator[Event | Waiting, None]:
        """Yield the model's events, and that nothing came. Raises: Unavailable before its first word, ChatFailed."""
        until = time.monotonic() + self._settings.chat_start_s
        last: Event | None = None
        async with aclosing(self._chats.stream(self._application, self._conversation)) as stream:
            while True:
                coming = asyncio.ensure_future(anext(stream))
                try:
                    while not coming.done() and (left_s := until - time.monotonic()) > 0:
                        await asyncio.wait({coming}, timeout=min(TICK_S, left_s))
                        if not coming.done():
                            yield Waiting()
                    if not coming.done():
                        break
                    event = coming.result()
                except StopAsyncIteration:
                    raise ChatFailed("The chat model ended without an answer.") from None
                finally:
                    self._meter.waited()
                    if not coming.done():
                        coming.cancel()
                        await asyncio.wait({coming})
                if last is None:
                    until = time.monotonic() + self._settings.chat_turn_s
                last = event
                self._meter.heard(event)
                yield event
        yield self._cut(last)

    def _cut(self, last: Event | None) -> Ended:
        """Return how a stream ends whose time was up: with what was delivered. Raises: Unavailable, ChatFailed."""
        if last is None:
            raise Unavailable("The chat model", START_AGAIN_S)
        if not (self._streamed and (self._text or self._calls)):
            raise ChatFailed("The answer took too long.")
        return Ended("length", last.took)

    def _body(self, finish_reason: FinishReason) -> dict[str, Any]:
        prompt_tokens, completion_tokens = self._meter.tokens
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(self._text) or None,
            "refusal": None,
        }
        if self._calls:
            message["tool_calls"] = self._calls
        elif message["content"] is None:
            message["content"] = ""
        body = {
            "id": self._conversation.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }
        return body | ({"notice": self.notice} if self.notice else {})

    async def _charge(self, body: dict[str, Any], outcome: Outcome) -> TurnCharged:
        """Charge the turn, asking again while the books are away: one reference is charged once."""
        turn = self._meter.turn(outcome)
        assert turn is not None, "only what a model said is charged"
        until = time.monotonic() + SETTLE_S
        while True:
            try:
                return await self._books.finish_turn(self._hold_id, turn, body if self._kept else None)
            except Unavailable:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(AGAIN_S)

    async def _free(self, outcome: Outcome) -> None:
        try:
            await self._books.abandon_turn(self._hold_id, self._meter.turn(outcome))
        except AppError as error:  # it runs out by itself
            log.info("a turn's hold was not freed", problem=str(error))


def with_cost(body: dict[str, Any], cost_tokens: int) -> dict[str, Any]:
    """Return a completion whose usage says what it cost in money too."""
    return {**body, "usage": {**body["usage"], "cost": amount(cost_tokens)}}
