"""Speech and transcripts, as OpenAI's clients ask for them."""

from __future__ import annotations

import hashlib
import io
import json
import wave
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from gateway import openai_forms
from gateway.answered import Done, Order, done, drop_upload, only_output
from gateway.bodies import StrictRoute
from gateway.deps import SECURED, CallerKey, Parts, PartsOf, RetryKey
from gateway.downloads import media_type
from gateway.forms import require_form
from gateway.openai_answers import OpenAITranscript
from gateway.openai_errors import JobRunning
from gateway.openai_models import task_for
from gateway.openai_schemas import (
    FILE,
    CreateSpeech,
    TranscribeAudio,
    form_schema,
    voice_description,
)
from gateway.openapi import OPENAI, REPLAYED, problems
from gateway.ports import StoredFile
from gateway.responses import amount, json_response
from gateway.routes.openai_images import ANSWERED
from gateway.uploads import keep_upload
from kit.errors import AppError, NotFound
from ledger import scopes

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"], route_class=StrictRoute)

SPEECH_NAMES: Final = {"text": "input", "voiceDescription": "instructions", "outputFormat": "response_format"}
HEARD_NAMES: Final = {"audioFileId": "file", "audioUrl": "file", "maxMinutes": "max_minutes"}
LEAST_BYTES_PER_S: Final = 2000
"""Speech of 16 kbit/s: what is smaller for its length is rare, and `max_minutes` says so."""
MOST_MINUTES: Final = 180
TYPES: Final = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}
_SOUND: Final = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}


@router.post(
    "/audio/speech",
    operation_id="createSpeech",
    summary="Speak a text",
    response_class=Response,
    responses={
        200: {
            "description": "The sound, in the format that was asked for. `pcm`: 16 bits, little end first, at the rate"
            " and with the channels that `content-type` says.",
            "headers": REPLAYED,
            "content": {"audio/*": _SOUND},
        },
        **problems(*ANSWERED, shape=OPENAI),
    },
    openapi_extra=SECURED,
)
async def create_speech(
    body: CreateSpeech, credential: CallerKey, header_key: RetryKey, parts: PartsOf, request: Request
) -> Response:
    """A job of `audio.speak`: the longest that the text may take is held, each second begun is charged.

    Hang up without an idempotency key and the job is canceled; with one it goes on, and the same request finds it.
    """
    task = task_for(await parts.price_list(), "audio.speak", body.model)
    is_raw = body.response_format == "pcm"
    job_input = {
        "text": body.input,
        "voiceDescription": voice_description(body),
        "outputFormat": "wav" if is_raw else body.response_format,
    }
    meant = body.model_dump(exclude={"speed", "stream_format"}, exclude_none=True)
    order = Order(credential, "audio.speech", task.name, job_input, SPEECH_NAMES, 1, header_key, meant)
    finished = await done(request, parts, order)
    file = only_output(finished.succeeded[0])
    headers = finished.headers | {"cache-control": "no-store"}
    if is_raw:
        samples, rate, channels = _samples(await parts.objects.get(file.storage_key))
        return Response(samples, headers=headers, media_type=f"audio/pcm;rate={rate};channels={channels}")
    content = await parts.objects.stream(file.storage_key)
    headers["content-length"] = str(content.info.size_bytes)
    return StreamingResponse(content, media_type=file.content_type, headers=headers)


@router.post(
    "/audio/transcriptions",
    operation_id="transcribeAudio",
    summary="Write down what is said",
    response_model=OpenAITranscript,
    responses={
        200: {
            "headers": REPLAYED,
            "content": {kind: {"schema": {"type": "string"}} for kind in TYPES.values()},
        },
        **problems(*ANSWERED, "too_many_files", shape=OPENAI),
    },
    openapi_extra=SECURED | form_schema(TranscribeAudio, {"file": FILE}, ["file"]),
)
async def transcribe_audio(
    request: Request, credential: CallerKey, header_key: RetryKey, parts: PartsOf
) -> Response:
    """A job of `audio.transcribe`: the most minutes that the file may hold are held, what it has is charged.

    A recording of more than `max_minutes` is refused and costs nothing. The file sent is deleted afterwards.
    """
    require_form(request, "-F file=@speech.mp3")
    await parts.ledger.whoami(credential, scopes.task("audio.transcribe"))
    form = await openai_forms.read(request)
    body = openai_forms.checked(form, TranscribeAudio)
    sound = openai_forms.one_file(form, "file")
    task = task_for(await parts.price_list(), "audio.transcribe", body.model)
    meant = {
        "file": hashlib.sha256(sound.data).hexdigest(),
        "language": body.language,
        "max_minutes": body.max_minutes,
    }
    file = await keep_upload(parts, credential, sound)
    job_input = {"audioFileId": file.id, "maxMinutes": body.max_minutes or minutes_at_most(sound.data)}
    if body.language is not None:
        job_input["language"] = body.language
    order = Order(credential, "audio.transcriptions", task.name, job_input, HEARD_NAMES, 1, header_key, meant)
    try:
        finished = await done(request, parts, order)
    except JobRunning:
        raise  # the job may not have read it yet
    except AppError:
        await drop_upload(parts, credential, file.id)
        raise
    if finished.replayed:
        await drop_upload(parts, credential, file.id)
    return await _transcript(parts, body, finished)


def minutes_at_most(data: bytes) -> int:
    """Return how many minutes a recording of this size can have, within what the task takes."""
    bytes_per_s = LEAST_BYTES_PER_S
    if media_type(data[:32]) == "audio/wav":
        bytes_per_s = max(bytes_per_s, int.from_bytes(data[28:32], "little"))  # the byte rate
    return min(MOST_MINUTES, max(1, -(-len(data) // (60 * bytes_per_s))))


async def _transcript(parts: Parts, body: TranscribeAudio, finished: Done) -> Response:
    outputs: list[StoredFile] = finished.succeeded[0].output
    by_type = {file.content_type: file for file in outputs if file.deleted_at is None}
    wanted = TYPES.get(body.response_format, "application/json")
    if wanted in by_type and wanted != "application/json":
        text = (await parts.objects.get(by_type[wanted].storage_key)).decode()
        return _text(text, wanted, finished)
    if "application/json" not in by_type:
        raise NotFound(f"transcript of {finished.succeeded[0].id}; it was deleted")
    heard = json.loads(await parts.objects.get(by_type["application/json"].storage_key))
    if body.response_format == "text":
        return _text(f"{heard['text']}\n", wanted, finished)
    usage = {"type": "duration", "seconds": heard["durationSeconds"], "cost": amount(finished.charged_tokens)}
    told: dict[str, Any] = {"text": heard["text"], "usage": usage}
    if body.response_format == "verbose_json":
        told |= {
            "task": "transcribe",
            "language": heard["language"],
            "duration": heard["durationSeconds"],
        }
        timed = body.timestamp_granularities or ["segment"]
        if "segment" in timed:
            told["segments"] = [
                {"id": place, **{name: part[name] for name in ("start", "end", "text")}}
                for place, part in enumerate(heard["segments"])
            ]
        if "word" in timed:
            told["words"] = [
                {name: word[name] for name in ("word", "start", "end")}
                for part in heard["segments"]
                for word in part["words"]
            ]
    return json_response(told, headers=finished.headers)


def _text(text: str, kind: str, finished: Done) -> Response:
    return Response(text, media_type=kind, headers=finished.headers | {"cache-control": "no-store"})


def _samples(data: bytes) -> tuple[bytes, int, int]:
    """Return the bare samples of a WAV file, their rate and channels."""
    with wave.open(io.BytesIO(data)) as sound:
        return sound.readframes(sound.getnframes()), sound.getframerate(), sound.getnchannels()
