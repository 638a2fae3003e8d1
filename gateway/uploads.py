"""Uploads on their way in and out: bytes in the object store and a row in the books, both or neither."""

from __future__ import annotations

import asyncio
import hashlib

import structlog

from gateway.deps import Parts
from gateway.downloads import media_type
from gateway.forms import Upload
from gateway.ports import NewFile, StoredFile
from kit.errors import AppError, Unavailable
from kit.ids import new_id
from ledger.keys import Credential

log = structlog.get_logger(__name__)


async def keep_upload(parts: Parts, credential: Credential, upload: Upload) -> StoredFile:
    """Keep a file for its owner; its type is read from its content. Raises: TooManyFiles, Unavailable."""
    file_id = new_id("file")
    command = NewFile(
        credential=credential,
        id=file_id,
        name=upload.name,
        storage_key=f"uploads/{file_id}",
        content_type=media_type(upload.data[:32]),
        size_bytes=len(upload.data),
        sha256=await asyncio.to_thread(lambda: hashlib.sha256(upload.data).hexdigest()),
    )
    await parts.objects.put(command.storage_key, upload.data, command.content_type)
    try:
        return await parts.ledger.add_file(command)
    except AppError as error:
        # While the outcome is open, bytes without a row are better than a row without bytes.
        if not error.retryable:
            await parts.objects.delete(command.storage_key)
        raise


async def delete_bytes(parts: Parts, file: StoredFile) -> None:
    """Delete the bytes of a file that the books have forgotten."""
    try:
        await parts.objects.delete(file.storage_key)
    except Unavailable:
        log.exception("bytes of a deleted file stay behind", storage_key=file.storage_key)
