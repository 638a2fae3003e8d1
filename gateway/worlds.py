"""Where the test world works: on the tiny models, which cost nothing to run and say that they are tiny."""

from __future__ import annotations

from gateway.catalog import Task
from gateway.deps import Parts
from gateway.errors import TaskUnavailable
from kit.errors import Unavailable
from ledger.accounts import World


def tiny_of(application: str) -> str:
    """Return the name of the application that serves a model's tiny weights beside its real ones."""
    return f"{application}-tiny"


async def application_in(parts: Parts, world: World, application: str) -> str:
    """Return the application that does a world's jobs of this one.

    In the tiny profile it is the same. Elsewhere it is the tiny one beside it, if an operator deployed that.
    Raises: Unavailable.
    """
    if world == "live" or parts.settings.profile == "tiny":
        return application
    tiny = tiny_of(application)
    state = (await parts.model_states()).get(tiny)
    if state is None or state.state == "unavailable":
        raise Unavailable(f"The test world's {application} model", 30)
    return tiny


async def working_application(parts: Parts, world: World, task: Task) -> str:
    """Return who does a world's jobs of a task, if they can be done at all. Raises: Unavailable, TaskUnavailable."""
    application = await application_in(parts, world, task.application)
    state = (await parts.model_states()).get(application)
    if state is not None and state.failed:
        raise TaskUnavailable(task.name, state.reason or "its model could not be started.")
    return application
