"""Over real sockets: what in-process clients cannot show - connections, chunks, bodies without end."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client import REGISTRY

from sandbox.testing import running

KEY = "amai_live_" + "K" * 43


@pytest.fixture
def address(stub_app) -> Iterator[tuple[str, int]]:
    with running(stub_app) as url:
        host, port = urlsplit(url).netloc.split(":")
        yield host, int(port)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def counted(name: str, labels: dict[str, str]) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


def head(path: str, *headers: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: t",
        f"x-api-key: {KEY}",
        "Content-Type: application/json",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_a_client_that_writes_all_before_it_reads_gets_its_413(address: tuple[str, int]):
    """Without reading the rest, the kernel would reset the connection and throw the answer away."""
    body = b" " * 3_000_000
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(head("/api/v1/media/jobs", f"Content-Length: {len(body)}") + body)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"] == "payload_too_large"


def test_a_chunked_body_is_stopped_while_it_is_read(address: tuple[str, int]):
    chunk = b"2710\r\n" + b" " * 10_000 + b"\r\n"
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(
            head("/api/v1/media/jobs", "Transfer-Encoding: chunked") + chunk * 200 + b"0\r\n\r\n"
        )
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_a_client_that_asks_first_is_told_no_before_it_sends(address: tuple[str, int]):
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(head("/api/v1/media/jobs", "Content-Length: 3000000", "Expect: 100-continue"))
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer


def test_a_connection_goes_on_after_a_refusal(address: tuple[str, int]):
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", headers={"x-api-key": KEY}) as client:
        for _ in range(3):
            assert client.post(
                "/api/v1/media/jobs", content=b"{", headers={"content-type": "application/json"}
            ).is_error
            assert client.get("/api/v1/credits/balance").status_code == 200
            assert client.head("/api/v1/packages").content == b""


def test_a_caller_who_hangs_up_in_the_middle_of_a_body_is_no_error_of_ours(
    address: tuple[str, int], stub_ledger
):
    hung_up = {"method": "POST", "route": "/api/v1/media/jobs", "status": "499"}
    failed = {"edge": "http"}
    hung_up_before = counted("farebox_http_requests_total", hung_up)
    failed_before = counted("farebox_unexpected_errors_total", failed)
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(head("/api/v1/media/jobs", "Content-Length: 1000") + b'{"task": ')
    deadline = time.monotonic() + 20
    while counted("farebox_http_requests_total", hung_up) == hung_up_before:
        assert time.monotonic() < deadline, "the server did not notice"
        time.sleep(0.01)
    assert counted("farebox_unexpected_errors_total", failed) == failed_before
    assert stub_ledger.submitted == []


def test_a_download_is_streamed_with_its_length(address: tuple[str, int]):
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", headers={"x-api-key": KEY}) as client:
        data = b"\x89PNG\r\n\x1a\n" + bytes(40_000)
        file = client.post("/api/v1/files", files={"file": ("a.png", data)}).json()
        answer = client.get(f"/api/v1/files/{file['id']}/content")
    assert answer.content == data
    assert answer.headers["content-length"] == str(len(data))
    assert "transfer-encoding" not in answer.headers
