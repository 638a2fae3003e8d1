"""A replica of the Ledger in a process of its own, run as a script with the globals SOCKET and DATABASE_URL.

Answers one call a connection, pickled both ways as Ray would; told by "doom", it kills itself at a certain call. It
ends with the process that started it, so that a test that dies leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import traceback
from typing import Any

from deployments.ledger import LedgerServer
from kit.errors import AppError
from kit.settings import Settings
from kit.telemetry import configure_logging
from ledger.spends import Spent

LEASE_S = 1.0  # what a killed process claimed, and told nobody, is free again soon


class Door:
    """Passes calls on to the Ledger."""

    def __init__(self, ledger: LedgerServer) -> None:
        self._ledger = ledger
        self._doom: tuple[str, str] | None = None

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, args = pickle.loads(await reader.read())
        writer.write(pickle.dumps(await self._outcome(method, args)))
        writer.close()

    async def _outcome(self, method: str, args: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
        if method == "doom":
            self._doom = args
            return None, None
        if self._doom == (method, "before"):
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            outcome = await getattr(self._ledger, method)(*args)
        except AppError as refusal:
            return None, refusal
        except Exception as bug:  # noqa: BLE001  # the test hears of it
            traceback.print_exc()
            return None, RuntimeError(repr(bug))
        if self._doom == (method, "after") and (method != "spend_many" or charged(outcome)):
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome, None


def charged(outcomes: list[Any]) -> bool:
    """Whether this batch charged anything that had not been charged before."""
    return any(isinstance(each, Spent) and not each.replayed for each in outcomes)


async def main(socket: str, url: str) -> None:
    configure_logging("warning")
    ledger = LedgerServer(Settings(database_url=url, secret="of this test alone", lease_s=LEASE_S))
    await asyncio.start_unix_server(Door(ledger).answer, socket)
    starter = multiprocessing.parent_process()
    assert starter
    await asyncio.to_thread(starter.join)


if __name__ == "__main__":
    asyncio.run(main(globals()["SOCKET"], globals()["DATABASE_URL"]))
