"""The table of models, and what it says about weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from deployments.models import registry
from deployments.models.registry import ENTRIES, MANIFEST
from kit.errors import InvalidRequest, NotFound

IMAGE = registry.entry_for("image")


def test_a_task_and_an_application_appear_once() -> None:
    tasks = [task for entry in ENTRIES for task in entry.tasks]
    applications = [entry.application for entry in ENTRIES]
    assert len(tasks) == len(set(tasks))
    assert len(applications) == len(set(applications))


def test_a_task_leads_to_its_application() -> None:
    assert registry.application_for("image.generate") == "image"


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(NotFound, match=r"image\.generate"):
        registry.application_for("image.imagine")


def test_an_unknown_application_is_answered_with_the_known_ones() -> None:
    with pytest.raises(NotFound, match="image"):
        registry.resolve("imagination", "tiny", Path("models"))


def test_an_unknown_profile_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="tiny, small, gpu"):
        registry.resolve("image", "huge", Path("models"))  # type: ignore[arg-type]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.application)
def test_every_entry_names_a_family_that_keeps_the_contract(entry: registry.Entry) -> None:
    family = registry.load_family(entry.family)
    # A chat is served by a server of its own.
    for method in ("build_tiny",) if entry.is_chat else ("load", "generate", "build_tiny"):
        assert callable(getattr(family, method)), method


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.application)
def test_every_entry_states_its_licence_and_card(entry: registry.Entry) -> None:
    assert entry.licence
    assert entry.card.startswith("https://")


@pytest.mark.parametrize(
    "path", ["", "nowhere:Class", "deployments.models.qwen_image:NoSuch", "a b:c", ":", "json"]
)
def test_a_family_that_cannot_be_imported_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest, match="module:Class"):
        registry.load_family(path)


def test_small_runs_the_tiny_weights_and_says_so(tmp_path: Path) -> None:
    assert registry.resolve("image", "small", tmp_path) == registry.resolve("image", "tiny", tmp_path)
    assert registry.resolve("image", "small", tmp_path).profile == "tiny"


def test_gpu_weights_come_from_the_hub_until_they_are_pulled(tmp_path: Path) -> None:
    weights = registry.resolve("image", "gpu", tmp_path)
    assert (weights.source, weights.revision, weights.profile) == ("Qwen/Qwen-Image", None, "gpu")
    assert weights.directory is None


def test_an_asked_revision_goes_before_the_pin(tmp_path: Path) -> None:
    pinned = (dataclasses.replace(IMAGE, hub_revision="a" * 40),)
    assert registry.resolve("image", "gpu", tmp_path, entries=pinned).revision == "a" * 40
    assert registry.resolve("image", "gpu", tmp_path, "b" * 40, entries=pinned).revision == "b" * 40


def test_pulled_weights_are_used_if_they_are_the_revision_asked_for(tmp_path: Path) -> None:
    directory = registry.pulled_directory(IMAGE, tmp_path)
    directory.mkdir(parents=True)
    (directory / MANIFEST).write_text(json.dumps({"revision": "a" * 40}))
    assert registry.resolve("image", "gpu", tmp_path).directory == directory
    assert registry.resolve("image", "gpu", tmp_path).revision == "a" * 40
    assert registry.resolve("image", "gpu", tmp_path, "a" * 40).directory == directory
    assert registry.resolve("image", "gpu", tmp_path, "b" * 40).source == "Qwen/Qwen-Image"


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(IMAGE, tiny_recipe=IMAGE.tiny_recipe + 1),
        dataclasses.replace(IMAGE, family="elsewhere:Family"),
        dataclasses.replace(IMAGE, libraries=("torch",)),
    ],
)
def test_whatever_decides_the_tiny_weights_decides_their_directory(
    other: registry.Entry, tmp_path: Path
) -> None:
    assert registry.tiny_directory(other, tmp_path) != registry.tiny_directory(IMAGE, tmp_path)


def test_another_seed_has_another_directory(tmp_path: Path) -> None:
    assert registry.tiny_directory(IMAGE, tmp_path, 1) != registry.tiny_directory(IMAGE, tmp_path, 2)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_manifest_counts_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(text)
    assert registry.read_manifest(tmp_path) is None
