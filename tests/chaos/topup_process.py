"""A Runner's look at automatic top-ups in a process of its own, run with the globals DATABASE_URL, STRIPE and DOOM.

It ends when it has done what was due. At the call of the books that DOOM names, it kills itself before or after it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from gateway.catalog import load_catalog
from gateway.ports import Ledger
from kit.settings import Settings
from kit.telemetry import configure_logging
from payments.stripe_checkout import checkout_for
from sandbox.testing import SECRET_KEY, WEBHOOK_SECRET


class Doomed:
    """The books of a process that does not live to see the end of one call."""

    def __init__(self, books: Ledger, doom: tuple[str, str] | None) -> None:
        self._books = books
        self._doom = doom

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any) -> Any:
            if self._doom == (name, "before"):
                os.kill(os.getpid(), signal.SIGKILL)
            answer = await getattr(self._books, name)(*args)
            if self._doom == (name, "after"):
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return call


async def main(url: str, stripe: str, doom: tuple[str, str] | None) -> None:
    configure_logging("warning")
    settings = Settings(
        database_url=url, data_dir=Path(gettempdir()), secret="of this test alone", stripe_secret_key=SECRET_KEY,
        stripe_webhook_secret=WEBHOOK_SECRET, stripe_api_base=stripe,
    )  # fmt: skip
    ledger = LedgerServer(settings)
    checkout = checkout_for(settings, Doomed(local_ledger(ledger), doom))  # type: ignore[arg-type]  # all of its calls
    assert checkout
    await checkout.top_up(load_catalog().packages)
    await checkout.close()
    await ledger.close()


if __name__ == "__main__":
    asyncio.run(main(globals()["DATABASE_URL"], globals()["STRIPE"], globals()["DOOM"]))
