"""The catalogue file is read strictly, and quotes are exact."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog import CATALOG_FILE, CatalogError, cost_tokens, load_catalog
from gateway.errors import UnknownTask
from gateway.schemas import INPUTS
from kit.errors import InvalidRequest

GOOD = """
price_version: 3
since: 2026-11-22
packages:
  - {code: one, name: One, credits: 5, price_minor: 100, currency: usd}
tasks:
  image.generate:
    {tool: image, application: image, model: M, licence: L, unit: image, tokens_per_unit: 7, summary: S}
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "catalog.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_shipped_catalogue_sells_the_published_packages_and_prices():
    catalog = load_catalog()
    assert {code: p.credits_tokens for code, p in catalog.packages.items()} == {
        "starter_100": 10_000,
        "builder_600": 60_000,
        "studio_3000": 300_000,
    }
    assert catalog.quote("image.generate", {"prompt": "a fox"}).cost_tokens == 100
    assert set(catalog.tasks) <= set(INPUTS)
    assert CATALOG_FILE.is_file()


def test_a_quote_carries_price_version_tool_and_application(write):
    quote = load_catalog(write(GOOD)).quote("image.generate", {})
    assert (quote.cost_tokens, quote.units_milli, quote.tool, quote.application, quote.price_version) == (
        7,
        1000,
        "image",
        "image",
        3,
    )


@given(units=st.integers(0, 10**9), price=st.integers(1, 10**6))
def test_cost_is_rounded_up_once_to_a_whole_token(units: int, price: int):
    cost = cost_tokens(units, price)
    assert cost * 1000 >= units * price
    assert (cost - 1) * 1000 < units * price or cost == 0


def test_unknown_task_and_package_name_what_is_on_sale(write):
    catalog = load_catalog(write(GOOD))
    with pytest.raises(UnknownTask) as task:
        catalog.quote("image.edit", {})
    assert task.value.known == ["image.generate"]
    with pytest.raises(InvalidRequest, match="on sale are one"):
        catalog.package("two")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("price_version: 3", "price_version: 0"), "price_version"),
        (("price_version: 3", ""), "price_version"),
        (("price_version: 3", "price_version: 3\nprice_verison: 4"), "price_verison"),
        (("price_version: 3", "price_version: 3\nprice_version: 4"), "appears twice"),
        (("since: 2026-11-22", "since: yesterday"), "since"),
        (("credits: 5", "credits: 0"), r"packages\.0\.credits"),
        (("credits: 5", "credits: 5.5"), r"packages\.0\.credits"),
        (("credits: 5", "credits: '5'"), r"packages\.0\.credits"),
        (("credits: 5", "credits: yes"), r"packages\.0\.credits"),
        (("currency: usd", "currency: USD"), r"packages\.0\.currency"),
        (("tokens_per_unit: 7", "tokens_per_unit: -7"), r"tasks\.image\.generate\.tokens_per_unit"),
        (("unit: image", "unit: mile"), r"tasks\.image\.generate\.unit"),
        (("summary: S", "sumary: S"), "sumary"),
        (("tasks:\n  image", "tasks: [\n  image"), "catalog.yaml"),
        ((GOOD, ""), "file"),
        ((GOOD, "- 1"), "file"),
    ],
)
def test_a_wrong_catalogue_is_refused_by_the_name_of_the_fault(
    write, change: tuple[str, str], complaint: str
):
    assert change[0] in GOOD
    with pytest.raises(CatalogError, match=complaint):
        load_catalog(write(GOOD.replace(*change)))


def test_a_package_code_is_sold_once(write):
    twice = GOOD.replace(
        "tasks:", "  - {code: one, name: Uno, credits: 1, price_minor: 1, currency: usd}\ntasks:"
    )
    with pytest.raises(CatalogError, match="one appears twice"):
        load_catalog(write(twice))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(CatalogError, match="nowhere"):
        load_catalog(tmp_path / "nowhere.yaml")
