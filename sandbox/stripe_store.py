"""The twin's document on disk: always one whole version of it, the last one that was answered for."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import orjson

from sandbox.stripe_shapes import Json
from sandbox.stripe_state import empty_document, is_document

logger = logging.getLogger(__name__)


class Store(Protocol):
    """Where the document survives a restart."""

    def load(self) -> Json:
        """Give the last saved document, or an empty one."""

    def save(self, document: Json) -> None:
        """Make this the document that the next `load` gives, or raise OSError and leave the old one."""


class NoStore:
    """Keeps nothing: a twin that lives as long as its process, for tests."""

    def load(self) -> Json:
        """Give an empty document."""
        return empty_document()

    def save(self, document: Json) -> None:
        """Do nothing."""


class StateFile:
    """One JSON file, replaced whole: a crash at any moment leaves the old version or the new one."""

    def __init__(
        self,
        path: Path,
        empty: Callable[[], Json] = empty_document,
        is_whole: Callable[[Any], bool] = is_document,
    ) -> None:
        self._path = path
        self._empty = empty
        self._is_whole = is_whole

    def load(self) -> Json:
        """Give the file's document; a missing file counts as empty, a broken one is set aside, not lost."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return self._empty()
        try:
            document = orjson.loads(raw)
        except orjson.JSONDecodeError:
            document = None
        if self._is_whole(document):
            return dict(document)
        aside = self._free_name()
        self._path.replace(aside)
        logger.warning(
            "the state file %s could not be read; it is now %s, and the twin starts empty", self._path, aside
        )
        return self._empty()

    def save(self, document: Json) -> None:
        """Replace the file by this document, durably, before returning."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_name(f"{self._path.name}.new")
        # 0600: it holds buyers' e-mail addresses.
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps(document))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        self._sync_directory()

    def _sync_directory(self) -> None:
        # Without it the rename itself may be lost with the power. Not every file system lets one ask.
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _free_name(self) -> Path:
        number = 1
        while (aside := self._path.with_name(f"{self._path.name}.corrupt-{number}")).exists():
            number += 1
        return aside
