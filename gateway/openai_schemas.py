"""What callers may send under `/v1`: OpenAI's fields, with what they mean here.

A field that would change the result and cannot be served is refused by name; one that only steers how OpenAI works
(`quality`, `style`, `moderation`, `user`) is taken and has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from gateway.numbers import whole_as_decimal
from gateway.patterns import PROMPT, TEXT
from gateway.task_schemas import (
    AS_WHOLE,
    INPUTS,
    MAX_SPEECH_CHARS,
    WHISPER_LANGUAGES,
    Prompt,
)

MAX_COPIES: Final = 10
"""As many pictures as one request of OpenAI's may ask for."""
RATIOS: Final[Mapping[str, float]] = {
    "1:1": 1.0, "16:9": 16 / 9, "9:16": 9 / 16, "4:3": 4 / 3, "3:4": 3 / 4, "3:2": 3 / 2, "2:3": 2 / 3,
}  # fmt: skip
NEAR: Final = 0.02
"""1792x1024 is 16:9 but for 1.6 %."""
VOICES: Final[Mapping[str, str]] = {
    "alloy": "A calm, balanced adult voice, neither high nor low.",
    "ash": "A warm, clear man's voice with energy.",
    "ballad": "A soft, melodious man's voice, slow and full of feeling.",
    "cedar": "A deep, natural man's voice, relaxed.",
    "coral": "A bright, friendly woman's voice.",
    "echo": "A smooth, even man's voice.",
    "fable": "A lively storyteller's voice with a British accent.",
    "marin": "A natural, warm woman's voice, relaxed.",
    "nova": "A young, lively woman's voice, clear and confident.",
    "onyx": "A deep, authoritative man's voice.",
    "sage": "A gentle, thoughtful woman's voice.",
    "shimmer": "A light, cheerful woman's voice.",
    "verse": "An expressive, versatile man's voice.",
}
"""OpenAI's names, and who speaks under them here: the model makes a voice from a description."""


def formats_of(task: str) -> tuple[str, ...]:
    """Return the output formats of a task."""
    return tuple(INPUTS[task].model_json_schema()["properties"]["outputFormat"]["enum"])


def aspect_ratio(size: str) -> str:
    """Return the ratio that a size means. Raises: ValueError for a size that no ratio on offer is near."""
    width, _, height = size.partition("x")
    if not (
        width.isascii()
        and width.isdigit()
        and height.isascii()
        and height.isdigit()
        and int(width)
        and int(height)
    ):
        raise ValueError("must be 'auto' or WIDTHxHEIGHT, such as 1024x1024")
    wanted = int(width) / int(height)
    name, ratio = min(RATIOS.items(), key=lambda item: abs(item[1] / wanted - 1))
    if abs(ratio / wanted - 1) > NEAR:
        raise ValueError(
            f"no such shape is on offer; there are {', '.join(RATIOS)}, such as 1024x1024 and 1536x1024"
        )
    return name


def _size(size: str) -> str:
    if size != "auto":
        aspect_ratio(size)
    return size


def _one(value: Decimal) -> Decimal:
    if value != 1:
        raise ValueError("only 1 is on offer; say in `instructions` how fast to speak")
    return value


def _zero(value: Decimal | None) -> Decimal | None:
    if value:
        raise ValueError("only 0 is on offer: the likeliest words are taken")
    return value


def _voice(value: str) -> str:
    if value.lower() not in VOICES and " " not in value.strip():
        raise ValueError(f"unknown voice; there are {', '.join(VOICES)}, or describe one in several words")
    return value


class OpenAIRequest(BaseModel):
    """A JSON object of OpenAI's: snake_case, no field that is not listed."""

    model_config = ConfigDict(strict=True, extra="forbid")


class OpenAIForm(BaseModel):
    """A form of OpenAI's, whose values are all texts."""

    model_config = ConfigDict(extra="forbid")


Model = Annotated[
    str | None,
    Field(
        min_length=1,
        max_length=100,
        description="A name of `GET /v1/models`; left out, whatever does it.",
        json_schema_extra=TEXT,
    ),
]
Ignored = Annotated[
    str | None, Field(max_length=512, description="Taken, and without effect.", json_schema_extra=TEXT)
]
Size = Annotated[
    str,
    Field(
        max_length=20,
        pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$",
        description="Its shape is kept; the model has pixel sizes of its own, and the answer's `size` says which.",
        examples=["1024x1024", "1536x1024", "1024x1536"],
    ),
    AfterValidator(_size),
]
Copies = Annotated[
    int, Field(ge=1, le=MAX_COPIES, description="Each picture is a job and is paid for by itself."), AS_WHOLE
]


class _Pictures(BaseModel):
    prompt: Prompt
    model: Model = None
    n: Copies | None = 1
    size: Size | None = "auto"
    response_format: Literal["url", "b64_json"] | None = "url"
    output_format: Literal[formats_of("image.generate")] | None = "png"  # type: ignore[valid-type]  # the task's own
    output_compression: Annotated[
        Annotated[int, Field(ge=1, le=100), AS_WHOLE] | None,
        Field(description="How much `webp` and `jpeg` keep: lower is smaller."),
    ] = None
    background: Literal["auto", "opaque"] | None = None
    quality: Annotated[
        Literal["auto", "low", "medium", "high", "standard", "hd"] | None,
        Field(description="Taken, and without effect."),
    ] = None
    user: Ignored = None
    safety_identifier: Ignored = None
    stream: Annotated[Literal[False] | None, Field(description="Pictures come whole.")] = None


class CreateImages(_Pictures, OpenAIRequest):
    """Pictures from a text, as OpenAI's clients ask for them."""

    style: Annotated[Literal["vivid", "natural"] | None, Field(description="Taken, and without effect.")] = (
        None
    )
    moderation: Annotated[Literal["low", "auto"] | None, Field(description="Taken, and without effect.")] = (
        None
    )


class EditImages(_Pictures, OpenAIForm):
    """A picture changed as a text says; the picture itself comes in the form's field `image`."""

    stream: Annotated[Literal["false"] | None, Field(description="Pictures come whole.")] = None  # type: ignore[assignment]
    input_fidelity: Annotated[
        Literal["high", "low"] | None, Field(description="Taken, and without effect.")
    ] = None


class CreateSpeech(OpenAIRequest):
    """A text to speak, as OpenAI's clients send it."""

    input: Annotated[
        str,
        Field(
            min_length=1, max_length=MAX_SPEECH_CHARS, description="What is said.", json_schema_extra=PROMPT
        ),
    ]
    model: Model = None
    voice: Annotated[
        str,
        Field(
            min_length=1,
            max_length=400,
            description=f"One of {', '.join(VOICES)}; or who speaks, in several words.",
            json_schema_extra=TEXT,
        ),
        AfterValidator(_voice),
    ] = "alloy"
    instructions: Annotated[
        str | None, Field(max_length=500, description="How it is said.", json_schema_extra=TEXT)
    ] = None
    response_format: Literal[(*formats_of("audio.speak"), "pcm")] = "mp3"  # type: ignore[valid-type]  # the task's own
    speed: Annotated[
        Decimal,
        BeforeValidator(whole_as_decimal),
        AfterValidator(_one),
        Field(description="Only 1 is on offer."),
        WithJsonSchema({"type": "number", "enum": [1]}),
    ] = Decimal(1)
    stream_format: Literal["audio"] | None = None


class TranscribeAudio(OpenAIForm):
    """A recording to write down; the recording itself comes in the form's field `file`."""

    model: Model = None
    language: Literal[WHISPER_LANGUAGES] | None = None  # type: ignore[valid-type]  # one list for the model and its callers
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    timestamp_granularities: Annotated[
        list[Literal["segment", "word"]],
        Field(
            max_length=2,
            alias="timestamp_granularities[]",
            description="What has times in `verbose_json`: segments, words or both. Left out, segments.",
        ),
    ] = []

    @field_validator("timestamp_granularities")
    @classmethod
    def _times_need_a_place(cls, value: list[str], known: ValidationInfo) -> list[str]:
        if known.data.get("response_format") != "verbose_json":
            raise ValueError("are told in the response_format verbose_json alone")
        return value

    max_minutes: Annotated[
        int | None,
        Field(
            ge=1,
            le=180,
            description="What is held at most; a longer recording is refused. Left out, judged by the size.",
        ),
    ] = None
    temperature: Annotated[
        Decimal | None,
        AfterValidator(_zero),
        Field(description="Only 0 is on offer: the likeliest words are taken."),
        WithJsonSchema({"type": "number", "enum": [0]}),
    ] = None
    stream: Annotated[Literal["false"] | None, Field(description="Transcripts come whole.")] = None


def voice_description(body: CreateSpeech) -> str:
    """Return who speaks, and how."""
    voice = VOICES.get(body.voice.lower(), body.voice)
    return f"{voice} {body.instructions}" if body.instructions else voice


def form_schema(model: type[OpenAIForm], files: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """Return the `requestBody` of a form with these files in it."""
    schema = model.model_json_schema(by_alias=True)
    schema["properties"] |= files
    schema["required"] = [*schema.get("required", []), *required]
    for field in schema["properties"].values():
        if choices := field.pop("anyOf", None):  # a field of a form is left out, never null
            field.update(next(choice for choice in choices if choice.get("type") != "null"))
            field.pop("default", None)
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


FILE: Final[dict[str, Any]] = {
    "type": "string",
    "minLength": 1,
    "contentMediaType": "application/octet-stream",
}
