"""Where a Ray head of our own keeps its files: all below the data directory, and gone with it.

Unix sockets are the difficulty: the kernel takes a path of 107 bytes at most, and Ray and HAProxy put long
names below the directories that they are given.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RAY_DIR_LIMIT_BYTES: Final = 107 - 43 - 26
"""A Unix socket's path has 107 bytes; Ray adds a session's name (43) and the longest socket's name (26)."""
HAPROXY_DIR_LIMIT_BYTES: Final = 97 - 57 - 2
"""HAProxy leaves 97, as it binds under a temporary name; Ray adds the node's id (57) and we a name (2)."""
PLAIN: Final = re.compile(r"[A-Za-z0-9._/-]+")
"""Ray writes paths into HAProxy's configuration without quotes: a space would end them."""
SHORT_DIR_PREFIX: Final = "farebox-"


@dataclass(frozen=True)
class HeadPaths:
    """Where one head keeps its files: below `data_dir`, also when `ray` and `haproxy` are short names."""

    data_dir: Path
    ray: Path
    haproxy: Path
    short_dir: Path | None

    @property
    def home(self) -> Path:
        """The head's working directory, which marks its processes as ours (`ray_session`)."""
        return self.data_dir / "ray"

    @property
    def tmp(self) -> Path:
        """Temporary files of the head and its replicas, which the system's directory would keep for weeks."""
        return self.ray / "tmp"

    @property
    def token(self) -> Path:
        return self.data_dir / "ray_token"

    @property
    def record(self) -> Path:
        return self.data_dir / "ray_head.json"

    @property
    def lock(self) -> Path:
        return self.data_dir / "ray_head.lock"

    @property
    def log(self) -> Path:
        return self.data_dir / "logs" / "ray_head.log"


def head_paths(data_dir: Path) -> HeadPaths:
    """Return the head's paths without touching the disk; `short_dir` is unset."""
    return HeadPaths(data_dir, data_dir / "ray", data_dir / "haproxy", None)


def lay_out(data_dir: Path) -> HeadPaths:
    """Create the head's directories, and short plain names for them where their own will not do.

    A short name is a link in a private directory under the system's temporary one: the kernel counts the
    bytes of the name that it is given, not of the file that it leads to. `remove_short_dir` removes it.
    """
    paths = head_paths(data_dir)
    for directory in (paths.ray, paths.tmp, paths.haproxy, paths.log.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _fits(paths.ray, RAY_DIR_LIMIT_BYTES) and _fits(paths.haproxy, HAPROXY_DIR_LIMIT_BYTES):
        return paths
    parent = min((tempfile.gettempdir(), "/tmp"), key=len)  # noqa: S108 - mkdtemp makes a private one inside
    short = Path(tempfile.mkdtemp(prefix=SHORT_DIR_PREFIX, dir=parent))
    (short / "r").symlink_to(paths.ray, target_is_directory=True)
    (short / "h").symlink_to(paths.haproxy, target_is_directory=True)
    return HeadPaths(data_dir, short / "r", short / "h", short)


def remove_short_dir(short_dir: Path) -> None:
    """Remove what `lay_out` made there, and nothing else: what stands under another name or owner stays."""
    if not short_dir.name.startswith(SHORT_DIR_PREFIX) or short_dir.is_symlink() or not short_dir.is_dir():
        return
    if short_dir.stat().st_uid != os.getuid():
        return
    for name in ("r", "h"):
        (short_dir / name).unlink(missing_ok=True)
    short_dir.rmdir()


def head_token(path: Path) -> str:
    """Return the secret that opens the head, made at the first start and readable by its owner alone."""
    if path.exists() and (known := path.read_text().strip()):
        return known
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token := secrets.token_urlsafe(32))
    fresh.replace(path)
    return token


def _fits(path: Path, limit_bytes: int) -> bool:
    return len(os.fsencode(path)) <= limit_bytes and PLAIN.fullmatch(str(path)) is not None
