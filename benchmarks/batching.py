"""What jobs gain that share a call of the pipeline: batched against one by one, through the ModelServer, in one run.

    python -m benchmarks.batching [--quick] [--json FILE]

Tiny weights, one thread: the pipelines are the real ones, the pictures and sounds are noise. The same jobs go to two
servers of the same model, one with batches and one without, in rounds that alternate, because these machines are noisy;
all jobs of a round arrive at once. Speech needs its own environment (`make speech`) and runs there. Transcription has
real weights that a CPU can use: the long form measures it on Whisper base, with one thread and with two, if it lies
where the platform has its weights (`farebox models build small transcription`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from rich.console import Console
from rich.table import Column, Table

from deployments.models import environments, registry
from deployments.models.contract import GenerateRequest, InputFile, Output
from deployments.models.environments import EnvironmentMissing
from deployments.models.server import ModelServer
from kit.settings import Profile, Settings
from kit.settings import environment as variables

TARGET: Final = 1.5
"""What was asked of batched by one by one, where the pipeline allows it."""
SPEECH: Final = Path(__file__).parents[1] / "tests" / "models" / "recordings" / "inaugural.ogg"
"""Eleven seconds of real speech."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a model. `unit`: what is counted of what it makes. `hears`: it is sent the recording."""

    application: str
    task: str
    unit: str
    jobs: int
    max_batch: int
    fields: dict[str, Any]
    threads: int = 1
    hears: bool = False

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return self.application if self.threads == 1 else f"{self.application}, {self.threads} threads"


HEARD: Final = ("transcription", "audio.transcribe", "audio-seconds", 8, 4, {"language": "en"})
LOADS: Final = (
    Load("image", "image.generate", "images", 8, 4, {"prompt": "a fox", "aspectRatio": "16:9"}),
    Load("translation", "text.translate", "texts", 16, 8, {"text": "Hello.", "targetLanguage": "French"}),
    Load("speech", "audio.speak", "audio-seconds", 8, 8, {"text": "Good evening.", "outputFormat": "wav"}),
    Load(*HEARD, hears=True),
    Load(*HEARD, hears=True, threads=2),
)


def main() -> None:
    """Run, print the table, keep the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--quick", action="store_true", help="under 50 s: one round of half the jobs, tiny weights"
    )
    options.add_argument("--json", type=Path, help="write the figures here")
    options.add_argument("--only", help=argparse.SUPPRESS)  # one model, in its own environment
    options.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.only:
        [load] = [each for each in LOADS if each.name == chosen.only]
        print(json.dumps(asyncio.run(_measure(load, chosen.models, 1 if chosen.quick else 5))))
        return
    report = run(quick=chosen.quick)
    show(report)
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


def run(*, quick: bool) -> dict[str, Any]:
    """Return all figures of one run; each model has a process of its own, as a replica has."""
    rows = []
    with TemporaryDirectory(prefix="farebox-") as place:
        for load in LOADS:
            if quick and load.threads > 1:
                continue
            environment = registry.entry_for(load.application).environment
            try:
                python = str(environments.python_of(environment)) if environment else sys.executable
            except EnvironmentMissing as missing:
                rows.append({"model": load.name, "skipped": missing.message})
                continue
            command = [python, "-m", "benchmarks.batching", "--only", load.name, "--models", place]
            done = subprocess.run(  # our own interpreter and module
                [*command, *(["--quick"] if quick else [])],
                stdout=subprocess.PIPE,
                check=True,
                timeout=600,
                env=variables(),
            )
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    return {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "rows": rows}


def show(report: dict[str, Any]) -> None:
    """Print the figures as a table, and what was asked."""
    console = Console()
    console.print(f"one thread where nothing else is said, {report['machine']}")
    table = Table(
        Column("model", no_wrap=True),
        "weights",
        "counted",
        "one by one /s",
        "batched /s",
        "ratio",
        "jobs a call",
    )
    for row in report["rows"]:
        if "skipped" in row:
            console.print(f"{row['model']}: {row['skipped']}")
            continue
        table.add_row(
            row["model"], row["weights"], row["unit"], f"{row['alone_per_s']:.2f}", f"{row['batched_per_s']:.2f}",
            f"{row['ratio']:.2f}", f"{row['jobs_a_call']:.1f}",
        )  # fmt: skip
    console.print(table)
    console.print(f"asked of a batch: {TARGET} times one by one, where the pipeline allows it")


async def _measure(load: Load, models: Path, rounds: int) -> dict[str, Any]:
    jobs = load.jobs if rounds > 1 else load.jobs // 2
    profile, models = _weights(load, models, real=rounds > 1)
    servers = {
        size: ModelServer(
            load.application,
            profile,
            str(models),
            cpu_threads=load.threads,
            max_batch=size,
            max_waiting=jobs,
        )
        for size in (1, load.max_batch)
    }
    rates: dict[int, list[float]] = {size: [] for size in servers}
    shared: list[int] = []
    for size, server in servers.items():  # touch what is measured
        await _round(server, load, min(size, 2))
    for _ in range(rounds):
        for size, server in servers.items():
            began = time.perf_counter()
            outputs = await _round(server, load, jobs)
            rates[size].append(_made(load, outputs) / (time.perf_counter() - began))
            if size > 1:
                shared += [output.metrics.batch_size for output in outputs]
    pairs = zip(rates[load.max_batch], rates[1], strict=True)
    return {
        "model": load.name,
        "weights": profile,
        "unit": load.unit,
        "alone_per_s": statistics.median(rates[1]),
        "batched_per_s": statistics.median(rates[load.max_batch]),
        "ratio": statistics.median(batched / alone for batched, alone in pairs),
        "jobs_a_call": statistics.mean(shared),
    }


def _weights(load: Load, models: Path, *, real: bool) -> tuple[Profile, Path]:
    """Return a model's real weights for a CPU, if they lie where the platform has its own, or else tiny ones."""
    entry = registry.entry_for(load.application)
    ours = Settings().weights_dir
    if real and entry.small and registry.read_manifest(registry.small_directory(entry, entry.small, ours)):
        return "small", ours
    return "tiny", models


async def _round(server: ModelServer, load: Load, jobs: int) -> list[Output]:
    media = {"audio": InputFile("audio/ogg", SPEECH.read_bytes())} if load.hears else {}

    async def one(number: int) -> Output:
        request = GenerateRequest(f"job_{number}", load.task, load.fields, 4000, media)
        *_, last = [event async for event in server.generate(request)]
        assert isinstance(last, Output)
        return last

    return await asyncio.gather(*(one(number) for number in range(jobs)))


def _made(load: Load, outputs: list[Output]) -> float:
    if load.unit != "audio-seconds":
        return len(outputs)
    return float(sum(output.media[0].facts["durationSeconds"] for output in outputs))


if __name__ == "__main__":
    main()
