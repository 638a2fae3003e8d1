"""`farebox users` and `farebox outbox` as an operator types them."""

from __future__ import annotations

import asyncio
import os

import pytest
from typer.testing import CliRunner

from deployments.books import in_books
from deployments.cli import app
from gateway.mail import mailer_for
from kit import outbox
from kit.errors import Forbidden, NotFound
from kit.outbox import Mail
from kit.settings import load_settings
from ledger import keys, scopes
from ledger.actions import list_actions


@pytest.fixture
def farebox(fresh_url, tmp_path, monkeypatch):
    """`farebox("users", ...)` on books of the test's own; returns the output of a success."""
    place = {"DATABASE_URL": fresh_url, "FAREBOX_DATA_DIR": str(tmp_path)}
    monkeypatch.setattr(os, "environ", {**os.environ, **place})

    def run(*arguments):
        done = CliRunner().invoke(app, list(arguments))
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_a_suspension_refuses_and_a_restore_admits_again(farebox, fresh_url, customers):
    customer = in_books(fresh_url, customers, 0)
    farebox("users", "suspend", customer.email.upper())
    with pytest.raises(Forbidden):
        in_books(fresh_url, keys.caller_of, customer.credential, scopes.ANY)
    farebox("users", "restore", customer.email)
    assert in_books(fresh_url, keys.caller_of, customer.credential, scopes.ANY).user_id == customer.user_id
    told = in_books(fresh_url, list_actions, 10)
    assert [line.action for line in told] == ["user.unsuspend", "user.suspend"]


def test_a_stranger_can_not_be_suspended(farebox):
    with pytest.raises(NotFound):
        farebox("users", "suspend", "nobody@example.com")


def test_the_outbox_shows_the_latest_mails_newest_last(farebox):
    assert "no mails" in farebox("outbox")
    mailer = mailer_for(load_settings())
    for n in range(4):
        asyncio.run(mailer.send(Mail(n, "ada@example.com", f"Mail [{n}]", f"    1234 000{n}\n", None)))
    shown = farebox("outbox", "--last", "2")
    assert (
        shown.index("Mail [2]")
        < shown.index("1234 0002")
        < shown.index("Mail [3]")
        < shown.index("1234 0003")
    )
    assert "1234 0001" not in shown


def test_mails_that_could_not_be_sent_are_listed(farebox, fresh_url):
    mail_id = in_books(fresh_url, outbox.enqueue, "ada@example.com", "Hello", "the text")
    in_books(fresh_url, outbox.finish, mail_id, "550 no such mailbox")
    assert "550 no such" in farebox("outbox", "--problems")
