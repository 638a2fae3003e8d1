"""What must not be known: no secret in any log, and nothing of a wrong key in how it is refused."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from sqlalchemy import event

from gateway.middleware import shown_path
from kit import telemetry
from kit.errors import Unavailable
from ledger.keys import hash_key

STUB_KEY = "amai_live_" + "K" * 43
SECRETS = {
    "key": "amai_live_9f2KqXw7Lm4Zr8Vb1Nc6Tp3Yd5Hs0Gj2AeRuQiWoPx",
    "test key": "amai_test_3d8FjKs0Lq5Wn2Xc7Vb4Mz9Pa6Gh1Ty8RuEiQoWpLk",
    "Stripe key": "sk_live_51HqLyjWDarjtT1zdp7dcXy",
    "webhook secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZI",
    "card": "4242424242424242",
    "card in groups": "4000 0566 5566 5556",
    "card with dashes": "3782-822463-10005",
    "code": "493817",
}
OFTEN_WRITTEN = frozenset({"code"})
"""Six digits are also a port, a size, a time: looked for as they were sent, not in what callers name themselves."""


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything that the process logs, at its most talkative, as `farebox` has it logged."""
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    telemetry.configure_logging("debug")
    structlog.configure(**{**structlog.get_config(), "cache_logger_on_first_use": False})
    handler, written = root.handlers[0], io.StringIO()
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(written)
    yield written
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**before)


def requests_with(secret: str, *, names_request: bool) -> Iterator[dict[str, Any]]:
    """A secret in every place that a request has."""
    body = {"task": "image.generate", "input": {"prompt": secret}, "idempotencyKey": secret}
    for path in (
        "/api/v1/balance",
        "/api/v1/tools/spend",
        "/api/v1/claim/stripe",
        "/api/v1/nowhere",
        "/docs/x",
    ):
        for header in (
            "authorization",
            "x-api-key",
            "x-idempotency-key",
            "user-agent",
            "cookie",
            "stripe-signature",
        ):
            value = f"Bearer {secret}" if header == "authorization" else secret
            yield {"method": "POST", "url": path, "headers": {header: value}, "content": b"{}"}
        if names_request:
            yield {"method": "GET", "url": path, "headers": {"x-request-id": secret.replace(" ", "-")}}
        for name in ("code", "key", "api_key", "session_id", "signature", "cursor", secret):
            yield {"method": "GET", "url": path, "params": {name: secret}}
        for sent in (
            body,
            {secret: secret},
            {"label": secret},
            {"sessionId": secret},
            {"units": secret},
            [secret],
        ):
            yield {"method": "POST", "url": path, "json": sent}
        yield {"method": "POST", "url": path, "content": f"{{{secret}".encode()}
        yield {"method": "POST", "url": path, "data": {"card": secret}}
        yield {"method": "POST", "url": "/api/v1/files", "files": {secret: (secret, secret.encode())}}
        yield {"method": "POST", "url": "/api/v1/files", "files": {"file": (secret, secret.encode())}}
    for path in (
        "/{}",
        "/api/v1/keys/{}",
        "/api/v1/media/jobs/{}",
        "/api/v1/files/{}/content",
        "/docs/{}",
        "/a/{}/b",
    ):
        for method in ("GET", "POST", "DELETE", "BREW"):
            yield {"method": method, "url": path.format(secret)}


def assert_silent(written: io.StringIO, *, at_least: int) -> None:
    """Nothing that was logged holds a secret, whole or in any notation that gives it away."""
    lines = written.getvalue().splitlines()
    assert len([line for line in lines if json.loads(line)["event"] == "request"]) >= at_least
    text = "\n".join(lines)
    for name, secret in SECRETS.items():
        bare = re.sub(r"[ -]", "", secret.rpartition("_")[2])
        for form in {secret, bare, secret.replace(" ", "%20"), secret.replace(" ", "+")}:
            assert form not in text, (name, next(line for line in lines if form in line))


@pytest.mark.parametrize("name", SECRETS)
async def test_no_secret_of_a_request_is_logged(app, customer, logged, name: str):
    owner = await customer()
    sent = 0
    for request in requests_with(SECRETS[name], names_request=name not in OFTEN_WRITTEN):
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://t"
        ) as stranger:
            for client in (owner.client, stranger):
                answer = await client.request(**request)
                assert answer.status_code != 500, answer.text
                sent += 1
    assert_silent(logged, at_least=sent // 2)
    assert owner.key not in logged.getvalue()


@pytest.mark.parametrize("name", sorted(SECRETS.keys() - OFTEN_WRITTEN))
async def test_no_secret_in_an_error_of_ours_is_logged(caller, stub_ledger, logged, name: str):
    secret = SECRETS[name]
    for broken in (ZeroDivisionError(f"could not read {secret}"), Unavailable(f"The ledger of {secret}", 2)):
        stub_ledger.broken = broken
        broken.__cause__ = ValueError(f"for {secret}: code=493817 signature={secret}")
        answer = await caller.get("/api/v1/balance", headers={"x-api-key": STUB_KEY})
        assert answer.status_code >= 500
    assert "Traceback" in logged.getvalue()
    assert_silent(logged, at_least=2)
    assert STUB_KEY not in logged.getvalue()


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/api/v1/media/jobs/job_01k8z0c6m5n7q2r4t6v8x0y2z4/cancel",) * 2,
        ("/.well-known/jwks.json",) * 2,
        ("/api/v1/keys/amai_live_9f2KqXw7Lm4Zr8Vb1Nc6", "/api/v1/keys/*"),
        ("/verify/493817", "/verify/*"),
        ("/cs_test_a1B2c3", "/*"),
        ("/" + "q" * 25, "/*"),
        ("/a b/\x1b[2J", "/*/*"),
        ("/" + "ab/" * 1000, "/" + "ab/" * 66 + "a"),
    ],
)
def test_a_logged_path_holds_words_and_ids_alone(path: str, shown: str):
    assert shown_path(path) == shown


# -- wrong keys ----------------------------------------------------------------------------------------------------


async def test_only_the_hash_of_a_whole_key_reaches_postgres_and_its_work_is_always_the_same(
    customer, client, server
):
    """A hash tells nothing of how much of the key is right, so neither does the work that is done with it."""
    owner = await customer()
    brand, _, secret = owner.key.rpartition("_")
    other = {"A": "B"}
    wrong = [
        f"{brand}_{secret[:place]}{other.get(secret[place], 'A')}{secret[place + 1 :]}"
        for place in range(len(secret))
    ]
    wrong.append(f"{brand}_{'Z' * len(secret)}")
    seen: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        seen.append((statement, parameters))

    work, bodies = set(), set()
    event.listen(server._db.engine.sync_engine, "before_cursor_execute", note)
    try:
        for key in wrong:
            seen.clear()
            answer = await client.get("/api/v1/balance", headers={"x-api-key": key})
            assert answer.status_code == 401
            bodies.add(answer.content)
            work.add(tuple(statement for statement, _ in seen))
            sent = repr([parameters for _, parameters in seen])
            assert repr(hash_key(key))[2:-1] in sent or hash_key(key).hex() in sent
            assert secret[:8] not in sent
            assert secret[-8:] not in sent
    finally:
        event.remove(server._db.engine.sync_engine, "before_cursor_execute", note)
    assert len(work) == len(bodies) == 1
    assert (await client.get("/api/v1/balance", headers={"x-api-key": owner.key})).status_code == 200
