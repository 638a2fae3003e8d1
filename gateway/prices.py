"""Prices as new versions: what an operator sets lies over the catalogue file, from its `since` on, in every replica.

A price is announced at least `NOTICE` ahead. An ingress replica reads the announced prices again when it quotes and
what it knows is older than `KEPT_S`, so it knows each one before it begins; one that cannot read them quotes nothing.
A quote keeps the version of the price that it was made with. Replicas go by their own clocks: keep them synchronised.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.catalog import Catalog, Price, Tool
from gateway.kept import Kept
from gateway.tables import prices
from kit.errors import InvalidRequest, Unavailable
from ledger.actions import Action, Actor, record
from ledger.grants import clock

NOTICE: Final = timedelta(minutes=1)
"""The announcing transaction takes at most 15 s, a replica's reading 20 s, and what it read is kept for 5 s."""
KEPT_S: Final = 5.0
"""One small query a replica in five seconds, however many quotes."""


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """What a tool costs from a time on: `tokens` for each `per_units` units."""

    version: int
    tool: str
    tokens: int
    per_units: int
    since: datetime
    announced_at: datetime


@dataclass(frozen=True, slots=True)
class NewPrice:
    """A price to announce; `since` None: as soon as it may begin."""

    tool: str
    tokens: int
    per_units: int
    since: datetime | None
    reason: str


async def announce(conn: AsyncConnection, actor: Actor, new: NewPrice) -> PriceVersion:
    """Write a new version of a tool's price; in force from its `since` on.

    At any time the price with the latest `since` by then holds, of two with the same one the later version: so a
    price that has not begun is replaced by another with its `since`. Raises: InvalidRequest for too short a notice.
    """
    now = await clock(conn)
    since = new.since or now + NOTICE
    if since < now + NOTICE:
        raise InvalidRequest("since", f"must lie at least {NOTICE.total_seconds():.0f} s ahead")
    before = next((p for p in current(await list_prices(conn, new.tool), now)), None)
    row = (
        await conn.execute(
            insert(prices)
            .values(tool=new.tool, tokens=new.tokens, per_units=new.per_units, since=since, announced_at=now)
            .returning(prices)
        )
    ).one()
    made = _price(row)
    await record(
        conn,
        actor,
        Action(
            "price.set",
            new.tool,
            before=_shown(before) if before else None,
            after=_shown(made),
            reason=new.reason,
        ),
    )
    return made


async def list_prices(conn: AsyncConnection, tool: str | None = None) -> list[PriceVersion]:
    """Return every price ever announced, newest first."""
    found = select(prices).order_by(prices.c.since.desc(), prices.c.version.desc())
    if tool is not None:
        found = found.where(prices.c.tool == tool)
    return [_price(row) for row in await conn.execute(found)]


def current(announced: Sequence[PriceVersion], at: datetime) -> list[PriceVersion]:
    """Return the price of each tool that holds at a time; tools without one keep the catalogue's."""
    by_tool: dict[str, PriceVersion] = {}
    for price in sorted(announced, key=lambda price: (price.since, price.version)):
        if price.since <= at:
            by_tool[price.tool] = price
    return list(by_tool.values())


def overlay(catalog: Catalog, announced: Sequence[PriceVersion], at: datetime) -> Catalog:
    """Return the catalogue as it sells at a time."""
    tools = dict(catalog.tools)
    for price in current(announced, at):
        if tool := tools.get(price.tool):  # what is sold no more keeps its old versions
            tools[tool.name] = _priced(tool, price)
    tasks = {name: replace(task, tool=tools[task.tool.name]) for name, task in catalog.tasks.items()}
    return replace(catalog, tools=tools, tasks=tasks)


class Announcements(Protocol):
    """Where the announced prices are read."""

    async def prices(self) -> list[PriceVersion]:
        """Return every announced price."""


class PriceList:
    """The catalogue as it sells now. Units: `_s` seconds."""

    def __init__(self, catalog: Catalog, ledger: Announcements) -> None:
        self._catalog = catalog
        self._announced = Kept(ledger.prices, KEPT_S)
        self._seen: list[PriceVersion] | None = None
        self._selling = catalog
        self._until = datetime.min.replace(tzinfo=UTC)

    async def last_known(self) -> Catalog:
        """Return what to show: what sold when the announced prices could last be read."""
        with suppress(Unavailable):
            await self()
        return self._selling

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


def _priced(tool: Tool, price: PriceVersion) -> Tool:
    return replace(tool, price=Price(price.tokens, price.per_units, price.version), since=price.since.date())


def _price(row: object) -> PriceVersion:
    return PriceVersion(**{name: getattr(row, name) for name in PriceVersion.__slots__})


def _shown(price: PriceVersion) -> dict[str, object]:
    return {
        "version": price.version,
        "tokens": price.tokens,
        "perUnits": price.per_units,
        "since": price.since,
    }
