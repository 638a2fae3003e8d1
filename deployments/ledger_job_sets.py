"""Jobs that one request asks for together, and the files that it brings: written as one, taken back as one.

Part of the Ledger deployment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import files, jobs
from gateway.ports import JobReceipt, StoredFile, SubmitJob
from kit.db import Database
from kit.errors import AppError
from kit.telemetry import ledger_seconds
from ledger import keys, scopes
from ledger.errors import InsufficientCredits
from ledger.keys import Credential

P = ParamSpec("P")
T = TypeVar("T")


class LedgerJobSets:
    """The use cases of `LedgerServer` for requests that are answered with a job's result."""

    _db: Database
    _queue_ttl: timedelta
    _submitted: asyncio.Event

    async def submit_job_set(self, commands: list[SubmitJob]) -> list[JobReceipt]:
        """Write all of the jobs with their holds, or none."""

        async def submit(conn: AsyncConnection) -> list[JobReceipt]:
            return _all(commands, await jobs.submit_many(conn, commands, self._queue_ttl))

        receipts = await self._as_one("submit_job_set", submit)
        self._submitted.set()
        return receipts

    async def take_back_upload(self, credential: Credential, file_id: str) -> StoredFile:
        """Forget an upload of the caller's; whoever may add one may take it back."""

        async def take_back(conn: AsyncConnection) -> StoredFile:
            caller = await keys.caller_of(conn, credential, scopes.ADD_FILES)
            return await files.delete_upload(conn, caller.account_id, file_id)

        return await self._as_one("take_back_upload", take_back)

    async def _as_one(
        self,
        method: str,
        work: Callable[Concatenate[AsyncConnection, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        began = time.perf_counter()
        try:
            return await self._db.run(work, *args, **kwargs)
        finally:
            ledger_seconds.labels(method).observe(time.perf_counter() - began)


def _all(commands: Sequence[SubmitJob], outcomes: Sequence[JobReceipt | AppError]) -> list[JobReceipt]:
    """Return the receipts of all; a refusal of one undoes the others, and names what all would have cost."""
    receipts: list[JobReceipt] = []
    for outcome in outcomes:
        if isinstance(outcome, InsufficientCredits):
            held_tokens = sum(receipt.cost_tokens for receipt in receipts if not receipt.replayed)
            whole_tokens = sum(command.cost_tokens for command in commands)
            raise InsufficientCredits(whole_tokens, outcome.balance + held_tokens)
        if isinstance(outcome, AppError):
            raise outcome
        receipts.append(outcome)
    return receipts
