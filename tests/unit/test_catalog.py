"""The catalogue file is read strictly, and quotes are exact."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog import CATALOG_FILE, CatalogError, Price, load_catalog
from gateway.errors import UnknownTask
from gateway.task_schemas import INPUTS
from gateway.tool_schemas import MAX_UNITS
from kit.errors import InvalidRequest

GOOD = """
price_version: 3
since: 2026-11-22
packages:
  - {code: one, name: One, credits: 5, price_minor: 100, currency: usd}
tools:
  image: {unit: image, tokens: 7, model: M, licence: L, since: 2026-11-23}
  translate: {unit: character, per_units: 100, tokens: 1, model: M, licence: L, since: 2026-11-24}
tasks:
  image.generate: {tool: image, application: image, summary: S}
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


PUBLISHED = {
    "chat": (5, 1, "turn"),
    "image": (100, 1, "image"),
    "image.edit": (100, 1, "image"),
    "video.generate": (100, 1, "second"),
    "audio.speak": (1, 1, "second"),
    "voice_clone": (2, 1, "second"),
    "dub": (200, 1, "minute"),
    "music": (2, 1, "second"),
    "sfx": (3, 1, "second"),
    "speech2text": (10, 1, "minute"),
    "translate": (1, 100, "character"),
}


def test_the_shipped_tools_have_the_published_prices():
    tools = load_catalog().tools.values()
    assert {t.name: (t.price.tokens, t.price.per_units, t.unit) for t in tools} == PUBLISHED


def test_a_tool_keeps_its_own_since_and_the_version_of_the_prices(write):
    catalog = load_catalog(write(GOOD))
    assert [str(tool.since) for tool in catalog.tools.values()] == ["2026-11-23", "2026-11-24"]
    assert {tool.price.version for tool in catalog.tools.values()} == {3}
    assert [tool.price_text for tool in catalog.tools.values()] == [
        "7 tokens per image",
        "1 token per 100 characters",
    ]


@given(
    units=st.integers(1, 10**12), tokens=st.integers(1, 10**6), per_units=st.sampled_from([1, 10, 100, 1000])
)
def test_cost_is_rounded_up_once_to_a_whole_token(units: int, tokens: int, per_units: int):
    cost = Price(tokens, per_units, 1).cost_tokens(units)
    assert cost >= 1
    assert cost * 1000 * per_units >= units * tokens
    assert (cost - 1) * 1000 * per_units < units * tokens


def test_the_dearest_quote_fits_the_books():
    assert Price(10**6, 1, 1).cost_tokens(MAX_UNITS * 1000) < 2**63 // 1000


def test_unknown_task_and_package_name_what_is_on_sale(write):
    catalog = load_catalog(write(GOOD))
    with pytest.raises(UnknownTask) as task:
        catalog.quote("image.edit", {})
    assert task.value.known == ["image.generate"]
    with pytest.raises(InvalidRequest, match="on sale are one"):
        catalog.package("two")
    with pytest.raises(InvalidRequest, match="tool: unknown tool; on sale are image, translate"):
        catalog.tool("music")


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
        (("tokens: 7", "tokens: -7"), r"tools\.image\.tokens"),
        (("tokens: 7", "tokens: 0.5"), r"tools\.image\.tokens"),
        (("tokens: 7", "tokens: 1000001"), r"tools\.image\.tokens"),
        (("per_units: 100", "per_units: 3"), r"tools\.translate\.per_units"),
        (("unit: image", "unit: mile"), r"tools\.image\.unit"),
        (("since: 2026-11-23", "since: soon"), r"tools\.image\.since"),
        (("translate:", "consume:"), r"tools\.consume.*something else"),
        (("translate:", "purchase:"), r"tools\.purchase.*something else"),
        (("translate:", "'two words':"), r"tools\.two words"),
        (("translate:", "image:"), "appears twice"),
        (("tool: image", "tool: music"), r"tasks\.image\.generate\.tool: no tool is called music"),
        (("tool: image", "tool: translate"), "not counted by the character"),
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
        "tools:", "  - {code: one, name: Uno, credits: 1, price_minor: 1, currency: usd}\ntools:"
    )
    with pytest.raises(CatalogError, match="one appears twice"):
        load_catalog(write(twice))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(CatalogError, match="nowhere"):
        load_catalog(tmp_path / "nowhere.yaml")
