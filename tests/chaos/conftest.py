"""What is killed: a Postgres that writes through, and replicas of the Ledger in processes of their own."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import runpy
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import pytest

from deployments.handles import LedgerClient
from gateway.ports import Ledger
from kit import migrate
from kit.errors import Unavailable
from kit.postgres import EmbeddedPostgres

SCRIPT = Path(__file__).with_name("ledger_process.py")
TOPUP_SCRIPT = Path(__file__).with_name("topup_process.py")
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["deployments.ledger"])  # a second of imports, at each of some twenty starts


class LedgerProcess:
    """A Ledger that may be killed at any moment and started again, and the way to call it."""

    def __init__(self, socket: Path, url: str) -> None:
        self._socket, self._url = socket, url
        self._process: BaseProcess | None = None

    @property
    def books(self) -> Ledger:
        """The client that an ingress replica has, over this process."""
        return cast("Ledger", LedgerClient(self.call))

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def start(self) -> None:
        """Start it; calls find it away until it answers."""
        asked = {"SOCKET": str(self._socket), "DATABASE_URL": self._url}
        self._process = WARM.Process(
            target=runpy.run_path, args=(str(SCRIPT), asked, "__main__"), daemon=True
        )
        self._process.start()

    async def kill(self) -> None:
        """`kill -9`; returns when it is dead."""
        assert self._process
        assert self.alive, "it ended by itself"
        self._process.kill()
        await self.died()

    async def died(self) -> None:
        """Return when it was killed, by whomever."""
        assert self._process
        await asyncio.to_thread(self._process.join)
        assert self._process.exitcode == -signal.SIGKILL
        self._process.close()
        self._process = None

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of its LedgerServer. Raises: Unavailable when no whole answer comes."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
            try:
                writer.write(pickle.dumps((method, args)))
                writer.write_eof()
                outcome, error = pickle.loads(await reader.read())
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
        except (OSError, EOFError, pickle.UnpicklingError) as away:
            raise Unavailable("The ledger", 1) from away
        if error is not None:
            raise error
        return outcome


@pytest.fixture(scope="module")
def durable() -> Iterator[EmbeddedPostgres]:
    """A migrated Postgres with the product's own settings, for this module to kill."""
    folder = Path(tempfile.mkdtemp(prefix="fb-chaos-"))
    folder.chmod(0o755)  # Postgres drops root's privileges and must still reach its directory
    server = EmbeddedPostgres(folder / "pg")
    migrate.upgrade(server.start())
    yield server
    server.remove()
    shutil.rmtree(folder)


Replicas = Callable[[int], AbstractAsyncContextManager[list[LedgerProcess]]]


@pytest.fixture(scope="module")
def replicas(durable: EmbeddedPostgres) -> Iterator[Replicas]:
    """`async with replicas(2) as processes:` runs so many Ledgers over `durable`."""
    folder = Path(tempfile.mkdtemp(prefix="fb-chaos-"))

    @asynccontextmanager
    async def run(count: int) -> AsyncIterator[list[LedgerProcess]]:
        processes = [LedgerProcess(folder / f"ledger-{n}", durable.url) for n in range(count)]
        try:
            for process in processes:
                process.start()
            yield processes
        finally:
            for process in processes:
                if process.alive:
                    await process.kill()

    yield run
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def top_ups() -> Callable[[str, str, tuple[str, str] | None], BaseProcess]:
    """`top_ups(books_url, stripe_url, doom)` makes a Runner's look at automatic top-ups, to be started."""

    def look(books_url: str, stripe_url: str, doom: tuple[str, str] | None) -> BaseProcess:
        asked = {"DATABASE_URL": books_url, "STRIPE": stripe_url, "DOOM": doom}
        return WARM.Process(target=runpy.run_path, args=(str(TOPUP_SCRIPT), asked, "__main__"), daemon=True)

    return look
