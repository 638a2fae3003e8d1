"""Where a cluster lives and how it is made: everything before the server process exists.

It lives in `data_dir/postgres`. Where the server's user cannot reach that (root's data directory under
`/root`), it is placed under `SYSTEM_DIR` and `data_dir/postgres` is a link to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kit.postgres.processes import end_server
from kit.postgres.users import SYSTEM_DIR, PostgresStartError, ServerUser, make_open, server_user

log = logging.getLogger(__name__)

SOCKET_DIR_BYTES: Final = 107 - len("/.s.PGSQL.5432.")
"""A Unix socket's path holds 107 bytes and a NUL; the file's name takes the rest, with a byte to spare."""
PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9._/+-]*")
"""Paths that mean the same in a URL, a libpq string and a Postgres list: no comma, space or percent sign."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where one data directory's cluster lives: `cluster` is real, `link` the name for it in there."""

    link: Path
    cluster: Path
    user: ServerUser

    @property
    def placed_away(self) -> bool:
        """Whether the cluster lies outside the data directory."""
        return self.cluster.parent != self.link.parent


def find_site(data_dir: Path, *, system_dir: Path = SYSTEM_DIR) -> Site:
    """Decide where the cluster of `data_dir` is, or where a new one goes. Creates nothing.

    Raises: PostgresStartError when a cluster that existed is gone, or the server's user cannot reach it.
    """
    link = data_dir / "postgres"
    if link.is_symlink() and not link.is_dir():
        raise PostgresStartError(
            f"{link} points to {link.readlink()}, which is gone or not mounted: put it back, or delete"
            f" {link} to begin with empty books"
        )
    cluster = link.resolve()
    user = server_user(cluster)
    if user.reaches(cluster.parent):
        return Site(link, cluster, user)
    if cluster.exists():
        raise PostgresStartError(
            f"user id {user.uid}, who runs Postgres, cannot reach {cluster}: allow others to pass through the"
            " directories above it (chmod o+x), or choose a data directory elsewhere"
        )
    home = system_dir / f"{path_hash(data_dir)}-{secrets.token_hex(4)}"
    return Site(link, home / "cluster", user)


def path_hash(path: Path) -> str:
    """Return sixteen hex digits that stand for a path: short enough for a socket's directory."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def cluster_major(cluster: Path) -> int | None:
    """Return the major version that made `cluster`, or None when there is no cluster yet.

    Raises: PostgresStartError for a directory that holds something else.
    """
    try:
        return int((cluster / "PG_VERSION").read_text())
    except (FileNotFoundError, ValueError):
        if cluster.is_dir() and any(cluster.iterdir()):
            raise PostgresStartError(f"{cluster} holds something else than a cluster: move it away") from None
        return None


def init_cluster(site: Site, programs: Path, *, sync: bool, timeout_s: float) -> None:
    """Make the cluster whole or not at all: in a temporary sibling, renamed when it is finished.

    Raises: PostgresStartError with what initdb said.
    """
    parent = site.cluster.parent
    if not parent.exists():
        _clear_unfinished_homes(parent)
        make_open(parent.parent)
        make_open(parent)
    _clear_drafts(site.cluster)
    draft = parent / f".{site.cluster.name}-init-{secrets.token_hex(4)}"
    draft.mkdir(mode=0o700)
    site.user.give(draft)
    try:
        _run_initdb(site.user, programs, draft, sync=sync, timeout_s=timeout_s)
        draft.rename(site.cluster)
        _sync_directory(parent)
        if site.placed_away and not site.link.is_symlink():
            # Last, so that a link always stands for a finished cluster and the loss of one is noticed.
            site.link.symlink_to(site.cluster)
            _sync_directory(site.link.parent)
            log.warning("Postgres cannot reach %s: its cluster is %s", site.link.parent, site.cluster)
    except OSError as error:
        raise PostgresStartError(f"the cluster cannot be placed at {site.cluster}: {error}") from error
    finally:
        _clear_drafts(site.cluster)


def socket_dir(site: Site) -> Path:
    """Return a private directory, always the same for this cluster, short enough for a Unix socket.

    Raises: PostgresStartError when somebody else holds that directory.
    """
    name = f"farebox-{path_hash(site.cluster)}"
    nearby = (site.link.parent / "run", site.cluster.parent / "run")
    for path in (*nearby, Path(tempfile.gettempdir(), name), Path("/tmp", name)):  # noqa: S108  # private, see below
        fits = PLAIN_PATH.fullmatch(str(path)) and len(os.fsencode(path)) <= SOCKET_DIR_BYTES
        if fits and path.parent.is_dir() and site.user.reaches(path.parent):
            _make_private(path, site.user)
            return path
    raise PostgresStartError("no directory is short enough for a Unix socket: set TMPDIR to a short path")


def _make_private(path: Path, user: ServerUser) -> None:
    """Make `path` for `user` alone, and refuse one that another user made first (`/tmp` is open to all)."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise PostgresStartError(f"{path} must be a directory of our own ({error}): remove it") from error
    try:
        owner = os.fstat(handle).st_uid
        if owner not in {user.uid, os.geteuid()}:
            raise PostgresStartError(f"{path} belongs to user id {owner}: remove it")
        os.fchmod(handle, 0o700)
        if user.drop:
            os.fchown(handle, user.uid, user.gid)
    finally:
        os.close(handle)


def _clear_unfinished_homes(home: Path) -> None:
    """Remove what interrupted starts left of earlier homes of this data directory; finished ones stay."""
    for sibling in home.parent.glob(home.name.partition("-")[0] + "-*"):
        if (sibling / "cluster").exists():
            log.warning("%s was made for this data directory before: delete it if it is not needed", sibling)
            continue
        _clear_drafts(sibling / "cluster")
        shutil.rmtree(sibling)


def _clear_drafts(cluster: Path) -> None:
    """Remove what a launcher that was killed in the middle left; its initdb may still run there."""
    for draft in cluster.parent.glob(f".{cluster.name}-init-*"):
        end_server(draft, timeout_s=0)
        shutil.rmtree(draft)


def _run_initdb(user: ServerUser, programs: Path, draft: Path, *, sync: bool, timeout_s: float) -> None:
    command: list[str | Path] = [
        programs / "initdb",
        f"--pgdata={draft}",
        "--username=postgres",
        "--encoding=UTF8",
        # The server's own C.UTF-8 sorts alike on every machine: no index breaks when the C library changes.
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--locale=C",
        "--data-checksums",  # the books notice a disk that lies
        "--auth-local=peer",
        "--auth-host=reject",
        "--no-instructions",
        *([] if sync else ["--no-sync"]),
    ]
    try:
        # It stands in the draft, where the next start finds an initdb that outlived its launcher.
        answer = user.run(command, cwd=draft, timeout_s=timeout_s)
    except (OSError, subprocess.SubprocessError) as error:
        raise PostgresStartError(f"initdb did not finish in {draft}: {error}") from error
    if answer.returncode:
        raise PostgresStartError(f"initdb failed in {draft}:\n{answer.stderr.strip()[-2000:]}")


def _sync_directory(path: Path) -> None:
    """Make a rename in `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
