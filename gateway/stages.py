"""The stages of a job, as its owner sees them: which there are, which is at work, how far each is.

A job has stages where several models work on it one after the other. They are kept as JSON beside the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

StageState = Literal["waiting", "running", "done", "stopped"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a job. `stopped`: the job ended in it. Units: `fraction` from 0 to 1."""

    name: str
    state: StageState
    fraction: float


def as_json(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return stages as they are kept and shown."""
    return [{"name": each.name, "state": each.state, "fraction": each.fraction} for each in stages]


def as_seen(kept: Sequence[dict[str, Any]] | None, status: str) -> list[Stage]:
    """Return kept stages in the light of their job's status: nothing runs in one that waits or has ended."""
    if status == "succeeded":
        return [Stage(each["name"], "done", 1.0) for each in kept or ()]
    return [Stage(each["name"], _state(each["state"], status), each["fraction"]) for each in kept or ()]


def at_work(stages: Sequence[Stage]) -> str | None:
    """Return the stage that is running."""
    return next((each.name for each in stages if each.state == "running"), None)


def _state(kept: StageState, status: str) -> StageState:
    if kept != "running" or status == "running":
        return kept
    return "waiting" if status == "queued" else "stopped"
