"""Weights on disk: built once, whole or not at all, and pulled from a hub that is checked.

The hub is the sandbox's twin, which speaks the real protocol to the real client.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deployments.models import registry, weights
from deployments.models.contract import TINY_NOTICE, WeightsMissing
from deployments.models.registry import MANIFEST, Entry
from kit.errors import InvalidRequest
from sandbox.model_hub import Hub, Repository, create_hub, create_store
from sandbox.testing import running

IMAGE = registry.entry_for("image")


@pytest.fixture
def build_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path, int], None]], Entry]:
    """Make an entry whose tiny weights a function of the test builds."""

    def entry(build: Callable[[Path, int], None]) -> Entry:
        module = types.ModuleType("families_of_a_test")
        module.Family = types.SimpleNamespace(build_tiny=build)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return dataclasses.replace(IMAGE, family="families_of_a_test:Family", libraries=())

    return entry


def build(directory: Path, seed: int) -> None:
    (directory / "unet").mkdir()
    (directory / "unet" / "weights.bin").write_bytes(seed.to_bytes(8))
    (directory / "config.json").write_text("{}")


BuildWith = Callable[[Callable[[Path, int], None]], Entry]


def test_built_weights_say_what_they_are(build_with: BuildWith, tmp_path: Path) -> None:
    directory = weights.ensure_tiny(build_with(build), tmp_path, seed=7)
    manifest = registry.read_manifest(directory)
    assert manifest is not None
    assert (manifest["profile"], manifest["notice"], manifest["seed"]) == ("tiny", TINY_NOTICE, 7)
    assert manifest["files"]["unet/weights.bin"] == {
        "sha256": hashlib.sha256((7).to_bytes(8)).hexdigest(),
        "size_bytes": 8,
    }


def test_many_replicas_at_once_build_once(build_with: BuildWith, tmp_path: Path) -> None:
    together = threading.Barrier(2)
    builders: list[bool] = []

    def build_and_wait(directory: Path, seed: int) -> None:
        try:
            together.wait(timeout=0.5)  # a second builder, let in beside the first, would meet it here
        except threading.BrokenBarrierError:
            builders.append(False)
        else:
            builders.append(True)
        build(directory, seed)

    entry = build_with(build_and_wait)
    with ThreadPoolExecutor(4) as replicas:
        directories = list(replicas.map(lambda _: weights.ensure_tiny(entry, tmp_path), range(4)))
    assert builders == [False]
    assert set(directories) == {registry.tiny_directory(entry, tmp_path)}


def test_a_build_that_fails_leaves_nothing_that_looks_built(build_with: BuildWith, tmp_path: Path) -> None:
    def build_half(directory: Path, seed: int) -> None:
        build(directory, seed)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        weights.ensure_tiny(build_with(build_half), tmp_path)
    entry = build_with(build)
    assert not registry.tiny_directory(entry, tmp_path).exists()
    directory = weights.ensure_tiny(entry, tmp_path)
    assert [path.name for path in directory.parent.iterdir() if path.is_dir()] == [directory.name]


def test_progress_tells_built_from_present(build_with: BuildWith, tmp_path: Path) -> None:
    entries = (build_with(build),)
    told: list[tuple[str, str]] = []
    weights.build_all("tiny", tmp_path, lambda *step: told.append(step), entries)
    weights.build_all("tiny", tmp_path, lambda *step: told.append(step), entries)
    assert told == [("image", "building"), ("image", "built"), ("image", "present")]


def test_verify_finds_what_changed_is_missing_or_was_added(build_with: BuildWith, tmp_path: Path) -> None:
    entries = (build_with(build),)
    assert weights.verify("image", "tiny", tmp_path, entries) != []
    directory = weights.ensure_tiny(entries[0], tmp_path)
    assert weights.verify("image", "tiny", tmp_path, entries) == []
    (directory / "config.json").unlink()
    (directory / "unet" / "weights.bin").write_bytes(b"other")
    (directory / "extra.bin").touch()
    assert weights.verify("image", "tiny", tmp_path, entries) == [
        "config.json: missing",
        "extra.bin: not in the manifest",
        "unet/weights.bin: changed",
    ]


def test_the_list_says_which_weights_are_here_and_which_mean_nothing(
    build_with: BuildWith, tmp_path: Path
) -> None:
    entries = (build_with(build),)
    assert [row.present for row in weights.list_models("tiny", tmp_path, entries)] == [False]
    weights.ensure_tiny(entries[0], tmp_path)
    [tiny] = weights.list_models("tiny", tmp_path, entries)
    [small] = weights.list_models("small", tmp_path, entries)
    [gpu] = weights.list_models("gpu", tmp_path, entries)
    assert (tiny.task, tiny.model, tiny.licence) == ("image.generate", "Qwen-Image", "Apache-2.0")
    assert tiny.present
    assert "random weights" in tiny.note
    assert "no small weights" in small.note
    assert (gpu.source, gpu.present) == ("Qwen/Qwen-Image", False)
    assert "no revision pinned" in gpu.note


@dataclasses.dataclass
class Pulling:
    """A hub with one repository, and where it is."""

    url: str
    hub: Hub
    repository: Repository

    def pull(self, models_dir: Path, revision: str | None = None) -> Path:
        return weights.pull("image", "gpu", models_dir, revision=revision, endpoint=self.url)

    def sent(self) -> list[str]:
        """Which files went out since the last look."""
        paths = sorted(each.path for each in self.hub.sent)
        self.hub.sent.clear()
        return paths


FILES = {"model_index.json": b"{}", "vae/config.json": b'{"a": 1}', "vae/weights.safetensors": b"\x01" * 64}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pulling]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    twin = Hub()
    with running(create_hub(twin)) as url, running(create_store(twin)) as twin.store_url:
        pulling = Pulling(url, twin, twin.repository("Qwen/Qwen-Image"))
        pulling.repository.push(FILES)
        yield pulling


def test_pulled_weights_are_checked_listed_and_used(hub: Pulling, tmp_path: Path) -> None:
    directory = hub.pull(tmp_path)
    assert {name: (directory / name).read_bytes() for name in FILES} == FILES
    commit = hub.repository.branches["main"]
    manifest = registry.read_manifest(directory)
    assert manifest is not None
    assert (manifest["hub_id"], manifest["revision"]) == ("Qwen/Qwen-Image", commit)
    assert weights.verify("image", "gpu", tmp_path) == []
    found = registry.resolve("image", "gpu", tmp_path)
    assert (found.directory, found.revision) == (directory, commit)
    assert weights.list_models("gpu", tmp_path)[0].present


def test_a_commit_is_pulled_also_when_the_branch_went_on(hub: Pulling, tmp_path: Path) -> None:
    pinned = hub.repository.branches["main"]
    hub.repository.push({"model_index.json": b'{"new": 1}'})
    hub.pull(tmp_path, pinned)
    assert registry.resolve("image", "gpu", tmp_path).revision == pinned
    assert weights.verify("image", "gpu", tmp_path) == []


def test_a_branch_is_written_down_as_its_commit(hub: Pulling, tmp_path: Path) -> None:
    commit = hub.repository.push({"model_index.json": b'{"try": 1}'}, branch="trial")
    directory = hub.pull(tmp_path, "trial")
    assert (registry.read_manifest(directory) or {})["revision"] == commit
    assert (directory / "model_index.json").read_bytes() == b'{"try": 1}'


def test_pulling_what_is_here_downloads_nothing(hub: Pulling, tmp_path: Path) -> None:
    hub.pull(tmp_path)
    assert hub.sent() == sorted(FILES)
    hub.pull(tmp_path)
    assert hub.sent() == []


def test_a_commit_that_is_here_needs_no_hub(hub: Pulling, tmp_path: Path) -> None:
    directory = hub.pull(tmp_path)
    hub.hub.down = True
    assert hub.pull(tmp_path, hub.repository.branches["main"]) == directory


def test_pulling_a_newer_commit_replaces_the_weights(hub: Pulling, tmp_path: Path) -> None:
    hub.pull(tmp_path)
    commit = hub.repository.push({"model_index.json": b'{"new": 1}'})
    directory = hub.pull(tmp_path)
    assert weights.verify("image", "gpu", tmp_path) == []
    assert sorted(path.name for path in directory.iterdir()) == [MANIFEST, "model_index.json"]
    assert registry.resolve("image", "gpu", tmp_path).revision == commit


def test_what_an_interrupted_download_of_another_commit_left_does_not_get_in(
    hub: Pulling, tmp_path: Path
) -> None:
    partial = tmp_path / "gpu" / ".image.partial"
    partial.mkdir(parents=True)
    (partial / "old.safetensors").write_bytes(b"old")
    (partial / "model_index.json").write_bytes(b"[]")
    directory = hub.pull(tmp_path)
    assert not (directory / "old.safetensors").exists()
    assert (directory / "model_index.json").read_bytes() == b"{}"
    assert weights.verify("image", "gpu", tmp_path) == []


def test_a_cut_connection_is_taken_up_where_it_broke(hub: Pulling, tmp_path: Path) -> None:
    large = bytes(range(256)) * 100_000  # more than the client reads at once
    hub.repository.push({"model.safetensors": large})
    hub.hub.cuts["model.safetensors"] = 15_000_000
    directory = hub.pull(tmp_path)
    assert (directory / "model.safetensors").read_bytes() == large
    first, second = hub.hub.sent
    assert (first.start, first.size_bytes) == (0, 15_000_000)
    assert 0 < second.start <= 15_000_000
    assert second.size_bytes == len(large) - second.start


def test_a_pull_after_a_failed_one_asks_only_for_what_lacks(hub: Pulling, tmp_path: Path) -> None:
    broken = "vae/weights.safetensors"
    hub.hub.cropped.add(broken)
    with pytest.raises(WeightsMissing, match="arrived whole are kept"):
        hub.pull(tmp_path)
    assert registry.resolve("image", "gpu", tmp_path).directory is None
    came = set(hub.sent())
    hub.hub.cropped.clear()
    hub.pull(tmp_path)
    assert set(hub.sent()) == set(FILES) - came | {broken}
    assert weights.verify("image", "gpu", tmp_path) == []


@pytest.mark.parametrize("name", ["vae/weights.safetensors", "vae/config.json"], ids=["large", "small"])
def test_a_file_of_other_bytes_than_listed_is_found_named_and_not_kept(
    hub: Pulling, tmp_path: Path, name: str
) -> None:
    hub.hub.spoiled.add(name)
    with pytest.raises(WeightsMissing, match=rf"arrived damaged \({name}\): pull again"):
        hub.pull(tmp_path)
    assert registry.resolve("image", "gpu", tmp_path).directory is None
    hub.sent()
    hub.hub.spoiled.clear()
    directory = hub.pull(tmp_path)
    assert name in hub.sent()
    assert (directory / name).read_bytes() == FILES[name]
    assert weights.verify("image", "gpu", tmp_path) == []


def test_large_files_that_arrived_beside_a_damaged_one_are_not_asked_for_again(
    hub: Pulling, tmp_path: Path
) -> None:
    hub.repository.push({"a.safetensors": b"a" * 99, "b.safetensors": b"b" * 99})
    hub.hub.spoiled.add("a.safetensors")
    with pytest.raises(WeightsMissing):
        hub.pull(tmp_path)
    assert hub.sent() == ["a.safetensors", "b.safetensors"]
    hub.hub.spoiled.clear()
    hub.pull(tmp_path)
    assert hub.sent() == ["a.safetensors"]


def test_other_bytes_than_the_registry_pins_are_not_put_in_place(
    hub: Pulling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = dataclasses.replace(IMAGE, checksums=(("vae/weights.safetensors", "0" * 64),))
    monkeypatch.setattr(registry, "entry_for", lambda *_: entry)
    with pytest.raises(WeightsMissing, match=r"registry pins \(vae/weights\.safetensors\).*--revision"):
        hub.pull(tmp_path)
    assert registry.resolve("image", "gpu", tmp_path).directory is None


def test_a_model_that_the_disk_cannot_take_is_refused_before_a_byte_comes(
    hub: Pulling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=70))
    with pytest.raises(WeightsMissing, match="make room"):
        hub.pull(tmp_path)
    assert hub.sent() == []
    partial = tmp_path / "gpu" / ".image.partial"
    partial.mkdir()
    (partial / "vae").mkdir()
    (partial / "vae" / "weights.safetensors").write_bytes(FILES["vae/weights.safetensors"])
    hub.pull(tmp_path)
    assert hub.sent() == ["model_index.json", "vae/config.json"], "only what lacks needs room"


def test_without_a_network_the_error_says_so_and_old_weights_stay(hub: Pulling, tmp_path: Path) -> None:
    hub.pull(tmp_path)
    hub.url = "http://127.0.0.1:9"
    with pytest.raises(WeightsMissing, match="check the network"):
        hub.pull(tmp_path)
    assert weights.verify("image", "gpu", tmp_path) == []


def test_a_token_goes_to_the_hub_and_never_to_where_large_files_lie(
    hub: Pulling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_admitted")
    hub.hub.tokens.add("hf_admitted")
    hub.repository.gated, hub.repository.admitted = True, {"hf_admitted"}
    hub.pull(tmp_path)
    assert hub.sent() == sorted(FILES)
    assert hub.hub.tokens_at_store == []


@pytest.mark.parametrize("profile", ["tiny", "small"])
def test_only_production_weights_are_downloaded(profile: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="built here"):
        weights.pull("image", profile, tmp_path)
