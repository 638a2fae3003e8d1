"""Models under `/v1`: their public names, and the task that a name means at a route.

A model's name is that of the catalogue in lower case, with a hyphen for a blank (`whisper-large-v3-turbo`). The name of
a task (`audio.transcribe`) does too: it means whatever model does that task now.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, time
from typing import Any, Final

from gateway.catalog import Catalog, Task
from gateway.openai_errors import ModelNotFound
from gateway.ports import ModelState
from gateway.responses import amount

OWNER: Final = "farebox"
"""Clients want a name here; who made a model stands in its own card."""


def public_name(model: str) -> str:
    """Return a model's name as callers write it."""
    return "-".join(model.lower().split())


def models_of(catalog: Catalog) -> dict[str, list[Task]]:
    """Return the tasks of each model on sale, by the model's public name."""
    found: dict[str, list[Task]] = {}
    for task in catalog.tasks.values():
        found.setdefault(public_name(task.tool.model), []).append(task)
    return found


def tasks_named(catalog: Catalog, model: str) -> list[Task]:
    """Return what a model does; the name of a task means that one alone. Raises: ModelNotFound."""
    if (task := catalog.tasks.get(model)) is not None:
        return [task]
    models = models_of(catalog)
    if (tasks := models.get(public_name(model))) is not None:
        return tasks
    raise ModelNotFound(model[:100], list(models))


def task_for(catalog: Catalog, name: str, model: str | None) -> Task:
    """Return a route's task, if this model does it; None: whichever does. Raises: ModelNotFound."""
    task = catalog.tasks.get(name)
    known = [public_name(task.tool.model), name] if task else []
    if task is None or (model is not None and model != name and public_name(model) != known[0]):
        raise ModelNotFound((model or name)[:100], known)
    return task


def shown(name: str, tasks: list[Task], states: Mapping[str, ModelState]) -> dict[str, Any]:
    """Return a model as OpenAI shows one, with what its work costs and whether it can be done now."""
    since = min(task.tool.since for task in tasks)
    return {
        "id": name,
        "object": "model",
        "created": int(datetime.combine(since, time(), UTC).timestamp()),
        "owned_by": OWNER,
        "name": tasks[0].tool.model,
        "licence": tasks[0].tool.licence,
        "tasks": [_offer(task, states.get(task.application)) for task in tasks],
    }


def _offer(task: Task, state: ModelState | None) -> dict[str, Any]:
    tool = task.tool
    return {
        "task": task.name,
        "summary": task.summary,
        "state": state.state if state else "unavailable",
        "reason": state.reason if state else None,
        "price": {
            "tool": tool.name,
            "unit": tool.unit,
            "per_units": tool.price.per_units,
            "price_version": tool.price.version,
            **amount(tool.price.tokens),
        },
    }
