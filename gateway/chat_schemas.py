"""What callers may send to `/v1/chat/completions`: OpenAI's fields that the models here can honour."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from gateway.conversations import Conversation
from gateway.numbers import whole_as_decimal
from gateway.openai_schemas import Ignored, Model, OpenAIRequest
from gateway.patterns import TEXT
from gateway.task_schemas import AS_WHOLE, MAX_MESSAGE_CHARS, MAX_MESSAGES, Seed

MAX_STOPS: Final = 4
"""As many as OpenAI takes."""
MAX_STOP_CHARS: Final = 200
MAX_TOOLS: Final = 128
"""As many as OpenAI takes."""

Words = Annotated[str, Field(max_length=MAX_MESSAGE_CHARS, json_schema_extra=TEXT)]
Most = Annotated[int, Field(ge=1, le=1_000_000), AS_WHOLE]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS, json_schema_extra=TEXT)]


@dataclass(frozen=True)
class OrText:
    """Lets a text stand for a list of one. The faults of a union would name its branches, which no caller knows."""

    max_chars: int
    min_chars: int = 0
    is_part: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._listed, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        text = {"type": "string", "minLength": self.min_chars, "maxLength": self.max_chars, **TEXT}
        return {"anyOf": [text, handler(schema)]}

    def _listed(self, value: object) -> object:
        if isinstance(value, list):
            return value
        if not isinstance(value, str):
            raise ValueError("must be a text or a list")  # noqa: TRY004  # pydantic tells of this one
        return [{"type": "text", "text": value} if self.is_part else value]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class TextPart(_Strict):
    """A part of a message. Pictures and sounds are not read."""

    type: Literal["text"]
    text: Words


Content = Annotated[
    list[TextPart],
    Field(max_length=100),
    OrText(MAX_MESSAGE_CHARS, is_part=True),
]
Unsaid = Annotated[None, Field(description="Null in answers of OpenAI's client that are sent back.")]


class CalledFunction(_Strict):
    """What a tool was called with."""

    name: Annotated[str, Field(max_length=64, json_schema_extra=TEXT)]
    arguments: Words


class ToolCall(_Strict):
    """A call of a tool that the model made earlier."""

    id: Annotated[str, Field(max_length=200, json_schema_extra=TEXT)]
    type: Literal["function"]
    function: CalledFunction


class Message(_Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Annotated[
        str | None,
        Field(max_length=64, description="Taken, and without effect.", json_schema_extra=TEXT),
    ] = None
    tool_calls: Annotated[list[ToolCall] | None, Field(max_length=MAX_TOOLS)] = None
    tool_call_id: Annotated[str | None, Field(max_length=200, json_schema_extra=TEXT)] = None
    refusal: Unsaid = None
    annotations: Unsaid = None
    audio: Unsaid = None
    function_call: Unsaid = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise ValueError("content is required")
        return self

    def plain(self) -> dict[str, Any]:
        """Return the message as chat templates read one."""
        told: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": "".join(part.text for part in self.content or []),
        }
        if self.tool_calls:
            told["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id:
            told["tool_call_id"] = self.tool_call_id
        return told


class Function(_Strict):
    """What a tool is called, and with what."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
    description: Words | None = None
    parameters: dict[str, Any] | None = None
    strict: Annotated[
        bool | None, Field(description="Taken: what a tool is called with may differ from `parameters`.")
    ] = None


class ChatTool(_Strict):
    """A tool that the model may call, if it can."""

    type: Literal["function"]
    function: Function


class ResponseFormat(_Strict):
    """The form of the answer."""

    type: Literal["text"]


Penalty = Annotated[
    Decimal,
    BeforeValidator(whole_as_decimal),
    Field(ge=-2, le=2),
    WithJsonSchema({"type": "number", "minimum": -2, "maximum": 2}),
]


class StreamOptions(_Strict):
    """How the stream ends."""

    include_usage: bool = False


class CreateChatCompletion(OpenAIRequest):
    """A turn of a conversation."""

    model: Model = None
    messages: Annotated[
        list[Message], Field(min_length=1, max_length=MAX_MESSAGES, description="Oldest first.")
    ]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Most | None = None
    max_completion_tokens: Annotated[Most | None, Field(description="The same as `max_tokens`.")] = None
    temperature: Annotated[
        Annotated[
            Decimal,
            BeforeValidator(whole_as_decimal),
            Field(ge=0, le=2),
            WithJsonSchema({"type": "number", "minimum": 0, "maximum": 2}),
        ]
        | None,
        Field(description="0 takes the likeliest words."),
    ] = None
    top_p: Annotated[
        Annotated[
            Decimal,
            BeforeValidator(whole_as_decimal),
            Field(gt=0, le=1),
            WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
        ]
        | None,
        Field(description="Draws from the likeliest words that together have this chance."),
    ] = None
    frequency_penalty: Annotated[
        Penalty | None, Field(description="Above 0, a word becomes less likely each time that it was said.")
    ] = None
    presence_penalty: Annotated[
        Penalty | None, Field(description="Above 0, words that were said become less likely.")
    ] = None
    stop: (
        Annotated[
            list[Stop],
            Field(max_length=MAX_STOPS),
            OrText(MAX_STOP_CHARS, min_chars=1),
        ]
        | None
    ) = None
    seed: Seed = None
    n: Annotated[
        Annotated[int, Field(ge=1, le=1), AS_WHOLE] | None, Field(description="One answer a turn.")
    ] = None
    tools: Annotated[
        list[ChatTool] | None,
        Field(max_length=MAX_TOOLS, description="Refused by models that call none."),
    ] = None
    response_format: Annotated[ResponseFormat | None, Field(description="Answers are text.")] = None
    tool_choice: Annotated[Literal["auto", "none"] | None, Field(description="A call cannot be forced.")] = (
        None
    )
    user: Ignored = None

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_bound(cls, value: int | None, known: ValidationInfo) -> int | None:
        if value is not None and known.data.get("max_tokens") not in (None, value):
            raise ValueError("means the same as max_tokens, which differs; leave one of them out")
        return value

    def conversation(self, completion_id: str) -> Conversation:
        """Return the turn as the model takes it."""
        tools = [] if self.tool_choice == "none" else self.tools or []
        return Conversation(
            completion_id,
            [message.plain() for message in self.messages],
            [_plain(tool.model_dump(exclude_none=True)) for tool in tools],
            self.max_completion_tokens or self.max_tokens,
            None if self.temperature is None else float(self.temperature),
            None if self.top_p is None else float(self.top_p),
            self.stop or [],
            self.seed,
            float(self.frequency_penalty or 0),
            float(self.presence_penalty or 0),
        )


def _plain(value: Any) -> Any:
    """Return JSON with numbers as every library takes them."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
