"""The page on taking real money names variables that exist, and every one that a provider has."""

from __future__ import annotations

import re
from pathlib import Path

from kit.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "payments.md").read_text()
PREFIXES = ("stripe_", "coinbase_", "btcpay_", "x402_", "reconcile_")


def variables() -> dict[str, str]:
    """Each setting's name with its variable."""
    return {
        name: str(alias.choices[0]) if (alias := field.validation_alias) else f"FAREBOX_{name.upper()}"
        for name, field in Settings.model_fields.items()
    }


def test_every_variable_on_the_page_exists():
    named = set(re.findall(r"\b(?:FAREBOX|STRIPE|COINBASE|BTCPAY)_[A-Z0-9_]+\b", PAGE))
    assert named <= set(variables().values())


def test_every_setting_of_a_provider_is_on_the_page():
    wanted = {variable for name, variable in variables().items() if name.startswith(PREFIXES)}
    missing = {variable for variable in wanted if f"`{variable}`" not in PAGE}
    assert missing <= {"STRIPE_API_BASE"}  # the sandbox's, which sets it itself


def test_the_stripe_cli_is_shown():
    assert "stripe listen --forward-to" in PAGE
    assert "stripe trigger" in PAGE
