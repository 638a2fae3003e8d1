"""Settings come from the environment once, and refuse what cannot be."""

from __future__ import annotations

import base64
import itertools
import secrets

import pytest

from kit.settings import SettingsError, environment_for, load_settings

LIVE = {"STRIPE_SECRET_KEY": "sk_live_x", "STRIPE_WEBHOOK_SECRET": "whsec_x"}


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    import os

    for name in list(os.environ):
        if name.startswith(("FAREBOX_", "STRIPE_", "COINBASE_", "BTCPAY_", "DATABASE_URL")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FAREBOX_DATA_DIR", str(tmp_path / "data"))


def test_defaults_run_a_laptop(tmp_path):
    settings = load_settings()
    assert (settings.port, settings.profile, settings.host) == (8000, "tiny", "127.0.0.1")
    assert settings.wants_sandbox
    assert not settings.live_payments
    assert settings.base_url == "http://127.0.0.1:8000"


def test_the_secret_is_made_once_and_readable_by_its_owner_alone(tmp_path):
    first, second = load_settings(), load_settings()
    assert first.secret == second.secret
    assert len(first.secret.get_secret_value()) >= 32
    assert (tmp_path / "data" / "secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("beside", [{"FAREBOX_SANDBOX": "1"}, {"STRIPE_API_BASE": "http://127.0.0.1:1"}])
def test_live_keys_and_the_sandbox_together_are_refused(monkeypatch, beside):
    for name, value in {**LIVE, **beside}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="live Stripe keys and the payment sandbox"):
        load_settings()


def test_live_keys_alone_switch_the_sandbox_off(monkeypatch):
    for name, value in LIVE.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.live_payments
    assert not settings.wants_sandbox


def test_of_two_processes_that_begin_at_once_both_read_the_one_secret(tmp_path, monkeypatch):
    make = secrets.token_urlsafe
    other = []

    def beside(size):
        monkeypatch.setattr(secrets, "token_urlsafe", make)
        other.append(load_settings(data_dir=tmp_path / "data").secret)
        return make(size)

    monkeypatch.setattr(secrets, "token_urlsafe", beside)
    assert load_settings(data_dir=tmp_path / "data").secret == other[0]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["secret"]


def test_a_stripe_key_without_its_webhook_secret_is_refused(monkeypatch):
    monkeypatch.setenv("STRIPE_SECRET_KEY", "sk_test_x")
    with pytest.raises(SettingsError, match="STRIPE_WEBHOOK_SECRET"):
        load_settings()


COINBASE = {
    "COINBASE_API_KEY_ID": "organizations/1/apiKeys/2",
    "COINBASE_API_KEY_SECRET": base64.b64encode(bytes(64)).decode(),
    "COINBASE_WEBHOOK_SECRET": "hook",
}
BTCPAY = {
    "BTCPAY_URL": "https://pay.company.com",
    "BTCPAY_STORE_ID": "store",
    "BTCPAY_API_KEY": "key",
    "BTCPAY_WEBHOOK_SECRET": "hook",
}


@pytest.mark.parametrize("provider", [COINBASE, BTCPAY], ids=["coinbase", "btcpay"])
def test_a_crypto_provider_alone_switches_the_sandbox_off_and_never_stands_beside_it(monkeypatch, provider):
    for name, value in provider.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.live_payments
    assert not settings.wants_sandbox
    assert environment_for(settings, {}).items() >= provider.items()
    monkeypatch.setenv("FAREBOX_SANDBOX", "1")
    with pytest.raises(SettingsError, match="a live crypto provider and the payment sandbox"):
        load_settings()


@pytest.mark.parametrize("missing", [*COINBASE, *BTCPAY])
def test_a_crypto_provider_is_configured_whole_or_not_at_all(monkeypatch, missing):
    for name, value in (COINBASE if missing in COINBASE else BTCPAY).items():
        if name != missing:
            monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=missing):
        load_settings()


def test_coinbases_own_sandbox_is_not_live(monkeypatch):
    for name, value in COINBASE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COINBASE_API_BASE", "https://business.coinbase.com/sandbox/api/v1")
    assert not load_settings().live_payments
    monkeypatch.setenv("COINBASE_API_BASE", "https://business.coinbase.com/api/v1/")
    assert load_settings().live_payments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COINBASE_API_KEY_SECRET", "not a key"),
        ("BTCPAY_URL", "pay.company.com"),
        ("FAREBOX_PORT", "http"),
        ("FAREBOX_PORT", "70000"),
        ("FAREBOX_PROFILE", "huge"),
        ("DATABASE_URL", "sqlite:///x.db"),
        ("FAREBOX_KEY_BRAND", "A_B"),
        ("FAREBOX_SMTP_URL", "mail.example.com:587"),
        ("FAREBOX_BLOCKED_COUNTRIES", "North Korea"),
    ],
)
def test_a_bad_value_names_its_variable(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value", "missing"),
    [
        ("FAREBOX_SMTP_URL", "smtps://u:hush@mail.example.com", "FAREBOX_MAIL_FROM"),
        ("FAREBOX_BLOCKED_COUNTRIES", "KP,IR", "FAREBOX_COUNTRY_HEADER"),
    ],
)
def test_half_of_a_pair_is_refused_and_names_the_other(monkeypatch, name, value, missing):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=missing) as refused:
        load_settings()
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_database_urls_are_taken_as_people_paste_them(monkeypatch, scheme):
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://u:p@db/farebox")
    assert load_settings().database_url == "postgresql+psycopg://u:p@db/farebox"


def test_a_childs_environment_makes_it_read_the_same_settings(monkeypatch):
    monkeypatch.setenv("FAREBOX_PORT", "9123")
    settings = load_settings(profile="small", stripe_secret_key="sk_test_x", stripe_webhook_secret="whsec_x")
    child = environment_for(settings)
    for name in ("FAREBOX_PORT", "FAREBOX_DATA_DIR"):
        monkeypatch.delenv(name)
    for name, value in child.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


def test_no_secret_shows_in_a_settings_text(monkeypatch):
    for name, value in LIVE.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    shown = repr(settings) + str(settings)
    assert "sk_live_x" not in shown
    assert settings.secret.get_secret_value() not in shown


SANDBOX = "https://business.coinbase.com/sandbox/api/v1"
WALLETS = {"FAREBOX_X402_FACILITATOR": "https://facilitator.example", "FAREBOX_X402_PAY_TO": f"0x{'1' * 40}"}
REAL = {"stripe": LIVE, "coinbase": COINBASE, "x402": WALLETS | {"FAREBOX_X402_NETWORK": "eip155:8453"}}
PLAY = {
    "stripe": LIVE | {"STRIPE_SECRET_KEY": "sk_test_x"},
    "coinbase": COINBASE | {"COINBASE_API_BASE": SANDBOX},
    "x402": WALLETS,
}


@pytest.mark.parametrize(("real", "play"), list(itertools.permutations(REAL, 2)))
def test_money_that_anyone_can_have_is_refused_beside_real_money(monkeypatch, real, play):
    """Both buy the same credits."""
    for name, value in {**REAL[real], **PLAY[play]}.items():
        monkeypatch.setenv(name, value)
    words = {"stripe": "Stripe", "coinbase": "Coinbase", "x402": "USDC"}
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "configured together" in str(refused.value)
    assert {name for name, word in words.items() if word in str(refused.value)} == {real, play}


@pytest.mark.parametrize("money", [REAL, PLAY], ids=["real", "play"])
def test_all_real_money_or_all_play_money_may_be_taken(monkeypatch, money):
    for name, value in {name: value for each in money.values() for name, value in each.items()}.items():
        monkeypatch.setenv(name, value)
    assert load_settings().live_payments == (money is REAL)
