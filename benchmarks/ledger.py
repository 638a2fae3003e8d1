"""Spends a second and what each costs: ours beside Postgres's own load generator, plain asyncio and pgledger.

    python benchmarks/ledger.py [--quick] [--json FILE]

All run on one Postgres with fsync on, in turns, because these machines are noisy. `PGLEDGER_DIR` names a copy of
pgledger's repository; without it that peer is left out. The last table shows whether a spend costs more in large
books. What was asked for stands under the tables.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

if sys.path[0] == str(Path(__file__).parent):  # run as a file: it must not be taken for the package `ledger`
    del sys.path[0]

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.ledger_peers import ACCOUNTS, Contestant, Ours, Seen, contestants, database, migrated
from kit.db import Database
from kit.postgres import EmbeddedPostgres
from kit.postgres.programs import find_programs
from kit.postgres.users import ServerUser
from ledger.audit import LEDGER_CHECKS, run_checks

WAITING: Final = (16, 64, 256)
REACH: Final = (
    ("pgbench, one function", ACCOUNTS, 64, 2.0),
    ("pgbench, one function", 1, 64, 5.0),
    ("pgledger, one transfer a call", ACCOUNTS, 64, 5.0),
)
"""What was asked for: ours against whom, on how many accounts, with how many waiting, how many times as fast."""
FLAT: Final = 1.2
"""A spend in the largest books may cost this many times what it costs in the smallest: less is noise."""


def main() -> None:
    """Run, print the tables, keep the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="under 50 s: 64 waiting, one short round")
    options.add_argument("--json", type=Path, help="write the figures here")
    chosen = options.parse_args()
    pgledger = os.environ.get("PGLEDGER_DIR")
    report = run(quick=chosen.quick, pgledger_dir=Path(pgledger) if pgledger else None)
    show(report)
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


def run(*, quick: bool, pgledger_dir: Path | None) -> dict[str, Any]:
    """Return all figures of one run. Raises: AssertionError when the books are not sound afterwards."""
    seconds, rounds, widths = (1.0, 1, (64,)) if quick else (4.0, 3, WAITING)
    with tempfile.TemporaryDirectory(prefix="farebox-") as place:
        Path(place).chmod(0o755)  # Postgres drops root's privileges and must still reach its directory
        server = EmbeddedPostgres(Path(place), max_connections=max(widths) + 20)
        server.start()
        try:
            programs = find_programs(ServerUser(os.geteuid(), os.getegid(), drop=False), None)
            everybody = contestants(server, programs, pgledger_dir)
            rows = []
            for accounts in (1, ACCOUNTS):
                for waiting in widths:
                    seen: dict[str, list[Seen]] = {each.name: [] for each in everybody}
                    for _ in range(rounds):
                        for each in everybody:
                            seen[each.name].append(each.run(accounts, waiting, seconds))
                    rows += [_row(each, accounts, waiting, seen[each.name]) for each in everybody]
            growing = database(server, "growing")
            growth = _growth(Ours(server, migrated(growing)), growing, quick=quick)
            _assert_sound(growing)
        finally:
            server.stop()
    for row in rows:
        ours = next(r for r in rows if r["who"] == everybody[-1].name and _place(r) == _place(row))
        row["ours_times"] = round(ours["spends_per_s"] / row["spends_per_s"], 2)
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    return {"machine": machine, "spends": rows, "growth": growth, "reach": _reach(rows, growth)}


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return row["accounts"], row["waiting"]


def _row(who: Contestant, accounts: int, waiting: int, seen: list[Seen]) -> dict[str, Any]:
    def median(name: str) -> float:
        return float(statistics.median(getattr(each, name) for each in seen))

    return {
        "who": who.name,
        "duties": who.duties,
        "accounts": accounts,
        "waiting": waiting,
        "spends_per_s": round(median("spends_per_s")),
        "p50_ms": round(median("p50_ms"), 1),
        "p99_ms": round(median("p99_ms"), 1),
        "disk_bytes": round(median("disk_bytes")),
        "wal_bytes": round(median("wal_bytes")),
        "postgres_us": round(median("postgres_us")),
    }


def _growth(ours: Contestant, url: str, *, quick: bool) -> list[dict[str, Any]]:
    """Measure in books of each size, filled with whole spends as if so much time had passed."""
    rows = []
    ours.run(ACCOUNTS, 1, 0.1)  # opens the house's account
    with psycopg.connect(url, autocommit=True) as conn:
        for entries in (10_000, 100_000) if quick else (10_000, 200_000, 2_000_000):
            written = conn.execute("SELECT count(*) FROM entries").fetchone()
            assert written is not None
            if (missing := entries - written[0]) > 0:
                conn.execute(FILL.encode(), {"each": -(-missing // (2 * ACCOUNTS)), "accounts": ACCOUNTS})
            conn.execute("VACUUM ANALYZE accounts, transfers, entries")
            seen = [ours.run(ACCOUNTS, 64, 1.0 if quick else 4.0) for _ in range(1 if quick else 3)]
            rows.append({"entries": max(entries, written[0]), **_row(ours, ACCOUNTS, 64, seen)})
    return rows


FILL: Final = """
WITH given AS MATERIALIZED (
    SELECT nextval('transfers_id_seq') AS id, a.id AS account_id, a.balance - n AS balance_after,
        a.version + n AS version
    FROM (SELECT id, balance, version FROM accounts WHERE kind = 'user' ORDER BY id LIMIT %(accounts)s) a,
        generate_series(1, %(each)s) n
),
moved AS (
    INSERT INTO transfers (
        id, kind, account_id, tool, reference, amount, price_version, event_at, units_milli, free_after
    )
    OVERRIDING SYSTEM VALUE
    SELECT id, 'spend', account_id, 'chat', gen_random_uuid()::text, -1, 1, now(), 1000, balance_after FROM given
),
sides AS (
    INSERT INTO entries (account_id, version, transfer_id, amount, balance_after)
    SELECT account_id, version, id, -1, balance_after FROM given
    UNION ALL
    SELECT (SELECT id FROM accounts WHERE code = 'revenue:chat'), id, id, 1, NULL FROM given
)
UPDATE accounts a
SET balance = g.balance_after, version = g.version
FROM (SELECT account_id, min(balance_after) AS balance_after, max(version) AS version FROM given GROUP BY 1) g
WHERE a.id = g.account_id
"""


def _assert_sound(url: str) -> None:
    """Audit the books that were measured: a fast ledger that is wrong has no figure."""

    async def audit() -> None:
        books = Database(url.replace("postgresql://", "postgresql+psycopg://"), pool_size=1)
        try:
            findings = await books.run(run_checks, LEDGER_CHECKS)
            assert all(finding.ok for finding in findings), [f.name for f in findings if not f.ok]
        finally:
            await books.close()

    asyncio.run(audit())


def _reach(rows: list[dict[str, Any]], growth: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [
        {
            "what": f"{name}, {accounts} account{'s' * (accounts > 1)}, {waiting} waiting",
            "asked": asked,
            "found": row["ours_times"],
            "met": row["ours_times"] >= asked,
        }
        for name, accounts, waiting, asked in REACH
        for row in rows
        if row["who"] == name and _place(row) == (accounts, waiting)
    ]
    cost = round(growth[-1]["postgres_us"] / growth[0]["postgres_us"], 2)
    what = (
        f"cost of a spend in books of {growth[-1]['entries']:,} entries, of that in {growth[0]['entries']:,}"
    )
    return [*found, {"what": what, "asked": FLAT, "found": cost, "met": cost <= FLAT}]


def show(report: dict[str, Any]) -> None:
    """Print the figures as tables."""
    console = Console()
    places = list(dict.fromkeys(_place(row) for row in report["spends"]))
    for place in places:
        title = f"{place[0]:,} account{'s' * (place[0] > 1)}, {place[1]} waiting ({report['machine']})"
        table = Table(
            "who", "spends/s", "p50 ms", "p99 ms", "disk B", "WAL B", "CPU µs", "ours is", title=title
        )
        for row in report["spends"]:
            if _place(row) == place:
                table.add_row(row["who"], *_cells(row), str(row["disk_bytes"]), str(row["wal_bytes"]),
                              str(row["postgres_us"]), f"{row['ours_times']:.1f}x")  # fmt: skip
        console.print(table)
    console.print(
        "For each spend: bytes that tables and log grew by, processor time of Postgres. What each does:"
    )
    for who, duties in {row["who"]: row["duties"] for row in report["spends"]}.items():
        console.print(f"  {who}: {duties}")
    table = Table("entries", "spends/s", "p50 ms", "p99 ms", "CPU µs", title="ours as the books grow")
    for row in report["growth"]:
        table.add_row(f"{row['entries']:,}", *_cells(row), str(row["postgres_us"]))
    console.print(table)
    table = Table("against", "asked", "found", "", title="what was asked for")
    for row in report["reach"]:
        table.add_row(
            row["what"], f"{row['asked']:g}x", f"{row['found']:g}x", "met" if row["met"] else "missed"
        )
    console.print(table)


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    return f"{row['spends_per_s']:,}", str(row["p50_ms"]), str(row["p99_ms"])


if __name__ == "__main__":
    main()
