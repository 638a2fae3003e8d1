"""What a Ray head is told, and where it keeps its files."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from deployments.ray_environment import (
    HeadResources,
    haproxy_binary,
    head_command,
    head_environment,
    loopback_haproxy,
)
from deployments.ray_paths import (
    HAPROXY_DIR_LIMIT_BYTES,
    RAY_DIR_LIMIT_BYTES,
    head_paths,
    head_token,
    lay_out,
    remove_short_dir,
)
from deployments.ray_ports import HeadPorts, is_free
from deployments.serve_api import ApplicationStatus

FRONT = 7321
"""Not 8000, where a developer's own instance may start and end while these tests run."""
PORTS = HeadPorts(1, 2, 3, 4, 5, 6, 7, 8, 9, (10, 19), (20, 29))


def single_ports(ports: HeadPorts) -> set[int]:
    return {value for value in vars(ports).values() if isinstance(value, int)}


def all_ports(ports: HeadPorts) -> set[int]:
    ranges = [ports.replica_http, ports.replica_grpc]
    return single_ports(ports) | {port for first, last in ranges for port in range(first, last + 1)}


def test_a_head_never_gets_one_port_twice() -> None:
    ports = HeadPorts.pick(FRONT)
    assert len(all_ports(ports)) == len(single_ports(ports)) + 2 * (
        ports.replica_http[1] - ports.replica_http[0] + 1
    )


def test_the_same_front_port_gives_the_same_ports() -> None:
    assert HeadPorts.pick(FRONT) == HeadPorts.pick(FRONT)


@pytest.mark.parametrize("other", [FRONT + 1, FRONT + 100, 8080, 9000])
def test_different_front_ports_share_none(other: int) -> None:
    assert not all_ports(HeadPorts.pick(FRONT)) & all_ports(HeadPorts.pick(other))


def test_a_port_in_use_is_not_picked() -> None:
    first = HeadPorts.pick(FRONT)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", first.gcs))
        other.listen()
        assert not is_free(first.gcs)
        assert not all_ports(HeadPorts.pick(FRONT)) - {first.dashboard} & all_ports(first)


@pytest.mark.parametrize("port", [0, -1, 65_536, 65_800])
def test_what_is_no_port_is_not_free(port: int) -> None:
    assert not is_free(port)


def test_a_front_port_at_the_end_of_the_range_still_gets_a_dashboard() -> None:
    assert is_free(HeadPorts.pick(65_535).dashboard)


def test_what_keeps_heads_apart_and_strangers_out_cannot_be_overridden(tmp_path: Path) -> None:
    base = {
        "RAY_ADDRESS": "ray.example.com:6379",
        "RAY_AUTH_TOKEN": "another cluster's",
        "RAY_AUTH_MODE": "disabled",
        "RAY_SERVE_HAPROXY_STATS_PORT": "8404",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": "/tmp/haproxy-serve/admin.sock",
    }
    environment = head_environment(base, head_paths(tmp_path), PORTS, haproxy=Path("/usr/sbin/haproxy"))
    assert "RAY_ADDRESS" not in environment
    assert "RAY_AUTH_TOKEN" not in environment
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "ray_token")
    assert environment["TMPDIR"] == str(tmp_path / "ray" / "tmp")
    assert environment["RAY_SERVE_HAPROXY_STATS_PORT"] == str(PORTS.haproxy_stats)
    places = [
        value for name, value in environment.items() if name.startswith("RAY_SERVE_HAPROXY_") and "/" in value
    ]
    assert len(places) == 6
    assert all(place.startswith((str(tmp_path), "/usr/sbin")) for place in places)


def test_an_operator_may_tune_the_rest(tmp_path: Path) -> None:
    base = {"RAY_SERVE_HAPROXY_NBTHREAD": "4", "DATABASE_URL": "postgresql://x"}
    environment = head_environment(base, head_paths(tmp_path), PORTS, haproxy=Path("/usr/sbin/haproxy"))
    assert environment["RAY_SERVE_HAPROXY_NBTHREAD"] == "4"
    assert environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert environment["DATABASE_URL"] == "postgresql://x"


def test_only_a_front_that_names_its_callers_is_trusted_with_it(tmp_path: Path) -> None:
    base = {"FAREBOX_FRONT": "0.0.0.0/0", "FORWARDED_ALLOW_IPS": "*"}
    plain = head_environment(base, head_paths(tmp_path), PORTS, haproxy=Path("/usr/sbin/haproxy"))
    naming = head_environment(
        base, head_paths(tmp_path), PORTS, haproxy=Path("/usr/sbin/haproxy"), names_callers=True
    )
    assert (plain["FAREBOX_FRONT"], naming["FAREBOX_FRONT"]) == ("", "127.0.0.1")
    assert {plain["FORWARDED_ALLOW_IPS"], naming["FORWARDED_ALLOW_IPS"]} == {""}


def test_without_haproxy_serve_runs_its_own_proxy(tmp_path: Path) -> None:
    environment = head_environment({}, head_paths(tmp_path), PORTS, haproxy=None)
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    # Throughput mode turns direct ingress on, and then nobody would listen at the front port.
    assert "RAY_SERVE_THROUGHPUT_OPTIMIZED" not in environment


def test_loopback_is_never_reached_through_a_proxy(tmp_path: Path) -> None:
    base = {"http_proxy": "http://proxy:3128", "no_proxy": "example.com"}
    environment = head_environment(base, head_paths(tmp_path), PORTS, haproxy=None)
    assert environment["no_proxy"] == "example.com,127.0.0.1,localhost"
    assert environment["NO_PROXY"] == "127.0.0.1,localhost"


def test_our_modules_come_before_those_of_the_shell(tmp_path: Path) -> None:
    base = {"PYTHONPATH": "/theirs"}
    environment = head_environment(
        base, head_paths(tmp_path), PORTS, haproxy=None, python_path=[Path("/ours")]
    )
    assert environment["PYTHONPATH"] == f"/ours{os.pathsep}/theirs"


@pytest.mark.parametrize(("num_gpus", "expected"), [(None, []), (0, ["--num-gpus=0"]), (2, ["--num-gpus=2"])])
def test_gpus_are_counted_by_ray_unless_told(
    tmp_path: Path, num_gpus: int | None, expected: list[str]
) -> None:
    command = head_command(head_paths(tmp_path), PORTS, HeadResources(1, num_gpus))
    assert [part for part in command if part.startswith("--num-gpus")] == expected


def test_haproxy_is_the_named_one_before_the_wheels(tmp_path: Path) -> None:
    assert haproxy_binary({"RAY_SERVE_HAPROXY_BINARY_PATH": "/opt/haproxy"}) == Path("/opt/haproxy")
    unnamed = haproxy_binary({})
    assert unnamed is None or (unnamed.name, os.access(unnamed, os.X_OK)) == ("haproxy", True)


def test_haproxys_pages_move_to_loopback_and_its_front_names_callers_where_it_was_put(tmp_path: Path) -> None:
    paths = lay_out(tmp_path)
    if paths.short_dir:  # the script is what counts here
        remove_short_dir(paths.short_dir)
    told = tmp_path / "told"
    pretend = tmp_path / "it's haproxy"
    pretend.write_text(f'#!/bin/sh\nfor each in "$@"; do echo "$each"; done > "{told}"\n')
    pretend.chmod(0o700)
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n    mode http\nfrontend prometheus\n    bind :7\nfrontend http_frontend\n"
        "    bind *:8000\n    bind *:77\n"
        "  bind *:6\n"
    )
    script = loopback_haproxy(pretend, paths, PORTS)
    subprocess.run([script, "-db", "-f", config, "-dR", "-sf", "12"], check=True)
    arguments = told.read_text().splitlines()
    assert arguments == ["-db", "-f", f"{config}.loopback", "-L", str(config), "-dR", "-sf", "12"]
    assert Path(f"{config}.loopback").read_text() == (
        "defaults\n    option forwardfor\n    mode http\n"
        "frontend prometheus\n    bind 127.0.0.1:7\nfrontend http_frontend\n    bind *:8000\n    bind *:77\n"
        "  bind 127.0.0.1:6\n"
    )


@pytest.mark.parametrize("name", ["d" * 60, "my data", "données", 'quo"te'])
def test_a_name_that_no_socket_can_bear_gets_a_short_one(tmp_path: Path, name: str) -> None:
    paths = lay_out(tmp_path / name)
    assert paths.short_dir
    assert paths.short_dir.stat().st_mode & 0o077 == 0
    assert paths.ray.samefile(tmp_path / name / "ray")
    assert paths.haproxy.samefile(tmp_path / name / "haproxy")
    assert len(str(paths.ray)) <= RAY_DIR_LIMIT_BYTES
    assert len(str(paths.haproxy)) <= HAPROXY_DIR_LIMIT_BYTES
    (paths.ray / "kept").touch()
    remove_short_dir(paths.short_dir)
    assert not paths.short_dir.exists()
    assert (tmp_path / name / "ray" / "kept").exists()


def test_a_short_plain_name_is_used_as_it_is(tmp_path: Path) -> None:
    short = lay_out(tmp_path / ("d" * 60)).short_dir
    assert short
    paths = lay_out(short / "d")
    try:
        assert paths.short_dir is None
        assert paths.ray == short / "d" / "ray"
    finally:
        for directory in ("d/logs", "d/ray/tmp", "d/ray", "d/haproxy", "d"):
            (short / directory).rmdir()
        remove_short_dir(short)


def test_what_we_did_not_make_is_not_removed(tmp_path: Path) -> None:
    named = tmp_path / "mine"
    linked = tmp_path / "farebox-link"
    named.mkdir()
    (named / "r").touch()
    linked.symlink_to(named)
    remove_short_dir(named)
    remove_short_dir(linked)
    remove_short_dir(tmp_path / "farebox-absent")
    assert (named / "r").exists()
    assert linked.is_symlink()


def test_the_token_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "ray_token"
    token = head_token(path)
    assert len(token) >= 32
    assert path.stat().st_mode & 0o177 == 0
    assert head_token(path) == token


def test_a_token_that_a_crash_left_empty_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "ray_token"
    path.touch()
    token = head_token(path)
    assert token
    assert head_token(path) == token
    assert path.stat().st_mode & 0o177 == 0


def test_the_reason_is_the_last_line_of_a_traceback() -> None:
    trace = "Traceback (most recent call last):\n  File ...\nRuntimeError: no weights\n\n"
    assert ApplicationStatus("image", "DEPLOY_FAILED", trace, {}).reason == "RuntimeError: no weights"
    assert ApplicationStatus("image", "DEPLOYING", "", {}).reason == ""
