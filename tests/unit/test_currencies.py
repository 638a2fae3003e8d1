"""Amounts in every kind of currency, for people and for Stripe; and what the page for operators says of events."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.catalog import CATALOG_FILE, CatalogError, load_catalog
from payments.currencies import amount_text, chargeable, exponent
from payments.packages import Package
from payments.stripe_amounts import from_stripe, to_stripe
from payments.stripe_checkout import HANDLED_EVENTS


@pytest.mark.parametrize(
    ("amount_minor", "currency", "written"),
    [
        (5_000, "usd", "50.00"),
        (5, "eur", "0.05"),
        (-1_205, "gbp", "-12.05"),
        (5_000, "jpy", "5000"),
        (7, "isk", "7"),
        (5_120, "kwd", "5.120"),
        (100_000, "usdc", "0.100000"),
        (10**12 + 1, "bhd", "1000000000.001"),
    ],
)
def test_an_amount_is_written_exactly(amount_minor, currency, written):
    assert amount_text(amount_minor, currency) == written
    assert amount_text(amount_minor, currency.upper()) == written


@pytest.mark.parametrize(
    ("currency", "places"), [("usd", 2), ("JPY", 0), ("krw", 0), ("ugx", 0), ("tnd", 3), ("xxx", 2)]
)
def test_the_minor_unit_has_its_decimals(currency, places):
    assert exponent(currency) == places


@pytest.mark.parametrize(
    ("amount_minor", "currency", "stripes"),
    [
        (5_000, "usd", 5_000),
        (500, "jpy", 500),
        (5, "isk", 500),
        (7_000, "UGX", 700_000),
        (5_120, "kwd", 5_120),
    ],
)
def test_stripes_amounts_go_there_and_back(amount_minor, currency, stripes):
    assert to_stripe(amount_minor, currency) == stripes
    assert from_stripe(stripes, currency) == amount_minor


def test_a_fraction_that_cannot_be_is_never_lost():
    assert from_stripe(501, "isk") == 6


def test_cards_pay_thousandths_in_steps_of_ten(tmp_path):
    assert chargeable(5_120, "kwd")
    assert not chargeable(5_125, "kwd")
    assert chargeable(5_125, "usd")
    written = CATALOG_FILE.read_text().replace(
        "price_minor: 5000, currency: usd", "price_minor: 5005, currency: kwd"
    )
    (tmp_path / "catalog.yaml").write_text(written)
    with pytest.raises(CatalogError, match="builder_600: cards pay kwd in steps of 10"):
        load_catalog(tmp_path / "catalog.yaml")


def test_a_package_tells_its_price_and_keeps_its_version():
    assert Package("x", "X", 100, 5_000, "jpy").price_text == "5000 JPY"
    assert {package.price_version for package in load_catalog().packages.values()} == {
        load_catalog().price_version
    }


def test_the_page_for_operators_names_every_event_that_is_handled():
    page = (Path(__file__).parents[2] / "docs" / "payments.md").read_text()
    named = page.split("Events:\n\n```\n")[1].split("\n```")[0].splitlines()
    assert named == sorted(HANDLED_EVENTS)
