"""Runs `ray start` without the parts that a head of our own never uses. Run as a file by `ray_head`, never
imported.

Ray's command line imports its `serve`, `job` and `state` commands on every start: more than half of its
start-up time, for commands that nobody types here. It guards each of those imports, so a module marked as
absent is skipped.
"""

from __future__ import annotations

import sys
from typing import Any, Final

UNUSED_COMMANDS: Final = ("ray.serve.scripts", "ray.dashboard.modules.job.cli", "ray.util.state.state_cli")
HOOK: Final = "__main__.without_client_server"
"""What `RAY_START_HOOK` names, so that Ray calls the function below with the parameters of the head."""


def without_client_server(ray_params: Any, _head: bool) -> None:
    """Leave out the server for remote drivers: 90 MB on a fixed port, which no option switches off."""
    ray_params.ray_client_server_port = None


def main() -> None:
    """Become `ray` with the arguments of this process."""
    absent: dict[str, Any] = dict.fromkeys(UNUSED_COMMANDS)
    sys.modules.update(absent)
    from ray.scripts.scripts import cli

    cli()


if __name__ == "__main__":
    main()
