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
import structlog
from sqlalchemy import MetaData, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from kit.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")
log = structlog.get_logger(__name__)

RETRIES: Final = 3
"""A deadlock or serialization failure is bad luck once; more than three in a row is a design fault to be seen."""
RETRYABLE_STATES: Final = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: the transaction had no effect and may be run again as it is."""
AWAY_STATES: Final = ("08", "57P", "53", "25006", "25P03", "55P03", "57014")
"""How SQLSTATEs begin: connection lost, server stopping or starting, out of resources, read-only (a disk that ran
full, a primary that was stood down), idle in a transaction, lock or statement time-out."""
STALE_STATE: Final = "0A000"
"""`cached plan must not change result type`: a migration changed a table under a statement that this connection had
prepared. It would fail so for ever; a new connection prepares it anew. No statement of ours asks for what Postgres
cannot do, which has the same number."""
LOCK_TIMEOUT_MS: Final = 5_000
"""A money lock is held for milliseconds; five seconds means that something is stuck, and the caller should know."""
STATEMENT_TIMEOUT_MS: Final = 15_000
"""Above the slowest statement of ours (an audit sets its own)."""
IDLE_TIMEOUT_MS: Final = 10_000
"""No unit of work waits for anything but Postgres: whoever is idle so long in a transaction was frozen or cut off,
and Postgres would keep the account's lock for it until TCP gives up, in hours."""
CONNECT_TIMEOUT_S: Final = 3
"""For each address of the URL. A connect takes milliseconds, and callers wait meanwhile."""
UNREACHABLE_MS: Final = 10_000
"""A host that vanished in a failover sends no word of it: silence to a probe or to sent bytes ends the connection."""
PROBES: Final = {"keepalives_idle": 4, "keepalives_interval": 2, "keepalives_count": 3}
"""Seconds of silence until the first probe and between probes, and how many: as long as `UNREACHABLE_MS`."""

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
            hide_parameters=True,  # an error's text goes to the logs: no e-mail, prompt or reference in it
            pool_timeout=5,  # seconds: a caller hears 503 rather than wait behind a full pool
            pool_use_lifo=True,
            json_serializer=lambda value: orjson.dumps(value).decode(),
            json_deserializer=orjson.loads,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_S,
                "tcp_user_timeout": UNREACHABLE_MS,
                **PROBES,
                # After a failover the address may still lead to the old primary, or the URL names both.
                "target_session_attrs": "primary",
                "options": f"-c lock_timeout={LOCK_TIMEOUT_MS} -c statement_timeout={STATEMENT_TIMEOUT_MS}"
                f" -c idle_in_transaction_session_timeout={IDLE_TIMEOUT_MS} -c timezone=UTC",
            },
        )
        event.listen(self.engine.sync_engine, "handle_error", _give_up_stale)

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
        """Run one unit of work in its transaction, again where that is harmless (`_again`).

        Raises: Unavailable when Postgres is away, in most cases with nothing written: a COMMIT whose answer was lost
        may have taken effect, and the caller repeats the same reference to know. Whatever `work` raises otherwise,
        with nothing written.
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
                if state in RETRYABLE_STATES:
                    log.exception("retries used up", state=state, work=getattr(work, "__name__", ""))
                if state in RETRYABLE_STATES or is_away(error):
                    raise Unavailable("The ledger", 2) from error
                raise
            else:
                return result
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def close(self) -> None:
        """Give back every connection."""
        await self.engine.dispose()


def _give_up_stale(context: ExceptionContext) -> None:
    """Treat a connection with a stale plan as lost: it leaves the pool, and the work runs again on a new one."""
    if getattr(context.original_exception, "sqlstate", None) == STALE_STATE:
        context.is_disconnect = True


def is_away(error: DBAPIError) -> bool:
    """Tell whether the database could not be reached, rather than having refused the statement."""
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    return str(state).startswith(AWAY_STATES)
