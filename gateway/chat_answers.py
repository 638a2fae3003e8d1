"""The answer of `/v1/chat/completions`, as the OpenAPI document shows it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from gateway.openai_answers import OpenAICost


class ChatAnswer(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[dict[str, Any]] | None = Field(default=None, description="Calls of tools to be made.")


class ChatChoice(BaseModel):
    """The one answer of a turn."""

    index: Literal[0]
    message: ChatAnswer
    logprobs: None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatUsage(BaseModel):
    """The model's own tokens, and what the turn cost in money."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: OpenAICost


class ChatCompletion(BaseModel):
    """A finished turn."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str = Field(description="What answered; a smaller model where this server runs small ones.")
    choices: list[ChatChoice]
    usage: ChatUsage
    notice: str | None = Field(default=None, description="Said by weights whose words mean nothing.")
