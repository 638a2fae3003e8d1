"""Postgres: one engine a process, one transaction a unit of work, a bounded retry where Postgres asks for one.

READ COMMITTED throughout: every statement sees what committed before it began, which the duplicate checks that
follow a lock rely on. A function that takes `conn` runs in its caller's transaction and never commits.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Concatenate, Final, ParamSpec, TypeVar

import orjson
from sqlalchemy import MetaData
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from kit.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

RETRIES: Final = 3
"""A deadlock or serialization failure is bad luck once; more than three in a row is a design fault to be seen."""
RETRYABLE_STATES: Final = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: the transaction had no effect and may be run again as it is."""
AWAY_STATES: Final = ("08", "57P", "53", "55P03", "57014")
"""How SQLSTATEs begin: connection lost, server stopping or starting, out of resources, lock or statement time-out."""
LOCK_TIMEOUT_MS: Final = 5_000
"""A money lock is held for milliseconds; five seconds means that something is stuck, and the caller should know."""
STATEMENT_TIMEOUT_MS: Final = 15_000
"""Above the slowest statement of ours (an audit sets its own)."""

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)
"""All tables of the house hang here; each package defines its own."""


class Database:
    """The writing pool of one process. Every unit of work commits whole or not at all."""

    def __init__(self, url: str, *, pool_size: int = 8) -> None:
        self.engine: AsyncEngine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=5,  # seconds: a caller hears 503 rather than wait behind a full pool
            pool_use_lifo=True,
            json_serializer=lambda value: orjson.dumps(value).decode(),
            json_deserializer=orjson.loads,
            connect_args={
                "connect_timeout": 3,
                "options": f"-c lock_timeout={LOCK_TIMEOUT_MS} -c statement_timeout={STATEMENT_TIMEOUT_MS}"
                " -c timezone=UTC",
            },
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a transaction: committed at the end, rolled back by any exception."""
        async with self.engine.begin() as conn:
            yield conn

    async def read(
        self,
        work: Callable[Concatenate[AsyncConnection, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run reads whose statements need no common snapshot: no BEGIN and COMMIT, a third of the round trips.

        Raises: Unavailable when Postgres is away.
        """
        return await self._again(self._reading, work, *args, **kwargs)

    async def run(
        self,
        work: Callable[Concatenate[AsyncConnection, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run one unit of work in its transaction, again on a deadlock or serialization failure.

        Raises: Unavailable when Postgres is away; whatever `work` raises otherwise, with nothing written.
        """
        return await self._again(self.transaction, work, *args, **kwargs)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        async with self.engine.connect() as conn:
            yield await conn.execution_options(isolation_level="AUTOCOMMIT")

    async def _again(
        self,
        opened: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        work: Callable[Concatenate[AsyncConnection, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `work`, again while Postgres asks for it or a pooled connection turns out dead before the commit.

        A connection that is lost while it commits may have committed: that is never repeated here.
        """
        for attempt in range(1, RETRIES + 1):
            worked = False
            try:
                async with opened() as conn:
                    result = await work(conn, *args, **kwargs)
                    worked = True
            except PoolTimeout as error:
                raise Unavailable("The ledger", 2) from error
            except DBAPIError as error:
                state = getattr(error.orig, "sqlstate", None)
                harmless = state in RETRYABLE_STATES or (error.connection_invalidated and not worked)
                if harmless and attempt < RETRIES:
                    await asyncio.sleep(random.uniform(0, 0.02 * attempt))  # noqa: S311  # jitter, not a secret
                    continue
                if is_away(error):
                    raise Unavailable("The ledger", 2) from error
                raise
            else:
                return result
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def close(self) -> None:
        """Give back every connection."""
        await self.engine.dispose()


def is_away(error: DBAPIError) -> bool:
    """Tell whether the database could not be reached, rather than having refused the statement."""
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    return str(state).startswith(AWAY_STATES)
