"""What the README tells people to type exists. That it works is proved by the tiers that type it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
LINES = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
NAMED = re.findall(r"`make (\w+)`", (ROOT / "README.md").read_text())
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_make_target_exists():
    typed = [line.split()[1] for line in LINES if line.startswith("make ")]
    assert set(typed) | set(NAMED) <= TARGETS
    assert {"up", "test", "demo", "check", "bench"} <= set(typed) | set(NAMED)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith(".venv/bin/farebox")])
def test_every_farebox_command_exists(line):
    arguments = [word for word in line.split()[1:] if not word.startswith("-")]
    done = subprocess.run(
        [sys.executable, "-m", "deployments.cli", *arguments, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_nothing_else_is_told_to_type():
    known = ("make ", ".venv/bin/farebox", "curl -s http://127.0.0.1:8000/api/v1/")
    assert [line for line in LINES if not line.startswith(known)] == []


def test_every_file_that_is_named_exists():
    named = re.findall(r"`([\w./-]+\.(?:py|yaml|md|sql))`|\]\(([\w./-]+)\)", (ROOT / "README.md").read_text())
    paths = [one or other for one, other in named]
    assert [path for path in paths if not path.startswith("http") and not (ROOT / path).exists()] == []
