"""Whether money can move and models can work, as `GET /health` tells it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final, Literal

import structlog

from gateway.ports import Ledger, Models, ModelState
from gateway.responses import dump
from kit.errors import AppError
from kit.settings import Settings
from kit.telemetry import errors_total

log = structlog.get_logger(__name__)

PROBE_TIMEOUT_S: Final = 3.0
"""A part that says nothing for three seconds is away, as far as a health check is concerned."""

PaymentsMode = Literal["live", "test", "sandbox", "off"]


class Health:
    """Looks at the parts of this server. The answer is 503 only if money cannot move."""

    def __init__(  # noqa: PLR0913  # the parts that it looks at, and what it says of the rest
        self,
        settings: Settings,
        ledger: Ledger,
        models: Models,
        *,
        applications: Iterable[str],
        version: str,
        payments: PaymentsMode,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._models = models
        self._applications = sorted(set(applications))
        self._version = version
        self._payments = payments

    async def probe(self) -> tuple[int, bytes]:
        """Ask the parts and return the status and the body of the answer. Never raises."""
        ledger_problem, models = await asyncio.gather(self._ledger_problem(), self._model_states())
        report: dict[str, Any] = {
            "version": self._version,
            "instance": self._settings.instance,
            "profile": self._settings.profile,
            "sandbox": self._payments == "sandbox",
            "ledger": {"state": "unavailable" if ledger_problem else "ready", "reason": ledger_problem},
            "payments": {
                "state": "unavailable" if self._payments == "off" else "ready",
                "mode": self._payments,
            },
            "models": models,
        }
        if ledger_problem:
            return 503, dump({"ok": False, "error": "unavailable", "message": ledger_problem} | report)
        whole = self._payments != "off" and all(
            state["state"] == "ready" or state.get("asleep") for state in models.values()
        )
        return 200, dump({"ok": True, "status": "ready" if whole else "degraded"} | report)

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

    async def _model_states(self) -> dict[str, dict[str, Any]]:
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
            name: {
                "state": (state := states.get(name, silent)).state,
                "reason": state.reason,
                "asleep": state.asleep,
                "startsInSeconds": state.starts_in_s,
            }
            for name in self._applications
        }
