"""Plays a ChatServer on its real engine and prints what it saw as JSON. Runs in the chat environment.

Called as: `chat_engine.py <models directory> <profile>`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deployments.models.contract import GenerateRequest, ModelBroken, ModelRefused, Output, Progress
from gateway.conversations import Conversation, Ended, Said

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def turn(name: str, **more: Any) -> Conversation:
    given = {"messages": QUESTION, "tools": [], "max_tokens": 24, "temperature": None, "top_p": None}
    return Conversation(name, **{**given, "stop": [], "seed": 1, **more})


async def heard(server: Any, conversation: Conversation) -> dict[str, Any]:
    pieces, ended, busy_s = [], None, []
    async for event in server.stream(conversation):
        busy_s.append(event.took.busy_s)
        if isinstance(event, Said):
            pieces.append(event.text)
        elif isinstance(event, Ended):
            ended = [event.finish_reason, event.took.prompt_tokens, event.took.completion_tokens]
    return {"pieces": len(pieces), "text": "".join(pieces), "ended": ended, "busy_s": busy_s}


async def refused(server: Any, conversation: Conversation) -> str:
    try:
        await heard(server, conversation)
    except ModelRefused as refusal:
        return refusal.field
    return "served"


async def until(true: Any) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.05)


def children() -> list[int]:
    """Return the processes below this one that still run."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(") ")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {os.getpid()})


async def play(models_dir: str, profile: Any) -> dict[str, Any]:
    from deployments.models.chat import ChatServer

    server = ChatServer("chat", profile, models_dir)
    seen: dict[str, Any] = {"one": await heard(server, turn("one"))}
    seen["again"] = await heard(server, turn("again"))
    if profile != "tiny":
        return seen
    likely = {"temperature": 0.0, "max_tokens": 200}
    seen["repeating"] = await heard(server, turn("r", **likely, presence_penalty=-2.0))
    seen["varied"] = await heard(server, turn("v", **likely, frequency_penalty=2.0, presence_penalty=2.0))
    began = time.perf_counter()
    seen["many"] = await asyncio.gather(*(heard(server, turn(f"m{place}")) for place in range(8)))
    seen["many_s"] = time.perf_counter() - began
    async with aclosing(server.stream(turn("left", max_tokens=3000))) as events:
        await anext(events)
        said = await anext(events)
    seen["left"] = [said.took.busy_s, said.took.prompt_tokens, said.took.completion_tokens]
    processor = server._engine.output_processor
    await until(lambda: not processor.has_unfinished_requests())
    seen["after_leaving"] = (await server.describe())["jobs"]
    seen["long_question"] = await refused(
        server, turn("q", messages=[{"role": "user", "content": "word " * 2000}])
    )
    seen["long_answer"] = await refused(server, turn("a", max_tokens=4096))
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    seen["tools"] = await refused(server, turn("t", tools=[tool]))
    job = GenerateRequest(
        "job_1", "chat.complete", {"messages": QUESTION, "maxTokens": 8, "temperature": "0"}
    )
    events = [event async for event in server.generate(job)]
    assert isinstance(events[-1], Output)
    seen["job"] = json.loads(events[-1].media[0].data)
    seen["job_took"] = asdict(events[-1].metrics)
    seen["job_told"] = [event.metrics is not None for event in events if isinstance(event, Progress)]
    await server.check_health()
    dying = asyncio.create_task(heard(server, turn("dying", max_tokens=4000)))
    await until(processor.has_unfinished_requests)
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    try:
        await dying
    except ModelBroken as broken:
        seen["died"] = broken.reason
    try:
        await server.check_health()
    except ModelBroken as broken:
        seen["unwell"] = broken.reason
    return seen


if __name__ == "__main__":
    told = asyncio.run(play(sys.argv[1], sys.argv[2]))
    sys.stdout.write("\n" + json.dumps(told) + "\n")
    sys.stdout.flush()
    os._exit(0)
