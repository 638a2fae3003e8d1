"""The inputs of tasks, field by field, as callers may send them: strict types, no unknown fields, limits with reasons.

A media input is a pair of fields, `<name>Url` and `<name>FileId`: one of them, or neither where it is optional. The
platform fetches it when the job runs; `MEDIA` says what it may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Final, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from gateway.languages import HEARD
from gateway.numbers import decimal_as_whole, whole_as_decimal
from gateway.patterns import PROMPT, TEXT
from gateway.problems import InvalidFields, field_faults

MAX_PROMPT_CHARS: Final = 4000
"""About the 1,024 tokens that the picture and film models read at most."""
MAX_SPEECH_CHARS: Final = 4000
"""Five minutes of speech: more than one call of the model keeps a voice steady for."""
MAX_VOICE_CHARS: Final = 1000
"""A voice in a few sentences."""
MAX_TRANSLATE_CHARS: Final = 10_000
"""About four pages, and what a language model translates without losing the thread."""
MAX_MESSAGES: Final = 200
MAX_MESSAGE_CHARS: Final = 100_000
"""About 25,000 tokens: most of what the largest model reads."""
MAX_SEED: Final = 2**32 - 1
"""Every client's JSON numbers hold it exactly, JavaScript's too."""
MAX_URL_CHARS: Final = 2048
"""Signed URLs of the large object stores stay below 1,500."""

MEDIA: Final[Mapping[str, tuple[str, ...]]] = {
    "sourceImage": ("image/",),
    "audio": ("audio/", "video/"),
    "video": ("video/",),
    "referenceAudio": ("audio/", "video/"),
}
"""The beginnings of the types that each media input may have. A film has a sound track, and what a browser records of a
microphone alone is in a film's container too."""


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


def _web_address(value: str) -> str:
    """Check the form of a URL; where it leads is checked when it is fetched, since names change."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ValueError("is not a URL") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("must be an http or https URL with a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not carry a user name or password")
    if any(char.isspace() or not char.isprintable() for char in value):
        raise ValueError("must not contain spaces; write them as %20")
    return value


AS_WHOLE: Final = BeforeValidator(decimal_as_whole)
Text = Annotated[str, Field(json_schema_extra=TEXT)]
Prompt = Annotated[
    str,
    Field(min_length=1, max_length=MAX_PROMPT_CHARS, json_schema_extra=PROMPT),
    AfterValidator(_not_blank),
]
NegativePrompt = Annotated[
    Annotated[str, Field(max_length=MAX_PROMPT_CHARS, json_schema_extra=TEXT)] | None,
    Field(description="What the result must not show or sound like."),
]
Seed = Annotated[
    Annotated[int, Field(ge=0, le=MAX_SEED), AS_WHOLE] | None,
    Field(
        description="The same seed and settings make the same file. Without it, one is drawn.",
    ),
]
Steps = Annotated[
    Annotated[int, Field(ge=2, le=50), AS_WHOLE] | None,
    Field(
        description="More steps take longer and cost the same; without it, the model's own setting.",
    ),
]
Guidance = Annotated[
    Decimal,
    BeforeValidator(whole_as_decimal),
    Field(ge=1, le=10, description="How closely the result follows the prompt; 1 turns guidance off."),
    WithJsonSchema({"type": "number", "minimum": 1, "maximum": 10}),
]
MediaUrl = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_URL_CHARS,
        description="Fetched by the platform, from public addresses alone.",
        json_schema_extra={"format": "uri"},
    ),
    AfterValidator(_web_address),
]
FileId = Annotated[
    str, Field(pattern=r"^file_[0-9A-Za-z]{1,40}$", description="One of your files, instead of a URL.")
]
AspectRatio = Literal["1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3"]
Language = Literal[
    "Auto",
    "Chinese",
    "English",
    "French",
    "German",
    "Italian",
    "Japanese",
    "Korean",
    "Portuguese",
    "Russian",
    "Spanish",
]
"""What Qwen3-TTS speaks. Source: its model card."""
WHISPER_LANGUAGES: Final[tuple[str, ...]] = tuple(
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml"  # noqa: SIM905
    " cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu"
    " am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue".split()
)
"""What Whisper hears, by its own codes. Source: its tokenizer."""
AudioFormat = Annotated[
    Literal["mp3", "wav", "flac", "opus"],
    Field(description="What every browser plays; `opus` is 48 kHz in an Ogg file, `wav` has 16 bits."),
]


LanguageName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z][A-Za-z ()-]{1,39}$",
        description="A language by its English name.",
    ),
]


class TaskInput(BaseModel):
    """A task's input: camelCase, strict, no field that is not listed."""

    model_config = ConfigDict(strict=True, extra="forbid", alias_generator=to_camel)
    needs: ClassVar[tuple[str, ...]] = ()
    """The media inputs that the task cannot do without."""

    @model_validator(mode="after")
    def _one_source_for_each(self) -> TaskInput:
        fields = {field.alias or name: name for name, field in type(self).model_fields.items()}
        for media in MEDIA:
            if f"{media}Url" not in fields:
                continue
            given = [kind for kind in ("Url", "FileId") if getattr(self, fields[media + kind]) is not None]
            if len(given) > 1:
                raise ValueError(f"give {media}Url or {media}FileId, not both")
            if media in self.needs and not given:
                raise ValueError(f"give {media}Url or {media}FileId")
        return self


class _Picture(TaskInput):
    negative_prompt: NegativePrompt = None
    seed: Seed = None
    steps: Steps = None
    guidance: Guidance | None = None
    output_format: Literal["png", "webp", "jpeg"] = "png"
    output_quality: Annotated[
        Annotated[int, Field(ge=1, le=100), AS_WHOLE] | None,
        Field(description="For `webp` and `jpeg`: lower is smaller. Without it, 90."),
    ] = None

    @field_validator("output_quality")
    @classmethod
    def _quality_needs_a_lossy_format(cls, value: int | None, known: ValidationInfo) -> int | None:
        if value is not None and known.data.get("output_format") == "png":
            raise ValueError("has no effect on png, which loses nothing; leave it out")
        return value

    @model_validator(mode="after")
    def _negative_prompt_needs_guidance(self) -> _Picture:
        if self.negative_prompt and self.guidance is not None and self.guidance <= 1:
            raise ValueError("negativePrompt has no effect at guidance 1; leave one of them out")
        return self


class ImageGenerate(_Picture):
    """The input of `image.generate`."""

    prompt: Annotated[Prompt, Field(description="What the picture shows.")]
    aspect_ratio: AspectRatio = "1:1"


class ImageEdit(_Picture):
    """The input of `image.edit`."""

    needs: ClassVar[tuple[str, ...]] = ("sourceImage",)

    prompt: Annotated[Prompt, Field(description="What to change.")]
    source_image_url: MediaUrl | None = None
    source_image_file_id: FileId | None = None
    aspect_ratio: Annotated[
        AspectRatio | None, Field(description="Without it, the one nearest to the source's.")
    ] = None


class MusicGenerate(TaskInput):
    """The input of `music.generate`."""

    prompt: Annotated[
        str,
        Field(
            min_length=1, max_length=1000, description="Style, instruments, mood.", json_schema_extra=PROMPT
        ),
        AfterValidator(_not_blank),
    ]
    lyrics: Annotated[
        Text | None,
        Field(
            max_length=MAX_PROMPT_CHARS,
            description="What is sung, with marks such as `[verse]` and `[chorus]`; without it, nobody sings.",
        ),
    ] = None
    duration_seconds: Annotated[
        int, Field(ge=1, le=240, description="Whole seconds; each is paid for."), AS_WHOLE
    ] = 30
    seed: Seed = None
    output_format: AudioFormat = "mp3"


class SfxGenerate(TaskInput):
    """The input of `sfx.generate`."""

    prompt: Annotated[
        str,
        Field(min_length=1, max_length=1000, description="What is heard.", json_schema_extra=PROMPT),
        AfterValidator(_not_blank),
    ]
    negative_prompt: Annotated[str | None, Field(max_length=1000, description="What is not heard.")] = None
    duration_seconds: Annotated[
        int, Field(ge=1, le=47, description="Whole seconds; each is paid for."), AS_WHOLE
    ] = 5
    seed: Seed = None
    output_format: AudioFormat = "mp3"


class AudioTranscribe(TaskInput):
    """The input of `audio.transcribe`. `maxMinutes` is held; what is charged is the recording's length."""

    needs: ClassVar[tuple[str, ...]] = ("audio",)

    audio_url: MediaUrl | None = None
    audio_file_id: FileId | None = None
    language: Annotated[
        Literal[WHISPER_LANGUAGES] | None,  # type: ignore[valid-type]  # one list for the model and its callers
        Field(description="The language spoken; without it, it is recognised."),
    ] = None
    max_minutes: Annotated[
        int, Field(ge=1, le=180, description="A longer recording is refused and costs nothing."), AS_WHOLE
    ] = 10


class TextTranslate(TaskInput):
    """The input of `text.translate`."""

    text: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_TRANSLATE_CHARS,
            description="Each character is paid for.",
            json_schema_extra=PROMPT,
        ),
        AfterValidator(_not_blank),
    ]
    target_language: Annotated[LanguageName, Field(examples=["French", "Brazilian Portuguese"])]
    source_language: Annotated[LanguageName | None, Field(description="Without it, it is recognised.")] = None


class VideoGenerate(TaskInput):
    """The input of `video.generate`. With a source image, the film begins with it."""

    prompt: Annotated[Prompt, Field(description="What happens in the film, and what is heard.")]
    source_image_url: MediaUrl | None = None
    source_image_file_id: FileId | None = None
    duration_seconds: Annotated[
        int, Field(ge=1, le=20, description="Whole seconds; each is paid for."), AS_WHOLE
    ] = 5
    aspect_ratio: AspectRatio = "16:9"
    negative_prompt: NegativePrompt = None
    sound: Annotated[bool, Field(description="Whether the film has a sound track.")] = True
    output_format: Annotated[
        Literal["mp4"], Field(description="H.264 and AAC, which every browser plays from its first bytes.")
    ] = "mp4"
    seed: Seed = None
    steps: Steps = None


class _Speech(TaskInput):
    text: Annotated[
        str,
        Field(
            min_length=1, max_length=MAX_SPEECH_CHARS, description="What is said.", json_schema_extra=PROMPT
        ),
        AfterValidator(_not_blank),
    ]
    language: Language = "Auto"
    seed: Seed = None
    output_format: AudioFormat = "mp3"


class AudioSpeak(_Speech):
    """The input of `audio.speak`. The longest that the text may take is held; each second begun is charged."""

    voice_description: Annotated[
        Text | None,
        Field(min_length=1, max_length=MAX_VOICE_CHARS, description="Who speaks, and how."),
    ] = None


class VoiceClone(_Speech):
    """The input of `voice.clone`, held and charged as `audio.speak` is. Clone a voice only with its owner's consent."""

    needs: ClassVar[tuple[str, ...]] = ("referenceAudio",)

    reference_audio_url: MediaUrl | None = None
    reference_audio_file_id: FileId | None = None
    reference_text: Annotated[
        Text | None,
        Field(
            min_length=1,
            max_length=MAX_SPEECH_CHARS,
            description="What the recording says; with it, its manner of speaking is kept too.",
        ),
    ] = None


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: Annotated[Text, Field(max_length=MAX_MESSAGE_CHARS)]


class ChatComplete(TaskInput):
    """The input of `chat.complete`."""

    messages: Annotated[
        list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, description="Oldest first.")
    ]
    max_tokens: Annotated[
        Annotated[int, Field(ge=1, le=32_768), AS_WHOLE] | None,
        Field(description="The most that the answer may be, in the model's tokens."),
    ] = None
    temperature: Annotated[
        Decimal,
        BeforeValidator(whole_as_decimal),
        Field(ge=0, le=2, description="0 takes the likeliest words; higher draws more freely."),
        WithJsonSchema({"type": "number", "minimum": 0, "maximum": 2}),
    ] = Decimal(1)
    seed: Seed = None


class VideoDub(TaskInput):
    """The input of `video.dub`. `maxMinutes` is held; what is charged is the film's length.

    Every line is spoken in a voice cloned from the film itself: dub only with the consent of those who speak in it.
    """

    needs: ClassVar[tuple[str, ...]] = ("video",)

    video_url: MediaUrl | None = None
    video_file_id: FileId | None = None
    target_language: Annotated[
        Literal[get_args(Language)[1:]],  # type: ignore[valid-type]  # all but `Auto`: what the voice model speaks
        Field(description="What is spoken in the result.", examples=["French"]),
    ]
    source_language: Annotated[
        Literal[tuple(HEARD)] | None,  # type: ignore[valid-type]  # one list for the model and its callers
        Field(description="What is spoken in the film; without it, it is recognised.", examples=["English"]),
    ] = None
    keep_background: Annotated[
        bool,
        Field(
            description="The film's own sound stays, lowered by 18 dB while somebody speaks: it cannot be taken apart,"
            " so the original's speech is faintly heard under the new. Without it, only the new speech is heard."
        ),
    ] = True
    max_minutes: Annotated[
        int, Field(ge=1, le=30, description="A longer film is refused and costs nothing."), AS_WHOLE
    ] = 5
    seed: Seed = None


INPUTS: Final[Mapping[str, type[TaskInput]]] = {
    "image.generate": ImageGenerate,
    "image.edit": ImageEdit,
    "video.generate": VideoGenerate,
    "audio.speak": AudioSpeak,
    "voice.clone": VoiceClone,
    "music.generate": MusicGenerate,
    "sfx.generate": SfxGenerate,
    "audio.transcribe": AudioTranscribe,
    "text.translate": TextTranslate,
    "chat.complete": ChatComplete,
    "video.dub": VideoDub,
}
"""The input of each task that this code knows. The catalogue says which are on sale, and for how much."""


def task_input(task: str, sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's input as the model gets it: checked, with the API's own defaults, without empty fields.

    Raises: InvalidFields, each under `input.`.
    """
    try:
        checked = INPUTS[task].model_validate(sent)
    except ValidationError as error:
        faults = field_faults(error.errors(include_url=False, include_context=False, include_input=False))
        raise InvalidFields(
            [(f"input.{field}" if field != "body" else "input", text) for field, text in faults.faults]
        ) from error
    return {
        name: float(value) if isinstance(value, Decimal) else value
        for name, value in checked.model_dump(by_alias=True, exclude_none=True).items()
    }


def media_of(job_input: Mapping[str, Any]) -> dict[str, tuple[Literal["Url", "FileId"], str]]:
    """Return the media inputs of a checked input: for each name, whether it is a URL or a file, and which."""
    found: dict[str, tuple[Literal["Url", "FileId"], str]] = {}
    for name in MEDIA:
        if url := job_input.get(f"{name}Url"):
            found[name] = ("Url", url)
        elif file_id := job_input.get(f"{name}FileId"):
            found[name] = ("FileId", file_id)
    return found
