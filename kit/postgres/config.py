"""What the embedded server is told: its settings with their reasons, and who may log in.

The three files are written anew at every start and `ALTER SYSTEM` is off, so that this module is the only
source. There is no trust: a connection is let in when the kernel says that its operating-system user is the
one who started the server, and there is no TCP at all.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kit.postgres.users import PostgresStartError, ServerUser

ROLE: Final = "farebox"
"""The role of the platform, and its database: owner of its tables, never a superuser."""
SUPERUSER: Final = "postgres"
"""The bootstrap role, for operators and for tests that tamper."""
PORT: Final = 5432
"""Names the socket's file, nothing more; stated in every address, so that a PGPORT around us is no matter."""
FIXED: Final = frozenset(
    {
        "allow_alter_system",
        "config_file",
        "data_directory",
        "external_pid_file",
        "hba_file",
        "ident_file",
        "listen_addresses",
        "max_connections",
        "port",
        "unix_socket_directories",
        "unix_socket_permissions",
    }
)
"""What a caller may not override: the launcher and the promise of no trust stand on these."""
SETTINGS: Final[Mapping[str, str]] = {
    # The promise to callers: what was answered is on the disk. These are the defaults, stated because money
    # hangs on them; a test may switch them off for its own cluster.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # Room for base backups and a standby without a restart; `minimal` would gain nothing on short
    # transactions.
    "wal_level": "replica",
    "max_wal_senders": "3",
    "max_replication_slots": "3",
    # The hot tables of a laptop or a small service fit; the rest of the memory belongs to the models.
    "shared_buffers": "128MB",
    # A crash replays at most this much, in seconds, and a laptop's disk is not filled by it.
    "max_wal_size": "512MB",
    "min_wal_size": "80MB",
    # Ledger statements are short: compiling them costs more than running them, and parallel workers would
    # take cores from the models and space from a container's small /dev/shm.
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    # No transaction of ours waits for a network, so that one idle for a minute is a bug that holds locks.
    "idle_in_transaction_session_timeout": "60s",
    # A killed replica's query stops waiting for locks within seconds, not when it gets them.
    "client_connection_check_interval": "5s",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The launcher owns the log file. It names slow statements and failures, never values: they are customers'
    # data, and so are the DETAIL lines that `terse` leaves out.
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_min_messages": "warning",
    "log_min_duration_statement": "1s",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_error_verbosity": "terse",
    # Nobody subscribes: one process less.
    "max_logical_replication_workers": "0",
    # Normal life (a checkpoint every few minutes) would bury what matters.
    "log_checkpoints": "off",
    "log_lock_waits": "on",
    "cluster_name": "farebox",
}


def check_overrides(overrides: Mapping[str, str]) -> None:
    """Refuse settings that the launcher stands on, and names that are none.

    Raises: ValueError naming the setting.
    """
    for name, value in overrides.items():
        if name.lower() in FIXED:
            raise ValueError(f"{name} belongs to the launcher and cannot be overridden")
        if not re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)?", name):
            raise ValueError(f"{name!r} is not the name of a Postgres setting")
        if not value.isprintable():
            raise ValueError(f"{name}: a value is one printable line")


def server_settings(
    overrides: Mapping[str, str], *, socket_dir: Path, max_connections: int
) -> dict[str, str]:
    """Return every setting of the server: ours, a caller's on top, and the fixed ones above both."""
    return {
        **SETTINGS,
        **overrides,
        "allow_alter_system": "off",
        "listen_addresses": "",
        "unix_socket_directories": str(socket_dir),
        "unix_socket_permissions": "0700",
        "port": str(PORT),
        "max_connections": str(max_connections),
    }


def write_config(cluster: Path, user: ServerUser, *, settings: Mapping[str, str], client: str) -> None:
    """Write the settings and the login rules into `cluster`, each file whole or not at all.

    `client` is the operating-system user who may log in, as either role.

    Raises: PostgresStartError for a user name that the rules cannot express.
    """
    lines = [f"{name} = {_quoted(value)}" for name, value in settings.items()]
    _write(cluster / "postgresql.conf", ["# Written anew at every start of Farebox.", *lines], user)
    _write(
        cluster / "pg_hba.conf",
        [
            f"local all {ROLE} peer map={ROLE}",
            f"local all {SUPERUSER} peer map={ROLE}",
            f"local replication {SUPERUSER} peer map={ROLE}",
            "local all all reject",
            "host all all all reject",
        ],
        user,
    )
    if '"' in client or not client.isprintable():
        raise PostgresStartError(f"pg_ident.conf cannot hold the user name {client!r}: set DATABASE_URL")
    _write(cluster / "pg_ident.conf", [f'{ROLE} "{client}" {role}' for role in (ROLE, SUPERUSER)], user)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"


def _write(path: Path, lines: list[str], user: ServerUser) -> None:
    draft = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w") as file:
        if user.drop:
            os.fchown(file.fileno(), user.uid, user.gid)
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
