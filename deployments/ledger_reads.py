"""What a caller may ask of the past: balances, statements, usage, costs, ended jobs.

Part of the Ledger deployment; reads alone. The key is checked first, in a statement of its own;
each answer is the account's behind it and nobody else's.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from datetime import date, datetime
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import files, jobs
from gateway.conversations import MeteredTurn
from gateway.metering import turn_of
from gateway.ports import FinishedJob, StatementQuery, StoredFile
from gateway.usage import EVERY_DIMENSION, Dimension, Usage, usage
from kit.db import Database
from kit.telemetry import ledger_seconds
from ledger import keys, scopes, statements
from ledger.keys import Credential
from ledger.statements import Cost, Statement

P = ParamSpec("P")
T = TypeVar("T")


class LedgerReads:
    """The reading use cases of `LedgerServer`: no transaction, since what is written of the past never changes."""

    _db: Database

    async def balance_at(self, credential: Credential, at: datetime) -> int:
        """Return the caller's balance at a time."""
        return await self._read("balance_at", credential, scopes.READ, statements.balance_at, at)

    async def statement(self, query: StatementQuery) -> Statement:
        """Return a page of the caller's statement."""
        return await self._read(
            "statement",
            query.credential,
            scopes.READ,
            statements.statement,
            limit=query.limit,
            before=query.before,
            since=query.since,
            until=query.until,
        )

    async def usage(
        self, credential: Credential, since: date, until: date, by: AbstractSet[Dimension] = EVERY_DIMENSION
    ) -> list[Usage]:
        """Return the caller's usage, apart by the given dimensions."""
        return await self._read("usage", credential, scopes.READ, usage, since, until, by)

    async def cost(self, credential: Credential, reference: str, tool: str | None) -> Cost:
        """Return what one of the caller's references cost."""
        return await self._read("cost", credential, scopes.READ, statements.cost_of, reference, tool)

    async def turn(self, credential: Credential, turn_id: str) -> MeteredTurn | None:
        """Return what one of the caller's turns took."""
        return await self._read("turn", credential, scopes.READ, turn_of, turn_id)

    async def finished_job(self, credential: Credential, job_id: str) -> FinishedJob:
        """Return what the receipt of one of the caller's jobs states."""
        return await self._read("finished_job", credential, scopes.SEE_JOBS, jobs.finished_job, job_id)

    async def file_of(self, account_id: int, file_id: str) -> StoredFile:
        """Return one of an account's files, for a runner that works on one of its jobs."""
        return await self._db.read(files.file, file_id, account_id)

    async def _read(
        self,
        method: str,
        credential: Credential,
        need: str,
        work: Callable[Concatenate[AsyncConnection, int, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        async def read(conn: AsyncConnection) -> T:
            caller = await keys.caller_of(conn, credential, need)
            return await work(conn, caller.account_id, *args, **kwargs)

        began = time.perf_counter()
        try:
            return await self._db.read(read)
        finally:
            ledger_seconds.labels(method).observe(time.perf_counter() - began)
