"""The end of files in the Ledger deployment: what has expired is deleted, and its bytes are ticked off."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gateway import files, leases
from gateway.files import Deleted, Retention
from kit.settings import Settings


class LedgerFiles:
    """The use cases of retention in `LedgerServer`."""

    _settings: Settings
    _run: Callable[..., Awaitable[Any]]

    def _retention(self) -> Retention:
        kept = self._settings
        return Retention(kept.output_days, kept.upload_days, kept.test_file_days)

    async def settle_job(self, done: leases.Settlement) -> leases.Ended:
        """Write a result and its charge, or neither."""
        ended: leases.Ended = await self._run("settle_job", leases.settle, done, self._retention())
        return ended

    async def deleted_files(self, limit: int) -> list[Deleted]:
        """Delete files that have expired; return deleted ones whose bytes may still be there."""
        await self._run("expire_files", files.expire, limit)
        due: list[Deleted] = await self._run("deleted_files", files.unpurged, limit)
        return due

    async def purged_files(self, file_ids: Sequence[str]) -> None:
        """Note that the bytes of deleted files are gone."""
        await self._run("purged_files", files.purged, file_ids)
