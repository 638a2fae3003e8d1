"""What `farebox audit` finds, as a table for people or as JSON for scripts."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deployments.books import in_books
from gateway.audit import JOB_CHECKS
from ledger import chain
from ledger.audit import LEDGER_CHECKS, Finding, TrialBalance, run_checks, trial_balance
from payments.audit import PAYMENT_CHECKS


def report_audit(console: Console, url: str, *, as_json: bool = False) -> bool:
    """Print every invariant, the rows that break one, and the trial balance; returns whether all of it holds."""
    findings = in_books(url, run_checks, (*LEDGER_CHECKS, *PAYMENT_CHECKS, *JOB_CHECKS))
    sums = in_books(url, trial_balance)
    sound = all(finding.ok for finding in findings) and sums.balanced
    if as_json:
        report = {
            "ok": sound,
            "checks": [{"name": f.name, "ok": f.ok, "offending": f.offending} for f in findings],
            "trialBalance": [
                {"world": row.world, "kind": row.kind, "tokens": row.amount_tokens} for row in sums.rows
            ],
            "lastBlock": _as_json(sums.last_block),
        }
        console.print_json(json.dumps(report, default=str))
    else:
        _print_audit(console, findings, sums)
    return sound


def _print_audit(console: Console, findings: list[Finding], sums: TrialBalance) -> None:
    table = Table("invariant", "holds", title="Audit")
    for finding in findings:
        table.add_row(finding.name, "[green]yes[/]" if finding.ok else "[red]NO[/]")
    console.print(table)
    for finding in findings:
        for row in finding.offending:
            console.print(f"[red]{escape(finding.name)}[/]: {escape(str(row))}", soft_wrap=True)
    table = Table("world", "accounts", "entries", "tokens", title="Trial balance")
    for line in sums.rows:
        table.add_row(line.world, line.kind, str(line.entries), f"{line.amount_tokens:,}")
    table.add_row("sum", "", "", f"{sums.total_tokens:,}")
    console.print(table)
    block = sums.last_block
    console.print(
        f"Sealed up to transfer {block.to_id} by block {block.number}; not verified here: farebox audit --chain"
        if block
        else "No block of the hash chain is sealed yet.",
        soft_wrap=True,
    )


def report_chain(console: Console, url: str, head: bytes | None, *, as_json: bool = False) -> bool:
    """Verify the hash chain and print its head, or the first broken block; returns whether it holds."""
    with console.status("reading the chain") as status:

        def progress(done: int, blocks: int) -> None:
            status.update(f"block {done} of {blocks} holds")

        verdict = in_books(url, chain.verify, head, progress)
    if as_json:
        report = {
            "ok": verdict.ok,
            "blocks": verdict.blocks,
            "transfers": verdict.transfers,
            "head": _as_json(verdict.last),
            "broken": asdict(verdict.broken) if verdict.broken else None,
        }
        console.print_json(json.dumps(report, default=str))
    else:
        _print_verdict(console, verdict)
    return verdict.ok


def _print_verdict(console: Console, verdict: chain.Verdict) -> None:
    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    if broken := verdict.broken:
        where = f"Block {broken.number} is broken" if broken.number else "The chain is broken"
        say(f"[red]{where}:[/] {escape(broken.problem)}.")
        for row in broken.suspects:
            entry = f", account {row['account_id']}, version {row['version']}" if row["version"] else ""
            say(f"  look at transfer {row['transfer_id']}{entry}: {escape(row['problem'])}")
        say(f"Holds before that: blocks: {verdict.blocks}, transfers: {verdict.transfers:,}.")
        return
    if verdict.last is None:
        say("No block is sealed yet.")
        return
    say(
        f"[green]The chain holds:[/] blocks: {verdict.blocks}, transfers: {verdict.transfers:,},"
        f" up to number {verdict.last.to_id}, sealed {verdict.last.sealed_at:%Y-%m-%d %H:%M:%S} UTC."
    )
    say(f"Head: {verdict.last.hash.hex()}")
    say(
        "[dim]Keep the head elsewhere: farebox audit --chain --head HEX then also finds a chain that was rebuilt.[/]"
    )


def _as_json(block: chain.Block | None) -> dict[str, Any] | None:
    if block is None:
        return None
    return {
        "number": block.number,
        "upToTransfer": block.to_id,
        "hash": block.hash.hex(),
        "sealedAt": block.sealed_at.isoformat(),
    }
