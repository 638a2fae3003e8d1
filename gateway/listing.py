"""Lists in pages: newest first, by the id that the last page ended with, so that new items shift nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Query

from kit.errors import InvalidRequest


class Named(Protocol):
    """Anything with a time-ordered id."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Named)

Limit = Annotated[int, Query(ge=1, le=100, description="How many to return.")]


def cursor_of(pattern: str) -> Any:
    """Return the query parameter of a list whose cursors look so."""
    return Query(
        description="The `nextCursor` of the page before.", json_schema_extra={"pattern": f"^{pattern}$"}
    )


Cursor = Annotated[str | None, cursor_of("[0-9a-z_]{1,40}")]
JobCursor = Annotated[str | None, cursor_of("job_[0-9a-z]{26}")]
MessageCursor = Annotated[str | None, cursor_of("msg_[0-9a-z]{26}")]
FileCursor = Annotated[str | None, cursor_of("file_[0-9a-z]{26}")]
PurchaseCursor = Annotated[str | None, cursor_of("pur_[0-9a-z]{26}")]
LineCursor = Annotated[str | None, cursor_of("[1-9][0-9]{0,17}")]


def searched(field: str, text: str | None) -> str | None:
    """Return a search term that the books can look for. Raises: InvalidRequest for one that no text of theirs holds."""
    if text is not None and not text.isprintable():
        raise InvalidRequest(field, "holds control characters or half a character")
    return text


def page(found: Sequence[T], limit: int, show: Callable[[T], dict[str, Any]]) -> dict[str, Any]:
    """Return `data` and `nextCursor` of a list that was asked for one item more than its limit."""
    shown = found[:limit]
    return {
        "data": [show(item) for item in shown],
        "nextCursor": shown[-1].id if len(found) > limit else None,
    }
