"""Bad input on every route that takes any: never a 500, never a hang, nothing written, and the fault has its name.

The routes, their fields and a good request of each come from the OpenAPI document, so that a new route is tried too.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import text

import gateway.bodies
from gateway.app import create_app
from kit.db import Database
from kit.settings import Settings
from sandbox.testing import running

JSON = {"content-type": "application/json"}
SECRET = "amai_live_" + "K" * 43
RAW = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[1]",
    "a text": b'"x"',
    "null": b"null",
    "raw NUL": b'{"a": "\x00"}',
    "half a character": b'{"a": "\xed\xa0\x80"}',
    "other encoding": '{"a": 1}'.encode("utf-16"),
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a deep field": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a name twice": b'{"a": 1, "a": 2}',
    "a name with NUL": rb'{"a\u0000b": 1}',
    "a number of a megabyte": b'{"a": ' + b"9" * 1_000_000 + b"}",
    "a fraction of a megabyte": b'{"a": 0.' + b"0" * 1_000_000 + b"1}",
    "10 MB": b'{"a": "' + b"x" * 10_000_000 + b'"}',
}
TEXTS = {
    "NUL": r'"a\u0000b"',
    "an escape": r'"a\u001b[2Jb"',
    "a lone surrogate": r'"\ud800"',
    "a number": "7",
    "a list": "[]",
    "an object": "{}",
    "true": "true",
    "much": json.dumps("x" * 5000),
}
NUMBERS = {
    "NaN": "NaN",
    "Infinity": "Infinity",
    "minus Infinity": "-Infinity",
    "1e308": "1e308",
    "past Decimal": "1e99999999999999999999",
    "nearly nothing": "1e-99999999999999999999",
    "past int": "9" * 5000,
    "negative": "-1",
    "zero": "0",
    "a text": '"1"',
    "true": "true",
    "a list": "[]",
    "an object": "{}",
    "finer than money": "0.00000000001",
}
"""Not all are wrong for all numbers."""
ZERO: Final = ("overlapSeconds", "temperature", "seed")
"""What may be 0: an old secret ends at once, the likeliest word is taken, one seed is as good as another."""
HOSTILE = (
    "'; DROP TABLE api_keys; --",
    "' OR '1'='1",
    "{{7*7}}${7*7}<%=7*7%>#{7*7}",
    "../../../../etc/passwd",
    "<script>alert(1)</script>",
    "%s%n%x$(id)`id`",
    "\N{RIGHT-TO-LEFT OVERRIDE}\N{ZERO WIDTH SPACE}\N{PILE OF POO}",
)
COUNTED = "rate_counters"
"""The one table that a refused request may write to: it was counted."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The body limit that a server has by default; limits out of the way."""
    return settings.model_copy(
        update={
            "max_body_bytes": 1 << 20,
            "limit_sensitive_auth": 10**6,
            "limit_purchase": 10**6,
            "limit_referral_apply": 10**6,
        }
    )


@pytest_asyncio.fixture
async def owner(customer):
    return await customer(10_000)


@pytest_asyncio.fixture
async def send(owner, person):
    """`await send(method, path, operation, **request)` asks with a key, or as a browser where none will do."""
    browser = await person("ada@company.com")

    async def ask(
        method: str, path: str, operation: dict[str, Any], headers: Any = (), **request: Any
    ) -> httpx.Response:
        pairs = [*(headers.items() if isinstance(headers, dict) else headers)]
        if operation.get("security") != [{"session": []}]:
            return await owner.client.request(method, path, headers=pairs, **request)
        csrf = "x-csrf-token" if not pairs or isinstance(pairs[0][0], str) else b"x-csrf-token"
        pairs.append((csrf, browser.csrf_token if isinstance(csrf, str) else browser.csrf_token.encode()))
        return await browser.client.request(method, path, headers=pairs, **request)

    return ask


def operations(app: FastAPI) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each operation for callers; an operator's refuse a customer's key before they look at anything else."""
    for path, methods in app.openapi()["paths"].items():
        if path.startswith("/api/v1/operator/"):
            continue
        for method, operation in methods.items():
            yield method.upper(), path, operation


def takes_json(app: FastAPI) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Each operation with a JSON body, with a good body."""
    for method, path, operation in operations(app):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        if "examples" in content:
            richest = max(content["examples"].values(), key=lambda each: len(each["value"]))
            yield method, path, operation, richest["value"]


async def counts(db: Database) -> dict[str, int]:
    async with db.transaction() as conn:
        tables = (
            await conn.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
        ).scalars()
        return {
            table: (await conn.execute(text(f'SELECT count(*) FROM "{table}"'))).scalar_one()
            for table in sorted(tables)
            if table != COUNTED
        }


def refused(answer: httpx.Response, statuses: set[int], field: str | None = None) -> str | None:
    """Say what is wrong with a refusal; None: nothing."""
    if answer.status_code not in statuses:
        return f"{answer.status_code} {answer.text[:200]}"
    problem = answer.json()
    if isinstance(problem["error"], dict):  # OpenAI's shape
        told = problem["error"]
        problem = {
            "ok": False,
            "error": told["code"],
            "message": told["message"],
            "details": told.get("details", []),
        }
    if problem["ok"] is not False or not problem["error"] or not problem["message"]:
        return f"no problem: {problem}"
    if field is not None and all(fault["field"] != field for fault in problem["details"]):
        return f"names {[fault['field'] for fault in problem['details']]} in place of {field}"
    return None


def with_field(body: dict[str, Any], name: str, written: str) -> str:
    """Return the body with one field as it is written here."""
    rest = [f"{json.dumps(each)}: {json.dumps(value)}" for each, value in body.items() if each != name]
    return "{" + ", ".join([*rest, f"{json.dumps(name)}: {written}"]) + "}"


async def test_no_body_breaks_a_route(app, send, db):
    before, faults, tried = await counts(db), [], 0
    for method, path, operation, _ in takes_json(app):
        for title, raw in RAW.items():
            answer = await send(method, path, operation, content=raw, headers=JSON)
            tried += 1
            if fault := refused(answer, {413} if len(raw) > 1 << 20 else {400}):
                faults.append((path, title, fault))
    assert faults == []
    assert tried >= 8 * len(RAW)
    assert await counts(db) == before


async def test_a_bad_text_is_refused_by_its_name(app, send, db):
    before, faults, tried = await counts(db), [], 0
    for method, path, operation, body in takes_json(app):
        for name, value in body.items():
            if not isinstance(value, str):
                continue
            for title, written in TEXTS.items():
                sent = with_field(body, name, written)
                answer = await send(method, path, operation, content=sent, headers=JSON)
                tried += 1
                if fault := refused(answer, {400}, name):
                    faults.append((path, name, title, fault))
    assert faults == []
    assert tried >= 10 * len(TEXTS)
    assert await counts(db) == before


async def test_a_bad_number_is_refused_by_its_name(app, send, db):
    before, faults, tried = await counts(db), [], 0
    for method, path, operation, body in takes_json(app):
        for name, value in body.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            for title, written in NUMBERS.items():
                if (title == "zero" and name in ZERO) or (title, name) == ("finer than money", "temperature"):
                    continue
                sent = with_field(body, name, written)
                answer = await send(method, path, operation, content=sent, headers=JSON)
                tried += 1
                if fault := refused(answer, {400}, name):
                    faults.append((path, name, title, fault))
    assert faults == []
    assert tried >= 4 * len(NUMBERS)
    assert await counts(db) == before


@pytest.mark.parametrize("written", NUMBERS.values(), ids=NUMBERS)
async def test_bad_units_are_refused_by_their_name(owner, db, written: str):
    before = await counts(db)
    for route, rest in (("check", '"hold": true'), ("spend", '"reference": "r"')):
        sent = f'{{"tool": "chat", "units": {written}, {rest}}}'
        answer = await owner.client.post(f"/api/v1/tools/{route}", content=sent, headers=JSON)
        assert refused(answer, {400}, "units") is None, answer.text
    assert await counts(db) == before


async def test_an_unknown_field_is_refused_by_its_name_and_a_field_twice_too(app, send, db):
    before, faults = await counts(db), []
    for method, path, operation, body in takes_json(app):
        name = next(iter(body))
        twice = json.dumps(body)[:-1] + f", {json.dumps(name)}: {json.dumps(body[name])}}}"
        for sent, field in ((json.dumps({**body, "surprise": 1}), "surprise"), (twice, name)):
            answer = await send(method, path, operation, content=sent, headers=JSON)
            if fault := refused(answer, {400}, field):
                faults.append((path, field, fault))
    assert faults == []
    assert await counts(db) == before


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {"content-type": "application/json\x80"},
        {"content-type": "x" * 5000},
    ],
    ids=lambda headers: str(headers)[:40],
)
async def test_other_types_are_refused(app, send, db, headers: dict[str, str]):
    before, faults = await counts(db), []
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    for method, path, operation, body in takes_json(app):
        answer = await send(method, path, operation, content=json.dumps(body), headers=raw)
        if fault := refused(answer, {415}):
            faults.append((path, fault))
    assert faults == []
    assert await counts(db) == before


async def test_no_path_or_query_breaks_a_route(app, send, db):
    values = [*HOSTILE, "\x00", "a\r\nx-evil: 1", "x" * 300, "x" * 5000, "-1", "1e308", "9" * 400, "NaN", ""]
    before, faults, tried = await counts(db), [], 0
    for method, path, operation in operations(app):
        for parameter in operation.get("parameters", ()):
            place, name = parameter["in"], parameter["name"]
            for value in [quote(value, safe="") for value in values] + ["%ff%fe", "%ed%a0%80"]:
                if place == "path":
                    address = path.replace(f"{{{name}}}", value)
                elif place == "query":
                    address = f"{path}?{name}={value}".replace("{job_id}", "job_x").replace(
                        "{file_id}", "file_x"
                    )
                else:
                    continue
                answer = await send(method, address, operation)
                tried += 1
                if answer.status_code >= 400 and (fault := refused(answer, {400, 404, 405, 415})):
                    faults.append((address[:120], fault))
                if "x-evil" in answer.headers:
                    faults.append((address[:120], "a header was injected"))
    assert faults == []
    assert tried > 300
    assert await counts(db) == before


@pytest.mark.parametrize("value", ["", "k" * 256, "k" * 5000, "a\tb", b"\xe4", b"\xff\xfe", '""', "\x7f"])
async def test_a_bad_idempotency_key_is_refused_by_its_name(app, send, db, value: str | bytes):
    before, faults = await counts(db), []
    raw = value if isinstance(value, bytes) else value.encode()
    for method, path, operation, body in takes_json(app):
        for parameter in operation.get("parameters", ()):
            if "idempotency" not in parameter["name"]:
                continue
            good = {name: each for name, each in body.items() if name != "idempotencyKey"}
            headers = [(b"content-type", b"application/json"), (parameter["name"].encode(), raw)]
            answer = await send(method, path, operation, content=json.dumps(good), headers=headers)
            if fault := refused(answer, {400}, "idempotencyKey"):
                faults.append((path, parameter["name"], fault))
    assert faults == []
    assert await counts(db) == before


async def test_idempotency_keys_that_differ_are_refused_wherever_they_stand(app, send, db):
    before, faults, tried = await counts(db), [], 0
    for method, path, operation, body in takes_json(app):
        if not any("idempotency" in parameter["name"] for parameter in operation.get("parameters", ())):
            continue
        places = [{"x-idempotency-key": "a", "idempotency-key": "b"}]
        if "tools" not in path:
            places.append({"Idempotency-Key": "b"})
            body = {**body, "idempotencyKey": "a"}  # noqa: PLW2901
        for headers in places:
            answer = await send(method, path, operation, content=json.dumps(body), headers=JSON | headers)
            tried += 1
            if fault := refused(answer, {400}, "idempotencyKey"):
                faults.append((path, fault))
    assert faults == []
    assert tried >= 8
    assert await counts(db) == before


async def test_two_keys_that_differ_are_refused_everywhere(app, owner, client, db):
    before, faults, tried = await counts(db), [], 0
    other = "amai_live_" + "K" * 43
    for method, path, operation in operations(app):
        if {"bearer": []} not in operation.get("security", ()):  # elsewhere a key is of no use
            continue
        address = path.replace("{job_id}", "job_" + "0" * 26).replace("{file_id}", "file_" + "0" * 26)
        for headers in (
            {"Authorization": f"Bearer {owner.key}", "x-api-key": other},
            {"AUTHORIZATION": f"bearer {other}", "X-API-KEY": owner.key},
        ):
            answer = await client.request(
                method,
                address,
                headers=headers | JSON,
                content=b'{"email": "a@company.com", "packageCode": "x"}',
            )
            tried += 1
            if fault := refused(answer, {400}, "x-api-key"):
                faults.append((path, fault))
    assert faults == []
    assert tried > 30
    assert await counts(db) == before


@pytest.mark.parametrize("name", ["AUTHORIZATION", "aUtHoRiZaTiOn", "X-API-KEY", "X-Api-Key"])
async def test_header_names_have_no_case(client, owner, name: str):
    value = f"BEARER {owner.key}" if "u" in name.lower()[:2] else owner.key
    assert (await client.get("/api/v1/balance", headers={name: value})).status_code == 200
    spent = [
        await client.post(
            "/api/v1/credits/consume",
            headers={name: value, header: "once"},
            json={"credits": 1, "reason": "a retry"},
        )
        for header in ("X-IDEMPOTENCY-KEY", "idempotency-KEY")
    ]
    assert [answer.status_code for answer in spent] == [200, 200]
    assert spent[1].headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("value", HOSTILE)
async def test_metacharacters_are_text_and_come_back_as_they_were(owner, db, value: str):
    before = await counts(db)
    made = await owner.client.post("/api/v1/keys", json={"label": value})
    assert made.status_code == 200
    listed = (await owner.client.get("/api/v1/keys")).json()["keys"]
    assert value in [key["label"] for key in listed]
    spent = await owner.client.post(
        "/api/v1/tools/spend", json={"tool": "chat", "units": 1, "reference": value}
    )
    assert spent.status_code == 200, spent.text
    cost = await owner.client.get("/api/v1/cost", params={"reference": value})
    assert (cost.status_code, cost.json()["reference"]) == (200, value)
    after = await counts(db)
    assert after.keys() == before.keys()
    assert after["api_keys"] == before["api_keys"] + 1
    assert await owner.tokens() == 9_995


@pytest.mark.parametrize("length", [255, 256, 300])
async def test_a_reference_has_at_most_255_characters(owner, db, length: int):
    before = await counts(db)
    body = {"tool": "chat", "units": 1, "reference": "r" * length}
    answer = await owner.client.post("/api/v1/tools/spend", json=body)
    if length <= 255:
        assert answer.status_code == 200
        return
    assert refused(answer, {400}, "reference") is None, answer.text
    assert await counts(db) == before
    asked = await owner.client.get("/api/v1/cost", params={"reference": "r" * length})
    assert refused(asked, {400}, "reference") is None, asked.text


@pytest.mark.parametrize(
    ("form", "field"),
    [
        (b"", "file"),
        (b"--x\r\n", "file"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n", "body"),
        (b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\na\r\n--x--\r\n', "file"),
        (b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\r\n--x--\r\n', "file"),
        (b'--x\r\nContent-Disposition: form-data; name="f\x00"; filename="a"\r\n\r\nx\r\n--x--\r\n', None),
        (b"\x00" * 5000, "body"),
    ],
)
async def test_a_bad_form_is_refused_and_nothing_is_kept(owner, db, objects, form: bytes, field: str | None):
    before = await counts(db)
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = await owner.client.post("/api/v1/files", content=form, headers=headers)
    assert refused(answer, {400}, field) is None, answer.text
    assert await counts(db) == before


@pytest.mark.parametrize(
    "name", ["../../x\r\nx-evil: 1.png", "'; DROP TABLE files; --.png", "\N{FOX FACE}.png", "x" * 300]
)
async def test_a_files_name_is_never_a_path_or_a_header(owner, name: str):
    made = await owner.client.post("/api/v1/files", files={"file": (name, b"\x89PNG\r\n\x1a\n" + bytes(100))})
    assert made.status_code == 200, made.text
    answer = await owner.client.get(f"/api/v1/files/{made.json()['id']}/content")
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    assert not set("/\\\r\n") & set(made.json()["name"])


# -- over a socket -------------------------------------------------------------------------------------------------


@pytest.fixture
def connect(settings, stub_ledger, models, objects) -> Iterator[Callable[[], socket.socket]]:
    """`connect()` opens a connection to a real server."""
    with running(create_app(settings, stub_ledger, models, None, objects)) as url:
        host, port = urlsplit(url).netloc.split(":")
        yield lambda: socket.create_connection((host, int(port)), timeout=30)


def ask(connect: Callable[[], socket.socket], request: bytes) -> bytes:
    with connect() as connection:
        connection.sendall(request)
        return read(connection)


def read(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def head(*lines: str, path: str = "/api/v1/tools/spend") -> bytes:
    fixed = [f"POST {path} HTTP/1.1", "Host: t", f"x-api-key: {SECRET}", "Content-Type: application/json"]
    return ("\r\n".join([*fixed, *lines]) + "\r\n\r\n").encode("latin-1")


def test_a_body_that_does_not_come_is_given_up(connect, stub_ledger, monkeypatch):
    monkeypatch.setattr(gateway.bodies, "BODY_TIMEOUT_S", 0.3)
    for sent in (b"", b'{"tool": '):
        with connect() as connection:
            connection.sendall(head("Content-Length: 100", "Connection: close") + sent)
            answer = read(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert json.loads(answer.split(b"\r\n\r\n")[1])["details"][0]["field"] == "body"
    assert stub_ledger.calls == []


def test_a_body_in_drips_is_read_or_given_up_and_others_are_served_meanwhile(
    connect, stub_ledger, monkeypatch
):
    monkeypatch.setattr(gateway.bodies, "BODY_TIMEOUT_S", 1.0)
    with connect() as slow:
        slow.sendall(head("Content-Length: 100000", "Connection: close"))
        started = time.monotonic()
        for _ in range(3):
            slow.sendall(b" ")
            answer = ask(connect, b"GET /api/v1/packages HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
        assert read(slow).startswith(b"HTTP/1.1 400 ")
        assert time.monotonic() - started < 25
    assert stub_ledger.calls == []


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 2", "Transfer-Encoding: chunked"],
        ["Content-Length: -1"],
        ["Content-Length: 2", "Content-Length: 3"],
        ["Content-Length: 9" + "9" * 30],
        ["Transfer-Encoding: gibberish"],
        ["x-evil: a\x00b", "Content-Length: 0"],
        ["no colon at all", "Content-Length: 0"],
        [": no name", "Content-Length: 0"],
        ["x: " + "y" * 200_000, "Content-Length: 0"],
    ],
    ids=lambda lines: lines[0][:30],
)
def test_a_broken_head_is_refused_and_the_server_goes_on(connect, stub_ledger, lines: list[str]):
    with connect() as connection:
        try:
            connection.sendall(head(*lines, "Connection: close") + b"{}")
            connection.shutdown(socket.SHUT_WR)
            answer = read(connection)
        except ConnectionError:  # hung up on in the middle of a head without end
            answer = b""
    assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 5"))
    assert stub_ledger.calls == []
    again = ask(connect, b"GET /api/v1/packages HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
    assert again.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("header", ["x-request-id", "x-idempotency-key", "x-api-key", "origin"])
def test_a_line_end_in_a_header_makes_no_other_header(connect, header: str):
    request = head(f"{header}: a\r\n\tx-evil: 1\rx-evil: 2", "Content-Length: 2", "Connection: close") + b"{}"
    answer = ask(connect, request)
    assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 5"))
    assert b"x-evil" not in answer.lower()
