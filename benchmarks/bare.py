"""The floor: a FastAPI app with nothing behind it on one uvicorn process, and ports to run it and the platform on."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

app = FastAPI(openapi_url=None)


@app.get("/bare")
async def bare() -> dict[str, Any]:
    """Answer with JSON of a balance's size."""
    return {"ok": True, "credits": 599.0, "tokens": 59900, "held": {"credits": 1.0, "tokens": 100}}


@app.post("/echo")
async def echo(body: dict[str, Any]) -> dict[str, Any]:
    """Answer with the JSON that was sent."""
    return body


@contextmanager
def bare_server() -> Iterator[str]:
    """Yield the address of the running floor."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "bare:app", "--port", str(port), "--no-access-log"]
    server = subprocess.Popen(command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{url}/bare", trust_env=False)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the bare server did not start"
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def front_port() -> int:
    """Return a front port below the range that outgoing connections take."""
    return 9000 + secrets.randbelow(90) * 10
