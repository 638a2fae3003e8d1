"""Answers under `/v1`, as the OpenAPI document shows them: OpenAI's fields, and what money needs beside them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class OpenAIFault(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(extra="allow")

    message: str = Field(description="One sentence that a person can act on.")
    type: str = Field(description="What kind of refusal it is.", examples=["invalid_request_error"])
    param: str | None = Field(description="The field at fault, if it is one.")
    code: str = Field(description="Stable.", examples=["insufficient_credits"])
    details: Any = Field(default=None, description="More, where there is more than one fault.")


class OpenAIProblem(BaseModel):
    """A refusal in OpenAI's shape."""

    error: OpenAIFault
