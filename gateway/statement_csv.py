"""A statement as CSV (RFC 4180), a page at a time, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Final

from gateway.ports import StatementQuery
from gateway.responses import credits_text, units_text
from ledger.statements import Line, Statement

COLUMNS: Final = (
    "number",
    "writtenAt",
    "happenedAt",
    "kind",
    "tool",
    "reference",
    "reason",
    "keyId",
    "units",
    "priceVersion",
    "amountCredits",
    "amountTokens",
    "balanceAfterCredits",
    "balanceAfterTokens",
    "transferId",
    "reversesId",
    "holdId",
)
FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What makes a spreadsheet run a cell as a formula, in full width too. Source: OWASP, CSV Injection."""


async def csv_pages(
    read: Callable[[StatementQuery], Awaitable[Statement]],
    query: StatementQuery,
    page: Statement,
    *,
    on: bool,
) -> AsyncIterator[bytes]:
    """Yield the header, the lines of a page and, to go `on`, those of all pages after it.

    Each page checks the key again: a revoked one breaks the stream off.
    """
    yield _rows([COLUMNS, *map(_cells, page.lines)])
    while on and page.next_before is not None:
        page = await read(replace(query, before=page.next_before))
        yield _rows(map(_cells, page.lines))


def _cells(line: Line) -> list[object]:
    return [
        line.version,
        line.written_at.isoformat(),
        line.happened_at.isoformat(),
        line.kind,
        _text(line.tool),
        _text(line.reference),
        _text(line.reason),
        line.key_id,
        None if line.units_milli is None else units_text(line.units_milli),
        line.price_version,
        credits_text(line.amount_tokens),
        line.amount_tokens,
        credits_text(line.balance_after_tokens),
        line.balance_after_tokens,
        line.transfer_id,
        line.reverses_id,
        line.hold_id,
    ]


def _text(value: str | None) -> str | None:
    """Return a text that someone chose as one that no spreadsheet takes for a formula."""
    if value is not None and value.lstrip(" ").startswith(FORMULA_STARTS):
        return f"'{value}"
    return value


def _rows(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
