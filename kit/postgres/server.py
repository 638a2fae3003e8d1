"""Embedded Postgres: one server of our own in a data directory, for whoever has set no DATABASE_URL.

The server is a child of the launcher in a session of its own, so that a terminal's Ctrl-C does not reach it
before it is stopped in order. It listens on a Unix socket in a private directory and on nothing else. It
survives its launcher's `kill -9`; the next start finds it, ends it and goes on with its data. Linux only.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import psycopg

from kit.postgres.cluster import Site, cluster_major, find_site, init_cluster, socket_dir
from kit.postgres.config import PORT, ROLE, SUPERUSER, check_overrides, server_settings, write_config
from kit.postgres.processes import POLL_S, end_server, recorded_state
from kit.postgres.programs import find_programs
from kit.postgres.users import CHILD_ENV, SYSTEM_DIR, PostgresStartError, client_name

log = logging.getLogger(__name__)

ORPHAN_S: Final = 10.0
"""A fast shutdown writes one checkpoint; a server that a killed launcher left gets this long for it."""
KILL_S: Final = 5.0
"""After SIGKILL only the kernel can delay the end of a process."""
LOCKS: Final = 2
"""The data directory and the cluster, which can be two places."""
LOG_LIMIT_BYTES: Final = 16 << 20
"""At a start a larger log becomes `postgres.log.1`: months of warnings, and two files at most."""
LOG_TAIL_LINES: Final = 15
"""The server says why it ends in its last lines; more would hide them."""


class EmbeddedPostgres:
    """A Postgres server for one data directory: started once, found again with all that it had committed.

    Not for several threads at once: whoever owns it starts, watches and stops it. The addresses stay the same
    over restarts, so that connection pools recover on their own.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        max_connections: int = 100,
        settings: Mapping[str, str] = MappingProxyType({}),
        system_dir: Path = SYSTEM_DIR,
    ) -> None:
        """Remember what to start; nothing is touched yet.

        `settings` override Postgres settings (a test passes `{"fsync": "off"}`); `system_dir` is where root
        places a cluster that the server's user could not reach in `data_dir`.

        Raises: ValueError for a setting that cannot be overridden.
        """
        check_overrides(settings)
        self._data_dir = data_dir.expanduser().resolve()
        self._max_connections = max_connections
        self._settings = dict(settings)
        self._system_dir = system_dir
        self._locks: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None
        self._cluster: Path | None = None

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of the platform's role. Only after `start`."""
        return self._url(ROLE)

    @property
    def superuser_url(self) -> str:
        """The same database as the superuser: for operators and tests, never for the platform."""
        return self._url(SUPERUSER)

    @property
    def dsn(self) -> str:
        """The libpq string of the platform's role. Only after `start`."""
        return self._dsn(ROLE, ROLE)

    @property
    def cluster_dir(self) -> Path:
        """Where the data really lie: `data_dir/postgres` unless that was out of reach. After `start`."""
        if self._cluster is None:
            raise RuntimeError("the embedded Postgres has not been started")
        return self._cluster

    @property
    def pid(self) -> int | None:
        """The server's process id while it lives."""
        return self._process.pid if self._process and self.alive() else None

    def alive(self) -> bool:
        """Tell whether the server process lives; a zombie is reaped and does not."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout_s: float = 30) -> str:
        """Start the server, making its cluster at the first time, and return `url` when it answers.

        Whatever an earlier launcher or crash left is cleared first. Starting a living server changes nothing.

        Raises: PostgresStartError, with nothing left running and no lock held.
        """
        if self.alive():
            return self.url
        deadline = time.monotonic() + timeout_s
        try:
            self._begin(deadline)
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError | psycopg.Error):
                raise PostgresStartError(f"the embedded Postgres in {self._data_dir}: {error}") from error
            raise
        return self.url

    def stop(self, timeout_s: float = 10) -> None:
        """End the server and give the data directory free. Twice is harmless.

        Open transactions are rolled back. After `timeout_s` it is killed, which costs the next start a
        recovery and no committed data.
        """
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                log.warning("Postgres did not stop within %s s and is killed", timeout_s)
                self._process.kill()
                self._process.wait(KILL_S)
            self._process = None
        if self._cluster is not None and len(self._locks) == LOCKS:  # else they may be another launcher's
            end_server(self._cluster, timeout_s=0)
        self._unlock()

    def remove(self) -> None:
        """Stop, then delete the cluster for good, wherever it was placed: for demos and tests."""
        self.stop()
        link = self._data_dir / "postgres"
        cluster = link.resolve()
        try:
            self._lock(self._data_dir / "postgres.lock")
            if cluster.is_dir():
                self._lock(cluster)
                end_server(cluster, timeout_s=0)
                shutil.rmtree(cluster)
            if link.is_symlink():
                link.unlink()
                if cluster.parent.parent == self._system_dir:
                    shutil.rmtree(cluster.parent)
            if self._socket_dir is not None:
                shutil.rmtree(self._socket_dir, ignore_errors=True)
        finally:
            self._unlock()

    def _begin(self, deadline: float) -> None:
        if not sys.platform.startswith("linux"):
            raise PostgresStartError("the embedded Postgres runs on Linux only: set DATABASE_URL to a server")
        self._data_dir.mkdir(parents=True, exist_ok=True)
        if not self._locks:
            self._lock(self._data_dir / "postgres.lock")
        site = find_site(self._data_dir, system_dir=self._system_dir)
        major = cluster_major(site.cluster)
        programs = find_programs(site.user, major, system_dir=self._system_dir)
        if major is None:
            sync = self._settings.get("fsync", "on") != "off"
            init_cluster(site, programs, sync=sync, timeout_s=max(1.0, deadline - time.monotonic()))
        self._claim(site)
        self._socket_dir = socket_dir(site)
        for stale in self._socket_dir.glob(".s.PGSQL.*"):
            stale.unlink()
        settings = server_settings(
            self._settings, socket_dir=self._socket_dir, max_connections=self._max_connections
        )
        write_config(site.cluster, site.user, settings=settings, client=client_name())
        self._spawn(site, programs, deadline)
        self._make_database()

    def _claim(self, site: Site) -> None:
        """Make the cluster ours alone: nobody else's server in it, no stale lock file, owned by its user."""
        if len(self._locks) < LOCKS:
            self._lock(site.cluster)  # a copied data directory may hold a link to the same cluster
        self._cluster = site.cluster
        self._process = None
        if ended := end_server(site.cluster, timeout_s=ORPHAN_S):
            log.warning("ended %d Postgres processes left in %s by an earlier start", ended, site.cluster)
        # Nobody serves it now. Postgres itself would believe the file when its process id was given to
        # another process of the same user, or to a zombie, and refuse to start.
        (site.cluster / "postmaster.pid").unlink(missing_ok=True)
        if site.user.drop and site.cluster.stat().st_uid == 0:  # restored from a copy, by root
            site.user.give_tree(site.cluster)

    def _lock(self, path: Path) -> None:
        """Hold `path`, a file or a directory, until the server is stopped or this process ends."""
        if path.is_dir():
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        else:
            handle = self._open_own(path, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = "" if path.is_dir() else os.read(handle, 20).decode(errors="replace").strip()
            os.close(handle)
            named = f"process {holder}" if holder else "another process"
            raise PostgresStartError(
                f"{self._data_dir} is in use by {named}: stop that first, or choose another data directory"
            ) from None
        self._locks.append(handle)
        if not path.is_dir():
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)

    def _unlock(self) -> None:
        while self._locks:
            os.close(self._locks.pop())

    def _spawn(self, site: Site, programs: Path, deadline: float) -> None:
        """Start the server and wait until it accepts connections."""
        logs = self._data_dir / "logs"
        logs.mkdir(exist_ok=True)
        path = logs / "postgres.log"
        if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
            path.replace(logs / "postgres.log.1")
        handle = self._open_own(path, os.O_RDWR | os.O_APPEND)
        try:
            begin = os.fstat(handle).st_size
            user = site.user
            self._process = subprocess.Popen(  # noqa: S603  # our own program
                [programs / "postgres", "-D", site.cluster],
                cwd="/",
                env=CHILD_ENV,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=handle,
                start_new_session=True,
                user=user.uid if user.drop else None,
                group=user.gid if user.drop else None,
                extra_groups=[] if user.drop else None,
                umask=0o077,
            )
            while recorded_state(site.cluster)[7:8] != ["ready"]:
                code = self._process.poll()
                if code is not None or time.monotonic() > deadline:
                    what = "needs longer to be ready" if code is None else f"ended with status {code}"
                    raise PostgresStartError(f"Postgres {what}. Its log, {path}:\n{_tail(handle, begin)}")
                time.sleep(POLL_S)
        finally:
            os.close(handle)

    def _make_database(self) -> None:
        """Create the platform's role and database unless they exist; each is made whole or not at all."""
        with psycopg.connect(self._dsn(SUPERUSER, "postgres"), autocommit=True, connect_timeout=5) as conn:
            if not conn.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone():
                conn.execute(f"CREATE ROLE {ROLE} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE")
            if not conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", [ROLE]).fetchone():
                conn.execute(f"CREATE DATABASE {ROLE} OWNER {ROLE}")

    def _open_own(self, path: Path, flags: int) -> int:
        """Open or create a file of the data directory, owned as that is, following no link."""
        try:
            handle = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except PermissionError as error:
            raise PostgresStartError(f"{error}: was it started as another user before?") from error
        if os.geteuid() == 0:
            home = self._data_dir.stat()
            os.fchown(handle, home.st_uid, home.st_gid)
        return handle

    def _url(self, role: str) -> str:
        return f"postgresql+psycopg://{role}@/{ROLE}?host={self._require_socket_dir()}&port={PORT}"

    def _dsn(self, role: str, database: str) -> str:
        return f"host={self._require_socket_dir()} port={PORT} user={role} dbname={database}"

    def _require_socket_dir(self) -> Path:
        if self._socket_dir is None:
            raise RuntimeError("the embedded Postgres has not been started")
        return self._socket_dir


def _tail(handle: int, begin: int) -> str:
    """Return the last lines that the log got since `begin`."""
    size = os.fstat(handle).st_size
    text = os.pread(handle, 1 << 16, max(begin, size - (1 << 16))).decode(errors="replace")
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:]) or "(it said nothing)"
