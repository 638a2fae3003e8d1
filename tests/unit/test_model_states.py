"""What the surface hears of a model application, from Serve's own account of it."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from deployments import handles
from deployments.handles import ModelHandles, _of_pipelines, _state
from gateway.ports import ModelState

TRACE = """The deployment failed to start 3 times in a row. Error:
Traceback (most recent call last):
  File "/somewhere/qwen3_tts.py", line 1, in load
deployments.models.environments.EnvironmentMissing: environment_missing: The speech environment does not work.
"""


def overview(
    status: str, message: str = "", deployment: str = "", replicas: dict[str, int] | None = None
) -> SimpleNamespace:
    model = SimpleNamespace(message=deployment, replica_states=replicas or {})
    return SimpleNamespace(status=status, message=message, deployments={"Model": model})


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (None, ModelState("x", "unavailable", "not deployed")),
        (overview("RUNNING", replicas={"RUNNING": 1}), ModelState("x", "ready", None)),
        (overview("RUNNING", replicas={"RUNNING": 1, "STARTING": 1}), ModelState("x", "ready", None)),
        (overview("RUNNING", replicas={"STARTING": 1}), ModelState("x", "starting", None)),
        (overview("RUNNING"), ModelState("x", "starting", None, asleep=True)),
        (overview("DEPLOYING"), ModelState("x", "starting", None)),
        (overview("UNHEALTHY"), ModelState("x", "unavailable", "unhealthy")),
        (
            overview("DEPLOY_FAILED", "The deployments ['Model'] are UNHEALTHY.", TRACE),
            ModelState("x", "unavailable", "The speech environment does not work.", failed=True),
        ),
        (
            overview("DEPLOY_FAILED", TRACE),
            ModelState("x", "unavailable", "The speech environment does not work.", failed=True),
        ),
        (
            overview(
                "DEPLOY_FAILED", "contract.WeightsMissing: weights_missing: /place is not there: build it"
            ),
            ModelState("x", "unavailable", "its weights are not on this server.", failed=True),
        ),
        (
            overview("DEPLOY_FAILED", 'File "/somewhere", line 1\nRuntimeError: secret'),
            ModelState("x", "unavailable", "its model could not be started.", failed=True),
        ),
    ],
)
def test_a_state_says_what_callers_may_know(found, state):
    assert _state("x", found) == state


@pytest.mark.parametrize(
    ("voice", "translation", "state"),
    [
        ("ready", "ready", ModelState("dub", "ready", None)),
        ("ready", "starting", ModelState("dub", "starting", "translation: why")),
        ("unavailable", "starting", ModelState("dub", "unavailable", "voice: why")),
    ],
)
def test_a_pipeline_is_as_well_as_the_least_well_of_its_models(voice, translation, state):
    states = {
        name: ModelState(name, its, None if its == "ready" else "why")
        for name, its in (("voice", voice), ("translation", translation), ("transcription", "ready"))
    }
    assert _of_pipelines(states) == {"dub": state}


def test_a_pipeline_is_given_up_with_one_of_its_models_and_unknown_without():
    away = ModelState("translation", "unavailable", None)
    failed = ModelState("voice", "unavailable", "no environment", failed=True)
    states = {each.application: each for each in (away, failed, ModelState("transcription", "ready", None))}
    assert _of_pipelines(states)["dub"] == ModelState(
        "dub", "unavailable", "voice: no environment", failed=True
    )
    del states["voice"]
    assert _of_pipelines(states) == {}


async def test_a_controller_that_hangs_is_asked_once_however_often_its_state_is(monkeypatch):
    goes_on, asked = threading.Event(), []

    def status() -> SimpleNamespace:
        asked.append(1)
        assert goes_on.wait(60)
        return SimpleNamespace(applications={"image": overview("RUNNING", replicas={"RUNNING": 1})})

    monkeypatch.setattr(handles.serve, "status", status)
    monkeypatch.setattr(handles, "STATES_TIMEOUT_S", 0.01)
    monkeypatch.setattr(handles, "STATES_KEPT_S", -1.0)
    models = ModelHandles(["image"])
    for _ in range(5):
        assert (await models.states())["image"].state == "unavailable"
    goes_on.set()
    monkeypatch.setattr(handles, "STATES_TIMEOUT_S", 60.0)
    assert (await models.states())["image"].state == "ready"
    assert len(asked) == 1, "the answer that came late is taken"
