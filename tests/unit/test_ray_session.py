"""Which processes are a Ray head's own, shown on sessions of plain processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployments.ray_head import RayHeadError, reap
from deployments.ray_paths import head_paths
from deployments.ray_session import HeadRecord, belongs, end_orphans, living_members, this_boot

Spawn = Callable[..., "subprocess.Popen[str]"]

TELL = "import os, sys, time; {}; print(os.getpid(), flush=True); time.sleep(600)"
"""A process that says when it is ready, and stays."""
FAMILY = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), flush=True)
{end}
"""


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start Python code in a session of its own, standing in a directory; what lives at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, cwd: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=cwd, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for pid in living_members(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        assert process.stdout
        process.stdout.close()


def first_line(process: subprocess.Popen[str]) -> int:
    assert process.stdout
    return int(process.stdout.readline())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    directory = tmp_path / "head" / "ray"
    directory.mkdir(parents=True)
    return directory


def test_a_session_belongs_to_the_directory_that_a_member_stands_in(
    spawn: Spawn, home: Path, tmp_path: Path
) -> None:
    process = spawn(TELL.format("pass"), home)
    assert first_line(process) == process.pid
    assert list(living_members(process.pid)) == [process.pid]
    assert belongs(process.pid, home)
    assert not belongs(process.pid, tmp_path)


def test_orphans_end_whatever_they_call_themselves_and_wherever_they_went(spawn: Spawn, home: Path) -> None:
    renamed = "open('/proc/self/comm', 'w').write('x) S 1 (y')"
    child = TELL.format(f"{renamed}; os.setpgid(0, 0)")
    leader = spawn(FAMILY.format(child=child, end="os._exit(0)"), home)
    orphan = first_line(leader)
    leader.wait()
    assert living_members(leader.pid) == {orphan: "x) S 1 (y"}
    assert end_orphans(leader.pid, home, timeout_s=10) == ["x) S 1 (y"]
    assert living_members(leader.pid) == {}


def test_one_member_in_the_directory_vouches_for_those_that_left_it(spawn: Spawn, home: Path) -> None:
    leader = spawn(
        FAMILY.format(child=TELL.format("os.chdir('/')"), end="import time; time.sleep(600)"), home
    )
    gone = first_line(leader)
    assert set(living_members(leader.pid)) == {leader.pid, gone}
    assert len(end_orphans(leader.pid, home, timeout_s=10)) == 2
    assert living_members(leader.pid) == {}


def test_a_number_given_away_is_not_touched(spawn: Spawn, home: Path, tmp_path: Path) -> None:
    stranger = spawn(TELL.format("pass"), tmp_path)
    first_line(stranger)
    assert end_orphans(stranger.pid, home, timeout_s=10) == []
    assert stranger.poll() is None


def test_another_session_in_the_same_directory_is_not_touched(spawn: Spawn, home: Path) -> None:
    shell, head = spawn(TELL.format("pass"), home), spawn(TELL.format("pass"), home)
    first_line(shell)
    first_line(head)
    assert len(end_orphans(head.pid, home, timeout_s=10)) == 1
    assert shell.poll() is None


def test_the_session_that_asks_never_belongs() -> None:
    assert living_members(os.getsid(0))
    assert not belongs(os.getsid(0), Path.cwd())


def test_the_dead_are_not_members(spawn: Spawn, home: Path) -> None:
    process = spawn("pass", home)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and still in the process table
    assert living_members(process.pid) == {}


@pytest.mark.parametrize(
    ("boot_id", "is_ended"), [(this_boot(), True), ("00000000-0000-0000-0000-000000000000", False)]
)
def test_a_record_counts_only_within_its_boot(spawn: Spawn, home: Path, boot_id: str, is_ended: bool) -> None:
    process = spawn(TELL.format("pass"), home)
    first_line(process)
    paths = head_paths(home.parent)
    HeadRecord(boot_id, process.pid, "").write(paths.record)
    assert bool(reap(home.parent)) is is_ended
    assert bool(living_members(process.pid)) is not is_ended
    assert not paths.record.exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"boot_id": 1', json.dumps({"boot_id": "x", "session_id": "y"})]
)
def test_a_record_that_cannot_be_read_is_as_none(home: Path, text: str) -> None:
    record = head_paths(home.parent).record
    record.write_text(text)
    assert HeadRecord.read(record) is None
    assert reap(home.parent) == []
    assert not record.exists()


def test_a_record_reads_back_as_written(home: Path) -> None:
    path = head_paths(home.parent).record
    record = HeadRecord(this_boot(), 4711, "/tmp/farebox-x")
    record.write(path)
    assert HeadRecord.read(path) == record


def test_reap_leaves_a_head_whose_starter_lives(home: Path) -> None:
    import fcntl

    paths = head_paths(home.parent)
    HeadRecord(this_boot(), 4711, "").write(paths.record)
    with paths.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RayHeadError, match="another process"):
            reap(home.parent)
    assert paths.record.exists()
