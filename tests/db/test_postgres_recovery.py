"""The embedded Postgres after kills of any process at any moment: the next start finds what was committed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from kit.postgres import EmbeddedPostgres, PostgresStartError
from kit.postgres import processes as processes_module
from kit.postgres import server as server_module
from kit.postgres.processes import end_server, server_pids

ROOT = Path(__file__).parents[2]
FAST = {"fsync": "off"}  # a killed process loses nothing that the kernel has; only a power cut would
DEADLINE_S = 20.0  # for what another process does; a machine that is slower than this has failed the test


@pytest.fixture(scope="module")
def made() -> Iterator[EmbeddedPostgres]:
    path = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    path.chmod(0o755)
    server = EmbeddedPostgres(path / "data", settings=FAST)
    server.start()
    run(server, "CREATE TABLE kept (number int)")
    yield server
    server.remove()
    shutil.rmtree(path)


@pytest.fixture
def server(made: EmbeddedPostgres) -> EmbeddedPostgres:
    """A running server with one committed row."""
    made.start()
    run(made, "TRUNCATE kept; INSERT INTO kept VALUES (42)")
    return made


def run(server: EmbeddedPostgres, statement: str) -> None:
    with psycopg.connect(server.dsn) as conn:
        conn.execute(statement.encode())


def kept(server: EmbeddedPostgres) -> list[int]:
    with psycopg.connect(server.dsn) as conn:
        return [number for (number,) in conn.execute("SELECT number FROM kept ORDER BY number")]


def become_zombie(pid: int) -> None:
    """Kill our child and wait until it is dead, without reaping it."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.005)


def launcher(data_dir: Path, then: str) -> subprocess.Popen[str]:
    """Start a server from a process of its own, which prints the server's id and goes on with `then`."""
    code = f"""
import os, signal, sys, time
from pathlib import Path
from kit.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path({str(data_dir)!r}), settings={FAST!r})
server.start()
print(server.pid, flush=True)
{then}
"""
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_killed_server_is_dead_at_once_and_comes_back_with_what_was_committed(
    server: EmbeddedPostgres,
) -> None:
    open_conn = psycopg.connect(server.dsn)
    open_conn.execute("INSERT INTO kept VALUES (43)")  # never committed
    pid = server.pid
    assert pid
    become_zombie(pid)
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    assert not server.alive()
    url = server.url
    assert server.start() == url
    assert server.pid != pid
    assert kept(server) == [42]
    open_conn.close()


def test_a_backend_that_outlives_its_postmaster_is_ended_before_the_next_start(
    server: EmbeddedPostgres,
) -> None:
    conn = psycopg.connect(server.dsn)
    backend = conn.info.backend_pid

    def compute() -> None:
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT sum(i) FROM generate_series(1, 4000000000) AS i")

    thread = threading.Thread(target=compute)
    thread.start()
    with psycopg.connect(server.dsn) as watcher:
        active = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
        until(lambda: watcher.execute(active, [backend]).fetchone())
    assert server.pid
    become_zombie(server.pid)
    server.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert backend not in server_pids(server.cluster_dir)
    assert kept(server) == [42]
    conn.close()


def test_stop_after_a_kill_ends_the_backends_too(server: EmbeddedPostgres) -> None:
    conn = psycopg.connect(server.dsn)
    assert server.pid
    become_zombie(server.pid)
    server.stop()
    assert server_pids(server.cluster_dir) == set()
    conn.close()


@pytest.mark.parametrize("dead", [False, True], ids=["living", "zombie"])
def test_a_stale_process_id_that_another_process_has_now_stops_nothing(
    server: EmbeddedPostgres, dead: bool
) -> None:
    """Even one with the server's name, run by the server's user: Postgres alone would refuse to start."""
    run_dir = Path(server.dsn.split()[0].removeprefix("host="))
    owner = server.cluster_dir.stat()
    lines = (server.cluster_dir / "postmaster.pid").read_text().splitlines()
    server.stop()

    program = server.cluster_dir.parent / "postgres-named" / "postgres"
    program.parent.mkdir(exist_ok=True)
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    user = owner.st_uid if os.geteuid() == 0 else None
    other = subprocess.Popen([program, "600"], cwd="/", user=user)
    try:
        if dead:
            become_zombie(other.pid)
        for path in (server.cluster_dir / "postmaster.pid", run_dir / ".s.PGSQL.5432.lock"):
            path.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
            if user is not None:
                os.chown(path, owner.st_uid, owner.st_gid)
        server.start()
        assert kept(server) == [42]
        if not dead:
            assert other.poll() is None  # it was not ours to end
    finally:
        other.kill()
        other.wait()
        shutil.rmtree(program.parent)


def test_a_server_whose_launcher_was_killed_is_found_and_replaced(server: EmbeddedPostgres) -> None:
    data_dir = server.cluster_dir.parent
    server.stop()
    with launcher(data_dir, "os.kill(os.getpid(), signal.SIGKILL)") as process:
        assert process.stdout
        orphan = int(process.stdout.readline())
    assert process.returncode == -signal.SIGKILL
    assert orphan in server_pids(server.cluster_dir)
    with psycopg.connect(server.dsn, autocommit=True) as conn:  # it even serves
        conn.execute("INSERT INTO kept VALUES (43)")
    server.start()
    assert orphan not in server_pids(server.cluster_dir)
    assert server.pid != orphan
    assert kept(server) == [42, 43]


def test_an_orphan_that_answers_nothing_is_ended_the_hard_way(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "ORPHAN_S", 0.1)
    monkeypatch.setattr(processes_module, "ABRUPT_S", 0.5)
    data_dir = server.cluster_dir.parent
    server.stop()
    with launcher(data_dir, "os.kill(os.getpid(), signal.SIGKILL)") as process:
        assert process.stdout
        orphan = int(process.stdout.readline())
    os.kill(orphan, signal.SIGSTOP)
    server.start()
    assert orphan not in server_pids(server.cluster_dir)
    assert kept(server) == [42]


def test_a_server_that_does_not_stop_in_time_is_killed_and_loses_nothing(server: EmbeddedPostgres) -> None:
    assert server.pid
    os.kill(server.pid, signal.SIGSTOP)
    server.stop(timeout_s=0.1)
    assert server_pids(server.cluster_dir) == set()
    server.start()
    assert kept(server) == [42]


def test_a_launcher_killed_while_it_makes_the_cluster_leaves_a_fresh_start() -> None:
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    folder.chmod(0o755)
    data_dir = folder / "data"
    process = launcher(data_dir, "time.sleep(60)")
    until(lambda: list(data_dir.glob(".postgres-init-*/PG_VERSION")))
    process.kill()
    process.communicate()
    (draft,) = data_dir.glob(".postgres-init-*")
    assert not (data_dir / "postgres").exists()

    server = EmbeddedPostgres(data_dir, settings=FAST)
    server.start()
    run(server, "CREATE TABLE kept AS SELECT 1 AS number")
    assert kept(server) == [1]
    assert server_pids(draft) == set()
    assert list(data_dir.glob(".postgres-init-*")) == []
    server.remove()
    shutil.rmtree(folder)


def test_a_start_cut_short_before_the_database_was_made_is_completed(server: EmbeddedPostgres) -> None:
    host = server.dsn.split()[0]
    with psycopg.connect(f"{host} port=5432 user=postgres dbname=postgres", autocommit=True) as conn:
        conn.execute("DROP DATABASE farebox WITH (FORCE)")
        conn.execute("DROP ROLE farebox")
    server.stop()
    server.start()
    run(server, "CREATE TABLE kept (number int)")
    assert kept(server) == []


def test_a_second_launcher_is_told_who_holds_the_directory(server: EmbeddedPostgres) -> None:
    data_dir = server.cluster_dir.parent
    second = EmbeddedPostgres(data_dir, settings=FAST)
    with pytest.raises(PostgresStartError, match=f"in use by process {os.getpid()}:"):
        second.start()
    with pytest.raises(PostgresStartError, match="in use"):
        second.remove()
    second.stop()
    assert server.alive()
    assert kept(server) == [42]
    server.stop()
    with launcher(data_dir, "sys.stdin.read()") as process:
        assert process.stdout
        assert int(process.stdout.readline()) > 0
        with pytest.raises(PostgresStartError, match=f"in use by process {process.pid}:"):
            server.start()
        process.kill()
    server.start()
    assert kept(server) == [42]


def test_a_copied_directory_that_shares_the_cluster_does_not_end_its_server(server: EmbeddedPostgres) -> None:
    copy = server.cluster_dir.parents[1] / "copy"
    copy.mkdir(exist_ok=True)
    (copy / "postgres").symlink_to(server.cluster_dir)
    pid = server.pid
    with pytest.raises(PostgresStartError, match="in use by another process"):
        EmbeddedPostgres(copy, settings=FAST).start()
    assert server.pid == pid
    assert kept(server) == [42]
    shutil.rmtree(copy)


def test_ending_a_servers_processes_spares_a_shell_that_stands_in_its_directory(
    server: EmbeddedPostgres,
) -> None:
    server.stop()
    shell = subprocess.Popen(["sleep", "600"], cwd=server.cluster_dir)
    try:
        assert end_server(server.cluster_dir, timeout_s=0) == 0
        server.start()
        assert shell.poll() is None
    finally:
        shell.kill()
        shell.wait()
