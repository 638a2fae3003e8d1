"""Answers under `/v1`, as the OpenAPI document shows them: OpenAI's fields, and what money needs beside them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.answers import Credits, State, Tokens


class OpenAIFault(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(extra="allow")

    message: str = Field(description="One sentence that a person can act on.")
    type: str = Field(description="What kind of refusal it is.", examples=["invalid_request_error"])
    param: str | None = Field(default=None, description="The field at fault, if it is one.")
    code: str = Field(description="Stable.", examples=["insufficient_credits"])
    details: Any = Field(default=None, description="More, where there is more than one fault.")


class OpenAIProblem(BaseModel):
    """A refusal in OpenAI's shape."""

    error: OpenAIFault


class OpenAIPrice(BaseModel):
    """What a unit of a model's work costs."""

    tool: str
    unit: str
    per_units: int = Field(description="The price is for so many units.")
    price_version: int
    credits: Credits
    tokens: Tokens


class OpenAIOffer(BaseModel):
    """A task that a model does."""

    task: str
    summary: str
    state: State
    reason: str | None
    price: OpenAIPrice


class OpenAIModel(BaseModel):
    """A model on offer."""

    id: str
    object: Literal["model"]
    created: int = Field(description="Since when it is on sale, in seconds since 1970.")
    owned_by: str
    name: str
    licence: str
    tasks: list[OpenAIOffer]


class OpenAIModels(BaseModel):
    """All models on offer."""

    object: Literal["list"]
    data: list[OpenAIModel]


class OpenAICost(BaseModel):
    """What was charged."""

    credits: Credits
    tokens: Tokens


class OpenAIImage(BaseModel):
    """A picture: its URL, or its bytes."""

    url: str | None = None
    b64_json: str | None = None


class OpenAIImages(BaseModel):
    """Pictures that were made."""

    created: int
    data: list[OpenAIImage] = Field(description="Fewer than asked for where some failed, which cost nothing.")
    output_format: str
    size: str | None = Field(description="WIDTHxHEIGHT of the pictures.")
    cost: OpenAICost


class OpenAIDuration(BaseModel):
    """How much was heard, and what it cost."""

    type: Literal["duration"]
    seconds: float
    cost: OpenAICost


class OpenAISegment(BaseModel):
    """A part of a transcript. Units: seconds from the beginning."""

    id: int
    start: float
    end: float
    text: str


class OpenAIWord(BaseModel):
    """A word and when it is said, in seconds."""

    word: str
    start: float
    end: float


class OpenAITranscript(BaseModel):
    """What is said in a recording; all but `text` and `usage` with `verbose_json` alone."""

    text: str
    usage: OpenAIDuration
    task: Literal["transcribe"] | None = None
    language: str | None = None
    duration: float | None = None
    segments: list[OpenAISegment] | None = None
    words: list[OpenAIWord] | None = None
