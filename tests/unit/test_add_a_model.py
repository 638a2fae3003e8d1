"""`docs/add-a-model.md`, played: its blocks are written into a copy of the code, and the model makes what it says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.app import ModelArgs
from deployments.launcher import ROOT, SERVE_CONFIG
from gateway.catalog import load_catalog
from kit.settings import environment

PACKAGES = ("deployments", "gateway", "payments", "ledger", "kit")
PLAY = """
import asyncio, json, sys
from pathlib import Path
from deployments.models.contract import GenerateRequest, Output
from deployments.models.registry import application_for, ENTRIES
from deployments.models.server import ModelServer

async def play():
    server = ModelServer("bell", "tiny", sys.argv[1])
    asked = GenerateRequest("job_1", "sfx.generate", {"prompt": "ring", "durationSeconds": 2}, 2000)
    *progress, output = [event async for event in server.generate(asked)]
    assert isinstance(output, Output)
    media = output.media[0]
    Path(sys.argv[1], "made.wav").write_bytes(media.data)
    steps = [each.step for each in progress]
    print(json.dumps({"facts": media.facts, "steps": steps, "model": output.model}))

asyncio.run(play())
"""


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    """The page's blocks, by what stands before them."""
    page = (ROOT / "docs" / "add-a-model.md").read_text().partition("## What each")[0]
    found = re.findall(r"\*\*The (\w+)\*\*[^`]*(?:`[^`\n]+`[^`]*)*```\w+\n(.*?)```", page, re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def made(blocks: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the model said of its output, and the file, from a copy of the code with the page's additions."""
    copy = tmp_path_factory.mktemp("copy")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "deployments" / "models" / "bell.py").write_text(blocks["family"])
    registry = copy / "deployments" / "models" / "registry.py"
    before, table, after = re.split(
        r"^(ENTRIES: .*?^\)$)", registry.read_text(), flags=re.DOTALL | re.MULTILINE
    )
    registry.write_text(f"{before}{blocks['registry']}\n{table[:-1]}    BELL,\n){after}")
    done = subprocess.run(  # our own program
        [sys.executable, "-P", "-c", PLAY, str(copy)],
        env=environment(PYTHONPATH=str(copy)),
        cwd=copy,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), copy / "made.wav"


def test_the_model_of_the_page_makes_the_sound_that_was_asked_for(made):
    import soundfile

    said, path = made
    samples, rate = soundfile.read(path)
    assert (len(samples) / rate, rate) == (2.0, 16_000)
    assert abs(samples).max() > 0.1
    assert said["facts"]["profile"] == "tiny"
    assert said["facts"]["notice"]
    assert (said["steps"], said["model"]) == ([1, 2, 3, 4, 5], "Bell")


def test_the_catalogue_of_the_page_sells_it(blocks, tmp_path):
    catalog = yaml.safe_load((ROOT / "gateway" / "catalog.yaml").read_text())
    added = yaml.safe_load(blocks["catalogue"])
    for part in ("tools", "tasks"):
        catalog[part] |= added[part]
    (tmp_path / "catalog.yaml").write_text(yaml.safe_dump(catalog))
    sold = load_catalog(tmp_path / "catalog.yaml").quote("sfx.generate", {"durationSeconds": 2})
    assert (sold.application, sold.cost_tokens) == ("bell", 2)


def test_the_application_of_the_page_has_numbers_for_every_scale(blocks):
    config = yaml.safe_load(SERVE_CONFIG.read_text() + "\n" + blocks["application"])
    args = ModelArgs(**config["applications"][-1]["args"])
    assert (args.application, list(args.profiles)) == ("bell", ["tiny", "small", "gpu", "cluster"])
