"""How long a model without a replica takes until it works, as this server has measured it: an estimate, no promise."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Select, func, literal_column, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.tables import cold_starts

KEPT: Final = 5
"""Enough that one quick start from a warm disk does not promise the next; a changed machine is learned soon."""


async def note_start(conn: AsyncConnection, application: str, scale: str, took_s: int) -> None:
    """Keep a measured start beside the last few."""
    row = insert(cold_starts).values(application=application, scale=scale, took_s=[max(1, took_s)])
    longer = func.array_cat(row.excluded.took_s, cold_starts.c.took_s)
    kept = func.trim_array(longer, func.greatest(func.cardinality(longer) - literal_column(str(KEPT)), 0))
    await conn.execute(
        row.on_conflict_do_update(
            index_elements=[cold_starts.c.application, cold_starts.c.scale], set_={"took_s": kept}
        )
    )


async def start_times(conn: AsyncConnection, scale: str) -> dict[str, int]:
    """Return what to expect of each application that was seen to start: the longest of its last starts.

    Units: seconds.
    """
    slowest: Select[tuple[int]] = select(func.max(literal_column("took"))).select_from(
        func.unnest(cold_starts.c.took_s).alias("took")
    )
    rows = await conn.execute(
        select(cold_starts.c.application, slowest.scalar_subquery().label("took")).where(
            cold_starts.c.scale == scale
        )
    )
    return {row.application: row.took for row in rows}
