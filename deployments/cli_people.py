"""`farebox users` and `farebox outbox`: what an operator does about people and their mails."""

from __future__ import annotations

import email
import email.policy
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.books import books, in_books
from deployments.command_line import Reason, by_hand, on_books, user_id_of
from gateway import interventions
from gateway.mail import outbox_directory
from kit import outbox
from kit.settings import load_settings

users_app = typer.Typer(no_args_is_help=True, help="People: suspend and restore.")
console = Console(highlight=False)

Email = Annotated[str, typer.Argument(help="The user's e-mail address.", show_default=False)]


@users_app.command("suspend")
def suspend(address: Email, reason: Reason = "suspended at the command line") -> None:
    """Refuse all of a user's keys and sessions, from the next request on. Nothing is deleted."""
    _set_suspended(address, True, reason)  # noqa: FBT003
    console.print(f"{escape(address)} is suspended")


@users_app.command("restore")
def restore(address: Email, reason: Reason = "restored at the command line") -> None:
    """Take a suspension back."""
    _set_suspended(address, False, reason)  # noqa: FBT003
    console.print(f"{escape(address)} is no longer suspended")


def _set_suspended(address: str, suspended: bool, reason: str) -> None:
    async def work(conn: AsyncConnection) -> None:
        user_id = await user_id_of(conn, address)
        await interventions.set_suspended(conn, by_hand(), user_id, suspended, reason)

    on_books(work)


def show_outbox(
    last: Annotated[int, typer.Option(min=1, max=100, help="How many mails, newest last.")] = 3,
    problems: Annotated[
        bool, typer.Option("--problems", help="Mails that could not be sent, instead.")
    ] = False,
) -> None:
    """Print the latest mails of this machine's outbox: sign-in codes, while no SMTP server is configured."""
    settings = load_settings()
    if problems:
        with books(settings) as url:
            found = in_books(url, outbox.problems)
        table = Table("mail", "to", "subject", "tries", "state", "problem")
        for row in found:
            state = "given up" if row.dead_at else "waiting"
            table.add_row(
                str(row.id),
                escape(row.recipient),
                escape(row.subject),
                str(row.attempts),
                state,
                escape(row.problem),
            )
        console.print(table)
        return
    directory = outbox_directory(settings)
    mails = sorted(directory.glob("*.eml"), key=lambda path: path.stat().st_mtime)[-last:]
    if not mails:
        where = "mails leave by SMTP" if settings.smtp_url.get_secret_value() else str(directory)
        console.print(f"no mails in the outbox ({escape(where)})", soft_wrap=True)
    for path in mails:
        print_mail(path)


def print_mail(path: Path) -> None:
    """Print one mail as it would be read."""
    message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    console.print(
        f"[bold]{escape(str(message['subject']))}[/] to {escape(str(message['to']))}", soft_wrap=True
    )
    console.print(f"[dim]{escape(str(message['date']))}  {escape(str(path))}[/]", soft_wrap=True)
    part = message.get_body(preferencelist=("plain",))
    console.print(escape(part.get_content() if part else ""), soft_wrap=True)
