"""The measured starts of models, as the Ledger deployment keeps them for all replicas of the surface."""

from __future__ import annotations

from gateway import cold_starts
from kit.db import Database


class LedgerStarts:
    """The use cases of `LedgerServer` around starts: no account is concerned, and no money."""

    _db: Database

    async def note_start(self, application: str, scale: str, took_s: int) -> None:
        """Keep a measured start."""
        await self._db.run(cold_starts.note_start, application, scale, took_s)

    async def start_times(self, scale: str) -> dict[str, int]:
        """Return what to expect of each application that was seen to start, in seconds."""
        return await self._db.run(cold_starts.start_times, scale)
