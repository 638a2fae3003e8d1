"""`farebox webhooks` and `farebox purchases` as an operator types them, on books of the test's own."""

from __future__ import annotations

import json
import os
import re

import pytest
from typer.testing import CliRunner

from deployments.books import in_books
from deployments.cli import app
from kit.ids import new_id
from payments import purchases, webhooks
from payments.packages import Package
from payments.purchases import OpenPurchase, PaidSession
from payments.webhooks import ProviderEvent

BUILDER = Package("builder_600", "Builder", 60_000, 5_000, "usd")
BROKEN = ProviderEvent("stripe", "evt_1", "charge.refunded", "pi_1", b'{\n  "id": "evt_1"}')
NEWS = ProviderEvent("stripe", "evt_2", "v3.of.the.future", None, b"{}")


@pytest.fixture
def farebox(fresh_url, monkeypatch):
    """`farebox("webhooks", "list")` on books with a dead letter and an ignored event; returns status and output."""
    monkeypatch.setattr(os, "environ", {**os.environ, "DATABASE_URL": fresh_url})
    for event, problem in ((BROKEN, "it broke\tbadly"), (NEWS, None)):
        in_books(fresh_url, webhooks.store, event)
        in_books(fresh_url, webhooks.finish, event.provider, event.event_id, problem, True)

    def run(*arguments):
        done = CliRunner().invoke(app, [*arguments])
        return done.exit_code, done.stdout, done.exception

    return run


def test_a_list_is_plain_where_no_terminal_is_and_json_on_request(farebox):
    status, output, _ = farebox("webhooks", "list", "--state", "dead")
    assert status == 0
    assert output.split("\t")[1:] == ["dead", "charge.refunded", "evt_1", "it broke badly\n"]
    shown = json.loads(farebox("webhooks", "list", "--json")[1])
    assert {each["id"]: each["state"] for each in shown} == {"evt_1": "dead", "evt_2": "ignored"}
    assert (
        json.loads(farebox("webhooks", "list", "--type", "v3.of.the.future", "--json")[1])[0]["id"] == "evt_2"
    )


def test_an_event_is_shown_with_its_body_as_it_was_received(farebox):
    status, output, _ = farebox("webhooks", "show", "evt_1")
    assert status == 0
    assert output.endswith('{\n  "id": "evt_1"}\n')
    assert json.loads(farebox("webhooks", "show", "evt_1", "--json")[1])["body"] == BROKEN.body.decode()


def test_a_replay_makes_dead_letters_due(farebox, fresh_url):
    assert farebox("webhooks", "replay", "--dead")[:2] == (0, "evt_1\n")
    assert [event.event_id for event in in_books(fresh_url, webhooks.due, 10)] == ["evt_1"]
    assert json.loads(farebox("webhooks", "replay", "evt_2", "--json")[1]) == {"replayed": ["evt_2"]}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["webhooks", "show", "evt_none"], "No such event"),
        (["webhooks", "replay", "evt_none"], "No such event"),
        (["webhooks", "replay"], "--dead"),
        (["webhooks", "replay", "evt_1", "--dead"], "--dead"),
        (["webhooks", "list", "--state", "gone"], "no state"),
        (["purchases", "refund", "pur_none", "--reason", "mood"], "no reason"),
        (["purchases", "refund", "pur_none"], "STRIPE_SECRET_KEY"),
    ],
)
def test_what_cannot_be_done_is_said(farebox, arguments, why):
    status, _, error = farebox(*arguments)
    assert status == 1
    assert why in str(getattr(error, "message", error))


def test_a_refund_that_nobody_answered_for_says_how_to_repeat_it(farebox, fresh_url, monkeypatch):
    for name, value in (
        ("STRIPE_SECRET_KEY", "sk_test_1"),
        ("STRIPE_WEBHOOK_SECRET", "whsec_1"),
        ("STRIPE_API_BASE", "http://127.0.0.1:9"),
    ):
        monkeypatch.setitem(os.environ, name, value)
    command = OpenPurchase(new_id("pur"), "stripe", "dev@company.com", BUILDER, None)
    in_books(fresh_url, purchases.open_purchase, command, None)
    in_books(fresh_url, purchases.attach_session, command.purchase_id, "cs_test_1")
    status, _, error = farebox("purchases", "refund", command.purchase_id)
    assert status == 1
    assert re.search(r"--reference req_\w+", error.message)


def test_purchases_of_an_email_are_listed_with_what_went_back(farebox, fresh_url):
    command = OpenPurchase(new_id("pur"), "stripe", "dev@company.com", BUILDER, None)
    in_books(fresh_url, purchases.open_purchase, command, None)
    paid = PaidSession("stripe", "cs_1", command.purchase_id, 5_000, "usd", False, False, paid_minor=4_000)
    in_books(fresh_url, purchases.fulfil, paid)
    (shown,) = json.loads(farebox("purchases", "list", "DEV@company.com", "--json")[1])
    assert (shown["id"], shown["paidMinor"], shown["returnedMinor"]) == (command.purchase_id, 4_000, 0)
    assert command.purchase_id in farebox("purchases", "list", "dev@company.com")[1]
