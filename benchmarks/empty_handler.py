"""The platform with one route more, which does nothing: what an answer costs before any work is done for it.

Replicas import this file by its name: its directory is on their path.
"""

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.app import FareboxArgs
from deployments.ingress import Ingress
from deployments.ledger import LedgerServer
from deployments.runner import RunnerServer

ANSWER = b'{"ok":true,"charged":5,"balance_after":9990}'


async def empty(_: Request) -> Response:
    """Answer what a spend answers."""
    return Response(ANSWER, media_type="application/json")


class IngressWithEmpty(Ingress):
    """The surface and `POST /empty`, matched first, as the hot routes are."""

    async def __serve_build_asgi_app__(self) -> FastAPI:
        app = await super().__serve_build_asgi_app__()
        app.router.routes.insert(0, Route("/empty", empty, methods=["POST"]))
        return app


def farebox(args: FareboxArgs) -> Application:
    """Build what `deployments.app.farebox` builds, over this ingress."""
    ledger = serve.deployment(name="Ledger")(LedgerServer).bind()
    runner = serve.deployment(name="Runner")(RunnerServer).bind(ledger, args.places)
    return serve.deployment(name="Ingress")(serve.ingress()(IngressWithEmpty)).bind(ledger, runner)
