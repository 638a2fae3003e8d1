"""Picks the loopback ports of one Ray head, so that two instances on one machine never share one.

The same front port gives the same ports at every start (an operator can note the dashboard's and the metrics'
addresses) and different front ports look in different places, so that two starts at the same moment do not
race.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final

DASHBOARD_ABOVE_FRONT: Final = 265
"""8000 gives 8265, where Ray's users look for the dashboard."""
INGRESS_PORTS: Final = 64
"""Ports for the replicas of ingress deployments, per protocol: a laptop runs a few, and a port that a replica
gave back rests for minutes before it is used again."""
SINGLE_PORTS: Final = 10
BLOCK: Final = SINGLE_PORTS + 2 * INGRESS_PORTS
FIRST_PORT: Final = 20_000
"""Above the ports that people assign by hand."""
LAST_PORT: Final = 32_767
"""Below the ports that the kernel gives to outgoing connections: Ray opens hundreds of those while it starts,
and one of them on a port that was free a moment ago would break the start."""
HIGHEST_PORT: Final = 65_535
BLOCKS: Final = (LAST_PORT - FIRST_PORT) // BLOCK


class NoFreePorts(RuntimeError):
    """Every block of ports that a Ray head could use has a listener in it."""


@dataclass(frozen=True)
class HeadPorts:
    """The ports of one head. What is not here is chosen by the kernel and found through Ray."""

    gcs: int
    dashboard: int
    dashboard_agent: int
    dashboard_metrics: int
    node_metrics: int
    haproxy_stats: int
    haproxy_metrics: int
    fallback_http: int
    fallback_grpc: int
    replica_http: tuple[int, int]
    replica_grpc: tuple[int, int]

    @classmethod
    def pick(cls, front_port: int) -> HeadPorts:
        """Return ports that nothing on this machine listens on.

        Raises: NoFreePorts.
        """
        start = next((s for s in _block_starts(front_port) if _block_is_free(s)), None)
        if start is None:
            raise NoFreePorts(f"no {BLOCK} free ports in a row between {FIRST_PORT} and {LAST_PORT}")
        http = start + SINGLE_PORTS
        grpc = http + INGRESS_PORTS
        usual_dashboard = front_port + DASHBOARD_ABOVE_FRONT
        return cls(
            gcs=start,
            dashboard=usual_dashboard if is_free(usual_dashboard) else start + 1,
            dashboard_agent=start + 2,
            dashboard_metrics=start + 3,
            node_metrics=start + 4,
            haproxy_stats=start + 5,
            haproxy_metrics=start + 6,
            fallback_http=start + 7,
            fallback_grpc=start + 8,
            replica_http=(http, http + INGRESS_PORTS - 1),
            replica_grpc=(grpc, grpc + INGRESS_PORTS - 1),
        )


def is_free(port: int) -> bool:
    """Tell whether a server could listen on loopback at `port` now."""
    if not 0 < port <= HIGHEST_PORT:
        return False
    with socket.socket() as probe:
        # As servers do: a connection that is still closing down does not occupy a port, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _block_starts(front_port: int) -> list[int]:
    return [FIRST_PORT + BLOCK * ((front_port + step) % BLOCKS) for step in range(BLOCKS)]


def _block_is_free(start: int) -> bool:
    return all(is_free(port) for port in range(start, start + BLOCK))
