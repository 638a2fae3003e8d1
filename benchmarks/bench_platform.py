"""The idle platform: time to healthy, memory, and reads per second beside a bare FastAPI app in the same run.

    python benchmarks/bench_platform.py [--quick] [--json FILE]

The bare app (uvicorn, one process, the same kind of JSON) is the ceiling of what one Python process serves; ours
passes HAProxy, the ingress, a Ray call and Postgres. Rounds alternate, because these machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import httpx
from bare import bare_server, front_port
from load import Measured, measure
from rich.console import Console
from rich.table import Table

from deployments.books import in_books
from deployments.cli import Steps
from deployments.launcher import Launcher
from deployments.ray_session import HeadRecord
from kit.settings import load_settings
from ledger.credits import credit
from ledger.keys import mint
from ledger.users import account_of_email

CONNECTIONS: Final = (1, 32, 64)
TARGETS: Final = {"start-up": 60.0, "memory": 5.0, "balance": 0.25}
"""What was asked for: seconds, gigabytes, share of the bare app."""


def main() -> None:
    """Run, print the table, keep the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="under 50 s: one short round at 32 connections")
    options.add_argument("--json", type=Path, help="write the figures here")
    chosen = options.parse_args()
    report = run(quick=chosen.quick)
    show(report)
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


def run(*, quick: bool) -> dict[str, Any]:
    """Return all figures of one run."""
    seconds, rounds, widths = (1.0, 1, (32,)) if quick else (5.0, 3, CONNECTIONS)
    with tempfile.TemporaryDirectory(prefix="farebox-") as place:
        settings = load_settings(data_dir=Path(place), port=front_port(), profile="tiny", database_url="")
        with Launcher(settings, Steps()) as running, bare_server() as bare_url:
            base = f"http://127.0.0.1:{settings.port}"
            key = in_books(running.settings.database_url, _funded_key)
            _warm(base, key)
            memory = _memory_bytes(running)
            rows = []
            for width in widths:
                targets: dict[str, tuple[str, dict[str, str]]] = {
                    "bare": (f"{bare_url}/bare", {}),
                    "health": (f"{base}/api/v1/health", {}),
                    "balance": (f"{base}/api/v1/credits/balance", {"authorization": f"Bearer {key}"}),
                }
                seen: dict[str, list[Measured]] = {name: [] for name in targets}
                for _ in range(rounds):
                    for name, (url, headers) in targets.items():
                        seen[name].append(measure(url, connections=width, seconds=seconds, headers=headers))
                rows += [_row(name, width, found, seen["bare"]) for name, found in seen.items()]
            return {
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
                "startup_s": round(running.started_in_s, 1),
                "memory_gb": {name: round(size / 1e9, 2) for name, size in memory.items()},
                "reads": rows,
            }


def _row(name: str, width: int, found: list[Measured], floor: list[Measured]) -> dict[str, Any]:
    rate = statistics.median(m.requests_per_s for m in found)
    return {
        "target": name,
        "connections": width,
        "requests_per_s": round(rate),
        "p50_ms": round(statistics.median(m.p50_ms for m in found), 1),
        "p99_ms": round(statistics.median(m.p99_ms for m in found), 1),
        "of_bare": round(rate / statistics.median(m.requests_per_s for m in floor), 2),
        "failures": sum(m.failures for m in found),
    }


def show(report: dict[str, Any]) -> None:
    """Print the figures as tables."""
    console = Console()
    console.print(
        f"ready after {report['startup_s']} s (asked: {TARGETS['start-up']:.0f}), {report['machine']}"
    )
    parts = ", ".join(f"{name} {size} GB" for name, size in report["memory_gb"].items())
    console.print(
        f"resident while idle, shared pages counted once: {parts} (asked: {TARGETS['memory']:.0f} GB)"
    )
    table = Table("read", "connections", "requests/s", "p50 ms", "p99 ms", "of bare", "failures")
    for row in report["reads"]:
        table.add_row(*(str(row[name]) for name in ("target", "connections", "requests_per_s", "p50_ms", "p99_ms")),
                      f"{row['of_bare']:.0%}", str(row["failures"]))  # fmt: skip
    console.print(table)


async def _funded_key(conn: Any) -> str:
    owner = await account_of_email(conn, "bench@example.com")
    await credit(
        conn, owner.account_id, kind="grant", house="promotion:bench", amount_tokens=60_000, reference="bench"
    )
    return (await mint(conn, owner.user_id, "bench", brand="amai")).secret


def _warm(base: str, key: str) -> None:
    """Run one picture, so that the model is loaded as it is in use, and touch what is measured."""
    with httpx.Client(base_url=base, headers={"authorization": f"Bearer {key}"}, trust_env=False) as http:
        job = http.post(
            "/api/v1/media/jobs", json={"task": "image.generate", "input": {"prompt": "fox"}}
        ).json()
        deadline = time.monotonic() + 60
        while http.get(f"/api/v1/media/jobs/{job['id']}").json()["status"] != "succeeded":
            assert time.monotonic() < deadline, "the warm-up picture did not come"
            time.sleep(0.2)
        measure(f"{base}/api/v1/credits/balance", connections=32, seconds=1, headers=dict(http.headers))


def _memory_bytes(running: Launcher) -> dict[str, int]:
    """Return the proportional memory (PSS) of all that was started: shared pages are counted once."""
    mine = _descendants(os.getpid())
    record = HeadRecord.read(running.head.paths.record)
    assert record is not None, "the head runs"
    head = {pid for pid in _processes() if _session(pid) == record.session_id}
    total = sum(_pss(pid) for pid in mine | head)
    return {"all": total, "Ray and replicas": sum(_pss(pid) for pid in head)}


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["", "0", "0", "0"]


def _session(pid: int) -> int:
    return int(_stat(pid)[3])


def _descendants(root: int) -> set[int]:
    parents = {pid: int(_stat(pid)[1]) for pid in _processes()}
    found: set[int] = set()
    for pid in parents:
        above = pid
        while above not in (0, 1, root):
            above = parents.get(above, 0)
        if above == root and pid != root:
            found.add(pid)
    return found


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main()
