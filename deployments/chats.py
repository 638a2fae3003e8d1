"""The chat applications over their handles: streamed, stopped when the caller leaves, never queued without bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final

import structlog
from ray import serve
from ray.serve.exceptions import BackPressureError

from deployments.models.contract import ModelRefused
from gateway.conversations import ChatBusy, ChatFailed, Conversation, Event
from kit.errors import AppError, InvalidRequest, Unavailable

log = structlog.get_logger(__name__)

BUSY_S: Final = 5
"""About how long a turn takes: by then one of those that wait has gone in."""
AWAY_S: Final = 10
NAMES: Final = {"maxTokens": "max_tokens"}
"""What the surface calls a field that the model knows by its name in a job."""


class ChatHandles:
    """`gateway.conversations.Chats` over this Serve instance."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}

    async def stream(self, application: str, conversation: Conversation) -> AsyncGenerator[Event, None]:
        """Yield the turn's events; leaving early takes it out of the engine."""
        began = False
        stream: Any = None
        try:
            stream = (await self._handle(application)).stream.remote(conversation)
            async for event in stream:
                began = True
                yield event
            stream = None
        except Exception as error:
            raise self._refusal(application, error, began=began) from error
        finally:
            if stream is not None:
                stream.cancel()

    async def _handle(self, application: str) -> Any:
        if application not in self._handles:
            # The look-up asks Serve's controller and blocks while it does.
            found: Any = await asyncio.to_thread(serve.get_app_handle, application)
            self._handles[application] = found.options(stream=True)
        return self._handles[application]

    def _refusal(self, application: str, error: Exception, *, began: bool) -> AppError:
        """Return what a failed call means to its caller."""
        for candidate in (getattr(error, "cause", None), error):
            if isinstance(candidate, ModelRefused):
                return InvalidRequest(NAMES.get(candidate.field, candidate.field), candidate.problem)
            if isinstance(candidate, AppError):
                return candidate
        if isinstance(error, BackPressureError):
            return ChatBusy(BUSY_S)
        # A handle of an application that was deleted or replaced stays broken: look it up anew.
        self._handles.pop(application, None)
        log.warning("chat call failed", application=application, began=began, exc_info=error)
        if began:
            return ChatFailed("The chat model went away in the middle of the answer.")
        return Unavailable("The chat model", AWAY_S)
