"""An operator's commands as they are typed, on books of the test's own: what they print, and what the log says."""

from __future__ import annotations

import json
import os
import pwd
import re

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from deployments.books import in_books
from deployments.cli import app, main
from gateway.lookups import find_users
from gateway.operator_ports import UserQuery
from kit.errors import InvalidRequest
from ledger.keys import hash_key
from ledger.operators import actor_of
from ledger.spends import Spend, spend_many
from payments import vouchers


@pytest.fixture
def owner(fresh_url, customers):
    return in_books(fresh_url, customers, 1000, "dev@example.com")


@pytest.fixture
def farebox(fresh_url, owner, monkeypatch):
    """`farebox("log")` on books with one user; returns the output. `refused=True`: the error that it ends with."""
    monkeypatch.setattr(os, "environ", {**os.environ, "DATABASE_URL": fresh_url})

    def run(*arguments, refused=False):
        done = CliRunner().invoke(app, arguments)
        assert (done.exit_code != 0) is refused, done.output
        return done.exception if refused else done.output

    return run


def told(farebox, *arguments):
    return list(reversed(json.loads(farebox("log", "--json", *arguments))))


def test_a_grant_is_logged_under_the_systems_user_once(farebox, monkeypatch):
    monkeypatch.setenv("USER", "somebody else")
    for _ in range(2):
        assert "15.00 credits free" in farebox("grant", "dev@example.com", "5", "--reference", "ticket-17")
    (line,) = told(farebox)
    assert line["name"] == pwd.getpwuid(os.getuid()).pw_name
    assert (line["operator_id"], line["action"]) == (None, "credits.grant")
    assert "command line" in farebox("log", "--user", "dev@example.com")


def test_an_account_is_found_shown_and_stopped(farebox, owner):
    assert owner.user_id in farebox("account", "find", "dev@")
    assert farebox("account", "find", "nobody").splitlines() == ["id\temail\tfree credits\theld\towed\tstate"]
    shown = json.loads(farebox("account", "show", "dev@example.com", "--json"))
    assert (shown["user"]["balance_tokens"], len(shown["keys"])) == (1000, 1)
    assert "start" in farebox("account", "show", owner.user_id)
    for command, state in (
        ("suspend", "suspended"),
        ("unsuspend", "ok"),
        ("freeze", "frozen"),
        ("unfreeze", "ok"),
    ):
        assert f": {state}" in farebox("account", command, "dev@example.com", "--reason", "why")
    assert [line["action"] for line in told(farebox)] == [
        "user.suspend",
        "user.unsuspend",
        "account.freeze",
        "account.unfreeze",
    ]
    assert "user as nobody" in farebox("account", "show", "nobody", refused=True).message


def test_a_charge_is_refunded(farebox, owner, fresh_url):
    (spent,) = in_books(fresh_url, spend_many, [Spend(owner.credential, "chat", "r", 1000, 250, 1)])
    charge = str(spent.transfer_id)
    assert "0.50 credits back" in farebox("refund", charge, "--tokens", "50", "--reason", "slow")
    assert "2.00 credits back and has 10.00 free" in farebox("refund", charge, "--reason", "broken")
    assert farebox("refund", charge, "--reason", "more", refused=True).code == "exceeds_original"


def test_an_operators_key_is_printed_once_and_works_until_it_is_revoked(farebox, fresh_url):
    secret = farebox("operator", "add", "grace").strip()
    assert re.fullmatch(r"amai_op_[0-9A-Za-z]{43}", secret)
    assert in_books(fresh_url, actor_of, hash_key(secret), None).name == "grace"
    assert "grace" in farebox("operator", "list")
    assert secret not in farebox("operator", "list")
    assert farebox("operator", "add", "grace", refused=True).code == "operator_exists"
    farebox("operator", "revoke", "grace")
    assert farebox("operator", "revoke", "grace", refused=True).code == "not_found"
    assert [line["action"] for line in told(farebox)] == ["operator.add", "operator.revoke"]


def test_vouchers_are_made_listed_and_disabled(farebox, owner, fresh_url):
    made = farebox("voucher", "make", "spring", "5", "--count", "2", "--credits-days", "30").splitlines()
    code, voucher_id = made[0].split("\t")
    assert len(made) == 2
    assert in_books(fresh_url, vouchers.redeem, owner.credential, code).amount_tokens == 500
    listed = farebox("voucher", "list")
    assert (listed.count("spring"), "1/1" in listed, code in listed) == (2, True, False)
    assert "redeemed 1 times" in farebox("voucher", "disable", voucher_id, "--reason", "over")
    assert [line["action"] for line in told(farebox)] == ["voucher.make", "voucher.make", "voucher.disable"]


def test_a_price_is_announced_and_listed(farebox):
    assert "version 1001: chat costs 7 per 1" in farebox("prices", "set", "chat", "7", "--reason", "costs")
    assert "announced" in farebox("prices", "list")
    assert "tool" in farebox("prices", "set", "nonsense", "7", "--reason", "x", refused=True).message
    past = ("--since", "2020-01-01T00:00:00Z")
    assert "since" in farebox("prices", "set", "chat", "7", "--reason", "x", *past, refused=True).message


def test_keys_made_and_revoked_here_are_logged(farebox, owner):
    farebox("keys", "create", "dev@example.com", "--label", "spare")
    for _ in range(2):
        farebox("keys", "revoke", "dev@example.com", owner.secret.removeprefix("amai_live_")[:10])
    assert [(line["action"], line["user_id"]) for line in told(farebox)] == [
        ("key.create", owner.user_id),
        ("key.revoke", owner.user_id),
    ]


@pytest.mark.parametrize("noun", ["holds", "jobs"])
def test_lists_over_all_accounts_are_plain_lines_where_no_terminal_is(farebox, noun):
    assert farebox(noun).startswith("id\temail\t")
    assert farebox(noun, "--user", "dev@example.com").count("\n") == 1


def test_what_is_found_at_the_command_line_is_what_the_books_say(farebox, owner, fresh_url):
    (found,) = in_books(fresh_url, find_users, UserQuery("dev@", None, 10))
    assert f"{found.id}\t{found.email}\t10.00" in farebox("account", "find")


def test_a_share_is_shown_set_in_part_and_logged(farebox):
    ada = ("account", "shares", "dev@example.com")
    assert "weight 1, concurrency as for everybody" in farebox(*ada)
    assert "weight 3, concurrency 8" in farebox(*ada, "--weight", "3", "--concurrency", "8")
    assert "weight 5, concurrency 8" in farebox(*ada, "--weight", "5")
    assert "weight 5, concurrency as for everybody" in farebox(*ada, "--concurrency", "0")
    assert [line["action"] for line in told(farebox)] == ["account.share"] * 3


@pytest.mark.parametrize("order", [("grant", "dev", "5"), ("keys", "create", "dev@company")])
def test_a_mistyped_address_opens_no_account(farebox, fresh_url, order):
    assert isinstance(farebox(*order, refused=True), InvalidRequest)
    assert len(in_books(fresh_url, find_users, UserQuery(None, None, 10))) == 1


def test_a_key_that_has_ended_is_not_called_one_that_works(farebox, fresh_url, owner):
    async def ended(conn):
        await conn.execute(text("UPDATE api_keys SET expires_at = now() - interval '1 day'"))

    in_books(fresh_url, ended)
    [_, line] = farebox("keys", "list", "dev@example.com").splitlines()
    assert line.split("\t")[-1].startswith("ended ")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://nobody@127.0.0.1:1/x", "the database does not answer"),
        (None, "run `farebox migrate`"),
    ],
)
def test_a_database_that_is_away_or_without_its_schema_is_told_in_one_line(  # noqa: PLR0917  # fixtures
    fresh_url, owner, monkeypatch, capsys, url, said
):
    async def older(conn):
        await conn.execute(text("ALTER TABLE operator_actions RENAME TO elsewhere"))

    in_books(fresh_url, older)
    monkeypatch.setattr(os, "environ", {**os.environ, "DATABASE_URL": url or fresh_url})
    monkeypatch.setattr("sys.argv", ["farebox", "migrate" if url else "log"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert said in capsys.readouterr().err
