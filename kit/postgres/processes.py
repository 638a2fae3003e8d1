"""Finds and ends the server processes of one cluster directory, and never any other process.

A process belongs to a cluster when its working directory is that cluster, by device and inode, and its name
is that of a Postgres program: the postmaster and all its children live there. Process ids from files are not
trusted, since ids are reused, and a zombie has no working directory, so that it is never taken for a server.
Linux only (`/proc`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

PROGRAMS: Final = frozenset({"postgres", "initdb"})
"""What may run inside a cluster directory; a shell or a backup tool that stands there is left alone."""
POLL_S: Final = 0.02
"""They are not our children, so that nothing tells us when they end; 20 ms is below what a person notices."""
ABRUPT_S: Final = 5.0
"""How long each harder signal is given: both end a healthy process in milliseconds."""


def server_pids(directory: Path) -> set[int]:
    """Return the ids of the living Postgres processes whose working directory is `directory`."""
    try:
        home = directory.stat()
    except OSError:
        return set()
    return {pid for pid in _all_pids() if _belongs(pid, home)}


def end_server(directory: Path, *, timeout_s: float) -> int:
    """End every server process of `directory`, the gentlest way that works; return how many there were.

    A postmaster gets a fast shutdown first: it aborts open transactions, writes a checkpoint and ends its
    children. What is left after `timeout_s`, and backends without a postmaster, are ended at once; the
    write-ahead log makes that safe for everything that committed.

    Raises: TimeoutError when a process survives SIGKILL, which only the kernel can cause.
    """
    found = server_pids(directory)
    postmaster = recorded_pid(directory)
    if postmaster in found and _signal(directory, [postmaster], signal.SIGINT, timeout_s):
        return len(found)
    for harder in (signal.SIGQUIT, signal.SIGKILL):
        if not (left := server_pids(directory)) or _signal(directory, left, harder, ABRUPT_S):
            return len(found)
    raise TimeoutError(f"processes {sorted(server_pids(directory))} of {directory} do not end")


def recorded_pid(directory: Path) -> int:
    """Return the process id that `postmaster.pid` names, or 0; it may be stale."""
    lines = recorded_state(directory)
    return int(lines[0]) if lines and lines[0].isdigit() else 0


def recorded_state(directory: Path) -> list[str]:
    """Return the lines of `postmaster.pid`, if any: the process id first, the state ('ready') eighth."""
    try:
        text = (directory / "postmaster.pid").read_text(errors="replace")
    except FileNotFoundError:
        return []
    return [line.strip() for line in text.splitlines()]


def _signal(directory: Path, pids: Iterable[int], number: signal.Signals, timeout_s: float) -> bool:
    """Send `number` to `pids` and tell whether the directory was free of servers within `timeout_s`."""
    home = directory.stat()
    for pid in pids:
        # Asked again at the last moment: it may have ended meanwhile, and its id been given away.
        if _belongs(pid, home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    deadline = time.monotonic() + timeout_s
    while server_pids(directory):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _belongs(pid: int, home: os.stat_result) -> bool:
    try:
        if Path(f"/proc/{pid}/comm").read_text().strip() not in PROGRAMS:
            return False
        return os.path.samestat(Path(f"/proc/{pid}/cwd").stat(), home)
    except OSError:  # it ended, it is a zombie, or it belongs to another user and so cannot be ours
        return False
