"""The `farebox reconcile` command: providers' records beside the books."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deployments.books import as_running, books, in_books
from deployments.command_line import AsJson
from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from kit.errors import AppError, InvalidRequest
from kit.settings import Settings, load_settings
from payments import reconciliations
from payments.crypto import crypto_for
from payments.reconcile import Difference
from payments.reconciler import Reconciler
from payments.reconciliations import Result, Span
from payments.stripe_checkout import checkout_for

EQUAL: Final = 0
DIFFERS: Final = 1
NOT_ASKED: Final = 2
"""The exit status, for scripts."""
NONE_CONFIGURED: Final = "no payment provider is configured here: set its variables as the platform has them"

console = Console(highlight=False)


def reconcile(  # noqa: PLR0913, PLR0917  # what the command is told
    since: Annotated[
        str,
        typer.Option(metavar="TIME", help="A date (UTC), or RFC 3339 with its offset; not in the future."),
    ] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="The same; now when not given.")] = "",
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="Only this one: stripe, coinbase, btcpay or x402.")
    ] = "",
    repair: Annotated[
        bool, typer.Option("--repair", help="Grant what was paid, take back what went back: nothing else.")
    ] = False,
    last: Annotated[
        bool, typer.Option("--last", help="Show the last comparison instead of making one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare every provider's record with the books, both ways.

    Leaves with 0 if they are equal, 1 if differences are left, 2 if a provider could not be asked.
    """
    settings = as_running(load_settings())
    try:
        span = None if last else _span(since, until)
        with books(settings) as url:
            if span is None:
                found = in_books(url, reconciliations.last)
                span, result = found.span, found.result
            else:
                result = asyncio.run(_reconciled(settings, url, span, provider, repair=repair))
    except AppError as error:
        _not_asked(error.message)
    (_print_json if as_json else _print)(span, result)
    raise SystemExit(NOT_ASKED if result.silent else DIFFERS if result.differences else EQUAL)


async def _reconciled(settings: Settings, url: str, span: Span, provider: str, *, repair: bool) -> Result:
    server = LedgerServer(settings.model_copy(update={"database_url": url}))
    ledger = local_ledger(server)
    card, crypto = checkout_for(settings, ledger), crypto_for(settings, ledger)
    checkouts = [*([card] if card else []), *(crypto.checkouts if crypto else [])]
    reconciler = Reconciler(server, checkouts, wallets=bool(settings.x402_facilitator))
    try:
        if not reconciler.providers:
            _not_asked(NONE_CONFIGURED)
        if provider and provider not in reconciler.providers:
            raise InvalidRequest("--provider", f"must be one of {', '.join(reconciler.providers)}")
        return await reconciler.run(span, [provider] if provider else [], repairs=repair)
    finally:
        for checkout in checkouts:
            await checkout.close()
        await server.close()


def _span(since: str, until: str) -> Span:
    """Read the span. Raises: InvalidRequest."""
    if not since:
        raise InvalidRequest("--since", "is needed, such as --since 2026-11-01; or --last")
    now = datetime.now(UTC)
    span = Span(_moment("--since", since), _moment("--until", until) if until else now)
    if span.since >= min(span.until, now):
        raise InvalidRequest("--since", "must lie before --until and in the past")
    return Span(span.since, min(span.until, now))


def _moment(option: str, text: str) -> datetime:
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            option, "must be a date, such as 2026-11-01, or a time with its offset"
        ) from None
    is_date = len(text) <= len("2026-11-01")
    if read.tzinfo is None and not is_date:
        raise InvalidRequest(option, "needs an offset, such as 2026-11-01T12:00:00Z")
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)


def _print(span: Span, result: Result) -> None:
    if not console.is_terminal:
        for each in result.differences:
            typer.echo("\t".join(_cells(each)))
    elif result.differences:
        table = Table(
            "purchase", "provider", "provider id", "differs", "provider says", "books say", "repair would"
        )
        for each in result.differences:
            table.add_row(*map(escape, _cells(each)))
        console.print(table)
    lines = [f"{name}: not asked: {why}" for name, why in result.silent.items()]
    lines += [f"{name}: {note}" for name, note in result.notes.items()]
    lines.append(
        f"{span.since:%Y-%m-%d %H:%M} to {span.until:%Y-%m-%d %H:%M} UTC: {result.payments} payments compared,"
        f" {result.repaired} differences repaired, {len(result.differences)} left"
    )
    sys.stderr.write("\n".join(lines) + "\n")


def _print_json(span: Span, result: Result) -> None:
    shown: dict[str, Any] = {
        "since": span.since.isoformat(),
        "until": span.until.isoformat(),
        "payments": result.payments,
        "repaired": result.repaired,
        "differences": [asdict(each) for each in result.differences],
        "silent": result.silent,
        "notes": result.notes,
    }
    typer.echo(json.dumps(shown, indent=2))


def _cells(each: Difference) -> list[str]:
    repair = each.repair or "nothing: look at it"
    return [
        " ".join((cell or "-").split())
        for cell in (
            each.purchase_id,
            each.provider,
            each.session_id,
            each.kind,
            each.theirs,
            each.ours,
            repair,
        )
    ]


def _not_asked(text: str) -> NoReturn:
    Console(stderr=True, highlight=False).print(f"[red]farebox:[/] {escape(text)}", soft_wrap=True)
    raise SystemExit(NOT_ASKED)
