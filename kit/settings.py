"""The settings: one frozen object, read from the environment at the edge of a process and passed in from there.

This is the only module that reads the environment. A secret has no default: while it is empty, the feature that
needs it is off. Replica counts and GPUs live in `serve_config.yaml`, prices in `gateway/catalog.yaml`.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from kit.addresses import Network, network

Profile = Literal["tiny", "small", "gpu"]
COINBASE_LIVE = "https://business.coinbase.com/api/v1"
"""Where Coinbase moves real money; any other address of its API is a sandbox."""


class SettingsError(RuntimeError):
    """The environment asks for something that cannot be; the text says which variable and what to do."""


def _variable(name: str) -> AliasChoices:
    """Name a setting's variable exactly, beside the field name that tests use."""
    return AliasChoices(name)


def several(written: str) -> tuple[str, ...]:
    """Return the secrets of a setting that takes several, with commas between; an empty one is none."""
    return tuple(secret.strip() for secret in written.split(",") if secret.strip())


class Settings(BaseSettings):
    """Everything an operator can turn that is not a price or a replica count.

    Units: `_s` seconds, `_bytes` bytes.
    """

    model_config = SettingsConfigDict(
        env_prefix="FAREBOX_", frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True
    )

    host: str = "127.0.0.1"
    """Where the front door listens: loopback unless an operator says otherwise."""
    port: int = Field(default=8000, ge=1, le=65535)
    data_dir: Path = Path(".farebox")
    profile: Profile = "tiny"
    scale: Literal["", "cluster"] = ""
    """Which numbers of `serve_config.yaml` hold: those of the profile (a laptop, or one GPU), or those of a cluster."""
    public_url: str = ""
    """What callers reach us by; empty means `http://host:port`."""
    contact_email: str = ""
    """Where callers write to; machines read it at `/.well-known/ai-plugin.json`."""
    trusted_proxies: str = ""
    """Your proxies in front, addresses and networks with commas between: they append to `X-Forwarded-For` and are
    believed. Only where they are named are requests counted by address too."""
    front: str = ""
    """Where the launcher's own HAProxy calls from, which names its callers in the same way."""
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    instance: str = ""
    """A nonce of this start: `/health` repeats it, so that an orphan is never taken for the new instance."""

    database_url: str = Field(default="", validation_alias=_variable("DATABASE_URL"))
    """Empty means embedded Postgres in the data directory."""
    database_pool: int = Field(default=8, ge=1, le=64)
    """Connections of one ledger replica: two committers beat four on one Postgres, the rest serves reads."""

    storage_url: str = ""
    """Where outputs and uploads lie: a directory, `file://` or `s3://bucket/prefix`; empty: the data directory."""
    secret: SecretStr = SecretStr("")
    """Signs download URLs, idempotent keys and webhooks; empty: made once and kept in the data directory."""
    receipt_keys: str = ""
    """Files with the Ed25519 keys of receipts, comma-separated: PEM, JWK or JWK Set. The first key signs, all are
    published. Empty: one key made from `secret`."""
    key_brand: str = Field(default="amai", pattern=r"^[a-z][a-z0-9]{1,11}$")
    models_dir: Path | None = None

    stripe_secret_key: SecretStr = Field(
        default=SecretStr(""), validation_alias=_variable("STRIPE_SECRET_KEY")
    )
    stripe_webhook_secret: SecretStr = Field(
        default=SecretStr(""), validation_alias=_variable("STRIPE_WEBHOOK_SECRET")
    )
    """Several with commas between are all valid: a new one beside the old, while one is rotated."""
    stripe_api_base: str = Field(default="", validation_alias=_variable("STRIPE_API_BASE"))
    """Empty means Stripe itself; the sandbox's address where it runs."""
    coinbase_api_key_id: str = Field(default="", validation_alias=_variable("COINBASE_API_KEY_ID"))
    coinbase_api_key_secret: SecretStr = Field(
        default=SecretStr(""), validation_alias=_variable("COINBASE_API_KEY_SECRET")
    )
    """Of a Coinbase Developer Platform key: base64 (Ed25519) or PEM (P-256)."""
    coinbase_webhook_secret: SecretStr = Field(
        default=SecretStr(""), validation_alias=_variable("COINBASE_WEBHOOK_SECRET")
    )
    """Several with commas between are all valid, as with the other providers' below."""
    coinbase_api_base: str = Field(default="", validation_alias=_variable("COINBASE_API_BASE"))
    """Empty means Coinbase Business itself; its sandbox's address, or ours."""
    btcpay_url: str = Field(default="", validation_alias=_variable("BTCPAY_URL"))
    btcpay_store_id: str = Field(default="", validation_alias=_variable("BTCPAY_STORE_ID"))
    btcpay_api_key: SecretStr = Field(default=SecretStr(""), validation_alias=_variable("BTCPAY_API_KEY"))
    btcpay_webhook_secret: SecretStr = Field(
        default=SecretStr(""), validation_alias=_variable("BTCPAY_WEBHOOK_SECRET")
    )
    coinbase_commerce_webhook_secret: SecretStr = Field(
        default=SecretStr(""), validation_alias=_variable("COINBASE_COMMERCE_WEBHOOK_SECRET")
    )
    """For webhooks of charges from before Coinbase Commerce closed; nothing can be bought through it."""
    stripe_receipts: bool = False
    """Stripe mails the payer a receipt."""
    stripe_invoices: bool = False
    """Stripe makes an invoice of each payment; the portal lists them."""
    stripe_promotion_codes: bool = False
    """The payment page takes promotion codes; a discounted package has all its credits."""
    stripe_tax: Literal["", "exclusive", "inclusive"] = ""
    """Stripe Tax works the tax out: on top of the price, or within it. Empty: no tax."""
    webhook_tolerance_s: int = Field(default=300, ge=10)
    """How old a webhook's signature may be: Stripe's own five minutes."""
    claim_days: int = Field(default=30, ge=1)
    """How long a payment's link hands out its first key. Later its owner signs in by e-mail; the credits stay."""
    reconcile_every_s: int = Field(default=24 * 3600, ge=0)
    """How often the providers' records are compared with the books. 0: only by `farebox reconcile`."""
    reconcile_days: int = Field(default=3, ge=1, le=365)
    """How far back that looks at least: a provider's outage over a weekend is still seen on Monday."""
    reconcile_repairs: bool = True
    """Grants what was paid and takes back what went back, should no webhook have brought it. The rest is reported."""
    sandbox: bool | None = None
    """The payment sandbox: on when unset and no provider is configured. Never beside live keys."""

    x402_facilitator: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """Who verifies and settles x402 payments, such as `https://x402.org/facilitator` (test money). Empty: off."""
    x402_facilitator_token: SecretStr = SecretStr("")
    """Sent to the facilitator as a bearer token, where it wants one."""
    x402_cdp_key_id: str = ""
    """Of a Coinbase Developer Platform key, for `https://api.cdp.coinbase.com/platform/v2/x402`."""
    x402_cdp_key_secret: SecretStr = SecretStr("")
    """Base64 (Ed25519) or PEM (P-256)."""
    x402_pay_to: str = Field(default="", pattern=r"^(0x[0-9a-fA-F]{40})?$")
    """The address that x402 payments go to; needed with a facilitator."""
    x402_network: Literal["eip155:8453", "eip155:84532"] = "eip155:84532"
    """On which chain USDC is taken: Base (8453, real money) or Base Sepolia (84532, test money)."""
    x402_tokens_per_usdc: int = Field(default=1000, ge=1)
    """What one USDC buys, call by call: as the smallest package of the catalogue, 10 credits a dollar."""

    smtp_url: SecretStr = SecretStr("")
    """How mails leave: `smtps://user:password@host` (TLS at once) or `smtp://` (STARTTLS; asked for with a password).
    Empty: into the local outbox."""
    mail_from: str = ""
    """The sender of our mails; needed with `smtp_url`."""
    sign_in_codes_per_hour: int = Field(default=1000, ge=1)
    """Of all addresses together: bounds what a flood costs the mail account, and what guessing can reach."""
    country_header: str = Field(default="", pattern=r"^[A-Za-z0-9-]*$")
    """In which header the trusted front proxy tells the caller's country (ISO 3166 alpha-2), such as `cf-ipcountry`."""
    blocked_countries: str = Field(default="", pattern=r"^([A-Za-z0-9]{2}(,[A-Za-z0-9]{2})*)?$")
    """Countries that are not served, such as `KP,IR`; needs `country_header`."""

    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    """A JSON body: the longest prompt with its settings is far below 1 MiB."""
    max_upload_bytes: int = Field(default=25 << 20, ge=1024)
    """An uploaded file: an hour of speech as MP3, or a large photograph."""
    max_files_per_user: int = Field(default=1000, ge=1)
    """Uploads that one user may keep, so that a loop cannot fill the disk."""
    url_ttl_s: int = Field(default=3600, ge=1)
    """A download URL lives an hour: long enough for a person, short enough for a leaked log line."""
    output_days: int = Field(default=30, ge=0)
    """After so many days a job's files are deleted; the job stays. 0 keeps them."""
    upload_days: int = Field(default=30, ge=0)
    """The same for uploads."""
    test_file_days: int = Field(default=7, ge=0)
    """The same for all files of test keys: what they make means nothing."""
    c2pa_certificates: Path | None = None
    """A chain in PEM, its end first: outputs are then signed as Content Credentials. With `c2pa_key`, or neither."""
    c2pa_key: Path | None = None

    limit_key: int = Field(default=60_000, ge=0)
    """Requests a minute of one key on tool, job and other routes: as many as a laptop's front door carries from all
    callers together, so that it stops a loop gone wild and no honest load. Here and below: 0 is no limit."""
    limit_sensitive_auth: int = Field(default=20, ge=0)
    """Requests a minute of one user, e-mail or checkout session for claims, sign-in, keys and the account's data,
    as published."""
    limit_referral_read: int = Field(default=60, ge=0)
    limit_referral_apply: int = Field(default=10, ge=0)
    limit_purchase: int = Field(default=60, ge=0)
    """Checkouts a minute of one user or e-mail: each opens a session at the provider."""

    referral_reward_tokens: int = Field(default=1_000, ge=0, le=10**9)
    """Ten credits for each customer brought, a tenth of the smallest package; 0 closes the programme."""
    referral_hold_s: int = Field(default=10 * 24 * 3600, ge=0, le=365 * 24 * 3600)
    """Most refunds and stolen cards show within ten days; a later one takes the reward back."""
    referral_rewards_a_month: int = Field(default=20, ge=1)
    """Of one referrer: beyond anyone's circle of friends, and a bound on what a ring of stolen cards can earn."""
    referral_total_tokens: int = Field(default=100_000, ge=1)
    """Of one referrer for ever: a hundred rewards."""
    referral_life_days: int = Field(default=365, ge=1, le=36_500)
    """What was given is spent within a year or ends."""

    private_webhooks: bool = False
    """Lets customers' webhooks go to private addresses and by plain http: for a sandbox or a laptop. Anywhere else it
    would let customers reach what only this server can."""

    lease_s: float = Field(default=15.0, gt=0)
    """A runner renews every third of it; a dead runner's job is taken over after it."""
    job_attempts: int = Field(default=3, ge=1)
    """One crash is bad luck, three are the job's own fault."""
    job_queue_ttl_s: int = Field(default=3600, ge=1)
    """A job that no model took within the hour expires, and its hold with it."""
    answer_wait_s: int = Field(default=300, ge=0, le=3600)
    """How long a request under `/v1` waits for its job: below the ten minutes of OpenAI's clients. A proxy
    in front that closes silent requests sooner wants a smaller number."""
    job_run_ttl_s: int = Field(default=1800, ge=1)
    """A run that is not over after half an hour hangs; it is stopped and tried again."""
    test_credits: int = Field(default=1_000, ge=0, le=10**7)
    """What a refill leaves free on a test account: a thousand pictures, more than a day's test runs make."""
    account_concurrency: int = Field(default=0, ge=0)
    """Jobs of one account that run at the same time, over all models; turns alone share them out. 0: no bound."""
    key_concurrency: int = Field(default=0, ge=0)
    """The same for one key."""
    tool_hold_s: int = Field(default=600, ge=1)
    """What a check set aside for a tool is free again after ten minutes: most work is charged well before."""
    chat_start_s: int = Field(default=180, ge=1)
    """How long a chat turn waits for its first word: a cold engine takes a minute or two."""
    chat_turn_s: int = Field(default=600, ge=1)
    """How long a chat turn may speak: the longest answer of a small model on a CPU."""
    metrics_dir: Path | None = Field(default=None, validation_alias=_variable("PROMETHEUS_MULTIPROC_DIR"))
    """Where the processes of one node share their counters; set by the launcher."""

    @field_validator("database_url")
    @classmethod
    def _psycopg_driver(cls, url: str) -> str:
        """Take the URL forms that operators paste and name our driver in them."""
        for scheme in ("postgres://", "postgresql://"):
            if url.startswith(scheme):
                return "postgresql+psycopg://" + url.removeprefix(scheme)
        if url and not url.startswith("postgresql+psycopg://"):
            raise ValueError(
                "must be a postgresql:// URL (SQLite and others lack the locks that the books need)"
            )
        return url

    @field_validator("smtp_url")
    @classmethod
    def _smtp_address(cls, url: SecretStr) -> SecretStr:
        """Refuse what the mailer could not read, without repeating it: it holds a password."""
        if url.get_secret_value():
            parts = urlsplit(url.get_secret_value())
            if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
                raise ValueError("must be smtp://[user:password@]host[:port] or smtps://...")
        return url

    @field_validator("trusted_proxies", "front")
    @classmethod
    def _networks(cls, value: str) -> str:
        """Refuse a misspelt network at the start: a proxy that is not trusted stands for all its callers."""
        _listed(value)
        return value

    @field_validator("data_dir", "models_dir")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """Resolve once, at the edge: replicas run in other working directories."""
        return path.expanduser().absolute() if path else None

    @field_validator("receipt_keys")
    @classmethod
    def _readable_keys(cls, files: str) -> str:
        """Resolve the files at the edge too, and find out here whether they hold keys."""
        from kit.signing import SigningKeys  # cryptography is loaded only where it is used

        if not files:
            return files
        paths = [Path(name.strip()).expanduser().absolute() for name in files.split(",")]
        SigningKeys.from_files(paths)
        return ",".join(map(str, paths))

    @field_validator("coinbase_api_key_secret", "x402_cdp_key_secret")
    @classmethod
    def _usable_key(cls, secret: SecretStr) -> SecretStr:
        """Find out at the start whether it holds a key."""
        from kit.signing import private_key

        if text := secret.get_secret_value():
            private_key(text)
        return secret

    @model_validator(mode="after")
    def _whole_crypto(self) -> Settings:
        coinbase = {
            "COINBASE_API_KEY_ID": self.coinbase_api_key_id,
            "COINBASE_API_KEY_SECRET": self.coinbase_api_key_secret.get_secret_value(),
            "COINBASE_WEBHOOK_SECRET": several(self.coinbase_webhook_secret.get_secret_value()),
        }
        btcpay = {
            "BTCPAY_URL": self.btcpay_url,
            "BTCPAY_STORE_ID": self.btcpay_store_id,
            "BTCPAY_API_KEY": self.btcpay_api_key.get_secret_value(),
            "BTCPAY_WEBHOOK_SECRET": several(self.btcpay_webhook_secret.get_secret_value()),
        }
        if self.btcpay_url and not self.btcpay_url.startswith(("https://", "http://")):
            raise ValueError("BTCPAY_URL: must be the server's address, such as https://pay.company.com")
        for whole in (coinbase, btcpay):
            missing = [name for name, value in whole.items() if not value]
            if missing and len(missing) < len(whole):
                raise ValueError(f"{' and '.join(missing)}: needed beside the others of its provider")
        return self

    @model_validator(mode="after")
    def _never_live_and_sandbox(self) -> Settings:
        if self.live_payments and (self.sandbox or self.stripe_api_base):
            live = "live Stripe keys" if self._live_stripe else "a live crypto provider"
            raise ValueError(
                f"{live} and the payment sandbox are configured together: unset the provider's variables, or set"
                " FAREBOX_SANDBOX=0 and unset STRIPE_API_BASE"
            )
        if self.stripe_secret_key.get_secret_value() and not self.stripe_webhook_secrets:
            raise ValueError(
                "STRIPE_SECRET_KEY needs STRIPE_WEBHOOK_SECRET beside it: payments would never arrive"
            )
        return self

    @model_validator(mode="after")
    def _halves_belong_together(self) -> Settings:
        if self.smtp_url.get_secret_value() and not self.mail_from:
            raise ValueError("FAREBOX_SMTP_URL needs FAREBOX_MAIL_FROM beside it: mails need a sender")
        if self.blocked_countries and not self.country_header:
            raise ValueError(
                "FAREBOX_BLOCKED_COUNTRIES needs FAREBOX_COUNTRY_HEADER beside it: nobody would be blocked"
            )
        return self

    @model_validator(mode="after")
    def _c2pa_is_whole(self) -> Settings:
        if (self.c2pa_certificates is None) != (self.c2pa_key is None):
            raise ValueError("FAREBOX_C2PA_CERTIFICATES and FAREBOX_C2PA_KEY are set together or not at all")
        return self

    @model_validator(mode="after")
    def _x402_is_whole(self) -> Settings:
        if bool(self.x402_cdp_key_id) != bool(self.x402_cdp_key_secret.get_secret_value()):
            raise ValueError("FAREBOX_X402_CDP_KEY_ID and FAREBOX_X402_CDP_KEY_SECRET belong together")
        if self.x402_cdp_key_id and self.x402_facilitator_token.get_secret_value():
            raise ValueError(
                "FAREBOX_X402_CDP_KEY_ID and FAREBOX_X402_FACILITATOR_TOKEN are two ways to sign in: set one"
            )
        if self.x402_facilitator and not self.x402_pay_to:
            raise ValueError(
                "FAREBOX_X402_FACILITATOR needs FAREBOX_X402_PAY_TO beside it: payments need an address"
            )
        if self.x402_facilitator and self.x402_live and self.sandbox:
            raise ValueError(
                "real USDC (FAREBOX_X402_NETWORK=eip155:8453) and the payment sandbox are configured together: set"
                " FAREBOX_SANDBOX=0"
            )
        return self

    @model_validator(mode="after")
    def _no_play_money_beside_real(self) -> Settings:
        """Refuse money that anyone can have beside money that nobody gives away: both buy the same credits.

        A BTCPay server does not say which it takes: nothing but test USDC is refused beside it.
        """
        stripe, wallets = bool(self.stripe_secret_key.get_secret_value()), bool(self.x402_facilitator)
        coinbase = bool(self.coinbase_api_key_id)
        real = {
            "live Stripe keys (STRIPE_SECRET_KEY)": self._live_stripe,
            "live Coinbase keys (COINBASE_API_BASE)": self._live_coinbase,
            "real USDC (FAREBOX_X402_NETWORK)": wallets and self.x402_live,
        }
        play = {
            "test keys of Stripe (STRIPE_SECRET_KEY)": stripe and not self._live_stripe,
            "Coinbase's sandbox (COINBASE_API_BASE)": coinbase and not self._live_coinbase,
            "test USDC (FAREBOX_X402_NETWORK)": wallets and not self.x402_live,
        }
        taken = [name for name, is_set in real.items() if is_set]
        free = [name for name, is_set in play.items() if is_set]
        if self.btcpay_url and wallets and not self.x402_live:
            taken.append("a BTCPay server (BTCPAY_URL)")
        if taken and free:
            raise ValueError(
                f"{taken[0]} and {free[-1]} are configured together, and anyone can pay with test money: unset one"
            )
        return self

    @property
    def x402_live(self) -> bool:
        """Whether x402 payments move real money."""
        return self.x402_network == "eip155:8453"

    @property
    def live_payments(self) -> bool:
        """Whether a configured provider moves real money."""
        return self._live_stripe or self._live_coinbase or bool(self.btcpay_url)

    @property
    def _live_coinbase(self) -> bool:
        base = self.coinbase_api_base.rstrip("/") or COINBASE_LIVE
        return bool(self.coinbase_api_key_id) and base == COINBASE_LIVE

    @property
    def _live_stripe(self) -> bool:
        return self.stripe_secret_key.get_secret_value().startswith(("sk_live_", "rk_live_"))

    @property
    def stripe_webhook_secrets(self) -> tuple[str, ...]:
        """The secrets that may have signed a webhook; an empty one is none."""
        return several(self.stripe_webhook_secret.get_secret_value())

    @property
    def wants_sandbox(self) -> bool:
        """Whether the launcher should start the payment sandbox."""
        if self.sandbox is None:
            real_usdc = self.x402_facilitator and self.x402_live
            return not (
                self.stripe_secret_key.get_secret_value()
                or self.coinbase_api_key_id
                or self.btcpay_url
                or real_usdc
            )
        return self.sandbox

    @property
    def proxies(self) -> tuple[Network, ...]:
        """Whose `X-Forwarded-For` is believed."""
        return _listed(f"{self.front},{self.trusted_proxies}")

    @property
    def base_url(self) -> str:
        """The public address without a trailing slash."""
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def objects_url(self) -> str:
        """The object store's address, with the local default filled in."""
        return self.storage_url or str(self.data_dir / "objects")

    @property
    def receipt_key_files(self) -> list[Path]:
        """The files of `receipt_keys`."""
        return [Path(name) for name in self.receipt_keys.split(",") if name]

    @property
    def weights_dir(self) -> Path:
        """Where model weights lie: shared by instances when FAREBOX_MODELS_DIR is set."""
        return self.models_dir or self.data_dir / "models"


def load_settings(**overrides: object) -> Settings:
    """Read the environment once and fill in the kept secret.

    Raises: SettingsError, with the variable's name and what to do about it.
    """
    try:
        settings = Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as error:
        raise SettingsError(_explain(error)) from error
    if settings.secret.get_secret_value():
        return settings
    return settings.model_copy(update={"secret": SecretStr(_kept_secret(settings.data_dir / "secret"))})


def environment(**extra: str) -> dict[str, str]:
    """Return a copy of this process's environment for a child, with `extra` on top."""
    return {**os.environ, **extra}


def environment_for(settings: Settings, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that make a child process read exactly these settings."""
    variables = dict(base if base is not None else os.environ)
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        key = str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"FAREBOX_{name.upper()}"
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if value is None or value == "":
            variables.pop(key, None)
        else:
            variables[key] = str(value)
    return variables


def _listed(value: str) -> tuple[Network, ...]:
    return tuple(network(part.strip()) for part in value.split(",") if part.strip())


def _kept_secret(path: Path) -> str:
    """Read the secret of this data directory, making it once; readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # Made whole under a name of its own: of several processes the first one's stays, and none reads half of it.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".secret-") as draft:
            draft.write(secrets.token_urlsafe(32))
            draft.flush()
            os.fsync(draft.fileno())
            with suppress(FileExistsError):
                os.link(draft.name, path)
    if kept := path.read_text().strip():
        return kept
    raise SettingsError(f"{path} is empty: delete it to have a new secret made (signed URLs change)")


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        variable = name if name.isupper() else f"FAREBOX_{name.upper()}" if name else ""
        lines.append(f"{variable}: {item['msg']}" if variable else item["msg"].removeprefix("Value error, "))
    return "\n".join(lines)
