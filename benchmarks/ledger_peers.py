"""Whom the ledger is measured against, each on a database of its own in the same Postgres.

Every contestant spends one token of a random account, under a reference that is new, as a closed loop of so many who
wait. What they do for it differs, and `duties` says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from gateway.ports import Ledger
from kit import migrate
from kit.db import Database
from kit.postgres import EmbeddedPostgres
from kit.settings import load_settings
from ledger.credits import credit
from ledger.keys import Credential, hash_key, mint
from ledger.spends import Spend
from ledger.users import account_of_email

ACCOUNTS: Final = 1000
TOKENS: Final = 10**12
"""Nobody runs dry: a refusal would be cheaper than a spend."""
POOL: Final = 64
"""Connections of the asyncio peer: more backends than this only wait for two cores."""
REVENUE_ACCOUNTS: Final = 64
"""pgledger keeps a balance for its revenue account; as its own benchmark does, it gets many of them."""

PEER_SQL: Final = """
CREATE TABLE peer_accounts (
    id bigint PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0), version bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE TABLE peer_entries (
    account_id bigint NOT NULL, version bigint NOT NULL, reference text NOT NULL, amount bigint NOT NULL,
    balance_after bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account_id, version), UNIQUE (account_id, reference)
);
CREATE FUNCTION peer_spend(account bigint, asked_for text, cost bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    left_over bigint; at bigint;
BEGIN
    PERFORM FROM peer_entries WHERE account_id = account AND reference = asked_for;
    IF FOUND THEN
        RETURN NULL;
    END IF;
    UPDATE peer_accounts SET balance = balance - cost, version = version + 1
    WHERE id = account AND balance >= cost
    RETURNING balance, version INTO left_over, at;
    IF NOT FOUND THEN
        RETURN -1;
    END IF;
    INSERT INTO peer_entries VALUES (account, at, asked_for, -cost, left_over);
    RETURN left_over;
END
$$;
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one run saw. Units: spends a second, milliseconds, bytes and microseconds for each spend."""

    spends_per_s: float
    p50_ms: float
    p99_ms: float
    disk_bytes: float
    wal_bytes: float
    postgres_us: float


class Contestant(Protocol):
    """Somebody who spends."""

    name: str
    duties: str

    def run(self, accounts: int, waiting: int, seconds: float) -> Seen:
        """Spend for so long, on that many accounts, with so many waiting."""


class Gauge:
    """What a run costs the server: its processor time, its log, and what its tables grew by."""

    def __init__(self, server: EmbeddedPostgres, url: str, tables: str) -> None:
        assert server.pid is not None
        self._pid = server.pid
        self._sizes = "SELECT " + " + ".join(f"pg_total_relation_size('{name}')" for name in tables.split())
        self._conn = psycopg.connect(url, autocommit=True)
        self._before = self._read()

    def seen(self, times_s: list[float], took_s: float) -> Seen:
        """Return the run that began when this was made."""
        disk, wal, cpu_s = (now - then for now, then in zip(self._read(), self._before, strict=True))
        self._conn.close()
        count = len(times_s)
        assert count, "nothing was spent"
        ordered = sorted(times_s)
        return Seen(
            spends_per_s=count / took_s,
            p50_ms=ordered[count // 2] * 1000,
            p99_ms=ordered[int(count * 0.99)] * 1000,
            disk_bytes=disk / count,
            wal_bytes=wal / count,
            postgres_us=cpu_s / count * 1e6,
        )

    def _read(self) -> tuple[float, float, float]:
        row = self._conn.execute(f"{self._sizes}, pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
        assert row is not None
        return float(row[0]), float(row[1]), self._cpu_s()

    def _cpu_s(self) -> float:
        """Return the processor time of the server: itself, those that ended, those that live."""
        ticks = sum(map(int, _stat(self._pid)[11:15]))
        for path in Path("/proc").iterdir():
            if path.name.isdigit() and (stat := _stat(int(path.name))) and int(stat[1]) == self._pid:
                ticks += int(stat[11]) + int(stat[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@dataclass
class Pgbench:
    """A statement of SQL for each spend, sent by Postgres's own load generator."""

    name: str
    duties: str
    server: EmbeddedPostgres
    programs: Path
    url: str
    tables: str
    script: str

    def run(self, accounts: int, waiting: int, seconds: float) -> Seen:
        with tempfile.TemporaryDirectory() as place:
            script = Path(place) / "spend.sql"
            script.write_text(self.script)
            gauge = Gauge(self.server, self.url, self.tables)
            began = time.perf_counter()
            command = [
                str(self.programs / "pgbench"), "--no-vacuum", "--protocol=prepared", f"--client={waiting}",
                "--jobs=2", f"--time={max(1, round(seconds))}", f"--define=accounts={accounts}", "--log",
                f"--log-prefix={place}/log", f"--file={script}", self.url,
            ]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True, timeout=seconds + 60)
            took = time.perf_counter() - began
            times = [
                int(line.split()[2]) / 1e6
                for log in Path(place).glob("log*")
                for line in log.read_text().splitlines()
            ]
            # Starting so many clients takes a part of the time: what counts is the time under load.
            return gauge.seen(times, min(took, max(1, round(seconds))))


class PlainAsyncio:
    """A Python service without a batch: each request takes a connection and calls the function."""

    name = "asyncio psycopg, a call each"
    duties = "as the first, from Python"

    def __init__(self, server: EmbeddedPostgres, url: str) -> None:
        self._server, self._url = server, url

    def run(self, accounts: int, waiting: int, seconds: float) -> Seen:
        return asyncio.run(self._run(accounts, waiting, seconds))

    async def _run(self, accounts: int, waiting: int, seconds: float) -> Seen:
        idle: asyncio.LifoQueue[psycopg.AsyncConnection[Any]] = asyncio.LifoQueue()
        for _ in range(min(waiting, POOL)):
            idle.put_nowait(
                await psycopg.AsyncConnection.connect(self._url, autocommit=True, prepare_threshold=0)
            )

        async def spend(account: int) -> None:
            conn = await idle.get()
            answer = await conn.execute("SELECT peer_spend(%s, %s, 1)", (account + 1, secrets.token_hex(16)))
            assert await answer.fetchone()
            idle.put_nowait(conn)

        try:
            gauge = Gauge(self._server, self._url, "peer_accounts peer_entries")
            return gauge.seen(*await closed_loop(spend, accounts, waiting, seconds))
        finally:
            while not idle.empty():
                await idle.get_nowait().close()


class Ours:
    """The ledger as the ingress meets it: a client that coalesces, in front of the LedgerServer."""

    name = "Farebox"
    duties = "key, cap, freeze, both sides, reference; a batch at a time"

    def __init__(self, server: EmbeddedPostgres, url: str) -> None:
        self._server, self._url = server, url
        self.credentials = asyncio.run(_open_accounts(url))

    def run(self, accounts: int, waiting: int, seconds: float) -> Seen:
        return asyncio.run(self._run(accounts, waiting, seconds))

    async def _run(self, accounts: int, waiting: int, seconds: float) -> Seen:
        books = LedgerServer(load_settings(database_url=self._url, secret="only for this run"))
        ledger: Ledger = local_ledger(books)
        try:

            async def spend(account: int) -> None:
                reference = secrets.token_hex(16)
                await ledger.spend(Spend(self.credentials[account], "chat", reference, 1000, 1, 1))

            await spend(0)  # connects, and makes the plans
            gauge = Gauge(self._server, _libpq(self._url), "accounts transfers entries")
            return gauge.seen(*await closed_loop(spend, accounts, waiting, seconds))
        finally:
            await books.close()


async def closed_loop(
    spend: Callable[[int], Awaitable[None]], accounts: int, waiting: int, seconds: float
) -> tuple[list[float], float]:
    """Let so many spend again and again; returns how long each spend took, and the whole. Units: seconds."""
    times: list[float] = []
    began = time.perf_counter()

    async def customer() -> None:
        while (asked := time.perf_counter()) - began < seconds:
            await spend(secrets.randbelow(accounts))
            times.append(time.perf_counter() - asked)

    async with asyncio.timeout(seconds + 60), asyncio.TaskGroup() as group:
        for _ in range(waiting):
            group.create_task(customer())
    return times, time.perf_counter() - began


def contestants(server: EmbeddedPostgres, programs: Path, pgledger_dir: Path | None) -> list[Contestant]:
    """Return everybody, with their tables and accounts made; the floor first and ours last."""
    peers = database(server, "peers")
    with psycopg.connect(peers) as conn:
        conn.execute(PEER_SQL)
        conn.execute(
            "INSERT INTO peer_accounts SELECT n, %s FROM generate_series(1, %s) n", (TOKENS, ACCOUNTS)
        )
    books = database(server, "books")
    ours = Ours(server, migrated(books))
    with psycopg.connect(books) as conn:
        conn.execute("CREATE TABLE bench_keys (n integer PRIMARY KEY, hash text)")
        for n, credential in enumerate(ours.credentials, 1):
            conn.execute("INSERT INTO bench_keys VALUES (%s, %s)", (n, credential.hash.hex()))
    asked = {"at": 0, "tool": "chat", "units": 1000, "cost": 1, "price_version": 1}
    found: list[Contestant] = [
        Pgbench(
            "pgbench, one function", "reference, balance, one entry", server, programs, peers,
            "peer_accounts peer_entries",
            "\\set n random(1, :accounts)\nSELECT peer_spend(:n, gen_random_uuid()::text, 1);\n",
        ),
        PlainAsyncio(server, peers),
        Pgbench(
            "pgbench, our function alone", "as ours, a spend at a time", server, programs, books,
            "accounts transfers entries",
            "\\set n random(1, :accounts)\nSELECT * FROM spend_many(json_build_array("
            f"jsonb_build_object('hash', (SELECT hash FROM bench_keys WHERE n = :n), 'reference', gen_random_uuid())"
            f" || '{json.dumps(asked)}'));\n",
        ),
    ]  # fmt: skip
    if pgledger_dir is not None:
        found.append(_pgledger(server, programs, pgledger_dir))
    return [*found, ours]


def _pgledger(server: EmbeddedPostgres, programs: Path, directory: Path) -> Contestant:
    url = database(server, "pgledger")
    ulid = directory / "vendor" / "scoville-pgsql-ulid"
    with psycopg.connect(url) as conn:
        for path in (ulid / "ulid-to-uuid.sql", ulid / "uuid-to-ulid.sql", directory / "pgledger.sql"):
            conn.execute(path.read_bytes())
        conn.execute("CREATE TABLE bench_accounts (n integer PRIMARY KEY, id text)")
        # Numbers from 1 are customers; those from 0 down are where their money goes.
        conn.execute(
            "INSERT INTO bench_accounts SELECT n, (pgledger_create_account('a' || n, 'USD')).id"
            " FROM generate_series(1 - %s, %s) n",
            (REVENUE_ACCOUNTS, ACCOUNTS),
        )
    return Pgbench(
        "pgledger, one transfer a call", "both sides and both balances; no reference", server, programs, url,
        "pgledger_accounts pgledger_transfers pgledger_entries",
        f"\\set n random(1, :accounts)\n\\set r random({1 - REVENUE_ACCOUNTS}, 0)\n"
        "SELECT pgledger_create_transfer((SELECT id FROM bench_accounts WHERE n = :n),"
        " (SELECT id FROM bench_accounts WHERE n = :r), 1);\n",
    )  # fmt: skip


def database(server: EmbeddedPostgres, name: str) -> str:
    """Make a database; returns its libpq URL."""
    with psycopg.connect(_libpq(server.superuser_url), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} OWNER farebox".encode())
    return _libpq(server.url).replace("/farebox?", f"/{name}?")


def migrated(url: str) -> str:
    """Bring a database up to our schema; returns its SQLAlchemy URL."""
    ours = url.replace("postgresql://", "postgresql+psycopg://")
    migrate.upgrade(ours)
    return ours


def _libpq(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


async def _open_accounts(url: str) -> list[Credential]:
    books = Database(url, pool_size=1)

    async def open_all(conn: Any) -> list[Credential]:
        found = []
        for n in range(ACCOUNTS):
            owner = await account_of_email(conn, f"bench{n}@example.com")
            await credit(
                conn, owner.account_id, kind="grant", house="promotion:bench", amount_tokens=TOKENS,
                reference="bench",
            )  # fmt: skip
            minted = await mint(conn, owner.user_id, "bench", brand="amai")
            found.append(Credential(hash_key(minted.secret)))
        return found

    try:
        return await books.run(open_all)
    finally:
        await books.close()
