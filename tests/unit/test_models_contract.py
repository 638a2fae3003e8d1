"""The types that cross a model application's handle."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import subprocess
import sys

import pytest

from deployments.models import contract
from deployments.models.contract import (
    GenerateRequest,
    Media,
    Metrics,
    ModelCanceled,
    ModelFailed,
    ModelRefused,
    Output,
    Progress,
    TooLarge,
)
from kit.errors import AppError

ERRORS = [
    kind
    for _, kind in inspect.getmembers(contract, inspect.isclass)
    if issubclass(kind, AppError) and kind.__module__ == contract.__name__
]


def test_the_contract_has_its_errors() -> None:
    assert {kind.__name__ for kind in ERRORS} == {
        "ModelRefused",
        "ModelCanceled",
        "ModelBusy",
        "WeightsMissing",
        "ModelFailed",
        "ModelBroken",
        "TooLarge",
    }


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling_unchanged(kind: type[AppError]) -> None:
    values = [f"value of {field.name}" for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    error = kind(*values)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.message == error.message
    assert dataclasses.astuple(again) == tuple(values)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "message",
    [
        GenerateRequest("job_1", "image.generate", {"prompt": "a fox", "seed": 7}),
        Progress(0.5, 2, 4),
        Output([Media("image/png", b"\x89PNG", {"seed": 7})], Metrics(12, 0.0, 1 << 20), "Qwen-Image"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_every_message_survives_pickling_unchanged(message: object) -> None:
    assert pickle.loads(pickle.dumps(message)) == message


def test_only_a_failure_is_worth_another_attempt() -> None:
    assert ModelFailed.retryable
    assert not TooLarge.retryable
    assert not ModelRefused.retryable
    assert not ModelCanceled.retryable


def test_a_refusal_names_the_input_field() -> None:
    refusal = ModelRefused("aspectRatio", "must be one of 1:1")
    assert refusal.message == "input.aspectRatio: must be one of 1:1"
    assert refusal.details == [{"field": "input.aspectRatio", "message": "must be one of 1:1"}]


@pytest.mark.parametrize("module", ["contract", "registry", "weights", "server", "qwen_image"])
def test_importing_a_module_loads_no_tensor_library(module: str) -> None:
    heavy = {"torch", "diffusers", "transformers", "tokenizers", "numpy", "huggingface_hub", "ray"}
    script = f"import sys, deployments.models.{module}; print(*sorted(sys.modules.keys() & {heavy!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []
