"""Checks and spends per second beside an empty handler of the same Serve app and a bare FastAPI echo, in one run.

    python benchmarks/bench_tools.py [--quick] [--json FILE]

All but the bare echo come through HAProxy and the ingress. A spend is charged and committed before it is answered,
each under a reference of its own, by an account for
each connection and by one account for all of them. Rounds are short and alternate, because these machines are noisy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import yaml
from bare import bare_server, front_port
from load import Measured, Request, exchange, head
from rich.console import Console
from rich.table import Table

from deployments.books import in_books
from deployments.cli import Steps
from deployments.launcher import ROOT, SERVE_CONFIG, Launcher
from kit.settings import load_settings
from ledger.credits import credit
from ledger.keys import mint
from ledger.users import account_of_email

HERE: Final = Path(__file__).parent
CONNECTIONS: Final = 64
IDLE: Final = {"autoscaling_config": {"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1}}
"""A model that nobody calls: no process of it runs."""
TARGETS: Final = {"share": 0.6, "p99": 3.0}
"""What was asked of a spend: its share of the empty handler's rate, at most so many times its p99."""


def main() -> None:
    """Run, print the table, keep the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="under 50 s: one short round")
    options.add_argument("--json", type=Path, help="write the figures here")
    chosen = options.parse_args()
    report = run(quick=chosen.quick)
    show(report)
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


def run(*, quick: bool) -> dict[str, Any]:
    """Return all figures of one run."""
    seconds, rounds = (1.5, 1) if quick else (1.5, 15)
    with _platform() as running, bare_server() as bare_url:
        base = running.settings.base_url
        keys = in_books(running.settings.database_url, _funded_keys)
        references = itertools.count()
        targets = {
            "bare": _target(f"{bare_url}/echo", [""], references),
            "empty": _target(f"{base}/empty", keys, references),
            "check": _target(f"{base}/api/v1/tools/check", keys, references),
            "spend": _target(f"{base}/api/v1/tools/spend", keys, references),
            "spend, one account": _target(f"{base}/api/v1/tools/spend", keys[:1], references),
        }
        for url, requests in targets.values():  # touch what is measured
            exchange(url, requests, seconds=0.5)
        seen: dict[str, list[Measured]] = {name: [] for name in targets}
        for _ in range(rounds):
            for name, (url, requests) in targets.items():
                seen[name].append(exchange(url, requests, seconds=seconds))
        _require_sound_books(base, keys[0])
    rows = [_row(name, found, seen) for name, found in seen.items()]
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "connections": CONNECTIONS,
        "rows": rows,
    }


def show(report: dict[str, Any]) -> None:
    """Print the figures as a table, and what was asked."""
    console = Console()
    console.print(f"{report['connections']} connections, {report['machine']}")
    table = Table(
        "route", "requests/s", "p50 ms", "p99 ms", "of empty", "p99 by empty's", "of bare", "failures"
    )
    for row in report["rows"]:
        table.add_row(
            row["target"], str(row["requests_per_s"]), str(row["p50_ms"]), str(row["p99_ms"]),
            f"{row['of_empty']:.0%}", f"{row['p99_by_empty']:.1f}", f"{row['of_bare']:.0%}", str(row["failures"]),
        )  # fmt: skip
    console.print(table)
    console.print(
        f"asked of a spend: {TARGETS['share']:.0%} of empty, p99 under {TARGETS['p99']:.0f} times empty's"
    )


def _row(name: str, found: list[Measured], seen: dict[str, list[Measured]]) -> dict[str, Any]:
    """Sum one target up. Ratios are medians of the rounds' own: what slows a round slows both of its sides."""

    def by(other: str, figure: str) -> float:
        pairs = zip(found, seen[other], strict=True)
        return round(statistics.median(getattr(m, figure) / getattr(o, figure) for m, o in pairs), 2)

    return {
        "target": name,
        "requests_per_s": round(statistics.median(m.requests_per_s for m in found)),
        "p50_ms": round(statistics.median(m.p50_ms for m in found), 1),
        "p99_ms": round(statistics.median(m.p99_ms for m in found), 1),
        "of_empty": by("empty", "requests_per_s"),
        "p99_by_empty": by("empty", "p99_ms"),
        "of_bare": by("bare", "requests_per_s"),
        "failures": sum(m.failures for m in found),
    }


@contextmanager
def _platform() -> Iterator[Launcher]:
    """Start the platform with the empty handler in its ingress and without model replicas: the cores are few."""
    config = yaml.safe_load(SERVE_CONFIG.read_text())
    for each in config["applications"]:
        if each["name"] == "farebox":
            each["import_path"] = "empty_handler:farebox"
        else:
            each["args"]["profiles"]["tiny"] = IDLE
    with tempfile.TemporaryDirectory(prefix="farebox-") as name:
        place = Path(name)
        (place / "serve.yaml").write_text(yaml.safe_dump(config))
        settings = load_settings(data_dir=place / "data", port=front_port(), profile="tiny", database_url="")
        with Launcher(settings, Steps(), place / "serve.yaml", [HERE, ROOT]) as running:
            yield running


def _target(url: str, keys: list[str], references: Iterator[int]) -> tuple[str, list[Request]]:
    """Return a URL and what each connection sends to it: one turn of chat, under a new reference for a spend."""

    def request_of(key: str) -> Request:
        fields = {"tool": "chat", "units": 1} | ({"reference": "%012d"} if url.endswith("spend") else {})
        body = json.dumps(fields).encode()
        numbered = b"%012d" in body
        length = len(body % 0) if numbered else len(body)
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        first = head("POST", url, {**headers, "content-length": str(length)}) + b"\r\n"
        return (lambda: first + body % next(references)) if numbered else (lambda: first + body)

    return url, [request_of(key) for _, key in zip(range(CONNECTIONS), itertools.cycle(keys), strict=False)]


async def _funded_keys(conn: Any) -> list[str]:
    secrets = []
    for number in range(CONNECTIONS):
        owner = await account_of_email(conn, f"bench{number}@example.com")
        await credit(
            conn,
            owner.account_id,
            kind="grant",
            house="promotion:bench",
            amount_tokens=10**9,
            reference="bench",
        )
        secrets.append((await mint(conn, owner.user_id, "bench", brand="amai")).secret)
    return secrets


def _require_sound_books(base: str, key: str) -> None:
    """Fail unless the measured spends moved the money that they answered."""
    with httpx.Client(base_url=base, headers={"authorization": f"Bearer {key}"}, trust_env=False) as http:
        books = http.get("/api/v1/ledger/trial-balance").json()
        charged = sum(row["tokens"] for row in books["rows"] if row["kind"] == "revenue")
        assert books["balanced"], books
        assert charged > 0, books
        assert charged % 5 == 0, books


if __name__ == "__main__":
    main()
