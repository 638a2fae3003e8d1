"""Whether the time to refuse a wrong key tells how much of it is right, over the real books in this process.

    python -m benchmarks.wrong_keys [--quick] [--json FILE]

Three kinds of wrong keys take turns in random order: none of a real key's characters right, half of them, all but the
last. The figure is the difference of mean times, the least favourable of three pairs, beside what chance alone makes
of it (a permutation test). It is a look from inside: over a network the noise is a thousand times as large.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import random
import statistics
import string
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from gateway.ports import Ledger
from kit import migrate
from kit.db import Database
from kit.errors import AuthRequired
from kit.postgres import EmbeddedPostgres
from kit.settings import Settings
from ledger.keys import Credential, hash_key, mint
from ledger.users import account_of_email

ROUNDS: Final = {"quick": 1_000, "full": 10_000}
LETTERS: Final = string.ascii_letters + string.digits
SHUFFLES: Final = 1_000
"""Enough to tell a difference that chance makes once in a hundred runs."""
SUSPICIOUS: Final = 0.001
"""A run in a thousand looks so by chance."""


def main() -> None:
    """Run, print the table, keep the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="under 50 s")
    options.add_argument("--json", type=Path, help="write the figures here")
    chosen = options.parse_args()
    report = run(quick=chosen.quick)
    show(report)
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


def run(*, quick: bool) -> dict[str, Any]:
    """Return the figures."""
    with tempfile.TemporaryDirectory(prefix="fb-") as folder:
        place = Path(folder)
        place.chmod(0o755)  # Postgres drops root's privileges and must still reach its directory
        postgres = EmbeddedPostgres(place / "pg")
        postgres.start()
        try:
            migrate.upgrade(postgres.url)
            settings = Settings(data_dir=place, database_url=postgres.url)
            times_us = asyncio.run(_times(settings, ROUNDS["quick" if quick else "full"]))
        finally:
            postgres.stop()
    chance = np.random.default_rng(1)
    pairs: list[dict[str, Any]] = [
        {
            "pair": f"{one} / {other}",
            "difference_us": statistics.mean(times_us[one]) - statistics.mean(times_us[other]),
            "by_chance": _by_chance(times_us[one], times_us[other], chance),
        }
        for one, other in combinations(times_us, 2)
    ]
    return {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "rounds": len(next(iter(times_us.values()))),
        "kinds": [
            {"kind": kind, "median_us": statistics.median(seen), "mean_us": statistics.mean(seen)}
            for kind, seen in times_us.items()
        ],
        "pairs": pairs,
        "tells_nothing": all(pair["by_chance"] > SUSPICIOUS for pair in pairs),
    }


def show(report: dict[str, Any]) -> None:
    """Print the figures as tables."""
    console = Console()
    kinds = Table(title=f"Refusing a wrong key, {report['rounds']:,} times each")
    for head in ("right characters", "median, us", "mean, us"):
        kinds.add_column(head, justify="right")
    for row in report["kinds"]:
        kinds.add_row(row["kind"], f"{row['median_us']:.1f}", f"{row['mean_us']:.1f}")
    pairs = Table(title="Differences of the means")
    for head in ("pair", "us", "as large by chance"):
        pairs.add_column(head, justify="right")
    for row in report["pairs"]:
        pairs.add_row(row["pair"], f"{row['difference_us']:+.2f}", f"{row['by_chance']:.1%}")
    console.print(kinds, pairs)
    console.print("The time tells nothing." if report["tells_nothing"] else "[red]The times differ.[/]")


async def _times(settings: Settings, rounds: int) -> dict[str, list[float]]:
    """Return the times of refusal by kind of key."""
    server, books = LedgerServer(settings), Database(settings.database_url, pool_size=1)
    try:
        ledger = local_ledger(server)
        secret = await books.run(_key)
        brand, _, body = secret.rpartition("_")
        strangers = str.maketrans(LETTERS, LETTERS[1:] + LETTERS[0])
        half = len(body) // 2
        kinds = {
            "none": f"{brand}_{body.translate(strangers)}",
            "half": f"{brand}_{body[:half]}{body[half:].translate(strangers)}",
            "all but one": f"{brand}_{body[:-1]}{body[-1].translate(strangers)}",
        }
        order = [kind for kind in kinds for _ in range(rounds)]
        random.Random(1).shuffle(order)  # an order, not a secret
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for kind in order[:300]:  # connections open, plans made
            await _refusal_us(ledger, kinds[kind])
        gc.disable()
        for kind in order:
            found[kind].append(await _refusal_us(ledger, kinds[kind]))
        gc.enable()
        return found
    finally:
        await books.close()
        await server.close()


async def _refusal_us(ledger: Ledger, key: str) -> float:
    """Return the time of one refusal, with the hashing of the key, in microseconds."""
    started = time.perf_counter_ns()
    try:
        await ledger.balance(Credential(hash_key(key)))
    except AuthRequired:
        return (time.perf_counter_ns() - started) / 1000
    raise AssertionError("a wrong key was taken")


async def _key(conn: AsyncConnection) -> str:
    owner = await account_of_email(conn, "dev@company.com")
    return (await mint(conn, owner.user_id, "bench", brand="amai")).secret


def _by_chance(one: list[float], other: list[float], chance: np.random.Generator) -> float:
    """Return how often shuffled times differ as much, without the slowest hundredth, which is the machine's."""
    limit = np.quantile([*one, *other], 0.99)
    ours, theirs = ([each for each in times if each <= limit] for times in (one, other))
    both, split = np.array(ours + theirs), len(ours)

    def difference() -> float:
        return abs(float(both[:split].mean() - both[split:].mean()))

    seen, hits = difference(), 0
    for _ in range(SHUFFLES):
        chance.shuffle(both)
        hits += difference() >= seen
    return (hits + 1) / (SHUFFLES + 1)


if __name__ == "__main__":
    main()
