"""Whole platforms on a real Ray Serve, each with a data directory, a port and books of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.books import in_books
from deployments.launcher import ROOT, SERVE_CONFIG, Launcher
from kit.settings import load_settings
from ledger import keys
from ledger.credits import credit
from ledger.users import account_of_email

HERE = Path(__file__).parent


class Quiet:
    def step(self, what: str) -> None: ...
    def done(self, what: str) -> None: ...
    def warn(self, what: str) -> None:
        print(what)


@pytest.fixture(scope="module")
def start_platform(
    tmp_path_factory: pytest.TempPathFactory, front_port: int
) -> Iterator[Callable[..., Launcher]]:
    """`start_platform(change)` starts one with the product's configuration, changed in place by `change`."""
    with ExitStack() as running:

        def start(
            change: Callable[[dict[str, Any]], None] = lambda config: None, **overrides: Any
        ) -> Launcher:
            place = tmp_path_factory.mktemp("platform")
            for above in (place, *place.parents[:2]):
                above.chmod(0o711)  # Postgres drops root's privileges and must still reach its directory
            config = yaml.safe_load(SERVE_CONFIG.read_text())
            change(config)
            (place / "serve.yaml").write_text(yaml.safe_dump(config))
            own = {
                "data_dir": place / "data",
                "port": front_port,
                "profile": "tiny",
                "database_url": "",
                "public_url": "",
            }
            settings = load_settings(**own | overrides)
            return running.enter_context(Launcher(settings, Quiet(), place / "serve.yaml", [HERE, ROOT]))

        yield start


@pytest.fixture(scope="session")
def fund() -> Callable[[Launcher, int], str]:
    """`fund(platform, tokens)` returns a key of a new user with so many tokens."""

    def fund(platform: Launcher, tokens: int) -> str:
        async def make(conn: Any) -> str:
            owner = await account_of_email(conn, f"{time.monotonic_ns()}@example.com")
            await credit(
                conn,
                owner.account_id,
                kind="grant",
                house="promotion:test",
                amount_tokens=tokens,
                reference="start",
            )
            return (await keys.mint(conn, owner.user_id, "test", brand="amai")).secret

        return in_books(platform.settings.database_url, make)

    return fund
