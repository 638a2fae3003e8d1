"""`farebox audit` as an operator types it, on books of the test's own."""

from __future__ import annotations

import json
import os
import re

import psycopg
import pytest
from sqlalchemy.engine import make_url
from typer.testing import CliRunner

from deployments.books import in_books
from deployments.cli import app
from ledger import chain


@pytest.fixture
def audit(fresh_url, customers, monkeypatch):
    """`audit("--chain")` on books with one sealed transfer; returns exit status and output."""
    monkeypatch.setattr(os, "environ", {**os.environ, "DATABASE_URL": fresh_url})
    in_books(fresh_url, customers, 100)
    while in_books(fresh_url, chain.last_block) is None:
        in_books(fresh_url, chain.seal)

    def run(*arguments):
        done = CliRunner().invoke(app, ["audit", *arguments])
        return done.exit_code, done.output

    return run


def forge(postgres, url, sql):
    place = make_url(postgres.superuser_url).set(drivername="postgresql", database=make_url(url).database)
    with psycopg.connect(place.render_as_string(hide_password=False)) as conn:
        conn.execute("SET session_replication_role = replica")
        assert conn.execute(sql).rowcount > 0


def test_the_audit_mentions_the_last_sealed_block(audit):
    status, output = audit()
    assert status == 0, output
    assert "by block 1" in output
    assert json.loads(audit("--json")[1])["lastBlock"]["number"] == 1


def test_the_audit_shows_the_test_world_beside_the_live_one(audit, postgres, fresh_url):
    made = CliRunner().invoke(app, ["keys", "create", "dev@company.com", "--test"])
    assert re.fullmatch(r"amai_test_[0-9A-Za-z]{43}", made.output.strip()), made.output
    report = json.loads(audit("--json")[1])
    assert [(row["world"], row["kind"], row["tokens"]) for row in report["trialBalance"]] == [
        ("live", "promotion", -100),
        ("live", "user", 100),
        ("test", "mint", -100_000),
        ("test", "user", 100_000),
    ]
    listed = CliRunner().invoke(app, ["keys", "list", "dev@company.com"]).output
    assert "test" in listed
    forge(postgres, fresh_url, "UPDATE accounts SET world = 'live' WHERE kind = 'mint'")
    status, output = audit()
    assert status == 1
    assert "of one world" in output


def test_a_whole_chain_is_told_with_its_head_and_that_head_verifies(audit):
    status, output = audit("--chain")
    assert status == 0, output
    assert "blocks: 1" in output
    head = re.search(r"Head: ([0-9a-f]{64})", output)[1]
    assert audit("--chain", "--head", head)[0] == 0
    report = json.loads(audit("--chain", "--json")[1])
    assert (report["ok"], report["head"]["hash"]) == (True, head)


def test_a_tampered_entry_fails_the_command_and_is_named(audit, postgres, fresh_url):
    forge(postgres, fresh_url, "UPDATE entries SET amount = amount + 1 WHERE amount > 0")
    status, output = audit("--chain")
    assert status == 1
    assert "Block 1 is broken" in output
    assert "look at transfer 1" in output
    report = json.loads(audit("--chain", "--json")[1])
    assert (report["ok"], report["broken"]["number"]) == (False, 1)


def test_a_head_that_the_chain_does_not_contain_fails_the_command(audit):
    status, output = audit("--chain", "--head", "ab" * 32)
    assert status == 1
    assert "no block has the given head" in output


@pytest.mark.parametrize("arguments", [["--chain", "--head", "ab"], ["--head", "ab" * 32]])
def test_a_head_that_cannot_be_is_refused(audit, arguments):
    assert audit(*arguments)[0] == 1
