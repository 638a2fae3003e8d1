"""Finds and ends the processes of one Ray head, and never any other process. Linux only (`/proc`).

A head runs in a session of its own (`setsid`), which its children cannot leave by dying or by changing their
name, process group or environment, as Ray's do. The session's number and the machine's boot are written down,
so that the next start finds what a `kill -9` orphaned.

A number alone proves nothing, since it may be given away once all of a session has ended. But the kernel does
not give it away while one member lives. So a session is ours exactly when one living member stands in the
head's directory (its working directory, by device and inode), and then all of it is ours: also what a replica
started.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

POLL_S: Final = 0.05
"""Orphans are not our children, so that nothing tells us when they end."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class HeadRecord:
    """What the next start must know of a head: enough to end it, whatever ended its parent."""

    boot_id: str
    session_id: int
    short_dir: str
    """The directory under the system's temporary one that stands for long paths; empty when there is none."""

    def write(self, path: Path) -> None:
        """Replace the file at `path` at once: a reader sees the old record or the new one."""
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self)))
        fresh.replace(path)

    @classmethod
    def read(cls, path: Path) -> HeadRecord | None:
        """Return the record at `path`; None when there is none, or none that can be read."""
        try:
            found = json.loads(path.read_text())
            return cls(str(found["boot_id"]), int(found["session_id"]), str(found["short_dir"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def this_boot() -> str:
    """Return what names the time since the machine was started."""
    return BOOT_ID.read_text().strip()


def belongs(session_id: int, home: Path) -> bool:
    """Tell whether the session is that of the head at `home`; one without living members is nobody's."""
    if session_id == os.getsid(0):  # whatever a file says: never the session that is asking
        return False
    return any(_stands_in(pid, home) for pid in living_members(session_id))


def living_members(session_id: int) -> dict[int, str]:
    """Return id and name of every living process of the session."""
    return {pid: name for pid in _all_pids() if (name := _member_name(pid, session_id))}


def end_orphans(session_id: int, home: Path, *, timeout_s: float) -> list[str]:
    """Kill the session if it is that of the head at `home`, and return the names of what was killed.

    Raises: TimeoutError when a process survives SIGKILL, which only the kernel can cause.
    """
    # Proved once is enough: the number stays this session's until its last member has ended.
    return kill_session(session_id, timeout_s=timeout_s) if belongs(session_id, home) else []


def kill_session(session_id: int, *, timeout_s: float) -> list[str]:
    """Kill all that lives of a session that the caller knows for its own; return the names.

    Raises: TimeoutError when a process survives SIGKILL, which only the kernel can cause.
    """
    killed: dict[int, str] = {}
    deadline = time.monotonic() + timeout_s
    while members := living_members(session_id):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(members.items())} of the Ray head do not end")
        for pid, name in members.items():
            # Asked again at the last moment: it may have ended meanwhile, and its id been given away.
            if _member_name(pid, session_id):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                killed[pid] = name
        time.sleep(POLL_S)
    return sorted(killed.values())


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _member_name(pid: int, session_id: int) -> str:
    """Return the process's name if it lives in the session, else nothing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    # The name stands in brackets and may hold brackets and spaces; state, parent, group, session follow it.
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    state, _, _, session = stat[stat.rindex(")") + 2 :].split()[:4]
    return name if int(session) == session_id and state not in "ZX" else ""


def _stands_in(pid: int, home: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").samefile(home)
    except OSError:  # it ended, or it belongs to another user and so cannot be ours
        return False
