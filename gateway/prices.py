"""Prices as new versions: what an operator sets lies over the catalogue file, from its `since` on, in every replica.

A price is announced at least `NOTICE` ahead. An ingress replica reads the announced prices again when it quotes and
what it knows is older than `KEPT_S`, so it knows each one before it begins; one that cannot read them quotes nothing.
A quote keeps the version of the price that it was made with. Replicas go by their own clocks: keep them synchronised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.catalog import Catalog
from gateway.kept import Kept
from gateway.tables import prices
from kit.errors import InvalidRequest
from ledger.actions import Action, Actor, record
from ledger.grants import clock

NOTICE: Final = timedelta(minutes=1)
"""The announcing transaction takes at most 15 s, a replica's reading 20 s, and what it read is kept for 5 s."""
KEPT_S: Final = 5.0
"""One small query a replica in five seconds, however many quotes."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a unit of a tool costs from a time on. Units: tokens."""

    version: int
    tool: str
    tokens_per_unit: int
    since: datetime
    announced_at: datetime


async def announce(  # noqa: PLR0913  # the price's facts
    conn: AsyncConnection,
    actor: Actor,
    *,
    tool: str,
    tokens_per_unit: int,
    since: datetime | None = None,
    reason: str | None = None,
) -> Price:
    """Write a new version of a tool's price; without `since` it begins as soon as it may.

    At any time the price with the latest `since` by then holds, of two with the same one the later version: so a
    price that has not begun is replaced by another with its `since`. Raises: InvalidRequest for too short a notice.
    """
    now = await clock(conn)
    if since is not None and since < now + NOTICE:
        raise InvalidRequest("since", f"must lie at least {NOTICE.total_seconds():.0f} s ahead")
    before = next((p for p in current(await list_prices(conn, tool), now)), None)
    row = (
        await conn.execute(
            insert(prices)
            .values(
                tool=tool, tokens_per_unit=tokens_per_unit, since=since or now + NOTICE, announced_at=now
            )
            .returning(prices)
        )
    ).one()
    made = _price(row)
    await record(
        conn,
        actor,
        Action(
            "price.set",
            tool,
            before=_shown(before) if before else None,
            after=_shown(made),
            reason=reason,
        ),
    )
    return made


async def list_prices(conn: AsyncConnection, tool: str | None = None) -> list[Price]:
    """Return every price ever announced, newest first."""
    found = select(prices).order_by(prices.c.since.desc(), prices.c.version.desc())
    if tool is not None:
        found = found.where(prices.c.tool == tool)
    return [_price(row) for row in await conn.execute(found)]


def current(announced: Sequence[Price], at: datetime) -> list[Price]:
    """Return the price of each tool that holds at a time; tools without one keep the catalogue's."""
    by_tool: dict[str, Price] = {}
    for price in sorted(announced, key=lambda price: (price.since, price.version)):
        if price.since <= at:
            by_tool[price.tool] = price
    return list(by_tool.values())


def overlay(catalog: Catalog, announced: Sequence[Price], at: datetime) -> Catalog:
    """Return the catalogue as it sells at a time."""
    by_tool = {price.tool: price for price in current(announced, at)}
    tasks = {
        name: replace(task, tokens_per_unit=price.tokens_per_unit, price_version=price.version)
        if (price := by_tool.get(task.tool))
        else task
        for name, task in catalog.tasks.items()
    }
    return replace(catalog, tasks=tasks)


class Announcements(Protocol):
    """Where the announced prices are read."""

    async def prices(self) -> list[Price]:
        """Return every announced price."""


class PriceList:
    """The catalogue as it sells now. Units: `_s` seconds."""

    def __init__(self, catalog: Catalog, ledger: Announcements) -> None:
        self._catalog = catalog
        self._announced = Kept(ledger.prices, KEPT_S)
        self._seen: list[Price] | None = None
        self._selling = catalog
        self._until = datetime.min.replace(tzinfo=UTC)

    async def __call__(self) -> Catalog:
        """Return what to quote from. Raises: Unavailable while the announced prices cannot be read."""
        announced = await self._announced()
        now = datetime.now(UTC)
        if announced is not self._seen or now >= self._until:  # else nothing has begun since the last quote
            self._seen = announced
            self._selling = overlay(self._catalog, announced, now)
            self._until = min(
                (price.since for price in announced if price.since > now),
                default=datetime.max.replace(tzinfo=UTC),
            )
        return self._selling


def _price(row: object) -> Price:
    return Price(**{name: getattr(row, name) for name in Price.__slots__})


def _shown(price: Price) -> dict[str, object]:
    return {"version": price.version, "tokensPerUnit": price.tokens_per_unit, "since": price.since}
