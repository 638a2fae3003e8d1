"""Pictures, as OpenAI's clients ask for them."""

from __future__ import annotations

import base64
import hashlib
import time
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import openai_forms
from gateway.answered import Done, Order, done, drop_upload, only_output
from gateway.bodies import StrictRoute
from gateway.deps import SECURED, CallerKey, Parts, PartsOf, RetryKey
from gateway.downloads import signed_url
from gateway.forms import require_form
from gateway.openai_answers import OpenAIImages
from gateway.openai_errors import JobEnded, JobFailed, JobRunning, ModelNotFound
from gateway.openai_models import task_for
from gateway.openai_schemas import FILE, CreateImages, EditImages, aspect_ratio, form_schema
from gateway.openapi import OPENAI, REPLAYED, WRITE, problems
from gateway.responses import amount, json_response
from gateway.uploads import keep_upload
from kit.errors import AppError, InvalidRequest
from ledger import scopes

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"], route_class=StrictRoute)

_JOB_ID: Final = "job_01k8z0c6m5n7q2r4t6v8x0y2z4"
ANSWERED: Final[tuple[str | AppError, ...]] = (
    *WRITE,
    "insufficient_credits",
    "account_frozen",
    "key_limit_reached",
    "idempotency_key_reused",
    ModelNotFound("dall-e-9", ["qwen-image", "image.generate"]),
    JobEnded(_JOB_ID, "canceled"),
    JobFailed(_JOB_ID, "model_failed", "The model's picture was empty."),
    JobRunning(_JOB_ID, 300),
)
"""What a route that answers with a job's result may refuse with."""
NAMES: Final = {
    "outputFormat": "output_format",
    "outputQuality": "output_compression",
    "aspectRatio": "size",
    "sourceImageFileId": "image",
    "sourceImageUrl": "image",
}


@router.post(
    "/images/generations",
    operation_id="createImages",
    summary="Make pictures from a text",
    response_model=OpenAIImages,
    responses={200: {"headers": REPLAYED}, **problems(*ANSWERED, shape=OPENAI)},
    openapi_extra=SECURED,
)
async def create_images(
    body: CreateImages, credential: CallerKey, header_key: RetryKey, parts: PartsOf, request: Request
) -> Response:
    """Each picture is a job of `image.generate`, paid when it succeeds. The answer waits for all of them.

    Hang up without an idempotency key and the jobs are canceled; with one they go on, and the same request finds them.
    """
    task = task_for(await parts.price_list(), "image.generate", body.model)
    meant = body.model_dump(exclude={"user", "safety_identifier"}, exclude_none=True)
    job_input = _picture(body) | {
        "aspectRatio": "1:1" if body.size in (None, "auto") else aspect_ratio(body.size)
    }
    order = Order(
        credential, "images.generations", task.name, job_input, NAMES, body.n or 1, header_key, meant
    )
    return await _shown(parts, body, await done(request, parts, order))


@router.post(
    "/images/edits",
    operation_id="editImages",
    summary="Change a picture as a text says",
    response_model=OpenAIImages,
    responses={200: {"headers": REPLAYED}, **problems(*ANSWERED, "too_many_files", shape=OPENAI)},
    openapi_extra=SECURED | form_schema(EditImages, {"image": FILE}, ["image"]),
)
async def edit_images(
    request: Request, credential: CallerKey, header_key: RetryKey, parts: PartsOf
) -> Response:
    """Each picture is a job of `image.edit`, as at `/v1/images/generations`. The picture sent is deleted afterwards.

    One picture is taken, as `image` or `image[]`. A `mask` is refused: say in the prompt what to change.
    """
    require_form(request, "-F image=@picture.png -F prompt=...")
    await parts.ledger.whoami(credential, scopes.task("image.edit"))  # a stranger's megabytes are not read
    form = await openai_forms.read(request)
    if "mask" in form.files or "mask" in form.texts:
        raise InvalidRequest("mask", "is not taken by this model; say in the prompt what to change")
    body = openai_forms.checked(form, EditImages)
    image = openai_forms.one_file(form, "image", ("image[]",))
    task = task_for(await parts.price_list(), "image.edit", body.model)
    meant = body.model_dump(exclude={"user", "safety_identifier"}, exclude_none=True)
    meant["image"] = hashlib.sha256(image.data).hexdigest()
    file = await keep_upload(parts, credential, image)
    job_input = _picture(body) | {"sourceImageFileId": file.id}
    if body.size not in (None, "auto"):
        job_input["aspectRatio"] = aspect_ratio(str(body.size))
    order = Order(credential, "images.edits", task.name, job_input, NAMES, body.n or 1, header_key, meant)
    try:
        finished = await done(request, parts, order)
    except JobRunning:
        raise  # the job may not have read it yet
    except AppError:
        await drop_upload(parts, credential, file.id)
        raise
    if finished.replayed:
        await drop_upload(parts, credential, file.id)
    return await _shown(parts, body, finished)


def _picture(body: CreateImages | EditImages) -> dict[str, Any]:
    picture = {"prompt": body.prompt, "outputFormat": body.output_format or "png"}
    if body.output_compression is None:
        return picture
    return picture | {"outputQuality": body.output_compression}


async def _shown(parts: Parts, body: CreateImages | EditImages, finished: Done) -> Response:
    files = [only_output(job) for job in finished.succeeded]
    if body.response_format == "b64_json":
        data = [
            {"b64_json": base64.b64encode(await parts.objects.get(file.storage_key)).decode()}
            for file in files
        ]
    else:
        data = [{"url": signed_url(parts, file.id)[0]} for file in files]
    facts = files[0].facts
    told = {
        "created": int(time.time()),
        "data": data,
        "output_format": body.output_format or "png",
        "size": f"{facts['width']}x{facts['height']}" if {"width", "height"} <= facts.keys() else None,
        "cost": amount(finished.charged_tokens),
    }
    return json_response(told, headers=finished.headers)
