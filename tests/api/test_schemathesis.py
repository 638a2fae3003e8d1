"""The whole OpenAPI description, played against the real app by Schemathesis with all its checks.

It makes requests that the description allows and such that it forbids, follows one answer into the next request, and
compares every answer with what is described. Seeded: the same requests in each run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from anyio.from_thread import BlockingPortal
from fastapi import FastAPI
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.python import asgi

import gateway.watching
from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from gateway.app import create_app
from kit.db import Database
from kit.settings import Settings
from kit.storage import ObjectStore
from ledger import keys
from payments.crypto import crypto_for
from payments.stripe_checkout import checkout_for
from sandbox.crypto_twin import CryptoSettings, create_crypto_twin
from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.testing import (
    COINBASE_KEY,
    COINBASE_KEY_ID,
    CRYPTO_WEBHOOK_SECRET,
    SECRET_KEY,
    WEBHOOK_SECRET,
    running,
)

EXAMPLES = 5
"""Drawn for each operation, beside about a thousand requests that Schemathesis derives from the description."""
PLAN = {
    "seed": 1,
    "cache": {"enabled": False},
    "continue-on-failure": True,
    "generation": {"max-examples": EXAMPLES, "no-shrink": True, "database": "none", "deterministic": True},
    "max-stream-events": 1,  # a job that nobody works on has no end to wait for
    "phases": {"stateful": {"max-steps": 6}},
}
UNSAYABLE = (
    "differs between the headers and the body",
    "is required; send X-Idempotency-Key",
    "send either `reference` or `jobId`",
    "`reference`; a job has its own",
    "must not be before the first day",
    "the period may have at most",
    "must lie in the future",
    "the signature does not verify",
    "X-Hook0-Signature: ",
    "has no effect at guidance 1",
    "must be an https URL",
    "input: give ",  # one of two fields, or not both
    "is not an e-mail address",
    "This code is wrong",
    "must be an IPv4 or IPv6 address",
    "has bits beyond its prefix",
    "letters and digits",  # a referral code: those of packages are drawn from answers
    "must be at least the package's price",
    "of the package",  # a threshold is at most what the package brings
    "unknown package; on sale are",
    "has no effect on png",
    "content is required",  # but of a message that calls tools
    "no such shape is on offer",
    "unknown voice; there are",
    ".function.parameters.",  # a tool's own schema is free, and so deep that no pattern reaches its texts
)
"""Rules between fields, of time, of names: JSON Schema cannot state them, and these refusals are right."""
TYPELESS = "violates `type` at /properties/file"
"""The bytes of a part have no type: a file that reads `true` is a file, whatever it was drawn as."""
WITHOUT_WALLETS = "Payments from wallets are not configured"
"""A signature cannot be drawn: `test_x402` plays the routes that wallets pay for."""
UNFINISHED = 504
"""Nobody works here, and an answer under `/v1` that waited long enough says so."""
OPERATORS = "/api/v1/operator/"
"""A customer's key is refused there; tests of their own play them."""
UNREACHED = {
    "POST /api/v1/claim/stripe",  # somebody must have paid
    "POST /api/v1/claim/crypto",
    "POST /api/v1/checkout/x402",  # a wallet must sign
    "POST /api/v1/auth/email/verify",  # the code is in a mail
    "POST /api/v1/auth/sign-out",  # only a browser may
    "POST /api/v1/account/delete",
    "POST /api/v1/keys/rotate",  # the prefix must be one key's
    "POST /api/v1/vouchers/redeem",  # somebody must have made it
    "POST /api/v1/test/refill",  # the key is a live one
    "POST /api/v1/referral/apply",  # the code is somebody else's
    "POST /api/v1/webhooks/crypto",
    "POST /api/v1/webhooks/stripe",  # nobody but Stripe can sign
    "PUT /api/v1/account/auto-topup",  # a card must be saved
    "POST /v1/images/generations",  # nobody works here: 504 at once
    "POST /v1/images/edits",
    "POST /v1/audio/speech",
    "POST /v1/audio/transcriptions",
}


@dataclass
class Run:
    """What came of a run."""

    faults: list[str] = field(default_factory=list)
    refusals: set[tuple[str, int, str]] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    phases: set[str] = field(default_factory=set)

    def take(self, event: events.EngineEvent) -> None:
        """Keep what an event tells."""
        if isinstance(event, events.NonFatalError):
            self.faults.append(str(event.info))
        elif isinstance(event, events.FatalError):
            raise event.exception
        elif isinstance(event, events.ScenarioFinished):
            self.phases.add(event.phase.value)

            self._take_scenario(event.recorder)

    def _take_scenario(self, recorder: Any) -> None:
        for case_id, interaction in recorder.interactions.items():
            answer, label = interaction.response, recorder.cases[case_id].value.operation.label
            if answer is None:
                continue
            if answer.status_code < 400:
                self.reached.add(label)
            elif (
                answer.status_code != 405 and "No such path" not in answer.text
            ):  # else it met another operation
                told = answer.json()["error"]
                code = told if isinstance(told, str) else told["code"]  # OpenAI's shape
                self.refusals.add((label, answer.status_code, code))
        for case_id, checks in recorder.checks.items():
            for check in checks:
                if check.failure_info is None:
                    continue
                answer = recorder.interactions[case_id].response
                failure = check.failure_info.failure
                if is_right(check.name, failure.message, answer):
                    continue
                self.faults.append(
                    f"{check.name}: {failure.title}\n{failure.message}\n{check.failure_info.code_sample}\n"
                    f"{answer.status_code} {answer.text[:500]}"
                )


def is_right(check: str, message: str, answer: Any) -> bool:
    """Tell whether an answer is right that a check does not expect."""
    if WITHOUT_WALLETS in answer.text:
        return True
    if check == "not_a_server_error":
        return bool(answer.status_code == UNFINISHED)
    if check == "negative_data_rejection":
        return TYPELESS in message
    return check == "positive_data_acceptance" and any(rule in answer.text for rule in UNSAYABLE)


@pytest.fixture
def portal() -> BlockingPortal:
    """The event loop on which Schemathesis runs the app."""
    return asgi._get_portal()


@pytest.fixture
def twin() -> Iterator[str]:
    """Stripe's twin, whose events go nowhere."""
    told = TwinSettings(
        secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET, webhook_url="http://127.0.0.1:9"
    )
    with running(create_twin(told)) as url:
        yield url


@pytest.fixture
def coin_twin() -> Iterator[str]:
    """Coinbase's twin, whose events go nowhere."""
    told = CryptoSettings(
        COINBASE_KEY_ID, COINBASE_KEY, CRYPTO_WEBHOOK_SECRET, webhook_url="http://127.0.0.1:9"
    )
    with running(create_crypto_twin("coinbase", told)) as url:
        yield url


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No job here ends by itself."""
    monkeypatch.setattr(gateway.watching, "LONGEST_WAIT_S", 0)


@pytest.fixture
def books(fresh_url: str, portal: BlockingPortal) -> Iterator[Database]:
    database = Database(fresh_url, pool_size=1)
    yield database
    portal.call(database.close)


@pytest.fixture
def app(  # noqa: PLR0917  # what it is made of
    settings: Settings,
    fresh_url: str,
    models: Any,
    twin: str,
    coin_twin: str,
    portal: BlockingPortal,
    chats: Any,
) -> Iterator[FastAPI]:
    """The surface over the real books, selling through the twin."""
    told = Settings(
        **{
            **settings.model_dump(),
            "database_url": fresh_url,
            "stripe_secret_key": SECRET_KEY,
            "stripe_webhook_secret": WEBHOOK_SECRET,
            "stripe_api_base": twin,
            "coinbase_api_base": f"{coin_twin}/api/v1",
            "coinbase_api_key_id": COINBASE_KEY_ID,
            "coinbase_api_key_secret": COINBASE_KEY,
            "coinbase_webhook_secret": CRYPTO_WEBHOOK_SECRET,
            # Limits stand in the description and are not what is looked at here.
            "limit_sensitive_auth": 10**6,
            "limit_purchase": 10**6,
            "answer_wait_s": 0,
            "max_body_bytes": 1 << 20,  # what a server has by default: a conversation is long
        }
    )
    server = LedgerServer(told)
    ledger = local_ledger(server)
    checkout = checkout_for(told, ledger)
    assert checkout is not None
    crypto = crypto_for(told, ledger)
    assert crypto is not None
    yield create_app(told, ledger, models, checkout, ObjectStore("memory://"), crypto=crypto, chats=chats)
    portal.call(checkout.close)
    portal.call(crypto.close)
    portal.call(server.close)


def test_the_app_does_what_its_description_says_and_nothing_else(
    app: FastAPI,
    books: Database,
    portal: BlockingPortal,
    customers: Callable[..., Awaitable[Any]],
    assert_sound: Callable[[Database], Awaitable[None]],
):
    async def open_account() -> Any:
        async with books.transaction() as conn:
            return await customers(conn, 10**12)

    async def mint(user_id: str) -> str:
        async with books.transaction() as conn:
            return (await keys.mint(conn, user_id, "test", brand="amai")).secret

    owner = portal.call(open_account)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=SchemathesisConfig.from_dict(PLAN))

    @schema.auth(retry_on=[401])
    class Key:
        """A key of the account, and another one once the run has revoked it."""

        def get(self, case: Any, context: Any) -> str:
            return portal.call(mint, owner.user_id)

        def set(self, case: Any, data: str, context: Any) -> None:
            case.headers["Authorization"] = f"Bearer {data}"

    run = Run()
    for event in from_schema(schema).execute():
        run.take(event)
    assert run.faults == [], "\n\n".join(run.faults)
    assert run.phases == {"examples", "coverage", "fuzzing", "stateful"}
    described = app.openapi()["paths"]
    operations = {
        f"{method.upper()} {path}": each for path in described for method, each in described[path].items()
    }
    # What needs nothing from before has been done, not only refused.
    known = {name for name in operations if "{" not in name and OPERATORS not in name}
    assert known - run.reached <= UNREACHED
    assert [met for met in sorted(run.refusals) if not is_described(operations, *met)] == []
    portal.call(assert_sound, books)


def is_described(operations: dict[str, Any], label: str, status: int, code: str) -> bool:
    response = operations[label]["responses"].get(str(status), {})
    return code in response.get("content", {}).get("application/json", {}).get("examples", {})
