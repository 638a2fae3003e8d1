"""Chat through Farebox beside its engine alone, in one run: tokens a second and the time to the first token.

    python -m benchmarks.chat [--quick] [--json FILE]

First the engine runs alone in a process; then, with the same weights, settings, prompts and seeds, behind the platform,
which starts as `farebox up` starts it, with no other model, and its engine on the first turn. Two models: SmolLM2, the
real one for a CPU, of which the share of the engine is asked for; and the tiny random one, whose own work is next to
nothing, so that all of ours shows. Quick is the tiny one alone, one round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import httpx
import yaml
from rich.console import Console
from rich.table import Table

from deployments.models import environments, registry, weights
from kit.settings import Profile, environment, load_settings

QUESTION: Final = [{"role": "user", "content": "Tell me a long story about a fox who became an astronaut."}]
MAX_TOKENS: Final = {"small": 128, "tiny": 256}
"""What an answer has, about; the small model says thirty a second to a lone caller."""
TARGET: Final = 0.9
"""What was asked for: the share of the engine's tokens a second that reaches a caller, at concurrency 8."""
WIDTHS: Final = (1, 8)

Turn = Callable[[int], Awaitable[tuple[int, float]]]
"""Plays the turn of a seed; returns the tokens that came and the seconds to the first."""


def main() -> None:
    """Run, print the tables, keep the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="one round of the tiny model")
    options.add_argument("--json", type=Path, help="write the figures here")
    options.add_argument("--alone", nargs=3, metavar=("PROFILE", "WEIGHTS", "ROUNDS"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.alone:
        profile, source, rounds = chosen.alone
        asyncio.run(alone(profile, source, int(rounds)))
        return
    profiles: list[Profile] = ["tiny"] if chosen.quick else ["small", "tiny"]
    reports = [run(profile, 1 if chosen.quick else 4) for profile in profiles]
    for report in reports:
        show(report)
    if chosen.json:
        chosen.json.write_text(json.dumps(reports, indent=2) + "\n")


def run(profile: Profile, rounds: int) -> dict[str, Any]:
    """Return all figures of one model."""
    from benchmarks.bare import front_port
    from benchmarks.bench_platform import _funded_key
    from deployments.app import numbers_of
    from deployments.books import in_books
    from deployments.cli import Steps
    from deployments.launcher import PLATFORM, SERVE_CONFIG, Launcher

    entry = registry.entry_for("chat")
    config = yaml.safe_load(SERVE_CONFIG.read_text())
    kept = {each["name"]: each for each in config["applications"] if each["name"] in (PLATFORM, "chat")}
    numbers = numbers_of(kept["chat"]["args"]["profiles"], profile, "")
    with tempfile.TemporaryDirectory(prefix="farebox-") as place:
        settings = load_settings(data_dir=Path(place), port=front_port(), profile=profile, database_url="")
        build = weights.ensure_small if profile == "small" else weights.ensure_tiny
        directory = build(entry, settings.weights_dir)
        told = subprocess.run(
            [
                str(environments.python_of(entry.environment)), "-m", "benchmarks.chat",
                "--alone", profile, str(directory), str(rounds),
            ],
            env=environment()
            | entry.variables_for(numbers.get("cpu_threads", 1))
            | {"PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            check=True,
        )  # fmt: skip
        chosen = Path(place) / "serve_config.yaml"
        chosen.write_text(yaml.safe_dump(config | {"applications": list(kept.values())}))
        with Launcher(settings, Steps(), chosen) as running:
            key = in_books(running.settings.database_url, _funded_key)
            url = f"http://127.0.0.1:{settings.port}/v1/chat/completions"
            ours = asyncio.run(through(url, key, rounds, MAX_TOKENS[profile]))
    engine = json.loads(told.stdout.strip().splitlines()[-1])
    rows = [
        {"concurrency": width, "farebox": ours[str(width)], "engine": engine[str(width)]} for width in WIDTHS
    ]
    for row in rows:
        row["share"] = round(row["farebox"]["tokens_per_s"] / row["engine"]["tokens_per_s"], 3)
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "weights": {"small": "SmolLM2-135M-Instruct, float32", "tiny": "tiny Qwen3, bfloat16"}[profile],
        "max_tokens": MAX_TOKENS[profile],
        "rounds": rounds,
        "cold_start_s": ours["cold_start_s"],
        "rows": rows,
    }


async def through(url: str, key: str, rounds: int, max_tokens: int) -> dict[str, Any]:
    """Measure turns through the platform, after the one that starts its engine."""
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=300) as client:

        async def turn(seed: int) -> tuple[int, float]:
            body = {"messages": QUESTION, "max_tokens": max_tokens, "seed": seed, "stream": True}
            began, first_s, tokens = time.perf_counter(), 0.0, 0
            async with client.stream("POST", url, json=body) as answer:
                assert answer.status_code == 200, (await answer.aread()).decode()
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        first_s = first_s or time.perf_counter() - began
                        chunk = json.loads(line.removeprefix("data: "))
                        assert "error" not in chunk, chunk
                        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            return tokens, first_s

        _, cold_s = await turn(0)
        return await measured(turn, rounds) | {"cold_start_s": round(cold_s, 1)}


async def alone(profile: Profile, source: str, rounds: int) -> None:
    """Measure the engine by itself, and print the figures. Its first token is the first with letters, as a caller's."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from deployments.models.chat import start_engine
    from deployments.models.contract import Weights

    engine = start_engine(Weights(source, None, profile, profile))
    tokenizer = engine.get_tokenizer()
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    prompt = {"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}
    turns = 0

    async def turn(seed: int) -> tuple[int, float]:
        nonlocal turns
        turns += 1
        sampling = SamplingParams(
            max_tokens=MAX_TOKENS[profile],
            temperature=1.0,
            seed=seed,
            output_kind=RequestOutputKind.DELTA,
        )
        began, first_s, tokens = time.perf_counter(), 0.0, 0
        async for output in engine.generate(prompt, sampling, f"turn-{turns}"):
            if output.outputs[0].text:
                first_s = first_s or time.perf_counter() - began
            tokens += len(output.outputs[0].token_ids)
        return tokens, first_s

    await turn(0)
    figures = await measured(turn, rounds)
    engine.shutdown()
    sys.stdout.write("\n" + json.dumps(figures) + "\n")


async def measured(turn: Turn, rounds: int) -> dict[str, Any]:
    """Play the same seeds at each concurrency; return tokens a second, and the middle time to the first."""
    found: dict[str, Any] = {}
    for width in WIDTHS:
        await asyncio.gather(*(turn(seed) for seed in range(width)))
        tokens, firsts = 0, []
        began = time.perf_counter()
        for each in range(rounds * 2):
            played = await asyncio.gather(*(turn(each * width + place) for place in range(width)))
            tokens += sum(count for count, _ in played)
            firsts += [first for _, first in played]
        seconds = time.perf_counter() - began
        found[str(width)] = {
            "tokens_per_s": round(tokens / seconds, 1),
            "first_token_s": round(sorted(firsts)[len(firsts) // 2], 3),
        }
    return found


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(
        "concurrency",
        "engine tokens/s",
        "Farebox tokens/s",
        "share",
        "engine first token",
        "Farebox first token",
        title=f"chat: {report['weights']}, {report['machine']}; cold start {report['cold_start_s']} s",
    )
    for row in report["rows"]:
        engine, ours = row["engine"], row["farebox"]
        table.add_row(
            str(row["concurrency"]),
            f"{engine['tokens_per_s']:.0f}",
            f"{ours['tokens_per_s']:.0f}",
            f"{row['share']:.0%}",
            f"{engine['first_token_s']:.3f} s",
            f"{ours['first_token_s']:.3f} s",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"asked of the real model at concurrency {WIDTHS[-1]}: {TARGET:.0%}")


if __name__ == "__main__":
    main()
