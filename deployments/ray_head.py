"""Starts, watches and ends a Ray head of our own, and nothing else on the machine.

The head runs in a session of its own, apart from whoever started it: Ctrl-C does not reach it, and a
`kill -9` of its starter or of any of its processes leaves orphans at worst, which the next start ends first
(`ray_session`). One data directory has one head: a lock says so as long as the starter lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from deployments.ray_environment import (
    LOOPBACK,
    HeadResources,
    haproxy_binary,
    head_command,
    head_environment,
    loopback_haproxy,
)
from deployments.ray_paths import HeadPaths, head_paths, head_token, lay_out, remove_short_dir
from deployments.ray_ports import HeadPorts, is_free
from deployments.ray_session import HeadRecord, end_orphans, kill_session, living_members, this_boot
from deployments.serve_api import ApplicationStatus, ServeApi, ServeRefused, ServeSilent

START_TIMEOUT_S: Final = 90.0
"""It takes 8 to 15 s on two idle cores and twice that on busy ones; more means that something is wrong."""
STOP_TIMEOUT_S: Final = 10.0
TERM_S: Final = 4.0
"""What the head's own processes get to end after SIGTERM: they take one to two."""
KILL_S: Final = 2.0
"""What SIGKILL takes to show: the kernel must give back a replica's memory."""
POLL_S: Final = 0.2
"""How often a person's progress line is worth a question."""
KEPT_SESSIONS: Final = 1
"""Ray's logs of one run are kept, to see why it ended; each is some megabytes."""
LOG_TAIL_BYTES: Final = 2000


class RayHeadError(RuntimeError):
    """The head cannot be started or does not do its work; the text says why and where to look."""


class RayHead:
    """One Ray head with HAProxy mode where its binary is present, bound to loopback, opened by a token.

    `front_port` is where Serve will answer, and what the head's other ports are derived from; say the same in
    the `http_options` of what is deployed.
    """

    def __init__(
        self,
        data_dir: Path,
        front_port: int,
        base_environment: Mapping[str, str],
        resources: HeadResources,
        python_path: Sequence[Path] = (),
    ) -> None:
        self.front_port = front_port
        self.paths = head_paths(data_dir.absolute())
        self._base_environment = base_environment
        self._resources = resources
        self._python_path = python_path
        self._ports: HeadPorts | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._api: ServeApi | None = None
        self._lock: IO[str] | None = None

    @property
    def api(self) -> ServeApi:
        """The started head's interface; deploy through it."""
        if self._api is None:
            raise RayHeadError("the Ray head is not started")
        return self._api

    @property
    def ports(self) -> HeadPorts:
        """The started head's ports."""
        if self._ports is None:
            raise RayHeadError("the Ray head is not started")
        return self._ports

    def start(self, timeout_s: float = START_TIMEOUT_S) -> ServeApi:
        """Return once the head takes deployments. What an earlier one left behind is ended and removed first.

        When it fails or is interrupted, `stop` is still to be called.

        Raises: RayHeadError, NoFreePorts.
        """
        self.paths.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _take_lock(self.paths)
        _reap(self.paths)
        if not is_free(self.front_port):
            raise RayHeadError(f"port {self.front_port} is in use by another program")
        self._ports = HeadPorts.pick(self.front_port)
        self.paths = lay_out(self.paths.data_dir)
        token = head_token(self.paths.token)
        self._spawn(self._ports)
        self._api = ServeApi(f"http://{LOOPBACK}:{self._ports.dashboard}", token)
        for _ in _until(
            timeout_s, f"the Ray head did not start within {timeout_s:.0f} s; see {self.paths.log}"
        ):
            self._raise_if_ended()
            try:
                self._api.application_statuses()
            except ServeSilent:
                continue
            except ServeRefused as refusal:
                raise RayHeadError(f"another program answers for the Ray head: {refusal}") from refusal
            break
        return self._api

    def wait_until_running(
        self,
        names: Collection[str],
        timeout_s: float,
        on_change: Callable[[ApplicationStatus], None] | None = None,
    ) -> None:
        """Return once all of `names` are running; `on_change` hears of every application that moved.

        Raises: RayHeadError when one of `names` fails, when the head ends, or when the time is over.
        """
        seen: dict[str, ApplicationStatus] = {}
        for _ in _until(timeout_s, f"{', '.join(sorted(names))} not running after {timeout_s:.0f} s"):
            self._raise_if_ended()
            try:
                statuses = self.api.application_statuses()
            except ServeSilent:
                continue
            for name, status in statuses.items():
                if on_change and seen.get(name) != status:
                    on_change(status)
            seen = statuses
            if failed := next((s for name in names if (s := statuses.get(name)) and s.has_failed), None):
                raise RayHeadError(f"application '{failed.name}' cannot start: {failed.reason}")
            if all(name in statuses and statuses[name].is_running for name in names):
                return

    def exit_code(self) -> int | None:
        """Return how the head's first process ended, negative for a signal; None while it lives."""
        return self._process.poll() if self._process else None

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> list[str]:
        """End the head and all its children within the time; return the names of those that had to be killed.

        Applications first, so that replicas finish what they have begun; then the head; then the rest.
        """
        deadline = time.monotonic() + timeout_s
        if self._process and self._process.poll() is None:
            if self._api:
                with contextlib.suppress(ServeRefused, ServeSilent):
                    self._api.delete_applications(timeout_s=max(0.1, timeout_s - TERM_S - KILL_S))
            self._process.terminate()
        killed = self._end_all(deadline)
        if self._api:
            self._api.close()
            self._api = None
        if self._lock:
            _clean(self.paths)
            self._lock.close()
            self._lock = None
        return killed

    def _spawn(self, ports: HeadPorts) -> None:
        wanted = self._base_environment.get("RAY_SERVE_ENABLE_HA_PROXY") != "0"
        haproxy = haproxy_binary(self._base_environment) if wanted else None
        front = loopback_haproxy(haproxy, self.paths, ports) if haproxy else None
        environment = head_environment(
            self._base_environment,
            self.paths,
            ports,
            haproxy=front,
            names_callers=front != haproxy,
            python_path=self._python_path,
        )
        command = head_command(self.paths, ports, self._resources)
        with self.paths.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                command,
                env=environment,
                cwd=self.paths.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        record = HeadRecord(this_boot(), self._process.pid, str(self.paths.short_dir or ""))
        record.write(self.paths.record)

    def _raise_if_ended(self) -> None:
        if (code := self.exit_code()) is not None:
            tail = self.paths.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
            raise RayHeadError(f"the Ray head ended ({code}); the end of {self.paths.log}:\n{tail}")

    def _end_all(self, deadline: float) -> list[str]:
        if self._process is None:
            return []
        session_id = self._process.pid
        if self._process.returncode is not None:  # it ended on its own, so that its number may be given away
            return end_orphans(session_id, self.paths.home, timeout_s=KILL_S)
        while living_members(session_id) and time.monotonic() < deadline - KILL_S:
            time.sleep(POLL_S)
        killed = kill_session(session_id, timeout_s=KILL_S)
        self._process.wait(KILL_S)
        return killed


def reap(data_dir: Path) -> list[str]:
    """End what an earlier head of `data_dir` left running and remove its temporary files.

    Returns the names of the processes that were killed.

    Raises: RayHeadError when that head's starter is alive: it is in use.
    """
    paths = head_paths(data_dir.absolute())
    if not paths.record.exists():
        return []
    with _take_lock(paths):
        return _reap(paths)


def _reap(paths: HeadPaths) -> list[str]:
    record = HeadRecord.read(paths.record)
    killed: list[str] = []
    if record and record.boot_id == this_boot():
        killed = end_orphans(record.session_id, paths.home, timeout_s=KILL_S)
    if record and record.short_dir:
        remove_short_dir(Path(record.short_dir))
    _clean(paths)
    return killed


def _clean(paths: HeadPaths) -> None:
    """Remove what only a living head needs, and the logs of all runs but the last."""
    if paths.short_dir:
        remove_short_dir(paths.short_dir)
    for directory in (paths.data_dir / "haproxy", paths.home / "tmp"):
        shutil.rmtree(directory, ignore_errors=True)
    sessions = sorted(path for path in paths.home.glob("session_2*") if path.is_dir())
    for session in sessions[:-KEPT_SESSIONS]:
        shutil.rmtree(session, ignore_errors=True)
    paths.record.unlink(missing_ok=True)


def _take_lock(paths: HeadPaths) -> IO[str]:
    """Return the open lock file: closing it, or the end of this process in any way, gives the lock back."""
    lock = paths.lock.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise RayHeadError(f"another process runs a Ray head in {paths.data_dir}") from None
    return lock


def _until(timeout_s: float, complaint: str) -> Iterator[None]:
    """Yield at once and then at every poll; raise the complaint when the time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        yield
        if time.monotonic() > deadline:
            raise RayHeadError(complaint)
        time.sleep(POLL_S)
