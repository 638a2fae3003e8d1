"""The HTTP surface in process: over a stub for what is pure HTTP, over the real books where money moves."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import structlog
from fastapi import FastAPI
from sqlalchemy import text

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from gateway.app import create_app
from gateway.catalog import load_catalog
from gateway.conversations import Began, Conversation, Ended, Event, Said, Took
from gateway.ports import (
    Job,
    JobQuery,
    JobReceipt,
    Ledger,
    ModelState,
    NewFile,
    StoredFile,
    SubmitJob,
)
from gateway.prices import PriceVersion
from gateway.quotas import Quota, Take
from kit.db import Database
from kit.errors import AuthRequired, NotFound
from kit.settings import Settings
from kit.storage import ObjectStore
from ledger.audit import TrialBalance, TrialBalanceRow
from ledger.balances import Balance
from ledger.chain import Block
from ledger.keys import Caller, Credential, hash_key
from ledger.spends import Allowance, Check
from payments.cards import CardCheckout
from payments.stripe_checkout import checkout_for
from sandbox.testing import SECRET_KEY, WEBHOOK_SECRET

STUB_KEY = "amai_live_" + "K" * 43
MOMENT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True, scope="session")
def _short_logs() -> None:
    """Print tracebacks without the locals that structlog shows while nobody configured it."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback, colors=False),
        ]
    )


@dataclass
class StubLedger:
    """Books for tests of pure HTTP: one key, one balance, files in a dictionary. Money has its own tests."""

    calls: list[str] = field(default_factory=list)
    submitted: list[SubmitJob] = field(default_factory=list)
    stored: dict[str, StoredFile] = field(default_factory=dict)
    broken: BaseException | None = None
    last_block: Block | None = None

    def _caller(self, method: str, credential: Credential) -> None:
        self.calls.append(method)
        if self.broken is not None:
            raise self.broken
        if credential.hash != hash_key(STUB_KEY):
            raise AuthRequired

    async def ping(self) -> None:
        self.calls.append("ping")
        if self.broken is not None:
            raise self.broken

    async def take(self, take: Take) -> Quota:
        if self.broken is not None:
            raise self.broken
        return Quota(take.bucket, take.limit, take.window_s, take.limit - 1, take.window_s)

    async def whoami(self, credential: Credential, need: str) -> Caller:
        self._caller("whoami", credential)
        return Caller("user_1", 1, "key_1", "dev@company.com")

    async def balance(self, credential: Credential) -> Balance:
        self._caller("balance", credential)
        return Balance(60_000, 100)

    async def check(self, check: Check) -> Allowance:
        self._caller("check", check.credential)
        return Allowance(
            allowed=True,
            cost_tokens=check.cost_tokens,
            balance_after_tokens=60_000 - check.cost_tokens,
            reason=None,
        )

    async def submit_job(self, command: SubmitJob) -> JobReceipt:
        self._caller("submit_job", command.credential)
        replayed = any(command.idempotency_key == old.idempotency_key for old in self.submitted)
        self.submitted.append(command)
        return JobReceipt(command.job_id, command.task, command.cost_tokens, 59_900, MOMENT, replayed)

    async def submit_job_set(self, commands: list[SubmitJob]) -> list[JobReceipt]:
        return [await self.submit_job(command) for command in commands]

    async def job(self, credential: Credential, job_id: str) -> Job:
        self._caller("job", credential)
        for command in self.submitted:
            if command.job_id == job_id:  # nobody works in the stub
                return Job(
                    job_id, command.task, command.tool, "canceled", command.input, command.cost_tokens, 0, 0, None,
                    False, [], None, None, {}, 0, MOMENT, None, MOMENT,
                )  # fmt: skip
        raise NotFound("job")

    async def jobs(self, query: JobQuery) -> list[Job]:
        self._caller("jobs", query.credential)
        return []

    async def add_file(self, command: NewFile) -> StoredFile:
        self._caller("add_file", command.credential)
        file = StoredFile(
            command.id,
            command.name,
            command.storage_key,
            command.content_type,
            command.size_bytes,
            command.sha256,
            MOMENT,
            None,
        )
        self.stored[file.id] = file
        return file

    async def file(self, credential: Credential, file_id: str) -> StoredFile:
        self._caller("file", credential)
        return await self.signed_file(file_id)

    async def signed_file(self, file_id: str) -> StoredFile:
        if file_id not in self.stored:
            raise NotFound("file")
        return self.stored[file_id]

    async def prices(self) -> list[PriceVersion]:
        if self.broken is not None:
            raise self.broken
        return []

    async def trial_balance(self) -> TrialBalance:
        self.calls.append("trial_balance")
        rows = [TrialBalanceRow("clearing", 1, 1, -60_000), TrialBalanceRow("user", 1, 1, 60_000)]
        return TrialBalance(rows, self.last_block)


@dataclass
class StubModels:
    """Model applications in the states that a test sets."""

    known: dict[str, ModelState] = field(
        default_factory=lambda: {
            task.application: ModelState(task.application, "ready", None)
            for task in load_catalog().tasks.values()
        }
    )

    async def states(self) -> dict[str, ModelState]:
        return self.known


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a server that nobody configured."""
    return Settings(
        data_dir=tmp_path,
        secret="a secret of this test run alone",
        public_url="http://farebox.test",
        instance="nonce",
        max_body_bytes=20_000,
        max_upload_bytes=50_000,
    )


@pytest.fixture
def stub_ledger() -> StubLedger:
    return StubLedger()


@pytest.fixture
def models() -> StubModels:
    return StubModels()


@pytest.fixture
def objects() -> ObjectStore:
    return ObjectStore("memory://")


class BriefChats:
    """A chat model with one answer to everything."""

    async def stream(self, application: str, conversation: Conversation) -> AsyncGenerator[Event, None]:
        yield Began("Brief-1B", None, Took(False, 12, 0, 0.0, 1))
        yield Said("Yes.", [], Took(False, 12, 2, 0.1, 1))
        yield Ended("stop", Took(False, 12, 2, 0.1, 1))


@pytest.fixture
def chats() -> Any:
    """Who answers conversations."""
    return BriefChats()


@pytest.fixture
def stub_app(
    settings: Settings, stub_ledger: StubLedger, models: StubModels, objects: ObjectStore
) -> FastAPI:
    """The surface over the stub, without a payment provider."""
    return create_app(settings, stub_ledger, models, None, objects)  # type: ignore[arg-type]  # what the tests use


@pytest_asyncio.fixture
async def web(stub_app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A stranger's client over the stub."""
    async with _client(stub_app) as client:
        yield client


@pytest_asyncio.fixture
async def caller(stub_app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the stub's key."""
    async with _client(stub_app, STUB_KEY) as client:
        yield client


def _client(app: FastAPI, key: str = "") -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://farebox.test",
        headers={"authorization": f"Bearer {key}"} if key else {},
    )


# -- people ------------------------------------------------------------------------------------------------------


@dataclass
class Person:
    """Somebody with a browser: a cookie jar, and the CSRF token of their session."""

    client: httpx.AsyncClient
    email: str
    csrf_token: str = ""
    user_id: str = ""

    async def post(self, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Write as a page of ours does."""
        return await self.client.post(
            f"/api/v1{path}", json=body or {}, headers={"x-csrf-token": self.csrf_token}
        )

    async def get(self, path: str) -> httpx.Response:
        return await self.client.get(f"/api/v1{path}")


@pytest_asyncio.fixture
async def mailbox(db: Database) -> Callable[[str], Awaitable[list[str]]]:
    """`await mailbox(email)` returns the texts of the mails that wait for an address, oldest first."""

    async def read(email: str) -> list[str]:
        query = text("SELECT body FROM outbox WHERE recipient = :email ORDER BY id")
        async with db.transaction() as conn:
            return list((await conn.scalars(query, {"email": email})).all())

    return read


@pytest_asyncio.fixture
async def code_of(
    client: httpx.AsyncClient, mailbox: Callable[[str], Awaitable[list[str]]]
) -> Callable[[str], Awaitable[str]]:
    """`await code_of(email)` asks for a sign-in code and reads it in the mail."""

    async def ask(email: str) -> str:
        answer = await client.post("/api/v1/auth/email/start", json={"email": email})
        assert answer.status_code == 200, answer.text
        return "".join(re.findall(r"^ +(\d{4}) (\d{4})$", (await mailbox(email))[-1], re.MULTILINE)[0])

    return ask


@pytest_asyncio.fixture
async def person(
    app: FastAPI, code_of: Callable[[str], Awaitable[str]]
) -> AsyncIterator[Callable[..., Awaitable[Person]]]:
    """`await person(email)` signs somebody in with a browser of their own."""
    browsers: list[httpx.AsyncClient] = []

    async def sign_in(email: str = "ada@example.com") -> Person:
        browsers.append(browser := _client(app))
        code = await code_of(email)
        answer = await browser.post("/api/v1/auth/email/verify", json={"email": email, "code": code})
        assert answer.status_code == 200, answer.text
        return Person(browser, email, answer.json()["csrfToken"], answer.json()["userId"])

    yield sign_in
    for browser in browsers:
        await browser.aclose()


# -- the real books ------------------------------------------------------------------------------------------


@dataclass
class Customer:
    """A customer with a client of their own."""

    client: httpx.AsyncClient
    key: str
    email: str

    async def tokens(self) -> int:
        """What is free to spend."""
        return int((await self.client.get("/api/v1/credits/balance")).json()["tokens"])


@pytest_asyncio.fixture
async def server(settings: Settings, fresh_url: str) -> AsyncIterator[LedgerServer]:
    """The real books on a database of this test's own."""
    server = LedgerServer(settings.model_copy(update={"database_url": fresh_url}))
    yield server
    await server.close()


@pytest.fixture
def at_stripe(settings: Settings) -> Callable[[str], Settings]:
    """`at_stripe(url)` are the settings of a shop that sells through Stripe's twin at a URL."""

    def told(url: str) -> Settings:
        provider = {
            "stripe_secret_key": SECRET_KEY,
            "stripe_webhook_secret": WEBHOOK_SECRET,
            "stripe_api_base": url,
        }
        return Settings.model_validate(settings.model_dump() | provider)

    return told


@pytest_asyncio.fixture
async def card_shop(
    at_stripe: Callable[[str], Settings], server: LedgerServer
) -> AsyncIterator[Callable[[str], CardCheckout]]:
    """`card_shop(url)` sells from the real books through Stripe's twin at a URL."""
    made: list[CardCheckout] = []

    def sell(url: str) -> CardCheckout:
        checkout = checkout_for(at_stripe(url), local_ledger(server))
        assert checkout
        made.append(checkout)
        return checkout

    yield sell
    for each in made:
        await each.close()


@pytest.fixture
def ledger(server: LedgerServer) -> Ledger:
    return local_ledger(server)


@pytest.fixture
def app(  # fixtures
    settings: Settings, ledger: Ledger, models: StubModels, objects: ObjectStore, chats: Any
) -> FastAPI:
    """The surface over the real books."""
    return create_app(settings, ledger, models, None, objects, chats=chats)


@pytest_asyncio.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A stranger's client over the real books."""
    async with _client(app) as client:
        yield client


@pytest_asyncio.fixture
async def customer(
    app: FastAPI, db: Database, customers: Callable[..., Awaitable[Any]]
) -> AsyncIterator[Callable[[int], Awaitable[Customer]]]:
    """`await customer(tokens)` opens an account with that much in it and returns its customer."""
    opened: list[httpx.AsyncClient] = []

    async def open_one(tokens: int = 60_000) -> Customer:
        async with db.transaction() as conn:
            made = await customers(conn, tokens)
        opened.append(client := _client(app, made.secret))
        return Customer(client, made.secret, made.email)

    yield open_one
    for client in opened:
        await client.aclose()
