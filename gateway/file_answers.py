"""What callers get back about files, as models for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from gateway.answers import FileFields, Ok


class FileShown(FileFields, Ok):
    """A file of yours, with a download URL that needs no key."""


class Files(Ok):
    """A page of files, newest first."""

    data: list[FileFields]
    next_cursor: str | None


class FileDeleted(Ok):
    """The file is gone."""

    id: str
    deleted: Literal[True]
