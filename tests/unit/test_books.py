"""What a running platform tells the other commands of its data directory."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from deployments.books import ANNOUNCED, announce_books, as_running, forget_books
from deployments.launcher import Sandbox
from kit.settings import Settings, load_settings

SOLD_THROUGH = {
    "stripe_secret_key": "sk_test_play",
    "stripe_webhook_secret": "whsec_play",
    "stripe_api_base": "http://127.0.0.1:8001",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path, database_url="")


def test_commands_sell_through_the_sandbox_of_a_running_platform(settings: Settings):
    announce_books(Settings.model_validate(settings.model_dump() | SOLD_THROUGH | {"sandbox": True}))
    seen = as_running(settings)
    assert seen.stripe_secret_key.get_secret_value() == "sk_test_play"
    assert (seen.stripe_api_base, seen.sandbox) == ("http://127.0.0.1:8001", True)
    assert seen.database_url == settings.database_url, "books are found by another way"
    assert stat.S_IMODE((settings.data_dir / ANNOUNCED).stat().st_mode) == 0o600
    forget_books(settings.data_dir)
    assert as_running(settings) == settings


def test_all_that_a_sandbox_sets_is_told(settings: Settings):
    sandbox = Sandbox(settings)
    try:
        sold_through = sandbox.start()
    finally:
        sandbox.stop()
    announce_books(sold_through)
    assert as_running(settings) == sold_through


def test_a_provider_of_ones_own_is_never_taken_for_the_sandbox(settings: Settings):
    announce_books(Settings.model_validate(settings.model_dump() | SOLD_THROUGH | {"sandbox": True}))
    own = settings.model_dump() | {"stripe_secret_key": "sk_test_mine", "stripe_webhook_secret": "whsec_mine"}
    mine = Settings.model_validate(own)
    assert as_running(mine) == mine


def test_a_platform_without_a_sandbox_tells_of_none(settings: Settings):
    announce_books(settings)
    assert as_running(settings) == settings
