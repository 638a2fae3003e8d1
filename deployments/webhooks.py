"""The `farebox webhooks` command: what payment providers sent, what became of it, and another try."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.books import books, in_books
from kit.settings import load_settings
from payments import webhooks
from payments.webhooks import KeptEvent, State

STYLES: Final = {"dead": "red", "pending": "yellow", "applied": "green", "ignored": "dim"}

webhooks_app = typer.Typer(no_args_is_help=True, help="Events of payment providers: list, show, replay.")
console = Console(highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@webhooks_app.command("list")
def list_events(
    state: Annotated[
        str, typer.Option(metavar="pending|applied|ignored|dead", help="Only events in this state.")
    ] = "",
    kind: Annotated[
        str, typer.Option("--type", help="Only events of this type, as the provider calls it.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show the newest events. `dead`: given up; `ignored`: of a type that is kept and not handled."""
    wanted = _state(state)
    with books(load_settings()) as url:
        found = in_books(url, webhooks.listed, wanted, kind or None, limit)
    if as_json:
        typer.echo(json.dumps([_shown(each) for each in found], indent=2))
        return
    if not console.is_terminal:
        for each in found:
            shown = _shown(each)
            typer.echo(
                "\t".join(_plain(shown[name]) for name in ("receivedAt", "state", "type", "id", "problem"))
            )
        return
    table = Table("received", "state", "type", "id", "tries", "problem")
    for each in found:
        table.add_row(
            f"{each.received_at:%Y-%m-%d %H:%M:%S}",
            f"[{STYLES[each.state]}]{each.state}[/]",
            escape(each.event.type),
            escape(each.event.event_id),
            str(each.attempts),
            escape(each.problem or ""),
        )
    console.print(table)


@webhooks_app.command()
def show(
    event_id: Annotated[str, typer.Argument(help="The provider's id of the event.")], as_json: AsJson = False
) -> None:
    """Show an event with its body as it was received."""
    with books(load_settings()) as url:
        kept = in_books(url, webhooks.kept, event_id)
    body = kept.event.body.decode(errors="replace")
    if as_json:
        typer.echo(json.dumps(_shown(kept) | {"body": body}, indent=2))
        return
    for name, value in _shown(kept).items():
        if console.is_terminal:
            console.print(f"[bold]{name:<12}[/] {escape(_plain(value))}", soft_wrap=True)
        else:
            typer.echo(f"{name}\t{_plain(value)}")
    typer.echo()
    typer.echo(body)


@webhooks_app.command()
def replay(
    event_ids: Annotated[list[str] | None, typer.Argument(help="Events, by the provider's ids.")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="Every dead letter.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have events handled again: a running platform takes them up within seconds. Harmless for what was applied."""
    if bool(event_ids) == dead:
        raise RuntimeError("name events, or say --dead for every dead letter")

    async def again(conn: AsyncConnection) -> list[str]:
        return await webhooks.replay(conn, event_ids)

    with books(load_settings()) as url:
        replayed = in_books(url, again)
    if as_json:
        typer.echo(json.dumps({"replayed": replayed}))
        return
    for event_id in replayed:
        typer.echo(event_id)
    sys.stderr.write(f"{len(replayed)} due again\n")


def _state(written: str) -> State | None:
    if written not in ("", "pending", "applied", "ignored", "dead"):
        raise RuntimeError(f"{written!r} is no state; use pending, applied, ignored or dead")
    return written or None  # type: ignore[return-value]  # it is one of them


def _shown(kept: KeptEvent) -> dict[str, Any]:
    return {
        "id": kept.event.event_id,
        "provider": kept.event.provider,
        "type": kept.event.type,
        "about": kept.event.object_id,
        "state": kept.state,
        "receivedAt": kept.received_at.isoformat(),
        "appliedAt": kept.applied_at.isoformat() if kept.applied_at else None,
        "tries": kept.attempts,
        "retryAt": kept.retry_at.isoformat() if kept.retry_at else None,
        "problem": kept.problem,
    }


def _plain(value: object) -> str:
    """Write a value on one line, without the tab that parts values."""
    return "-" if value is None else " ".join(str(value).split())
