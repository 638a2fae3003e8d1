"""Announced prices: known to every replica before they begin, exact from their `since` on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, text, update
from sqlalchemy.exc import IntegrityError

from gateway import prices
from gateway.catalog import load_catalog
from gateway.prices import NewPrice, PriceList, PriceVersion
from gateway.tables import prices as prices_table
from kit.errors import InvalidRequest, Unavailable
from ledger import actions
from ledger.actions import Actor

HAND = Actor(None, "ada", None)
NOON = datetime(2027, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def price(version, tokens, since=NOON, tool="chat", per_units=1):
    return PriceVersion(version, tool, tokens, per_units, since, since - timedelta(hours=1))


class Announced:
    def __init__(self, *known):
        self.known, self.asked, self.away = list(known), 0, False

    async def prices(self):
        self.asked += 1
        if self.away:
            raise Unavailable("The ledger", 2)
        return self.known


async def test_a_price_begins_at_the_earliest_after_the_notice(conn):
    made = await prices.announce(conn, HAND, NewPrice("chat", 7, 1, None, "costs rose"))
    assert made.since == made.announced_at + prices.NOTICE
    assert made.version > 1000, "the catalogue's own versions are never met"
    for since in (made.announced_at, made.announced_at + timedelta(seconds=59)):
        with pytest.raises(InvalidRequest, match="since"):
            await prices.announce(conn, HAND, NewPrice("chat", 7, 1, since, "x"))
    (line,) = await actions.list_actions(conn, 10)
    assert (line.action, line.target, line.after["tokens"]) == ("price.set", "chat", 7)


@pytest.mark.parametrize(
    "statement",
    [
        delete(prices_table),
        update(prices_table).values(tokens=1),
        text(
            "INSERT INTO prices (tool, tokens, per_units, since, announced_at) VALUES ('x', 1, 1, now(), now())"
        ),
    ],
)
async def test_the_database_refuses_a_price_without_notice_and_a_changed_one(conn, statement):
    await prices.announce(conn, HAND, NewPrice("chat", 7, 1, None, "x"))
    with pytest.raises(IntegrityError):
        await conn.execute(statement)


def test_a_price_holds_from_its_since_on_and_not_a_moment_before():
    catalog = load_catalog()
    announced = [price(1001, 7)]
    before = prices.overlay(catalog, announced, NOON - timedelta(microseconds=1))
    assert before == catalog
    after = prices.overlay(catalog, announced, NOON).tool("chat")
    assert (after.price.tokens, after.price.version) == (7, 1001)
    assert prices.overlay(catalog, announced, NOON).tool("image") == catalog.tool("image")


def test_the_latest_since_wins_and_of_equal_ones_the_later_version():
    announced = [price(1003, 9, NOON + SECOND), price(1001, 7), price(1002, 8), price(1004, 6, NOON - SECOND)]
    at = {offset: prices.current(announced, NOON + offset * SECOND)[0].version for offset in (-1, 0, 1, 100)}
    assert at == {-1: 1004, 0: 1002, 1: 1003, 100: 1003}


def test_a_task_takes_its_tools_announced_price():
    sold = prices.overlay(load_catalog(), [price(1001, 250, tool="image")], NOON)
    quote = sold.quote("image.generate", {})
    assert (quote.cost_tokens, quote.price_version) == (250, 1001)


def test_an_announced_price_of_a_tool_that_is_sold_no_more_is_harmless():
    assert prices.overlay(load_catalog(), [price(1001, 7, tool="gone")], NOON) == load_catalog()


async def test_a_replica_asks_once_for_many_quotes_and_sells_what_has_begun():
    ledger = Announced(
        price(1001, 7, datetime.now(UTC) - SECOND), price(1002, 8, datetime.now(UTC) + timedelta(hours=1))
    )
    sold = PriceList(load_catalog(), ledger)
    quoted = [(await sold()).tool("chat").price.version for _ in range(20)]
    assert (set(quoted), ledger.asked) == ({1001}, 1)
    assert await sold() is await sold(), "nothing is made anew while nothing begins"


async def test_a_price_that_begins_between_two_readings_is_sold_at_once(monkeypatch):
    soon = datetime.now(UTC) + timedelta(hours=1)
    sold = PriceList(load_catalog(), Announced(price(1001, 7, soon)))
    assert (await sold()).tool("chat").price.version < 1001

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return soon

    monkeypatch.setattr(prices, "datetime", Later)
    assert (await sold()).tool("chat").price.version == 1001


async def test_while_prices_cannot_be_read_nothing_is_quoted_and_the_last_known_is_shown():
    ledger = Announced()
    ledger.away = True
    sold = PriceList(load_catalog(), ledger)
    with pytest.raises(Unavailable):
        await sold()
    assert await sold.last_known() == load_catalog()
