"""Errors cross process borders whole, and say what the contract says."""

from __future__ import annotations

import dataclasses
import importlib
import pickle
import pkgutil

import pytest

import deployments
import gateway
import kit
import ledger
import payments
from kit.errors import AppError

SAMPLES = {"str": "word", "int": 7, "list[str]": ["one", "two"], "list[tuple[str, str]]": [("field", "word")]}


def every_error() -> list[type[AppError]]:
    for package in (kit, ledger, payments, gateway, deployments):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if module.name.rpartition(".")[2] in (
                "errors",
                "contract",
                "handles",
                "leases",
                "problems",
                "bodies",
                "openai_errors",
            ):
                importlib.import_module(module.name)
    found: list[type[AppError]] = []
    waiting = list(AppError.__subclasses__())
    while waiting:
        error = waiting.pop()
        waiting += error.__subclasses__()
        found.append(error)
    return sorted(set(found), key=lambda error: error.__qualname__)


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
def test_every_error_survives_pickling_whole(error):
    fields = dataclasses.fields(error)
    assert all(f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING for f in fields)
    assert not any(f.kw_only for f in fields)
    made = error(*(SAMPLES[str(f.type)] for f in fields))
    back = pickle.loads(pickle.dumps(made))
    assert type(back) is error
    assert dataclasses.astuple(back) == dataclasses.astuple(made)
    assert (back.code, back.status, back.message) == (made.code, made.status, made.message)


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
def test_every_error_has_a_stable_code_a_status_and_a_sentence(error):
    made = error(*(SAMPLES[str(f.type)] for f in dataclasses.fields(error)))
    assert made.code == made.code.lower()
    assert 400 <= made.status <= 599
    assert made.message.endswith((".", "word"))
    assert not made.retryable or made.status >= 409
