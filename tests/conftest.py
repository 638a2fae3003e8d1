"""What the tiers share: a real Postgres of the run's own, migrated once, and databases made from it."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import pytest_asyncio
import yaml
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.books import in_books
from deployments.ray_ports import is_free
from gateway.audit import JOB_CHECKS
from kit import migrate
from kit.db import Database
from kit.postgres import EmbeddedPostgres
from kit.settings import load_settings
from ledger import keys
from ledger.audit import LEDGER_CHECKS, run_checks, trial_balance
from ledger.credits import credit
from ledger.users import account_of_email
from payments.audit import PAYMENT_CHECKS

if TYPE_CHECKING:
    from deployments.launcher import Launcher

TIERS = ("unit", "db", "api", "models", "serve", "browser", "cluster", "chaos")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier: the folder that it lies in."""
    here = Path(__file__).parent
    for item in items:
        tier = item.path.relative_to(here).parts[0]
        if tier in TIERS:
            item.add_marker(tier)


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A short directory of this worker's own: sockets lie in it, and a path of theirs has 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="fb-"))
    path.chmod(0o755)  # Postgres drops root's privileges and must still reach its directory
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def front_port() -> int:
    """A port for a front door, its neighbour free for the sandbox; below those of outgoing connections."""
    while not (is_free(port := 9000 + 2 * secrets.randbelow(5000)) and is_free(port + 1)):
        continue
    return port


@pytest.fixture(scope="session")
def postgres(scratch: Path) -> Iterator[EmbeddedPostgres]:
    """One real Postgres for the tests of this worker; without fsync, since no test here pulls the plug."""
    server = EmbeddedPostgres(scratch / "pg", settings={"fsync": "off", "synchronous_commit": "off"})
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """A migrated database that others are copied from; returns its name."""
    name = "template_books"
    _admin(postgres, f"CREATE DATABASE {name} OWNER farebox")
    migrate.upgrade(_url(postgres, name))
    return name


@pytest.fixture(scope="session")
def shared_url(postgres: EmbeddedPostgres, template: str) -> str:
    """A database for tests that roll back."""
    _admin(postgres, f"CREATE DATABASE shared TEMPLATE {template} OWNER farebox")
    return _url(postgres, "shared")


@pytest.fixture
def fresh_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A database of one test's own, for what commits."""
    name = f"t_{secrets.token_hex(6)}"
    _admin(postgres, f"CREATE DATABASE {name} TEMPLATE {template} OWNER farebox")
    yield _url(postgres, name)
    _admin(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database without a schema."""
    name = f"e_{secrets.token_hex(6)}"
    _admin(postgres, f"CREATE DATABASE {name} OWNER farebox")
    yield _url(postgres, name)
    _admin(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture
async def conn(shared_url: str) -> AsyncIterator[AsyncConnection]:
    """A connection in a transaction that is rolled back at the end."""
    database = Database(shared_url, pool_size=1)
    async with database.engine.connect() as connection:
        yield connection
        await connection.rollback()
    await database.close()


@pytest_asyncio.fixture
async def db(fresh_url: str) -> AsyncIterator[Database]:
    """A database whose tests commit: for races between connections."""
    database = Database(fresh_url, pool_size=10)
    yield database
    await database.close()


def _url(server: EmbeddedPostgres, name: str) -> str:
    return make_url(server.url).set(database=name).render_as_string(hide_password=False)


def _admin(server: EmbeddedPostgres, statement: str) -> None:
    url = make_url(server.superuser_url).set(drivername="postgresql", database="postgres")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(statement.encode())


@dataclass(frozen=True)
class Customer:
    """A user with money and a key, made for one test."""

    user_id: str
    account_id: int
    key_id: str
    email: str
    secret: str

    @property
    def credential(self) -> keys.Credential:
        return keys.Credential(keys.hash_key(self.secret))


async def open_customer(conn: AsyncConnection, tokens: int, email: str = "") -> Customer:
    """Make a user with `tokens` granted and one key, in the caller's transaction."""
    address = email or f"{secrets.token_hex(6)}@example.com"
    owner = await account_of_email(conn, address)
    if tokens:
        await credit(
            conn,
            owner.account_id,
            kind="grant",
            house="promotion:test",
            amount_tokens=tokens,
            reference="start",
        )
    made = await keys.mint(conn, owner.user_id, "test", brand="amai")
    return Customer(owner.user_id, owner.account_id, made.key.id, address, made.secret)


@pytest.fixture(scope="session")
def customers() -> Callable[..., Awaitable[Customer]]:
    """`await customers(conn, tokens)` makes a funded customer."""
    return open_customer


@pytest.fixture(scope="session")
def assert_sound() -> Callable[[Database], Awaitable[None]]:
    """`await assert_sound(db)` audits the books."""

    async def check(db: Database) -> None:
        findings = await db.run(run_checks, (*LEDGER_CHECKS, *PAYMENT_CHECKS, *JOB_CHECKS))
        assert [(f.name, f.offending) for f in findings if not f.ok] == []
        assert (await db.run(trial_balance)).total_tokens == 0

    return check


class Quiet:
    def step(self, what: str) -> None: ...
    def done(self, what: str) -> None: ...
    def warn(self, what: str) -> None:
        print(what)  # noqa: T201  # pytest shows it beside a failure


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the platforms of one run keep their weights: built once, they are the same for all."""
    return tmp_path_factory.getbasetemp() / "models"


@pytest.fixture(scope="module")
def start_platform(scratch: Path, front_port: int, tiny_models: Path) -> Iterator[Callable[..., Launcher]]:
    """`start_platform(change)` starts one with the product's configuration, changed in place by `change`."""
    from deployments.launcher import ROOT, SERVE_CONFIG, Launcher  # Ray: for the tiers that need it

    with ExitStack() as running:

        def start(
            change: Callable[[dict[str, Any]], None] = lambda config: None, **overrides: Any
        ) -> Launcher:
            place = Path(tempfile.mkdtemp(prefix="up-", dir=scratch))
            place.chmod(0o711)  # as above
            config = yaml.safe_load(SERVE_CONFIG.read_text())
            change(config)
            (place / "serve.yaml").write_text(yaml.safe_dump(config))
            own = {
                "data_dir": place / "data",
                "models_dir": tiny_models,
                "port": front_port,
                "profile": "tiny",
                "database_url": "",
                "public_url": "",
            }
            settings = load_settings(**own | overrides)
            return running.enter_context(
                Launcher(settings, Quiet(), place / "serve.yaml", [ROOT / "tests" / "serve", ROOT])
            )

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
