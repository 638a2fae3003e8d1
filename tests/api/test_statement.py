"""The statement by HTTP: every movement once, newest first, with its running balance, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta

import pytest

from gateway.account_answers import PastBalance, StatementShown
from gateway.statement_csv import COLUMNS
from kit.ids import new_id
from ledger import statements
from ledger.credits import credit
from ledger.keys import Credential, hash_key
from ledger.spends import Spend
from ledger.users import account_of_email

STATEMENT = "/api/v1/statement"


async def spend(ledger, owner, reference, cost=5):
    return await ledger.spend(Spend(Credential(hash_key(owner.key)), "chat", reference, 1000, cost, 1))


async def test_200_lines_come_newest_first_with_the_balance_after_each(customer, ledger):
    owner = await customer(1000)
    spent = await spend(ledger, owner, "req-1")
    answer = await owner.client.get(STATEMENT)
    assert answer.status_code == 200, answer.text
    StatementShown.model_validate_json(answer.content)
    assert answer.headers["cache-control"] == "no-store"
    charge, grant = answer.json()["data"]
    assert answer.json()["nextCursor"] is None
    assert (charge["kind"], charge["tool"], charge["reference"]) == ("spend", "chat", "req-1")
    assert (charge["transferId"], charge["units"], charge["number"]) == (spent.transfer_id, 1, 2)
    assert charge["amount"] == {"credits": -0.05, "tokens": -5}
    assert charge["balanceAfter"] == {"credits": 9.95, "tokens": 995}
    assert b'"credits":-0.05' in answer.content
    assert (grant["kind"], grant["number"], grant["amount"]["tokens"]) == ("grant", 1, 1000)


async def test_200_pages_joined_are_the_whole_whatever_is_written_between_them(customer, ledger):
    owner = await customer(1000)
    for n in range(6):
        await spend(ledger, owner, f"r{n}")
    whole = (await owner.client.get(STATEMENT)).json()["data"]
    pages, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await owner.client.get(STATEMENT, params=params)).json()
        pages.append(page["data"])
        await spend(ledger, owner, new_id("req"))
        if (cursor := page["nextCursor"]) is None:
            break
    assert [line for page in pages for line in page] == whole
    assert [len(page) for page in pages] == [2, 2, 2, 1]


async def test_200_since_and_until_bound_the_time_of_writing(customer, ledger):
    owner = await customer(1000)
    await spend(ledger, owner, "a")
    newest = (await owner.client.get(STATEMENT)).json()["data"][0]["writtenAt"]
    before = (await owner.client.get(STATEMENT, params={"until": newest})).json()["data"]
    after = (await owner.client.get(STATEMENT, params={"since": newest})).json()["data"]
    assert ([line["kind"] for line in before], [line["kind"] for line in after]) == (["grant"], ["spend"])


async def test_200_an_offset_whose_plus_was_not_escaped_is_understood(customer):
    owner = await customer(1000)
    answer = await owner.client.get(f"{STATEMENT}?since=2026-01-01T00:00:00+02:00")
    assert (answer.status_code, len(answer.json()["data"])) == (200, 1)


async def test_200_csv_has_a_header_and_every_line_of_every_page(customer, ledger, monkeypatch):
    monkeypatch.setattr("gateway.routes.usage.LINES_A_PAGE", 3)
    monkeypatch.setattr(statements, "LINES_A_PAGE", 3)
    owner = await customer(1000)
    for n in range(7):
        await spend(ledger, owner, f"r{n}")
    answer = await owner.client.get(STATEMENT, params={"format": "csv"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/csv")
    assert "attachment" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert tuple(rows[0]) == COLUMNS
    assert [row["number"] for row in rows] == [str(n) for n in range(8, 0, -1)]
    assert (rows[0]["amountTokens"], rows[0]["amountCredits"]) == ("-5", "-0.05")
    assert (rows[-1]["balanceAfterTokens"], rows[-1]["units"]) == ("1000", "")
    some = await owner.client.get(STATEMENT, params={"format": "csv", "limit": 2})
    assert len(list(csv.DictReader(io.StringIO(some.text)))) == 2


@pytest.mark.parametrize(
    "evil", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1", '=HYPERLINK("x")']
)
async def test_200_no_cell_of_the_csv_is_a_formula(customer, db, evil):
    owner = await customer(1000)

    async def give(conn):
        account = await account_of_email(conn, owner.email)
        await credit(
            conn,
            account.account_id,
            kind="grant",
            house="promotion:test",
            amount_tokens=1,
            reference=evil,
            reason=evil,
        )

    await db.run(give)
    answer = await owner.client.get(STATEMENT, params={"format": "csv", "limit": 1})
    (row,) = csv.DictReader(io.StringIO(answer.text, newline=""))
    assert (row["reference"], row["reason"]) == (f"'{evil}", f"'{evil}")
    assert row["amountTokens"] == "1"


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "501"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "0"}, "cursor"),
        ({"cursor": "-1"}, "cursor"),
        ({"cursor": "9" * 30}, "cursor"),
        ({"since": "2026-01-01"}, "since"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"until": "0001-01-01T00:00:00+14:00"}, "until"),
        ({"until": "\x00"}, "until"),
        ({"format": "xml"}, "format"),
    ],
)
async def test_400_names_the_wrong_field_of_a_statement(customer, params, field):
    owner = await customer()
    answer = await owner.client.get(STATEMENT, params=params)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), answer.text
    assert [fault["field"] for fault in answer.json()["details"]] == [field]


@pytest.mark.parametrize("format_", ["json", "csv"])
async def test_401_without_a_key_in_every_format(client, format_):
    answer = await client.get(STATEMENT, params={"format": format_})
    assert (answer.status_code, answer.json()["error"]) == (401, "auth_required")


@pytest.mark.parametrize("path", ["/api/v1/balance", "/api/v1/credits/balance"])
async def test_200_the_balance_of_a_time_is_that_after_its_last_movement(customer, ledger, path):
    owner = await customer(1000)
    await spend(ledger, owner, "a")
    written = (await owner.client.get(STATEMENT)).json()["data"]
    first = datetime.fromisoformat(written[1]["writtenAt"])
    for at, tokens in [
        (first - timedelta(microseconds=1), 0),
        (first, 1000),
        (datetime.now(UTC) + timedelta(days=1), 995),
    ]:
        answer = await owner.client.get(path, params={"at": at.isoformat()})
        PastBalance.model_validate_json(answer.content)
        assert answer.json()["tokens"] == tokens
    assert (await owner.client.get(path)).json()["held"]["tokens"] == 0


@pytest.mark.parametrize("at", ["", "now", "2026-01-01", "\x00", "2026-01-01T00:00:00"])
async def test_400_a_balance_of_no_time(customer, at):
    answer = await (await customer()).client.get("/api/v1/balance", params={"at": at})
    assert (answer.status_code, answer.json()["details"][0]["field"]) == (400, "at")
