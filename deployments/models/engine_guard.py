"""Ends an engine's processes when the replica that began them dies, however: the kernel closes the pipes of the dead.

Run as `python -m deployments.models.engine_guard PID...`, with the pipe as its standard input.
"""

from __future__ import annotations

import subprocess
import sys

import psutil


def guard() -> subprocess.Popen[bytes]:
    """Watch over every process that this one has begun; closing the guard's input ends them."""
    children = [str(child.pid) for child in psutil.Process().children(recursive=True)]
    # Our own interpreter and module. In a session of its own: a signal to the replica's group must not end it first.
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", __name__, *children], stdin=subprocess.PIPE, start_new_session=True
    )


def _main(pids: list[str]) -> None:
    watched = []
    for pid in pids:
        try:
            watched.append(
                psutil.Process(int(pid))
            )  # which remembers when it began: a reused number is no match
        except psutil.NoSuchProcess:
            continue
    sys.stdin.buffer.read()
    for process in watched:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    _main(sys.argv[1:])
