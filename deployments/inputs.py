"""A job's media inputs: files of the caller, or what their URLs name, fetched when the job runs."""

from __future__ import annotations

from typing import Any, Final

from deployments.handles import Call
from deployments.models.contract import InputFile
from gateway.downloads import media_type
from gateway.leases import ClaimedJob
from gateway.task_schemas import MEDIA, media_of
from kit.errors import NotFound
from kit.fetch import Fetcher, InputRefused
from kit.storage import ObjectStore

GONE: Final = "this file is not there any more"


class Inputs:
    """Reads media inputs; each is of the type that its name promises, by its bytes, and not above the upload limit."""

    def __init__(self, ledger: Call, objects: ObjectStore, fetcher: Fetcher, max_bytes: int) -> None:
        self._ledger = ledger
        self._objects = objects
        self._fetcher = fetcher
        self._max_bytes = max_bytes

    async def read(self, job: ClaimedJob) -> dict[str, InputFile]:
        """Return a job's media by name.

        Raises: InputRefused, InputUnreachable, or Unavailable where our own store is away.
        """
        found = {}
        for name, (kind, value) in media_of(job.input).items():
            field = f"input.{name}{kind}"
            data = await (
                self._file(job.account_id, value, field) if kind == "FileId" else self._url(value, name)
            )
            _check(data, name, field)
            found[name] = InputFile(media_type(data), data)
        return found

    async def _url(self, url: str, name: str) -> bytes:
        field = f"input.{name}Url"
        return await self._fetcher.fetch(
            url, field, max_bytes=self._max_bytes, check=lambda head: _check(head, name, field)
        )

    async def _file(self, account_id: int, file_id: str, field: str) -> bytes:
        try:
            file: Any = await self._ledger("file_of", account_id, file_id)
            return await self._objects.get(file.storage_key)
        except NotFound as error:
            raise InputRefused(field, GONE) from error


def _check(head: bytes, name: str, field: str) -> None:
    """Refuse what is not of the types that the input may have."""
    found = media_type(head)
    if not found.startswith(MEDIA[name]):
        kinds = " or ".join(each.rstrip("/") for each in MEDIA[name])
        raise InputRefused(field, f"must be {kinds}; its content is {found}")
