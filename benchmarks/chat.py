"""Chat through Farebox beside its engine alone, in one run: tokens a second and the time to the first token.

    python -m benchmarks.chat [--quick] [--json FILE]

The platform starts as `farebox up` starts it and its engine on the first turn; then the same engine, weights, prompts
and seeds run alone in a process. The tiny weights are all overhead: a real model hides ours behind its own work. Quick
is one round; the two starts of the engine take most of its time, 20 s each on two idle cores.
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

QUESTION: Final = [{"role": "user", "content": "What is the capital of France?"}]
MAX_TOKENS: Final = 256
TARGET: Final = 0.9
"""What was asked for: the share of the engine's tokens a second that reaches a caller, at concurrency 8."""
WIDTHS: Final = (1, 8)

Turn = Callable[[int], Awaitable[tuple[int, float]]]
"""Plays the turn of a seed; returns the tokens that came and the seconds to the first."""


def main() -> None:
    """Run, print the table, keep the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="one round")
    options.add_argument("--json", type=Path, help="write the figures here")
    options.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    rounds = 1 if chosen.quick else 4
    if chosen.alone:
        asyncio.run(alone(chosen.alone, rounds))
        return
    report = run(rounds)
    show(report)
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


def run(rounds: int) -> dict[str, Any]:
    """Return all figures of one run."""
    from benchmarks.bare import front_port
    from deployments.books import in_books
    from deployments.cli import Steps
    from deployments.launcher import Launcher
    from deployments.models import environments, registry
    from kit.settings import environment, load_settings

    entry = registry.entry_for("chat")
    python = environments.python_of(entry.environment)
    with tempfile.TemporaryDirectory(prefix="farebox-") as place:
        settings = load_settings(data_dir=Path(place), port=front_port(), profile="tiny", database_url="")
        with Launcher(settings, Steps()) as running:
            key = in_books(running.settings.database_url, _funded_key)
            ours = asyncio.run(through(f"http://127.0.0.1:{settings.port}/v1/chat/completions", key, rounds))
        weights = registry.tiny_directory(entry, settings.weights_dir)
        told = subprocess.run(
            [
                str(python),
                "-m",
                "benchmarks.chat",
                "--alone",
                str(weights),
                *(["--quick"] if rounds == 1 else []),
            ],
            env=environment() | dict(entry.variables) | {"PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            check=True,
        )
    engine = json.loads(told.stdout.strip().splitlines()[-1])
    rows = [
        {"concurrency": width, "farebox": ours[str(width)], "engine": engine[str(width)]} for width in WIDTHS
    ]
    for row in rows:
        row["share"] = round(row["farebox"]["tokens_per_s"] / row["engine"]["tokens_per_s"], 3)
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "weights": "tiny Qwen3, bfloat16",
        "max_tokens": MAX_TOKENS,
        "rounds": rounds,
        "cold_start_s": ours["cold_start_s"],
        "rows": rows,
    }


async def through(url: str, key: str, rounds: int) -> dict[str, Any]:
    """Measure turns through the platform, after the one that starts its engine."""
    import httpx

    async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=300) as client:

        async def turn(seed: int) -> tuple[int, float]:
            body = {"messages": QUESTION, "max_tokens": MAX_TOKENS, "seed": seed, "stream": True}
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


async def alone(weights: Path, rounds: int) -> None:
    """Measure the engine by itself, and print the figures."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from deployments.models.chat import start_engine
    from deployments.models.contract import Weights

    engine = start_engine(Weights(str(weights), None, "tiny", "tiny Qwen3"))
    tokenizer = engine.get_tokenizer()
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    prompt = {"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}
    turns = 0

    async def turn(seed: int) -> tuple[int, float]:
        nonlocal turns
        turns += 1
        sampling = SamplingParams(
            max_tokens=MAX_TOKENS, temperature=1.0, seed=seed, output_kind=RequestOutputKind.DELTA
        )
        began, first_s, tokens = time.perf_counter(), 0.0, 0
        async for output in engine.generate(prompt, sampling, f"turn-{turns}"):
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


async def _funded_key(conn: Any) -> str:
    from benchmarks.bench_platform import _funded_key as funded

    return await funded(conn)


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

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
    Console().print(table)


if __name__ == "__main__":
    main()
