"""Whether money can move and models can work, asked at most about once a second however many callers want to know."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import monotonic
from typing import Any, Final

import structlog

from gateway.ports import Ledger, Models, ModelState
from gateway.responses import dump
from kit.errors import AppError
from kit.settings import Settings
from kit.telemetry import errors_total

log = structlog.get_logger(__name__)

KEEP_S: Final = 1.0
"""A load balancer asks every second or two; a flood of callers must not reach the books."""
PROBE_TIMEOUT_S: Final = 3.0
"""A part that says nothing for three seconds is away, as far as a health check is concerned."""


class Health:
    """The state of this server's parts. Callers that come at the same time share one probe."""

    def __init__(  # noqa: PLR0913  # the parts that it looks at, and what it says of the rest
        self,
        settings: Settings,
        ledger: Ledger,
        models: Models,
        *,
        applications: Iterable[str],
        version: str,
        payments: str,
    ) -> None:
        """Watch the ledger and these model applications. `payments`: off, sandbox, test or live."""
        self._applications = sorted(set(applications))
        self._settings = settings
        self._ledger = ledger
        self._models = models
        self._version = version
        self._payments = payments
        self._turn = asyncio.Lock()
        self._answer = b""
        self._status = 503
        self._until = 0.0

    async def answer(self) -> tuple[int, bytes]:
        """Return the status and body of `GET /health`: 503 only if money cannot move."""
        if monotonic() >= self._until:
            async with self._turn:
                if monotonic() >= self._until:
                    await self._probe()
                    self._until = monotonic() + KEEP_S
        return self._status, self._answer

    async def _probe(self) -> None:
        ledger_problem, models = await asyncio.gather(self._ledger_problem(), self._model_states())
        degraded = self._payments == "off" or any(state["state"] != "ready" for state in models.values())
        report: dict[str, Any] = {
            "version": self._version,
            "instance": self._settings.instance,
            "profile": self._settings.profile,
            "sandbox": self._payments == "sandbox",
            "ledger": {"state": "unavailable" if ledger_problem else "ready", "reason": ledger_problem},
            "payments": {"state": "unavailable" if self._payments == "off" else "ready", "mode": self._payments},
            "models": models,
        }
        if ledger_problem:
            self._status = 503
            head: dict[str, Any] = {"ok": False, "error": "unavailable", "message": ledger_problem}
        else:
            self._status = 200
            head = {"ok": True, "status": "degraded" if degraded else "ready"}
        self._answer = dump(head | report)

    async def _ledger_problem(self) -> str | None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._ledger.ping()
        except AppError as error:
            return error.message
        except TimeoutError:
            return f"The ledger did not answer within {PROBE_TIMEOUT_S:.0f} s."
        except Exception:
            errors_total.labels("health").inc()
            log.exception("the ledger's ping failed")
            return "The ledger does not answer."
        return None

    async def _model_states(self) -> dict[str, dict[str, str | None]]:
        states: dict[str, ModelState] = {}
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                states = await self._models.states()
        except TimeoutError:
            log.warning("the models' states did not come in time")
        except Exception:
            errors_total.labels("health").inc()
            log.exception("the models' states could not be had")
        silent = ModelState("", "unavailable", "Its state could not be had.")
        return {
            name: {"state": (state := states.get(name, silent)).state, "reason": state.reason}
            for name in self._applications
        }
