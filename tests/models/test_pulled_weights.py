"""Weights that came from a hub: a family loads them as it loads its own, at the commit that was written down."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from deployments.models import registry, weights
from deployments.models.contract import GenerateRequest, Placement
from deployments.models.qwen_image import QwenImage
from sandbox.model_hub import Hub, create_hub, create_store
from sandbox.testing import running

CPU = Placement("cpu", cpu_threads=1, cpu_offload=False)


def test_a_family_loads_what_was_pulled_and_works(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    entry = registry.entry_for("image")
    tiny = weights.ensure_tiny(entry, tmp_path)
    served = {
        path.relative_to(tiny).as_posix(): path.read_bytes()
        for path in tiny.rglob("*")
        if path.is_file() and path.name != registry.MANIFEST
    }
    hub = Hub()
    commit = hub.repository(entry.hub_id).push(served)
    with running(create_hub(hub)) as url, running(create_store(hub)) as hub.store_url:
        weights.pull("image", "gpu", tmp_path, endpoint=url)
    assert weights.verify("image", "gpu", tmp_path) == []
    pulled = registry.resolve("image", "gpu", tmp_path)
    assert (pulled.directory, pulled.revision) == (registry.pulled_directory(entry, tmp_path), commit)
    request = GenerateRequest("job_1", "image.generate", {"prompt": "fox", "steps": 2, "seed": 7})
    output = QwenImage.load(pulled, CPU).generate(request, lambda _: None, lambda: False)
    picture = Image.open(io.BytesIO(output.media[0].data))
    assert picture.size == (output.media[0].facts["width"], output.media[0].facts["height"])
    assert output.media[0].facts["revision"] == commit
