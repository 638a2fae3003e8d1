"""The manual: one text as page and as markdown, true to what the server sells; every sample in it is played."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from deployments.cli import app as farebox
from deployments.ledger import LedgerServer
from gateway.app import create_app
from gateway.leases import Settlement
from gateway.manual import NAMES, drawn
from gateway.ports import StoredFile
from kit.ids import new_id
from kit.settings import Settings
from payments.stripe_checkout import checkout_for
from sandbox.stripe_twin import TwinSettings, create_twin
from sandbox.testing import SECRET_KEY, WEBHOOK_SECRET, running

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?=curl |farebox |[A-Z_]+=)", re.MULTILINE)
PLAYED = {"sh", "json", "python", "py", ""}
"""`py` is played by `test_openai_client`."""


# -- the pages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
async def test_a_chapter_is_a_page_and_markdown_of_the_same_text(web: httpx.AsyncClient, name: str):
    page, text = await web.get(f"/docs/{name}"), await web.get(f"/docs/{name}.md")
    assert (page.status_code, text.status_code) == (200, 200)
    assert text.headers["content-type"] == "text/markdown; charset=utf-8"
    assert page.headers["link"] == f'</docs/{name}.md>; rel="alternate"; type="text/markdown"'
    title, lead, rest = text.text.split("\n\n", 2)
    assert title.startswith("# ")
    assert f"<h1>{title[2:]}</h1>" in page.text
    assert not re.search(r"[`*\[|]", lead), "it is shown as it is"
    assert re.findall(r"^## (.+)$", rest, re.MULTILINE) == re.findall(
        r'<h2 id="(?!verify-title)[^>]+>(.+)</h2>', page.text
    )
    assert len(BLOCK.findall(rest)) == page.text.count("<pre><code")
    assert f'href="/docs/{name}" aria-current="page"' in page.text
    assert "{{" not in text.text
    assert "{%" not in text.text


@pytest.mark.parametrize(
    "path", ["/docs/nowhere", "/docs/nowhere.md", "/docs/errors.txt", "/docs/..%2fapp.py"]
)
async def test_404_for_other_chapters(web, path: str):
    answer = await web.get(path)
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


def test_html_in_a_text_is_shown_and_not_obeyed():
    html = drawn("# Title\n\nLead.\n\n<script>alert(1)</script> [x](javascript:alert(1)) `<b>`")
    assert "<script" not in html
    assert "<b>" not in html
    assert 'href="javascript' not in html


async def test_prices_errors_and_limits_are_those_of_the_server(settings, stub_ledger, models, objects):
    told = settings.model_copy(update={"limit_sensitive_auth": 7, "limit_purchase": 0})
    app = create_app(told, stub_ledger, models, None, objects)
    parts = app.state.parts
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as web:
        tools = (await web.get("/docs/tools.md")).text
        assert all(
            f"| `{tool.name}` | {tool.unit} | {tool.price_text}" in tools
            for tool in parts.catalog.tools.values()
        )
        limits = (await web.get("/docs/rate-limits.md")).text
        assert "| `sensitive_auth` | 7 | 60 s | each user |" in limits
        assert "`purchase`" not in limits
        assert "payments_unavailable" in (await web.get("/docs/payments.md")).text
        errors = (await web.get("/docs/errors.md")).text
    described = {
        code
        for path, methods in app.openapi()["paths"].items()
        if not path.startswith("/v1/")  # they have a chapter of their own
        for operation in methods.values()
        for response in operation["responses"].values()
        for code in response.get("content", {}).get("application/json", {}).get("examples", {})
    }
    assert set(re.findall(r"^\| \d{3} \| `(\w+)`", errors, re.MULTILINE)) == described


# -- for machines --------------------------------------------------------------------------------------------------


async def test_llms_txt_has_the_form_of_llmstxt_org_and_leads_to_all_there_is(web, stub_app):
    answer = await web.get("/llms.txt")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    text = answer.text
    assert re.match(r"# [^\n]+\n\n(> [^\n]+\n)+\n", text), "a title and a summary come first"
    sections = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    assert sections[::2] == ["Guide", "API", "Tasks", "Optional"]
    for body in sections[1::2]:
        for line in body.strip().splitlines():
            assert re.fullmatch(r"- \[[^\]]+\]\(http://farebox\.test/[^)\s]+\): .+", line), line
    for link in set(re.findall(r"\((http://farebox\.test/[^)]+)\)", text)):
        assert (await web.get(link)).status_code in {200, 503}, link  # 503: health, over a stub
    for path, methods in stub_app.openapi()["paths"].items():
        for method in methods:
            assert f"- [{method.upper()} {path}](" in text
    assert [name for name in NAMES if f"/docs/{name}.md)" not in text] == []


async def test_the_plugin_document_points_to_the_openapi_document(web, stub_app):
    answer = await web.get("/.well-known/ai-plugin.json")
    assert answer.headers["content-type"] == "application/json"
    plugin = answer.json()
    assert plugin["schema_version"] == "v1"
    assert plugin["auth"] == {"type": "user_http", "authorization_type": "bearer"}
    assert (await web.get(plugin["api"]["url"])).json() == stub_app.openapi()
    assert (await web.get(plugin["logo_url"])).status_code == 200
    assert re.fullmatch(r"[a-z_]+", plugin["name_for_model"])
    assert all(task in plugin["description_for_model"] for task in stub_app.state.parts.catalog.tasks)


# -- the samples ---------------------------------------------------------------------------------------------------


@pytest.fixture
def twin() -> Iterator[str]:
    told = TwinSettings(
        secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET, webhook_url="http://127.0.0.1:9"
    )
    with running(create_twin(told)) as url:
        yield url


@pytest_asyncio.fixture
async def app(settings: Settings, ledger, models, objects, twin: str) -> AsyncIterator[FastAPI]:
    """The surface over the real books, selling through the twin."""
    configured = Settings(
        **{
            **settings.model_dump(),
            "stripe_secret_key": SECRET_KEY,
            "stripe_webhook_secret": WEBHOOK_SECRET,
            "stripe_api_base": twin,
        }
    )
    checkout = checkout_for(configured, ledger)
    assert checkout is not None
    yield create_app(configured, ledger, models, checkout, objects)
    await checkout.close()


@dataclass
class Reader:
    """Somebody who types what a chapter says, one block after the other."""

    client: httpx.AsyncClient
    server: LedgerServer
    document: dict[str, Any]
    folder: Path
    known: dict[str, str]
    answer: httpx.Response | None = None
    operation: dict[str, Any] = field(default_factory=dict)

    async def read(self, text: str) -> int:
        """Do all that a text says; returns how many commands there were."""
        blocks = BLOCK.findall(text)
        assert {kind for kind, _ in blocks} <= PLAYED
        typed = 0
        for kind, block in blocks:
            if kind == "sh":
                for command in COMMAND.split(block)[1:]:
                    typed += await self.type(command)
            elif kind == "json":
                self.compare(json.loads(block))
            elif kind == "python":
                await asyncio.to_thread(self.run_python, block)
        return typed

    async def type(self, command: str) -> int:
        expanded = re.sub(r"\$([A-Z_]+)", lambda name: self.known[name[1]], command).replace("\\\n", " ")
        words = shlex.split(expanded)
        if words[0] == "curl":
            await self.curl(words[1:])
        elif words[0] == "farebox":
            await self.farebox(words[1:])
        else:
            name, _, value = expanded.strip().partition("=")
            self.known.setdefault(name, shlex.split(value)[0])
            return 0
        return 1

    async def curl(self, words: list[str]) -> None:
        url, method, headers, body, saved = parsed(words)
        self.operation = self.operation_of(method, httpx.URL(url).path)
        if self.operation["operationId"] in {"getJob", "getReceipt", "watchJob"}:
            await self.finish_jobs()
        if body is not None:
            schema = self.operation["requestBody"]["content"]["application/json"]["schema"]
            self.validate(schema, json.loads(body))
        asking = asyncio.create_task(self.client.request(method, url, headers=headers, content=body))
        while self.operation["operationId"] == "createImages" and not asking.done():  # it waits for its job
            await self.finish_jobs()
            await asyncio.sleep(0.02)
        self.answer = await asking
        assert self.answer.is_success, f"{method} {url}: {self.answer.text}"
        if saved:
            (self.folder / saved).write_bytes(self.answer.content)
        if self.answer.headers["content-type"] == "application/json":
            self.validate(self.schema_of_answer(), self.answer.json())
            await self.learn(self.answer.json())

    async def farebox(self, words: list[str]) -> None:
        """Run our command, with the keys out of a file in place of the address that serves them."""
        keys = self.folder / "keys.json"
        keys.write_bytes((await self.client.get(words[words.index("--jwks") + 1])).content)
        words[words.index("--jwks") + 1] = str(keys)
        words[words.index("receipt.json")] = str(self.folder / "receipt.json")
        done = await asyncio.to_thread(CliRunner().invoke, farebox, words)
        assert done.exit_code == 0, done.output
        assert self.known["JOB_ID"] in done.output

    def run_python(self, program: str) -> None:
        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-c", program], cwd=self.folder, capture_output=True, text=True, timeout=60
            )

        done = run()
        assert done.returncode == 0, done.stderr
        assert self.known["JOB_ID"] in done.stdout
        receipt = json.loads((self.folder / "receipt.json").read_text())
        head, payload, signature = receipt["jws"].split(".")
        (self.folder / "receipt.json").write_text(
            json.dumps({"jws": f"{head}.{payload[:-4]}AAAA.{signature}"})
        )
        assert "InvalidSignatureError" in run().stderr, "a changed receipt is refused"

    def compare(self, shown: dict[str, Any]) -> None:
        """Hold what a text shows as an answer against the description, and against the answer that came."""
        if shown["ok"] is False:
            self.validate({"$ref": "#/components/schemas/Problem"}, shown)
            return
        assert self.answer is not None
        self.validate(self.schema_of_answer(), shown)
        assert shown.keys() == self.answer.json().keys()

    async def learn(self, told: dict[str, Any]) -> None:
        """Keep what later commands name; pay where somebody must."""
        match self.operation["operationId"]:
            case "startStripeCheckout":
                self.known["SESSION_ID"] = told["sessionId"]
                async with httpx.AsyncClient() as payer:
                    await payer.post(told["checkoutUrl"], data={"outcome": "pay"})
            case "saveCard":
                async with httpx.AsyncClient() as payer:
                    await payer.post(told["cardUrl"], data={"outcome": "pay", "card": "pm_card_visa"})
            case "claimStripeKey":
                self.known["API_KEY"] = told["apiKey"]
            case "createKey":
                self.known["KEY_PREFIX"] = told["keyPrefix"]
            case "submitJob":
                self.known["JOB_ID"] = told["jobId"]
            case "checkTool" if "hold_id" in told:
                self.known["HOLD_ID"] = told["hold_id"]

    async def finish_jobs(self) -> None:
        """Do the Runner's part."""
        for job in await self.server.claim_jobs("runner", {"image": 10}, 0.0):
            file = StoredFile(
                id=new_id("file"),
                name="0.png",
                storage_key=f"outputs/{job.id}/0.png",
                content_type="image/png",
                size_bytes=6,
                sha256=hashlib.sha256(b"pixels").hexdigest(),
                created_at=datetime.now(UTC),
                job_id=job.id,
            )
            await self.server.settle_job(Settlement(job.id, job.fence, [file], job.quoted_tokens, {}))

    def operation_of(self, method: str, path: str) -> dict[str, Any]:
        for template, methods in self.document["paths"].items():
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path) and method.lower() in methods:
                return dict(methods[method.lower()])
        raise AssertionError(f"{method} {path} is not in the OpenAPI document")

    def schema_of_answer(self) -> dict[str, Any]:
        assert self.answer is not None
        response = self.operation["responses"][str(self.answer.status_code)]
        return dict(response["content"]["application/json"]["schema"])

    def validate(self, schema: dict[str, Any], value: Any) -> None:
        Draft202012Validator({**schema, "components": self.document["components"]}).validate(value)


def parsed(words: list[str]) -> tuple[str, str, dict[str, str], str | None, str | None]:
    """Return the address, method, headers, body and file of a curl command."""
    url, method, headers, body, saved = "", "", {}, None, None
    rest = iter(words)
    for word in rest:
        match word:
            case "-X":
                method = next(rest)
            case "-H":
                name, _, value = next(rest).partition(": ")
                headers[name] = value
            case "-d":
                body = next(rest)
            case "-o":
                saved = next(rest)
            case "-s" | "-N":
                pass
            case _:
                assert word.startswith("http"), f"what is {word}?"
                url = word
    return url, method or ("GET" if body is None else "POST"), headers, body, saved


@pytest_asyncio.fixture
async def reader(app, client, server, customer, tmp_path: Path) -> Reader:
    """A customer with a job under way and a spend behind them."""
    owner = await customer()
    spend = {"tool": "chat", "units": 1, "reference": "req_2026-07-03_abc123"}
    assert (await owner.client.post("/api/v1/tools/spend", json=spend)).status_code == 200
    job = {"task": "image.generate", "input": {"prompt": "a fox"}}
    made = (await owner.client.post("/api/v1/media/jobs", json=job)).json()
    known = {"API_BASE": "http://farebox.test", "API_KEY": owner.key, "JOB_ID": made["jobId"]}
    return Reader(client, server, app.openapi(), tmp_path, known)


@pytest.mark.parametrize("name", NAMES)
async def test_every_sample_works_as_printed(name: str, reader: Reader, client: httpx.AsyncClient):
    text = (await client.get(f"/docs/{name}.md")).text
    assert await reader.read(text) == text.count("\ncurl ") + text.count("\nfarebox ")
