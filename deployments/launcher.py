"""Starts the whole platform on one machine, watches it and ends it: what `farebox up` and `farebox demo` run.

Everything started here belongs to one data directory. Postgres and the Ray head run in sessions of their own, so
that Ctrl-C reaches this process alone and the parts are ended in order: Ray (its Runner hands jobs back), the
sandbox, Postgres. What a `kill -9` of this process leaves behind is ended by the next start.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol, Self

import httpx
import yaml

from deployments.books import announce_books, forget_books, write_private
from deployments.models.registry import ENTRIES
from deployments.ray_environment import HeadResources
from deployments.ray_head import RayHead, reap
from deployments.ray_ports import is_free
from deployments.serve_api import ApplicationStatus
from kit import migrate
from kit.postgres import EmbeddedPostgres
from kit.settings import Settings, environment, environment_for

ROOT: Final = Path(__file__).parents[1]
SERVE_CONFIG: Final = ROOT / "serve_config.yaml"
PLATFORM: Final = "farebox"
"""The application that must run; a model that cannot start leaves it serving."""
DEPLOY_TIMEOUT_S: Final = 120.0
"""Serve's start and three light replicas take 10 s on two cores, four times that on a busy machine."""
MODELS_TIMEOUT_S: Final = 120.0
"""Tiny weights load within 15 s; a production model may take longer, and the platform does not wait for it."""
SANDBOX_TIMEOUT_S: Final = 20.0
PLAY_ADDRESS: Final = "0x000000000000000000000000000000000000dEaD"
"""Where the sandbox's wallets pay: an address that nobody has the key of."""
WATCH_S: Final = 0.5
"""How soon a part that died is noticed."""
COINBASE_KEY_ID: Final = "organizations/sandbox/apiKeys/farebox"
"""The one key that the sandbox's Coinbase knows."""
MIN_CPUS: Final = 2
"""Ray's CPUs are logical shares here: even a one-core machine must place all small replicas."""


class LaunchError(RuntimeError):
    """The platform cannot start or go on; the text says what to do."""


class Progress(Protocol):
    """Where a start's steps are told."""

    def step(self, what: str) -> None:
        """A step begins."""

    def done(self, what: str) -> None:
        """The step ended well, with what came of it."""

    def warn(self, what: str) -> None:
        """Something the operator should know."""


class Launcher:
    """One platform in one data directory. Use as a context: leaving it ends everything that it started."""

    def __init__(
        self,
        settings: Settings,
        progress: Progress,
        serve_config: Path = SERVE_CONFIG,
        python_path: Sequence[Path] = (ROOT,),
        resources: HeadResources | None = None,
    ) -> None:
        self._resources = resources or HeadResources(num_cpus=max(MIN_CPUS, os.cpu_count() or 1))
        self._serve_config = serve_config
        self._python_path = python_path
        self._seen: set[str] = set()
        self.settings = settings.model_copy(update={"instance": secrets.token_hex(8)})
        self.started_in_s = 0.0
        self._progress = progress
        self._postgres: EmbeddedPostgres | None = None
        self._sandbox: Sandbox | None = None
        self._head: RayHead | None = None
        self._parts = ExitStack()

    def __enter__(self) -> Self:
        began = time.monotonic()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        self.started_in_s = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        """End every part, last started first; a part that fails to end does not keep the others running."""
        self._parts.close()

    @property
    def head(self) -> RayHead:
        """The running head."""
        assert self._head is not None, "only while the platform runs"
        return self._head

    @property
    def sandbox_url(self) -> str | None:
        """The payment sandbox's address, where it runs."""
        return self._sandbox.url if self._sandbox else None

    @property
    def failed_models(self) -> list[str]:
        """Model applications that do not run."""
        states = self.head.api.application_statuses()
        return [
            name for entry in ENTRIES if not ((s := states.get(name := entry.application)) and s.is_running)
        ]

    def watch(self) -> None:
        """Return never: restart Postgres and the sandbox when they die. Raises: LaunchError when Ray ended."""
        while True:
            time.sleep(WATCH_S)
            if (code := self.head.exit_code()) is not None:
                raise LaunchError(
                    f"the Ray head ended ({code}); see {self.head.paths.log}. Start again to recover."
                )
            if self._postgres and not self._postgres.alive():
                self._progress.warn("Postgres ended; starting it again")
                self._postgres.start()
            if self._sandbox and not self._sandbox.alive():
                self._progress.warn("The payment sandbox ended; starting it again")
                self._sandbox.start()

    def _start(self) -> None:
        settings = self._prepared()
        if settings.wants_sandbox:
            self._progress.step("payment sandbox")
            self._sandbox = Sandbox(settings)
            self._parts.callback(self._sandbox.stop)
            settings = self._sandbox.start()
            self._progress.done(f"payment sandbox at {self._sandbox.url} (no real money)")
        if not settings.database_url:
            self._progress.step("Postgres")
            self._postgres = EmbeddedPostgres(settings.data_dir)
            self._parts.callback(self._postgres.stop)
            settings = settings.model_copy(update={"database_url": self._postgres.start()})
            self._progress.done("Postgres (embedded)")
        self._progress.step("schema")
        self._progress.done(f"schema at version {migrate.upgrade(settings.database_url)}")
        self._remember(settings)
        self._start_ray(settings)
        self._deploy(settings)
        self.settings = settings

    def _prepared(self) -> Settings:
        """Return the settings with the data directory laid out."""
        settings = self.settings
        reap(settings.data_dir)  # orphans of a killed start still hold its port
        if not is_free(settings.port):
            raise LaunchError(
                f"port {settings.port} is taken: end what listens there, or choose another with FAREBOX_PORT"
            )
        # Others may pass through (Postgres drops root's privileges), and read nothing: secrets are files of 0600.
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        settings.data_dir.chmod(0o711)
        metrics = settings.data_dir / "metrics"
        metrics.mkdir(exist_ok=True)
        for stale in metrics.glob("*.db"):  # counters of processes that ended
            stale.unlink()
        return settings.model_copy(update={"metrics_dir": metrics})

    def _start_ray(self, settings: Settings) -> None:
        self._progress.step("Ray")
        self._head = RayHead(
            settings.data_dir,
            settings.port,
            environment_for(settings),
            self._resources,
            python_path=self._python_path,
        )
        self._parts.callback(self._head.stop)
        self._head.start()
        self._progress.done(f"Ray, dashboard at {self._head.api.url}")

    def _deploy(self, settings: Settings) -> None:
        config: dict[str, Any] = yaml.safe_load(self._serve_config.read_text())
        config["http_options"] = {**config["http_options"], "host": settings.host, "port": settings.port}
        self._progress.step("applications")
        self.head.api.deploy(config)
        self.head.wait_until_running([PLATFORM], DEPLOY_TIMEOUT_S, self._told)
        for model in (each["name"] for each in config["applications"] if each["name"] != PLATFORM):
            with self._a_model_may_fail():
                self.head.wait_until_running([model], MODELS_TIMEOUT_S, self._told)
        self._wait_for_our_answer(settings)

    def _told(self, status: ApplicationStatus) -> None:
        if status.is_running:
            if status.name not in self._seen:
                self._seen.add(status.name)
                self._progress.done(f"application {status.name}")
        else:
            self._progress.step(f"application {status.name}: {status.status.lower()}")

    @contextmanager
    def _a_model_may_fail(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._progress.warn(f"{error} - the rest goes on, its tasks wait")

    def _wait_for_our_answer(self, settings: Settings) -> None:
        """Return once the front door answers as this instance: an orphan of an earlier one is not taken for it."""
        deadline = time.monotonic() + DEPLOY_TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError, ValueError, KeyError):
                answer = httpx.get(
                    f"http://{settings.host}:{settings.port}/api/v1/health", trust_env=False, timeout=5
                )
                if answer.json()["instance"] == settings.instance:
                    return
            time.sleep(0.1)
        raise LaunchError(f"the front door at port {settings.port} does not answer as this instance")

    def _remember(self, settings: Settings) -> None:
        """Tell other commands of this data directory where the books are while we run."""
        announce_books(settings)
        self._parts.callback(forget_books, settings.data_dir)


class Sandbox:
    """The payment sandbox as a process of its own; its secrets and its state stay in the data directory."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._dir = settings.data_dir / "sandbox"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = next(port for port in range(settings.port + 1, settings.port + 100) if is_free(port))

    @property
    def url(self) -> str:
        """Where the twins of the providers answer, Stripe's at the root."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def _wallets(self) -> dict[str, object]:
        """What makes wallets pay its facilitator in play money."""
        network = Settings.model_fields["x402_network"].default
        return {
            "x402_facilitator": f"{self.url}/x402",
            "x402_pay_to": PLAY_ADDRESS,
            "x402_network": network,
        }

    def alive(self) -> bool:
        """Tell whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Settings:
        """Return the settings that make the platform sell through it, once it answers. Raises: LaunchError."""
        self._dir.mkdir(exist_ok=True)
        kept = self._secrets()
        settings = self._settings.model_copy(
            update={
                "stripe_secret_key": kept["secret_key"],
                "stripe_webhook_secret": kept["webhook_secret"],
                "stripe_api_base": self.url,
                "coinbase_api_key_id": COINBASE_KEY_ID,
                "coinbase_api_key_secret": kept["coinbase_key"],
                "coinbase_webhook_secret": kept["coinbase_webhook_secret"],
                "coinbase_api_base": f"{self.url}/coinbase/api/v1",
                "sandbox": True,
            }
            | ({} if self._settings.x402_facilitator else self._wallets)
        )
        settings = Settings.model_validate(settings.model_dump())
        self.stop()
        front = f"http://{self._settings.host}:{self._settings.port}"
        log = (self._dir / "sandbox.log").open("ab")
        self._process = subprocess.Popen(  # noqa: S603  # our own program
            [
                sys.executable, "-m", "sandbox",
                "--host", "127.0.0.1", "--port", str(self._port),
                "--state-file", str(self._dir / "stripe.json"),
                "--webhook-url", f"{front}/api/v1/webhooks/stripe",
                "--crypto-webhook-url", f"{front}/api/v1/webhooks/crypto",
                "--until-stdin-closes",
            ],
            env=environment(
                FAREBOX_SANDBOX_SECRET_KEY=kept["secret_key"],
                FAREBOX_SANDBOX_WEBHOOK_SECRET=kept["webhook_secret"],
                FAREBOX_SANDBOX_COINBASE_KEY_ID=COINBASE_KEY_ID,
                FAREBOX_SANDBOX_COINBASE_KEY=kept["coinbase_key"],
                FAREBOX_SANDBOX_COINBASE_WEBHOOK_SECRET=kept["coinbase_webhook_secret"],
            ),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )  # fmt: skip
        log.close()
        self._wait()
        return settings

    def stop(self) -> None:
        """End it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.communicate(timeout=5)  # closes its input too
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _wait(self) -> None:
        deadline = time.monotonic() + SANDBOX_TIMEOUT_S
        while self.alive() and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/healthz", trust_env=False, timeout=2).is_success:
                    return
            time.sleep(0.1)
        raise LaunchError(f"the payment sandbox did not start; see {self._dir / 'sandbox.log'}")

    def _secrets(self) -> dict[str, str]:
        """Return the secrets of this data directory; one from an earlier version is given what it lacks."""
        path = self._dir / "secrets.json"
        kept: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        made = {
            "secret_key": f"sk_test_{secrets.token_hex(24)}",
            "webhook_secret": f"whsec_{secrets.token_hex(24)}",
            "coinbase_key": base64.b64encode(secrets.token_bytes(32)).decode(),
            "coinbase_webhook_secret": secrets.token_hex(24),
        }
        if kept.keys() < made.keys():
            kept = made | kept
            write_private(path, json.dumps(kept))
        return kept
