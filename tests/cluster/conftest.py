"""A Ray cluster on one machine: a head, and nodes with pretend GPUs that its autoscaler starts and ends.

Ray's own fake provider makes the nodes, as processes of the head's session: what ends the head ends them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.launcher import ROOT, SERVE_CONFIG, Launcher
from deployments.ray_environment import LOOPBACK, HeadResources
from deployments.ray_ports import HeadPorts
from deployments.ray_session import HeadRecord, living_members
from kit.settings import load_settings

HERE = Path(__file__).parent
HEAD = "f" * 51 + "00000"
"""What the fake provider calls a head; it counts its nodes on from there."""
MAX_NODES = 3
NODE_BYTES = 80 << 20
"""The least that Ray takes for a node's object store."""
TINY_HEAD_CPUS = 2


@dataclass(frozen=True)
class Cluster:
    """A platform whose head can start nodes."""

    platform: Launcher

    @property
    def gates(self) -> Path:
        """Where jobs leave their marks, and find their gates."""
        return self.platform.settings.data_dir / "gates"

    def nodes(self) -> dict[str, int]:
        """Return the process of each living node by the node's id, the head left out."""
        record = HeadRecord.read(self.platform.head.paths.record)
        assert record
        found = {}
        for pid, name in living_members(record.session_id).items():
            if name == "raylet" and (node := _node_of(pid)) not in (None, HEAD):
                found[node] = pid
        return found

    def places_of(self, job_ids: list[str]) -> dict[str, set[str]]:
        """Return on which nodes each of these jobs has begun."""
        marks = [mark.name.split("@") for mark in self.gates.glob("*@*")]
        return {job_id: {node for job, node in marks if job == job_id} for job_id in job_ids}


def _node_of(pid: int) -> str | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:  # it ended
        return None
    named = dict(variable.partition("=")[::2] for variable in variables)
    return named.get("RAY_OVERRIDE_NODE_ID_FOR_TESTING")


def autoscaler(gcs_port: int) -> dict[str, Any]:
    """Return the configuration of Ray's autoscaler: nodes of one pretend GPU, ended soon when they are idle."""
    unused = ("auth", "docker", "file_mounts")
    none_of = (
        "cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands",
        "head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
    )  # fmt: skip
    return {
        "cluster_name": "pretend",
        "max_workers": MAX_NODES,
        "upscaling_speed": 100,
        "idle_timeout_minutes": 0.08,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"{LOOPBACK}:{gcs_port}",
            "head_node_id": HEAD,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": TINY_HEAD_CPUS}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {"CPU": 1, "GPU": 1, "object_store_memory": NODE_BYTES},
                "node_config": {},
                "min_workers": 0,
                "max_workers": MAX_NODES,
            },
        },
        "file_mounts_sync_continuously": False,
        **{name: {} for name in unused},
        **{name: [] for name in none_of},
    }


def serve_config() -> dict[str, Any]:
    """Return the product's configuration with two models: one that works on a GPU, one that cannot start."""
    config = yaml.safe_load(SERVE_CONFIG.read_text())
    kept = {each["name"]: each for each in config["applications"]}
    kept["image"]["args"] = {
        "application": "image",
        "family": "gated_model:Gated",
        "profiles": {
            "cluster": {
                "max_ongoing_requests": 2,  # the rest of the backlog waits for the next replica
                "graceful_shutdown_timeout_s": 5,
                "ray_actor_options": {"num_cpus": 0.1, "num_gpus": 1},
                "autoscaling_config": {
                    "min_replicas": 0,
                    "max_replicas": MAX_NODES,
                    "target_ongoing_requests": 2,
                    "metrics_interval_s": 0.5,
                    "look_back_period_s": 2,
                    "upscale_delay_s": 0,
                    "downscale_delay_s": 2,
                    "downscale_to_zero_delay_s": 2,
                },
                "health_check_period_s": 1,
            }
        },
    }
    kept["sfx"]["args"] |= {"family": "broken_model:Broken", "profiles": {"cluster": {"num_replicas": 1}}}
    kept["farebox"]["args"] |= {
        "places": {"image": 1, "sfx": 1},
        "cluster_places": {"image": 2 * MAX_NODES, "sfx": 1},
    }
    config["applications"] = [kept[name] for name in ("farebox", "image", "sfx")]
    return config


@pytest.fixture(scope="module")
def cluster(scratch: Path, front_port: int) -> Iterator[Cluster]:
    place = scratch / "cluster"
    place.mkdir(mode=0o711)  # Postgres drops root's privileges and must still reach its directory
    (place / "serve.yaml").write_text(yaml.safe_dump(serve_config()))
    (place / "autoscaler.json").write_text(json.dumps(autoscaler(HeadPorts.pick(front_port).gcs)))
    (place / "data" / "gates").mkdir(parents=True)
    settings = load_settings(
        data_dir=place / "data",
        port=front_port,
        profile="gpu",
        scale="cluster",
        database_url="",
        public_url="",
        lease_s=3,
    )
    with pytest.MonkeyPatch.context() as variables:
        for name, value in {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
            "RAY_CLOUD_INSTANCE_ID": HEAD,
            "RAY_NODE_TYPE_NAME": "ray.head.default",
            # A dead node is seen after 3 s instead of 14.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }.items():
            variables.setenv(name, value)
        resources = HeadResources(TINY_HEAD_CPUS, num_gpus=0, autoscaler=place / "autoscaler.json")
        python_path = [HERE, ROOT / "tests" / "serve", ROOT]
        with Launcher(settings, Quiet(), place / "serve.yaml", python_path, resources) as platform:
            yield Cluster(platform)


class Quiet:
    def step(self, what: str) -> None: ...
    def done(self, what: str) -> None: ...
    def warn(self, what: str) -> None:
        print(what)  # noqa: T201  # pytest shows it beside a failure
