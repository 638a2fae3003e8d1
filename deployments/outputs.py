"""What a model made, on its way into the object store: signed where that is wanted, with a small preview beside."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import structlog

from deployments.models.contract import Media
from deployments.previews import preview
from deployments.provenance import Provenance
from gateway.leases import ClaimedJob
from gateway.ports import StoredFile
from kit.errors import AppError, Unavailable
from kit.ids import new_id
from kit.storage import ObjectStore

log = structlog.get_logger(__name__)

EXTENSIONS: Final = {
    "image/png": "png",
    "image/webp": "webp",
    "image/jpeg": "jpg",
    "video/mp4": "mp4",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "audio/flac": "flac",
    "audio/ogg": "ogg",
    "application/json": "json",
    "application/x-subrip": "srt",
    "text/vtt": "vtt",
    "text/plain": "txt",
}


class Outputs:
    """Stores the files of jobs."""

    def __init__(self, objects: ObjectStore, provenance: Provenance | None) -> None:
        self._objects = objects
        self._provenance = provenance

    async def store_all(self, job: ClaimedJob, outputs: Sequence[Media]) -> list[StoredFile]:
        """Store a job's files, or none. Raises: Unavailable."""
        stored: list[StoredFile] = []
        try:
            for place, media in enumerate(outputs):
                stored.append(await self._store(job, place, media))
        except AppError:
            for file in stored:
                await self.drop(file)
            raise
        return stored

    async def _store(self, job: ClaimedJob, place: int, media: Media) -> StoredFile:
        """Store one file under a name of this attempt, so that a late writer of an older one overwrites nothing."""
        data = media.data
        if self._provenance is not None:
            data = await asyncio.to_thread(self._provenance.sign, data, media.content_type, media.facts)
        extension = EXTENSIONS.get(media.content_type, "bin")
        key = f"outputs/{job.id}/{job.fence}-{place}.{extension}"
        await self._objects.put(key, data, media.content_type)
        preview_key = None
        if (small := await asyncio.to_thread(preview, media)) is not None:
            preview_key = f"previews/{job.id}/{job.fence}-{place}.webp"
            await self._objects.put(preview_key, small, "image/webp")
        return StoredFile(
            id=new_id("file"),
            name=f"{job.id}-{place}.{extension}",
            storage_key=key,
            content_type=media.content_type,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            created_at=datetime.now(UTC),
            job_id=job.id,
            facts=media.facts,
            preview_key=preview_key,
        )

    async def drop(self, file: StoredFile) -> None:
        """Delete the bytes of a file that was stored and got no row."""
        try:
            for key in filter(None, (file.storage_key, file.preview_key)):
                await self._objects.delete(key)
        except Unavailable as error:
            log.warning("bytes without a row are left", storage_key=file.storage_key, problem=str(error))
