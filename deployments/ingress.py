"""The Ingress deployment: mounts the HTTP surface. Serve asks the class for its ASGI application."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from deployments.chats import ChatHandles
from deployments.cold_starts import StartTimes
from deployments.handles import ModelHandles, ledger_call, remote_ledger
from deployments.models.registry import ENTRIES
from gateway.app import create_app
from gateway.worlds import tiny_of
from kit.settings import load_settings
from kit.storage import ObjectStore
from kit.telemetry import configure_logging
from payments.crypto import crypto_for
from payments.stripe_checkout import checkout_for
from payments.x402 import x402_for


class Ingress:
    """Everything a caller touches, over the handles of this Serve instance."""

    def __init__(
        self,
        ledger: DeploymentHandle[Any],
        runner: DeploymentHandle[Any],  # noqa: ARG002
        starts_in_s: dict[str, int] | None = None,
    ) -> None:
        """`runner` is not called: naming it here makes the Runner a part of this application."""
        self._starts_in_s = starts_in_s or {}
        self._settings = load_settings()
        self._ledger = ledger
        configure_logging(self._settings.log_level, self._settings.log_format)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the surface; built in the replica, so that nothing of it is pickled."""
        ledger = remote_ledger(self._ledger)
        scale = self._settings.scale or self._settings.profile
        return create_app(
            self._settings,
            ledger,
            ModelHandles(
                [name for entry in ENTRIES for name in (entry.application, tiny_of(entry.application))],
                StartTimes(ledger_call(self._ledger), scale, self._starts_in_s.get(scale)),
            ),
            checkout_for(self._settings, ledger),
            ObjectStore(self._settings.objects_url),
            chats=ChatHandles(),
            crypto=crypto_for(self._settings, ledger),
            x402=x402_for(self._settings, ledger),
            names_requests=False,  # Serve names each answer after the header that the surface reads
        )
