"""Tiny weights as a user meets them: made in seconds, the same everywhere, served without a further step."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import torch

from deployments.models import registry, weights
from deployments.models.contract import GenerateRequest, Output, Progress
from deployments.models.server import ModelServer

IMAGE = registry.entry_for("image")


def test_another_process_builds_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from deployments.models import registry, weights\n"
        f"weights.ensure_tiny(registry.entry_for('image'), Path({str(tmp_path / 'theirs')!r}), 7)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    ours = weights.ensure_tiny(IMAGE, tmp_path / "ours", 7)
    assert registry.read_manifest(ours) == registry.read_manifest(
        registry.tiny_directory(IMAGE, tmp_path / "theirs", 7)
    )
    assert weights.verify("image", "tiny", tmp_path / "ours") != [], "seed 7 is not the default's directory"


def test_another_seed_builds_other_weights(tmp_path: Path) -> None:
    one, two = (registry.read_manifest(weights.ensure_tiny(IMAGE, tmp_path, seed)) for seed in (1, 2))
    assert one is not None
    assert two is not None
    changed = {name for name in one["files"] if one["files"][name] != two["files"][name]}
    assert changed == {name for name in one["files"] if name.endswith(".safetensors")}


def test_tiny_weights_are_small_and_whole(tmp_path: Path) -> None:
    directory = weights.ensure_tiny(IMAGE, tmp_path)
    assert weights.verify("image", "tiny", tmp_path) == []
    assert sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) < 5 << 20


def test_building_leaves_the_process_its_own_randomness(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    weights.ensure_tiny(IMAGE, tmp_path)
    assert torch.equal(torch.rand(3), expected)


async def test_a_server_without_weights_builds_them_and_paints(tmp_path: Path) -> None:
    server = await asyncio.to_thread(ModelServer, "image", "tiny", str(tmp_path))
    request = GenerateRequest("job_1", "image.generate", {"prompt": "a fox", "steps": 3})
    events = [event async for event in server.generate(request)]
    assert [event.step for event in events if isinstance(event, Progress)] == [0, 1, 2, 3]
    assert isinstance(events[-1], Output)
    assert events[-1].media[0].data.startswith(b"\x89PNG")
    assert weights.verify("image", "tiny", tmp_path) == []
