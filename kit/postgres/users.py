"""Who runs the server, and what that user can reach.

Postgres refuses to run as root, so that root hands the cluster to an unprivileged user. What that user can
reach is tried as that user rather than computed from mode bits, which know nothing of ACLs, mount options or
security modules.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SYSTEM_DIR: Final = Path("/var/lib/farebox-postgres")
"""Where root places what the server's user could not reach: beside, never inside, a likely data directory."""
UNPRIVILEGED: Final = ("postgres", "nobody")
"""Users that root hands a new cluster to: the customary one, else the one that every system has."""
CHILD_ENV: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
"""A server that starts alike from every shell: no PG* variable, locale or library path reaches it."""
PROBE_S: Final = 20.0
"""`postgres --version` takes milliseconds; a cold network disk may take seconds."""


class PostgresStartError(RuntimeError):
    """The embedded Postgres cannot start; the text says why and what to do about it."""


@dataclass(frozen=True, slots=True)
class ServerUser:
    """Who runs the server. `drop`: the launcher is root, and its children must become this user."""

    uid: int
    gid: int
    drop: bool

    def run(
        self, command: Sequence[str | Path], *, cwd: Path, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a short command as this user and return what it said.

        Raises: OSError when it cannot be executed, subprocess.TimeoutExpired.
        """
        return subprocess.run(  # noqa: S603  # our own commands, never a caller's text
            [str(part) for part in command],
            cwd=cwd,
            env=CHILD_ENV,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            user=self.uid if self.drop else None,
            group=self.gid if self.drop else None,
            extra_groups=[] if self.drop else None,
            umask=0o077,
        )

    def reaches(self, directory: Path) -> bool:
        """Tell whether this user may pass through `directory` and all above it."""
        if not self.drop:
            return os.access(directory, os.X_OK)
        try:
            probe: list[str | Path] = ["/bin/sh", "-c", 'cd -- "$1"', "sh", directory]
            answer = self.run(probe, cwd=Path("/"), timeout_s=PROBE_S)
        except (OSError, subprocess.SubprocessError) as error:
            raise PostgresStartError(
                f"root may not run a process as user id {self.uid} here ({error}): start as an ordinary user,"
                " or set DATABASE_URL to a Postgres server"
            ) from error
        return answer.returncode == 0

    def give(self, path: Path) -> None:
        """Make this user the owner of `path`, when root made it."""
        if self.drop:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def give_tree(self, top: Path) -> None:
        """Make this user the owner of `top` and of everything below it, following no links."""
        for folder, _, files in os.walk(top):
            for path in (Path(folder), *(Path(folder, name) for name in files)):
                self.give(path)


def server_user(cluster: Path) -> ServerUser:
    """Choose who runs the server of `cluster`: its owner; if root has to make it, an unprivileged user.

    Raises: PostgresStartError when there is nobody who could.
    """
    me = os.geteuid()
    owner = cluster.stat() if cluster.exists() else None
    if me != 0:
        if owner and owner.st_uid != me:
            raise PostgresStartError(
                f"{cluster} belongs to user id {owner.st_uid} and this is user id {me}: start as who started"
                " it before, or choose another data directory"
            )
        _require_name(me)
        return ServerUser(me, os.getegid(), drop=False)
    if owner and owner.st_uid != 0:
        return ServerUser(owner.st_uid, owner.st_gid, drop=True)
    for name in UNPRIVILEGED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return ServerUser(entry.pw_uid, entry.pw_gid, drop=True)
    raise PostgresStartError(
        f"Postgres does not run as root, and there is no user {' or '.join(UNPRIVILEGED)} to run it: add one,"
        " start as an ordinary user, or set DATABASE_URL"
    )


def client_name() -> str:
    """Return the operating-system name of whoever runs this process: who may log in to the cluster."""
    return _require_name(os.geteuid())


def make_open(directory: Path) -> None:
    """Make `directory` passable for every user, whatever the umask; one that exists keeps its mode."""
    if not directory.exists():
        directory.mkdir(parents=True)
        open_to_all(directory)


def open_to_all(*paths: Path) -> None:
    """Let every user read and pass; what is executable stays so. Neither programs nor a path are secret."""
    for path in paths:
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        path.chmod(0o755 if stat.S_ISDIR(mode) or mode & stat.S_IXUSR else 0o644)


def _require_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise PostgresStartError(
            f"user id {uid} has no name in /etc/passwd, and Postgres recognises users by name: add an entry,"
            " or set DATABASE_URL"
        ) from None
