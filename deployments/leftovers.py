"""Bytes of files that are deleted or have expired: taken out of the object store, and only then ticked off.

A store that is away, or a runner that dies in between, leaves them due: they are deleted again, which changes nothing.
"""

from __future__ import annotations

from typing import Final

from deployments.handles import Call
from gateway.files import Deleted
from kit.storage import ObjectStore

FILES_A_SWEEP: Final = 100
"""Some seconds with a bucket far away; a rush of expiries is worked off at fifty a second."""


class Leftovers:
    """Deletes what is due, a bounded number a turn."""

    def __init__(self, ledger: Call, objects: ObjectStore) -> None:
        self._ledger = ledger
        self._objects = objects

    async def clear(self) -> None:
        """Delete the bytes of what was deleted or has expired. Raises: Unavailable; the rest stays due."""
        gone: list[str] = []
        due: list[Deleted] = await self._ledger("deleted_files", FILES_A_SWEEP)
        try:
            for file in due:
                for key in file.storage_keys:
                    await self._objects.delete(key)
                gone.append(file.id)
        finally:
            if gone:
                await self._ledger("purged_files", gone)
