"""Lists at the command line: a table for people at a terminal, plain lines with tabs for everything else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show(console: Console, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their columns; no value of theirs is read as markup."""
    lines = [[in_words(value) for value in row] for row in rows]
    if not console.is_terminal:
        for line in (columns, *lines):
            typer.echo("\t".join(line))  # rich would turn tabs into spaces
        return
    table = Table(*columns)
    for line in lines:
        table.add_row(*map(escape, line))
    console.print(table)


def in_words(value: object) -> str:
    """Write one value for a cell: nothing for None, a time to the second in UTC."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return " ".join(str(value).split())
