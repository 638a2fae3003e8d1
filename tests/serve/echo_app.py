"""The smallest applications that Serve can run and cannot run, for tests of the head itself.

Replicas import this file by its name: its directory is on their path.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI, Request
from ray import serve
from ray.serve import Application


class Echo:
    """Answers with the process that answered and the directory that it runs in."""


def build_app() -> FastAPI:
    app = FastAPI()

    @app.get("/echo")
    async def echo(request: Request) -> dict[str, object]:
        return {
            "pid": os.getpid(),
            "cwd": str(Path.cwd()),
            "peer": request.client.host if request.client else None,
            "forwarded_for": ",".join(request.headers.getlist("x-forwarded-for")),
            "front": os.environ.get("FAREBOX_FRONT", ""),
        }

    return app


def echo(_args: dict[str, object]) -> Application:
    return serve.deployment(serve.ingress(build_app)(Echo), ray_actor_options={"num_cpus": 0.1}).bind()


class Broken:
    def __init__(self) -> None:
        raise RuntimeError("the weights are not there")


def broken(_args: dict[str, object]) -> Application:
    return serve.deployment(Broken, ray_actor_options={"num_cpus": 0.1}).bind()
