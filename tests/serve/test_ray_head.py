"""A real Ray head: what it answers, whom it lets in, and that nothing of it outlives its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from deployments.ray_environment import LOOPBACK, HeadResources, haproxy_binary
from deployments.ray_head import RayHead, RayHeadError, reap
from deployments.ray_session import HeadRecord, living_members
from deployments.serve_api import ApplicationStatus, ServeRefused, dashboard_hint
from kit.addresses import caller_address
from kit.settings import Settings

pytestmark = pytest.mark.timeout(240)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ANSWER_S = 10.0
RUNNING_S = 120.0
"""Twenty times what it takes on an idle machine: other tests may share the cores."""
LISTENING = "0A"
"""How /proc/net/tcp writes the state of a socket that accepts connections."""


def new_head(data_dir: Path, front_port: int) -> RayHead:
    return RayHead(data_dir, front_port, os.environ, HeadResources(num_cpus=2), python_path=[HERE, ROOT])


def bring_up(head: RayHead) -> None:
    """Start the head and one application on it."""
    head.start()
    head.api.deploy(config(head.front_port, "echo"))
    head.wait_until_running({"echo"}, RUNNING_S)


def config(front_port: int, *names: str) -> dict[str, object]:
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": LOOPBACK, "port": front_port},
        "applications": [
            {"name": name, "route_prefix": f"/{name}-app", "import_path": f"echo_app:{name}", "args": {}}
            for name in names
        ],
    }


def ask(head: RayHead, headers: dict[str, str] | None = None) -> dict[str, object]:
    """Return the application's answer; HAProxy may learn of a replica a moment after Serve tells us."""
    deadline = time.monotonic() + ANSWER_S
    while True:
        try:
            answer = httpx.get(
                f"http://{LOOPBACK}:{head.front_port}/echo-app/echo",
                headers=headers,
                trust_env=False,
                timeout=ANSWER_S,
            )
            answer.raise_for_status()
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return answer.json()


def session_of(head: RayHead) -> int:
    record = HeadRecord.read(head.paths.record)
    assert record
    return record.session_id


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, free_port: int) -> Iterator[RayHead]:
    """One head for the module. Its directory has a name that no socket and no HAProxy could bear."""
    data_dir = tmp_path_factory.mktemp("a data directory with a long name and spaces in it") / ".farebox"
    head = new_head(data_dir, free_port)
    try:
        bring_up(head)
        yield head
    finally:
        head.stop()


@pytest.fixture(scope="module")
def free_port() -> int:
    return unused_port()


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def test_the_front_door_is_haproxy_on_loopback(head: RayHead) -> None:
    assert ask(head)["cwd"] == str(head.paths.home)
    names = living_members(session_of(head)).values()
    assert ("haproxy" in names) == (haproxy_binary(os.environ) is not None)
    with socket.socket() as outside:
        outside.settimeout(ANSWER_S)
        # All of 127.0.0.0/8 is this machine: a server on all interfaces would answer here as well.
        assert outside.connect_ex(("127.0.0.2", head.front_port)) != 0


def test_a_forged_address_is_told_from_the_one_that_the_front_wrote(head: RayHead) -> None:
    told = ask(head, {"x-forwarded-for": "203.0.113.7"})
    proxies = Settings(front=str(told["front"])).proxies
    peer, chain = str(told["peer"]), str(told["forwarded_for"])
    assert peer == LOOPBACK, "uvicorn must leave the judgement to us"
    if haproxy_binary(os.environ) is None:
        assert (chain, proxies) == ("203.0.113.7", ())
    else:
        assert chain.replace(" ", "") == f"203.0.113.7,{LOOPBACK}"
        # The test itself calls from loopback. Were it anyone else, the walk would end at what the front wrote.
        assert caller_address(peer, chain.replace(f",{LOOPBACK}", ",198.51.100.1"), proxies) == "198.51.100.1"


def test_nothing_listens_beyond_loopback_but_what_asks_for_the_token(head: RayHead) -> None:
    open_to_all = {name for name, address in listeners(session_of(head)) if not is_loopback(address)}
    assert open_to_all <= {"ray::ServeRepli"}  # its gRPC port: see the next test


def test_a_replica_refuses_calls_without_the_token(head: RayHead) -> None:
    import grpc

    ports = [port for name, port in grpc_ports(session_of(head)) if name == "ray::ServeRepli"]
    assert ports
    for port in ports:
        with grpc.insecure_channel(f"{LOOPBACK}:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refusal:
                call(b"", timeout=ANSWER_S)
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_dashboard_opens_to_the_token_alone(head: RayHead) -> None:
    token = head.paths.token.read_text()
    assert head.paths.token.stat().st_mode & 0o077 == 0
    assert str(head.paths.token) in dashboard_hint(head.api.url, head.paths.token)
    browser = {"User-Agent": "Mozilla/5.0", "Origin": head.api.url}
    with httpx.Client(base_url=head.api.url, headers=browser, trust_env=False) as client:
        assert client.get("/").status_code == 200
        assert client.get("/api/serve/applications/").status_code == 401
        wrong = client.post("/api/authenticate", headers={"Authorization": "Bearer wrong"})
        assert wrong.status_code == 403
        assert client.get("/api/serve/applications/").status_code == 401
        client.post("/api/authenticate", headers={"Authorization": f"Bearer {token}"}).raise_for_status()
        assert client.get("/api/serve/applications/").status_code == 200  # by the cookie


def test_an_application_that_cannot_start_says_why_and_harms_no_other(head: RayHead) -> None:
    before = ask(head)
    moved: list[ApplicationStatus] = []
    head.api.deploy(config(head.front_port, "echo", "broken"))
    with pytest.raises(RayHeadError, match=r"'broken' cannot start.*the weights are not there"):
        head.wait_until_running({"echo", "broken"}, RUNNING_S, moved.append)
    assert "DEPLOYING" in {status.status for status in moved if status.name == "broken"}
    assert ask(head) == before
    head.wait_until_running({"echo"}, 0)


def test_a_config_that_serve_cannot_read_is_refused(head: RayHead) -> None:
    before = ask(head)
    with pytest.raises(ServeRefused, match="import_path"):
        head.api.deploy({"applications": [{"name": "nameless"}]})
    assert ask(head) == before


def test_a_data_directory_has_one_head(head: RayHead) -> None:
    second = new_head(head.paths.data_dir, unused_port())
    with pytest.raises(RayHeadError, match="another process"):
        second.start()
    assert second.stop() == []
    with pytest.raises(RayHeadError, match="another process"):
        reap(head.paths.data_dir)
    assert ask(head)


def test_a_head_that_cannot_start_says_why(tmp_path: Path) -> None:
    head = RayHead(tmp_path, unused_port(), os.environ, HeadResources(num_cpus=0.5))
    try:
        with pytest.raises(RayHeadError, match=r"(?s)ended \(2\).*ray_head.log.*num-cpus.*0.5"):
            head.start()
    finally:
        head.stop()


@pytest.mark.timeout(400)  # two starts, each of up to a minute on busy cores
def test_a_start_after_kill_9_takes_over_and_its_stop_leaves_only_logs(head: RayHead, tmp_path: Path) -> None:
    neighbour = ask(head)
    data_dir = tmp_path / ("long" * 20)
    front_port = unused_port()
    second = new_head(data_dir, front_port)
    starter = subprocess.Popen(
        [sys.executable, __file__, str(data_dir), str(front_port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with starter:
            assert starter.stdout
            assert starter.stdout.readline() == "up\n"
            starter.kill()
        orphans = session_of(second)
        assert ask(second) != neighbour  # nobody told them to end
        os.kill(orphans, signal.SIGKILL)  # the head's first process
        assert living_members(orphans)

        bring_up(second)
        assert living_members(orphans) == {}
        assert ask(second) != neighbour

        session_id, short_dir = session_of(second), second.paths.short_dir
        assert short_dir
        assert short_dir.exists()
        began = time.monotonic()
        assert second.stop() == []
        assert time.monotonic() - began < 10
        assert living_members(session_id) == {}
        assert not short_dir.exists()
        assert sorted(path.name for path in data_dir.iterdir()) == [
            "logs",
            "ray",
            "ray_head.lock",
            "ray_token",
        ]
        assert len(list(second.paths.home.glob("session_2*"))) == 1
        assert ask(head) == neighbour
    finally:
        starter.kill()
        second.stop()
        reap(data_dir)


def listeners(session_id: int) -> list[tuple[str, str]]:
    """Return process name and address, as the kernel writes it, of the session's listening TCP sockets."""
    return [(name, local.split(":")[0]) for name, local in _listening(session_id)]


def grpc_ports(session_id: int) -> list[tuple[str, int]]:
    """Return process name and port of those that listen beyond loopback."""
    found = [(name, *local.split(":")) for name, local in _listening(session_id)]
    return [(name, int(port, 16)) for name, address, port in found if not is_loopback(address)]


def is_loopback(address: str) -> bool:
    return address.endswith("0100007F") or address == "00000000000000000000000001000000"


def _listening(session_id: int) -> Iterator[tuple[str, str]]:
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING:
                sockets[f"socket:[{fields[9]}]"] = fields[1]
    for pid, name in living_members(session_id).items():
        for target in _open_files(pid):
            if target in sockets:
                yield name, sockets[target]


def _open_files(pid: int) -> list[str]:
    """Return what a process holds open; nothing of a process that has ended meanwhile."""
    opened = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                opened.append(str(handle.readlink()))
    return opened


if __name__ == "__main__":  # the starter that the test kills
    bring_up(new_head(Path(sys.argv[1]), int(sys.argv[2])))
    sys.stdout.write("up\n")
    sys.stdout.flush()
    signal.pause()
