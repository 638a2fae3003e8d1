"""`farebox models`: plain lines without a terminal, JSON for scripts, an exit status that says whether all is well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deployments.cli import app
from deployments.models import registry, weights
from deployments.models.registry import ENTRIES, MANIFEST, entry_for, pulled_directory


@pytest.fixture
def pulled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Production weights of one model, as `pull` leaves them."""
    monkeypatch.setenv("FAREBOX_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("FAREBOX_PROFILE", "gpu")
    place = pulled_directory(entry_for("video"), tmp_path / "models")
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(b"weights" * 100)
    files = weights._hash_files(place)
    (place / MANIFEST).write_text(json.dumps({"profile": "gpu", "revision": "abc123", "files": files}))
    return place


def models(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments])


def test_a_row_says_what_a_seller_must_know(pulled: Path):
    lines = [line.split("\t") for line in models("list").output.splitlines()]
    assert len(lines) == 1 + sum(len(entry.tasks) for entry in ENTRIES)
    [video] = [dict(zip(lines[0], line, strict=True)) for line in lines if line[0] == "video.generate"]
    assert (video["licence"], video["price"], video["state"]) == (
        "LTX-2 Community",
        "100 tokens per second",
        "there",
    )
    assert (video["size"], video["profile"]) == ("700 bytes", "gpu")
    assert video["weights"] == f"{pulled}@abc123"
    assert "yearly revenue" in video["note"]


def test_weights_that_are_made_on_demand_are_not_called_missing(pulled: Path):
    for profile, state in (("tiny", "made when asked for"), ("gpu", "missing")):
        lines = [line.split("\t") for line in models("list", "--profile", profile).output.splitlines()]
        rows = [dict(zip(lines[0], line, strict=True)) for line in lines]
        assert [row["state"] for row in rows if row["task"] == "image.generate"] == [state]


def test_scripts_read_the_same_as_json(pulled: Path):
    rows = {row["task"]: row for row in json.loads(models("list", "--json").output)}
    assert (rows["video.generate"]["size_bytes"], rows["video.generate"]["unit"]) == (700, "second")
    assert rows["sfx.generate"]["limits"]
    assert (rows["image.generate"]["present"], rows["image.generate"]["limits"]) == (False, "")


def test_whole_weights_verify_and_a_changed_byte_is_named(pulled: Path):
    assert models("verify").exit_code == 0
    (pulled / "model.safetensors").write_bytes(b"Weights" * 100)
    (pulled / "extra").touch()
    wrong = models("verify", "--json")
    assert wrong.exit_code == 1
    assert json.loads(wrong.output) == {"video": ["extra: not in the manifest", "model.safetensors: changed"]}
    assert "video: model.safetensors: changed" in models("verify", "video").output


def test_a_named_model_must_be_there_and_others_need_not(pulled: Path):
    assert models("verify", "image").exit_code == 1
    assert models("verify").exit_code == 0


def test_a_file_that_the_registry_pins_is_held_against_its_pin(pulled: Path, monkeypatch: pytest.MonkeyPatch):
    import dataclasses

    entry = dataclasses.replace(entry_for("video"), checksums=(("model.safetensors", "0" * 64),))
    assert weights.verify("video", "gpu", pulled.parents[1], (entry,)) == [
        "model.safetensors: not the file that the registry pins"
    ]
    assert registry.entry_for("video").checksums == ()
