"""Where the books of a data directory are: told by whoever runs them, found by every other command."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from kit import migrate
from kit.db import Database
from kit.postgres import EmbeddedPostgres
from kit.settings import Settings

T = TypeVar("T")

ANNOUNCED: Final = "running.json"
"""Names the database while a platform of this data directory runs, and its sandbox; its owner alone may read it."""
SANDBOX_SETTINGS: Final = {
    "sandbox",
    "stripe_secret_key",
    "stripe_webhook_secret",
    "stripe_api_base",
    "coinbase_api_key_id",
    "coinbase_api_key_secret",
    "coinbase_webhook_secret",
    "coinbase_api_base",
    "x402_facilitator",
    "x402_pay_to",
    "x402_network",
}
"""What a platform that runs a sandbox sells through."""


def announce_books(settings: Settings) -> None:
    """Tell the other commands of this data directory where the books are, and the sandbox where one runs."""
    told: dict[str, Any] = {"pid": os.getpid(), "database_url": settings.database_url}
    if settings.sandbox:
        found = settings.model_dump(include=SANDBOX_SETTINGS)
        told["sandbox"] = {name: _plain(value) for name, value in found.items()}
    write_private(settings.data_dir / ANNOUNCED, json.dumps(told))


def as_running(settings: Settings) -> Settings:
    """Return the settings with which the running platform of this data directory sells: through its sandbox, if any."""
    if settings.wants_sandbox:
        with suppress(OSError, ValueError, KeyError):
            told = json.loads((settings.data_dir / ANNOUNCED).read_text())["sandbox"]
            return Settings.model_validate(settings.model_dump() | told)
    return settings


def forget_books(data_dir: Path) -> None:
    """Take the announcement back."""
    (data_dir / ANNOUNCED).unlink(missing_ok=True)


@contextmanager
def books(settings: Settings) -> Iterator[str]:
    """Yield the URL of the books of this data directory, starting the embedded Postgres only if nobody runs it."""
    if settings.database_url:
        yield settings.database_url
        return
    if url := _running_books(settings.data_dir):
        yield url
        return
    server = EmbeddedPostgres(settings.data_dir)
    try:
        url = server.start()
        migrate.upgrade(url)
        yield url
    finally:
        server.stop()


def in_books(url: str, work: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run one transaction on the books."""

    async def run() -> T:
        database = Database(url, pool_size=1)
        try:
            return await database.run(work, *args)
        finally:
            await database.close()

    return asyncio.run(run())


def _running_books(data_dir: Path) -> str | None:
    """Return the URL of the books that a running platform of this data directory told, if it still answers."""
    with suppress(OSError, ValueError, KeyError, psycopg.Error):
        url: str = json.loads((data_dir / ANNOUNCED).read_text())["database_url"]
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, connect_timeout=3):
            return url
    return None


def _plain(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone may read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    draft.replace(path)
