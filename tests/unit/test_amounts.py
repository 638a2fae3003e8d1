"""Providers' decimals and the books' integers are the same money."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.errors import InvalidRequest
from payments.amounts import in_minor
from payments.currencies import amount_text


@pytest.mark.parametrize(
    ("minor", "currency", "text"),
    [(5_000, "usd", "50.00"), (1, "eur", "0.01"), (99, "usd", "0.99"), (22_500, "jpy", "22500")],
)
def test_an_amount_is_told_as_providers_write_it(minor, currency, text):
    assert amount_text(minor, currency) == text
    assert in_minor(text, currency) == minor


@given(st.integers(0, 10**15 - 1), st.sampled_from(["usd", "eur", "jpy", "krw"]))
def test_what_is_told_comes_back_as_it_was(minor, currency):
    if currency in ("usd", "eur"):
        minor //= 100
    assert in_minor(amount_text(minor, currency), currency) == minor


@pytest.mark.parametrize(
    ("text", "minor"), [("49.999999", 4_999), ("50.009", 5_000), ("0.000001", 0), ("5E+1", 5_000)]
)
def test_what_arrived_is_never_rounded_up(text, minor):
    assert in_minor(text, "usd") == minor


def test_a_zero_costs_nothing_to_read_however_it_is_written():
    assert in_minor("0E+999999999", "usd") == in_minor("0E-999999999", "usd") == 0


@pytest.mark.parametrize(
    "amount",
    [50.0, 50, None, "", "fifty", "NaN", "Infinity", "-1", "1e40", "9" * 65, ["50.00"], "1e-999999999"],
)
def test_what_is_no_amount_of_money_is_refused(amount):
    with pytest.raises(InvalidRequest):
        in_minor(amount, "usd")
