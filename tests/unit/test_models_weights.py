"""Weights on disk: built once, whole or not at all, and pulled from a hub that is checked.

The hub is a small server that speaks the real protocol to the real client.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from deployments.models import registry, weights
from deployments.models.contract import TINY_NOTICE, WeightsMissing
from deployments.models.registry import MANIFEST, Entry
from kit.errors import InvalidRequest

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
class Hub:
    """One repository of a model hub: what it lists and what it sends, which a test may make differ."""

    url: str
    commit: str
    listed: dict[str, bytes]
    sent: dict[str, bytes]
    downloads: list[str]


class HubServer(ThreadingHTTPServer):
    """Answers what the client asks while it pulls: the model's facts, its tree and its files."""

    hub: Hub


class HubHandler(BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path, api = self.server.hub, urlsplit(self.path).path, "/api/models/Qwen/Qwen-Image"
        if path in (api, f"{api}/revision/{hub.commit}"):
            self._json({"id": "Qwen/Qwen-Image", "sha": hub.commit, "siblings": _listing(hub, "rfilename")})
        elif path == f"{api}/tree/{hub.commit}":
            self._json([{"type": "file", **facts} for facts in _listing(hub, "path")])
        elif path.startswith(f"/Qwen/Qwen-Image/resolve/{hub.commit}/"):
            name = path.rpartition(f"{hub.commit}/")[2]
            if self.command == "GET":
                hub.downloads.append(name)
            self._send(200, hub.sent[name], {"ETag": f'"{_digest(name)}"', "X-Repo-Commit": hub.commit})
        else:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def _json(self, body: object) -> None:
        self._send(200, json.dumps(body).encode(), {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _listing(hub: Hub, name_key: str) -> list[dict[str, Any]]:
    return [
        {
            name_key: name,
            "size": len(data),
            "oid": _digest(name),
            "blobId": _digest(name),
            "lfs": {
                "oid": hashlib.sha256(data).hexdigest(),
                "sha256": hashlib.sha256(data).hexdigest(),
                "size": len(data),
                "pointerSize": 100,
            },
        }
        for name, data in hub.listed.items()
    ]


def _digest(name: str) -> str:
    return hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {"model_index.json": b"{}", "vae/weights.safetensors": b"\x01" * 64}
    hub = Hub("", "c" * 40, files, dict(files), [])
    server = HubServer(("127.0.0.1", 0), HubHandler)
    server.hub = hub
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def test_pulled_weights_are_checked_listed_and_used(hub: Hub, tmp_path: Path) -> None:
    directory = weights.pull("image", "gpu", tmp_path, endpoint=hub.url)
    assert (directory / "vae" / "weights.safetensors").read_bytes() == hub.listed["vae/weights.safetensors"]
    manifest = registry.read_manifest(directory)
    assert manifest is not None
    assert (manifest["hub_id"], manifest["revision"]) == ("Qwen/Qwen-Image", hub.commit)
    assert weights.verify("image", "gpu", tmp_path) == []
    found = registry.resolve("image", "gpu", tmp_path)
    assert (found.directory, found.revision) == (directory, hub.commit)
    assert weights.list_models("gpu", tmp_path)[0].present


def test_pulling_what_is_here_downloads_nothing(hub: Hub, tmp_path: Path) -> None:
    weights.pull("image", "gpu", tmp_path, endpoint=hub.url)
    hub.downloads.clear()
    weights.pull("image", "gpu", tmp_path, endpoint=hub.url)
    assert hub.downloads == []


def test_pulling_a_newer_commit_replaces_the_weights(hub: Hub, tmp_path: Path) -> None:
    weights.pull("image", "gpu", tmp_path, endpoint=hub.url)
    hub.commit = "d" * 40
    hub.listed = hub.sent = {"model_index.json": b'{"new": 1}'}
    directory = weights.pull("image", "gpu", tmp_path, endpoint=hub.url)
    assert weights.verify("image", "gpu", tmp_path) == []
    assert sorted(path.name for path in directory.iterdir()) == [MANIFEST, "model_index.json"]
    assert registry.resolve("image", "gpu", tmp_path).revision == "d" * 40


def test_what_an_interrupted_download_of_another_commit_left_does_not_get_in(
    hub: Hub, tmp_path: Path
) -> None:
    partial = tmp_path / "gpu" / ".image.partial"
    partial.mkdir(parents=True)
    (partial / "old.safetensors").write_bytes(b"old")
    directory = weights.pull("image", "gpu", tmp_path, endpoint=hub.url)
    assert not (directory / "old.safetensors").exists()
    assert weights.verify("image", "gpu", tmp_path) == []


def test_a_download_that_differs_from_the_listing_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.sent = {**hub.listed, "vae/weights.safetensors": b"\x02" * 64}
    with pytest.raises(WeightsMissing, match=r"vae/weights\.safetensors"):
        weights.pull("image", "gpu", tmp_path, endpoint=hub.url)
    assert registry.resolve("image", "gpu", tmp_path).directory is None
    hub.sent = hub.listed
    weights.pull("image", "gpu", tmp_path, endpoint=hub.url)
    assert weights.verify("image", "gpu", tmp_path) == []


def test_an_unknown_revision_is_an_answer_for_the_operator(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="revision"):
        weights.pull("image", "gpu", tmp_path, revision="e" * 40, endpoint=hub.url)


def test_without_a_network_the_error_says_so_and_old_weights_stay(hub: Hub, tmp_path: Path) -> None:
    weights.pull("image", "gpu", tmp_path, endpoint=hub.url)
    with pytest.raises(WeightsMissing, match="check the network"):
        weights.pull("image", "gpu", tmp_path, endpoint="http://127.0.0.1:9")
    assert weights.verify("image", "gpu", tmp_path) == []


@pytest.mark.parametrize("profile", ["tiny", "small"])
def test_only_production_weights_are_downloaded(profile: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="built here"):
        weights.pull("image", profile, tmp_path)
