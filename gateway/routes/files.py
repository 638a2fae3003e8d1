"""Files: uploads of the caller, outputs of jobs, and their bytes."""

from __future__ import annotations

import time
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from gateway.bodies import StrictRoute
from gateway.deps import SECURED, CallerKey, Parts, PartsOf, credential_of, own_id, page_before
from gateway.downloads import (
    content_path,
    disposition,
    preview_path,
    preview_url,
    signed_url,
    span_asked,
)
from gateway.file_answers import FileDeleted, Files, FileShown
from gateway.forms import Upload, read_form, require_form
from gateway.listing import FileCursor, Limit, page
from gateway.openapi import CONTENT, PART, READ, UPLOAD, WRITE, problems
from gateway.ports import StoredFile
from gateway.responses import json_response
from gateway.uploads import delete_bytes, keep_upload
from kit.errors import InvalidRequest, NotFound
from kit.storage import MAX_PRESIGN_S
from ledger import scopes

router = APIRouter(prefix="/api/v1", tags=["Files"], route_class=StrictRoute)

FORM_FIELDS: Final = 4
"""One more than any sensible form: the surplus is refused by name rather than read on."""
UNTRUSTED: Final = "sandbox; default-src 'none'"
"""A file is a stranger's: where a browser shows one, it may run and load nothing."""


@router.post(
    "/files",
    operation_id="uploadFile",
    summary="Upload a file",
    response_model=FileShown,
    responses=problems(*WRITE, "too_many_files"),
    openapi_extra=SECURED | UPLOAD,
)
async def upload_file(request: Request, credential: CallerKey, parts: PartsOf) -> Response:
    """Keeps a file for use as a job's input. Its type is read from its content."""
    require_form(request, "-F file=@picture.png")
    await parts.ledger.whoami(credential, scopes.ADD_FILES)  # a stranger's megabytes are not read
    file = await keep_upload(parts, credential, await _read_upload(request))
    return json_response({"ok": True, **shown(parts, file)})


@router.get(
    "/files",
    operation_id="listFiles",
    summary="List files",
    response_model=Files,
    responses=problems(*READ, "invalid_request"),
    openapi_extra=SECURED,
)
async def list_files(
    credential: CallerKey, parts: PartsOf, limit: Limit = 20, cursor: FileCursor = None
) -> Response:
    """Your uploads and your jobs' outputs, newest first."""
    files = await parts.ledger.files(credential, limit + 1, page_before("file", cursor))
    return json_response({"ok": True, **page(files, limit, lambda file: shown(parts, file))})


@router.get(
    "/files/{file_id}",
    operation_id="getFile",
    summary="Get a file's facts and a fresh download URL",
    response_model=FileShown,
    responses=problems(*READ, "not_found"),
    openapi_extra=SECURED,
)
async def get_file(file_id: str, credential: CallerKey, parts: PartsOf) -> Response:
    """What is known of one of your files."""
    file = await parts.ledger.file(credential, own_id("file", file_id))
    return json_response({"ok": True, **shown(parts, file)})


@router.delete(
    "/files/{file_id}",
    operation_id="deleteFile",
    summary="Delete a file",
    response_model=FileDeleted,
    responses=problems(*READ, "not_found"),
    openapi_extra=SECURED,
)
async def delete_file(file_id: str, credential: CallerKey, parts: PartsOf) -> Response:
    """The file is gone, and download URLs given out before stop working."""
    file = await parts.ledger.delete_file(credential, own_id("file", file_id))
    await delete_bytes(parts, file)
    return json_response({"ok": True, "id": file.id, "deleted": True})


@router.get(
    "/files/{file_id}/preview",
    operation_id="previewFile",
    summary="Download a picture's thumbnail or a film's poster",
    response_class=Response,
    responses=CONTENT | problems(*READ, "not_found"),
    openapi_extra={"security": [*SECURED["security"], {}]},
)
async def preview_file(request: Request, file_id: str, parts: PartsOf) -> Response:
    """A small WebP, for whoever has the file's key or a signed URL. Kept in a bucket, it comes by redirect."""
    own_id("file", file_id)
    if "signature" in request.query_params:
        parts.signer.verify(preview_path(file_id), request.query_params, int(time.time()))
        file = await parts.ledger.signed_file(file_id)
    else:
        file = await parts.ledger.file(credential_of(request), file_id)
    if file.preview_key is None:
        raise NotFound("preview")
    if (elsewhere := await _in_bucket(parts, file.preview_key)) is not None:
        return elsewhere
    return Response(
        await parts.objects.get(file.preview_key),
        media_type="image/webp",
        headers={
            "content-disposition": "inline",
            "content-security-policy": UNTRUSTED,
            "cache-control": "private, no-store",
            "referrer-policy": "no-referrer",
        },
    )


@router.get(
    "/files/{file_id}/content",
    operation_id="downloadFile",
    summary="Download a file",
    response_class=Response,
    responses=CONTENT | PART | problems(*READ, "not_found", "range_not_satisfiable"),
    openapi_extra={"security": [*SECURED["security"], {}]},
)
async def download_file(request: Request, file_id: str, parts: PartsOf) -> Response:
    """The bytes, for whoever has the file's key or a signed URL, or the part that `Range` names.

    Kept in a bucket, they come by redirect.
    """
    own_id("file", file_id)
    if "signature" in request.query_params:
        parts.signer.verify(content_path(file_id), request.query_params, int(time.time()))
        file = await parts.ledger.signed_file(file_id)
    else:
        file = await parts.ledger.file(credential_of(request), file_id)
    if (elsewhere := await _in_bucket(parts, file.storage_key)) is not None:
        return elsewhere
    etag = f'"{file.sha256}"'
    span = span_asked(request.headers, etag, file.size_bytes)
    begin, end = span or (0, file.size_bytes)
    ranged = {"content-range": f"bytes {begin}-{end - 1}/{file.size_bytes}"} if span else {}
    return StreamingResponse(
        await parts.objects.stream(file.storage_key, span),
        206 if span else 200,
        media_type=file.content_type,
        headers={
            **ranged,
            "accept-ranges": "bytes",
            "content-length": str(end - begin),
            "content-disposition": disposition(file.name, file.content_type),
            "content-security-policy": UNTRUSTED,
            "cache-control": "private, no-store",
            "referrer-policy": "no-referrer",
            "etag": etag,
        },
    )


def shown(parts: Parts, file: StoredFile) -> dict[str, Any]:
    """Return a file as its owner sees it."""
    url, expires_at = signed_url(parts, file.id)
    return {
        "id": file.id,
        "name": file.name,
        "contentType": file.content_type,
        "sizeBytes": file.size_bytes,
        "sha256": file.sha256,
        "jobId": file.job_id,
        "createdAt": file.created_at,
        "url": url,
        "expiresAt": expires_at,
        "keptUntil": file.kept_until,
        **preview_url(parts, file),
    }


async def _in_bucket(parts: Parts, key: str) -> Response | None:
    """Return the way to an object that its bucket serves itself, for as long as a bucket signs at most."""
    url = await parts.objects.presigned_url(key, min(parts.settings.url_ttl_s, MAX_PRESIGN_S))
    if url is None:
        return None
    return RedirectResponse(url, 307, {"cache-control": "no-store", "referrer-policy": "no-referrer"})


async def _read_upload(request: Request) -> Upload:
    """Return the form's one file.

    Raises: InvalidRequest; PayloadTooLarge from the edge.
    """
    form = await read_form(request, max_files=FORM_FIELDS, max_texts=FORM_FIELDS)
    for name in (*form.texts, *form.files):
        if name != "file":
            raise InvalidRequest(name, "is not a field of this form; send the file as 'file'")
    sent = form.files.get("file", [])
    if len(sent) != 1 or "file" in form.texts:
        raise InvalidRequest("file", "send one file (curl: -F file=@picture.png)")
    if not sent[0].data:
        raise InvalidRequest("file", "is empty")
    return sent[0]
