"""Named SQL: hot and locking statements live in a `.sql` file, one `-- name: x` paragraph each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import TextClause, text

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


def load_queries(path: Path) -> Mapping[str, TextClause]:
    """Read every named statement of a file; parameters are written `:name`.

    Raises: ValueError for a name that stands twice.
    """
    parts = _NAME.split(path.read_text())[1:]
    queries: dict[str, TextClause] = {}
    for name, sql in zip(parts[::2], parts[1::2], strict=True):
        if name in queries:
            raise ValueError(f"{path.name}: the query {name} is defined twice")
        queries[name] = text(sql.strip().rstrip(";"))
    return queries
