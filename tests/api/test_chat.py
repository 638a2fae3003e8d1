"""Chat completions over the real books, by OpenAI's own client over real sockets; the model is played."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
import pytest_asyncio
import uvicorn
from sqlalchemy import text

from deployments.models.contract import ModelBroken
from gateway.account_answers import CostShown
from gateway.app import create_app
from gateway.conversations import Began, ChatBusy, Conversation, Ended, Event, Said, Took
from gateway.ports import ModelState
from kit.errors import InvalidRequest

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WORDS = ["Par", "is", "."]


def took(completion_tokens: int, busy_s: float = 0.0, prompt_tokens: int = 12) -> Took:
    """What a turn took so far of an engine that two share."""
    return Took(True, prompt_tokens, completion_tokens, busy_s, 2)


@dataclass
class PlayedChats:
    """A chat model that says its lines. `gate` is waited for before each line but the first."""

    lines: list[Event | Exception] = field(
        default_factory=lambda: [
            Began("Played-1B", None, took(0)),
            *(Said(word, [], took(place, place / 4)) for place, word in enumerate(WORDS, 1)),
            Ended("stop", took(3, 1.0)),
        ]
    )
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[Conversation] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def stream(self, application: str, conversation: Conversation) -> AsyncGenerator[Event, None]:
        assert application == "chat"
        self.asked.append(conversation)
        whole = False
        try:
            for line in self.lines:
                if isinstance(line, Exception):
                    raise line
                yield line
                if isinstance(line, Said):
                    await self.gate.wait()
            whole = True
        finally:
            if not whole:
                self.left.set()


@pytest.fixture
def chats() -> PlayedChats:
    played = PlayedChats()
    played.gate.set()
    return played


@pytest_asyncio.fixture
async def address(app) -> AsyncIterator[str]:
    """The surface on a port of this machine, on the loop of the test."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(server.serve([listening]))
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    server.should_exit = True
    await serving
    listening.close()


@pytest_asyncio.fixture
async def client_of(address: str) -> AsyncIterator[Callable[[Any], openai.AsyncOpenAI]]:
    """OpenAI's client with a customer's key; it asks once."""
    made = []

    def client(owner: Any) -> openai.AsyncOpenAI:
        made.append(openai.AsyncOpenAI(base_url=address, api_key=owner.key, max_retries=0))
        return made[-1]

    yield client
    for each in made:
        await each.close()


@pytest_asyncio.fixture
async def owner(customer):
    """A customer with 100 tokens: twenty turns."""
    return await customer(100)


async def holds(db) -> list[tuple[str, int]]:
    async with db.transaction() as conn:
        rows = await conn.execute(text("SELECT state, captured FROM holds ORDER BY id"))
        return [tuple(row) for row in rows]


async def turns(db) -> list[dict[str, Any]]:
    async with db.transaction() as conn:
        rows = await conn.execute(text("SELECT * FROM chat_turns ORDER BY id"))
        return [dict(row) for row in rows.mappings()]


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await true():
            await asyncio.sleep(0.02)


async def test_a_completion_is_whole_charged_and_says_its_cost(owner, client_of, chats, db, assert_sound):
    answer = await client_of(owner).chat.completions.create(
        model="qwen3-8b",
        messages=QUESTION,
        temperature=0.5,
        max_tokens=9,
        stop="END",
        seed=3,
        frequency_penalty=0.5,
        presence_penalty=-1,
        response_format={"type": "text"},
    )
    assert answer.choices[0].message.content == "Paris."
    assert (answer.choices[0].finish_reason, answer.model) == ("stop", "Played-1B")
    assert answer.id.startswith("chatcmpl_")
    assert answer.usage.total_tokens == 15
    assert answer.usage.cost == {"credits": 0.05, "tokens": 5}
    [asked] = chats.asked
    assert (asked.messages, asked.max_tokens, asked.temperature) == (QUESTION, 9, 0.5)
    assert (asked.stop, asked.seed) == (["END"], 3)
    assert (asked.frequency_penalty, asked.presence_penalty) == (0.5, -1)
    assert await owner.tokens() == 95
    assert await holds(db) == [("captured", 5)]
    [turn] = await turns(db)
    assert (turn["id"], turn["outcome"], turn["application"]) == (answer.id, "succeeded", "chat")
    assert (turn["model"], turn["on_gpu"], turn["busy_us"]) == ("Played-1B", True, 1_000_000)
    assert (turn["prompt_tokens"], turn["completion_tokens"]) == (12, 3)
    await assert_sound(db)


@pytest.mark.parametrize("include_usage", [False, True])
async def test_a_stream_says_the_words_then_what_it_cost(owner, client_of, include_usage):
    stream = await client_of(owner).chat.completions.create(
        model="chat.complete",
        messages=QUESTION,
        stream=True,
        stream_options={"include_usage": True} if include_usage else openai.omit,
    )
    chunks = [chunk async for chunk in stream]
    said = [chunk for chunk in chunks if chunk.choices]
    assert [chunk.choices[0].delta.content for chunk in said] == [*WORDS, None]
    assert said[0].choices[0].delta.role == "assistant"
    assert said[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage.cost == {"credits": 0.05, "tokens": 5}
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert bool(chunks[-1].choices) is not include_usage
    assert await owner.tokens() == 95


async def test_who_leaves_a_stream_after_words_pays_and_the_model_stops(
    owner, client_of, chats, db, assert_sound
):
    chats.gate.clear()
    stream = await client_of(owner).chat.completions.create(model="qwen3-8b", messages=QUESTION, stream=True)
    assert (await anext(aiter(stream))).choices[0].delta.content == "Par"
    assert await holds(db) == [("pending", 0)]
    await stream.close()
    async with asyncio.timeout(20):
        await chats.left.wait()
    await until(lambda: _are(db, [("captured", 5)]))
    assert await owner.tokens() == 95
    [turn] = await turns(db)
    assert (turn["outcome"], turn["prompt_tokens"], turn["completion_tokens"]) == ("canceled", 12, 1)
    assert turn["busy_us"] > 250_000, "what the engine told with the word, and its part of the wait after it"
    await assert_sound(db)


async def test_who_stops_reading_a_stream_has_left_it(owner, address, chats, db, monkeypatch, assert_sound):  # noqa: PLR0917  # fixtures
    monkeypatch.setattr("gateway.routes.chat.UNREAD_S", 0.2)
    more = [Said("a word " * 100_000, [], took(place)) for place in range(2, 100)]
    chats.lines[1:] = [Said("One", [], took(1)), *more]
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps({"messages": QUESTION, "stream": True})
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nx-api-key: {owner.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    )
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.setblocking(False)
        await asyncio.get_running_loop().sock_connect(reader, (host, int(port)))
        await asyncio.get_running_loop().sock_sendall(reader, request.encode())
        async with asyncio.timeout(20):
            await chats.left.wait()
        await until(lambda: _are(db, [("captured", 5)]))
    await assert_sound(db)


async def test_the_words_of_a_stream_that_was_left_are_counted_wherever_its_usage_is_told(
    owner, client_of, chats, db
):
    client = client_of(owner)
    chats.gate.clear()
    ask = {"model": "qwen3-8b", "messages": QUESTION, "extra_headers": {"Idempotency-Key": "turn-1"}}
    stream = await client.chat.completions.create(**ask, stream=True)
    left = await anext(aiter(stream))
    await stream.close()
    await until(lambda: _are(db, [("captured", 5)]))
    again = await client.chat.completions.create(**ask)
    assert (again.id, again.choices[0].message.content) == (left.id, "Par")
    assert (again.usage.prompt_tokens, again.usage.completion_tokens) == (12, 1)
    cost = (await owner.client.get("/api/v1/cost", params={"reference": left.id})).json()
    CostShown.model_validate(cost)
    assert cost["charged"]["tokens"] == 5
    turn = cost["turn"]
    assert (turn["outcome"], turn["promptTokens"], turn["completionTokens"]) == ("canceled", 12, 1)
    assert turn["metrics"]["gpuSeconds"] == turn["metrics"]["busySeconds"] > 0.25
    assert len(chats.asked) == 1


async def test_who_hangs_up_before_the_answer_pays_nothing_and_the_turn_is_measured(
    owner, client_of, chats, db
):
    chats.gate.clear()
    asking = asyncio.create_task(
        client_of(owner).chat.completions.create(model="qwen3-8b", messages=QUESTION)
    )
    await until(lambda: _asked(chats, 1))
    asking.cancel()
    await until(lambda: _are(db, [("voided", 0)]))
    [turn] = await turns(db)
    assert turn["outcome"] == "canceled"
    assert await owner.tokens() == 100


async def _are(db, wanted: list[tuple[str, int]]) -> bool:
    return await holds(db) == wanted


async def test_a_stream_that_breaks_ends_with_openais_error_and_costs_nothing(owner, client_of, chats, db):
    chats.lines[2:] = [ModelBroken("The chat engine failed.")]
    stream = await client_of(owner).chat.completions.create(model="qwen3-8b", messages=QUESTION, stream=True)
    heard = []
    with pytest.raises(openai.APIError, match="engine failed"):  # noqa: PT012  # it breaks in the loop
        async for chunk in stream:
            heard.append(chunk.choices[0].delta.content)  # noqa: PERF401  # what was heard stays
    assert heard == ["Par"]
    assert await owner.tokens() == 100
    assert await holds(db) == [("voided", 0)]
    [turn] = await turns(db)
    assert (turn["outcome"], turn["completion_tokens"]) == ("failed", 1)


async def test_a_stream_that_breaks_for_no_known_reason_costs_nothing_either(owner, client_of, chats, db):
    chats.lines[2:] = [RuntimeError("a bug")]
    stream = await client_of(owner).chat.completions.create(model="qwen3-8b", messages=QUESTION, stream=True)
    with pytest.raises(openai.APIConnectionError):
        [chunk async for chunk in stream]
    await until(lambda: _are(db, [("voided", 0)]))
    assert [turn["outcome"] for turn in await turns(db)] == ["failed"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (InvalidRequest("tools", "this model calls none"), openai.BadRequestError),
        (ChatBusy(5), openai.RateLimitError),
        (ModelBroken("The chat engine failed."), openai.InternalServerError),
    ],
)
async def test_a_refusal_before_the_first_word_keeps_its_status_and_costs_nothing(  # noqa: PLR0917
    owner, client_of, chats, db, refusal, error, *, stream
):
    chats.lines[:] = [refusal]
    with pytest.raises(error) as raised:
        await client_of(owner).chat.completions.create(model="qwen3-8b", messages=QUESTION, stream=stream)
    if isinstance(refusal, ChatBusy):
        assert raised.value.response.headers["retry-after"] == "5"
    assert await holds(db) == [("voided", 0)]
    assert await turns(db) == [], "no model worked"
    assert await owner.tokens() == 100


async def test_too_poor_a_caller_hears_402_before_the_model_hears_anything(customer, client_of, chats):
    poor = await customer(4)
    with pytest.raises(openai.APIStatusError) as raised:
        await client_of(poor).chat.completions.create(model="qwen3-8b", messages=QUESTION, stream=True)
    assert raised.value.status_code == 402
    assert raised.value.body["cost_tokens"] == 5
    assert chats.asked == []


async def test_an_idempotency_key_answers_once_in_either_form(owner, client_of, chats):
    client = client_of(owner)
    ask = {"model": "qwen3-8b", "messages": QUESTION, "extra_headers": {"Idempotency-Key": "turn-1"}}
    first = await client.chat.completions.create(**ask)
    again = await client.chat.completions.with_raw_response.create(**ask)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.parse() == first
    streamed = [chunk async for chunk in await client.chat.completions.create(**ask, stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "Paris."
    assert streamed[-1].usage == first.usage
    assert len(chats.asked) == 1
    assert await owner.tokens() == 95
    with pytest.raises(openai.ConflictError, match="used before"):
        await client.chat.completions.create(**ask | {"messages": [{"role": "user", "content": "Else?"}]})


async def test_a_key_whose_turn_failed_is_free_and_one_under_way_is_busy(owner, client_of, chats):
    client = client_of(owner)
    ask = {"model": "qwen3-8b", "messages": QUESTION, "extra_headers": {"Idempotency-Key": "turn-1"}}
    lines = list(chats.lines)
    chats.lines[:] = [ModelBroken("The chat engine failed.")]
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(**ask)
    chats.lines[:] = lines
    chats.gate.clear()
    first = asyncio.create_task(client.chat.completions.create(**ask))
    await until(lambda: _asked(chats, 2))
    with pytest.raises(openai.ConflictError, match="still being answered") as busy:
        await client.chat.completions.create(**ask)
    told = busy.value.response.headers
    assert (told["retry-after"], told.get("x-should-retry")) == ("2", None), (
        "the client may ask again by itself"
    )
    chats.gate.set()
    assert (await first).choices[0].message.content == "Paris."
    assert await owner.tokens() == 95


async def test_a_retry_of_an_answered_turn_is_answered_while_the_model_is_away(
    owner, client_of, chats, models
):
    client = client_of(owner)
    ask = {"model": "qwen3-8b", "messages": QUESTION}
    first = await client.chat.completions.create(**ask, extra_headers={"Idempotency-Key": "turn-1"})
    models.known["chat"] = ModelState("chat", "unavailable", "It could not be started.", failed=True)
    assert await client.chat.completions.create(**ask, extra_headers={"Idempotency-Key": "turn-1"}) == first
    with pytest.raises(openai.InternalServerError, match="could not be started"):
        await client.chat.completions.create(**ask, extra_headers={"Idempotency-Key": "turn-2"})
    assert await owner.tokens() == 95


async def _asked(chats: PlayedChats, times: int) -> bool:
    return len(chats.asked) == times


async def test_a_model_that_does_not_start_in_time_is_503_and_free(  # noqa: PLR0917
    settings, ledger, models, objects, chats, owner, db
):
    chats.lines[:] = [Said("", [], took(0))]  # said before it began: the gate holds
    chats.gate.clear()

    async def silent(*_: object) -> AsyncGenerator[Event, None]:
        await chats.gate.wait()
        yield Began("never", None, took(0))

    chats.stream = silent  # type: ignore[method-assign]
    owner.client._transport.app = create_app(
        settings.model_copy(update={"chat_start_s": 1}), ledger, models, None, objects, chats=chats
    )
    answer = await owner.client.post("/v1/chat/completions", json={"messages": QUESTION})
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert await holds(db) == [("voided", 0)]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_took_too_long_is_charged_if_words_of_it_were_delivered(  # noqa: PLR0917
    settings, ledger, models, objects, chats, owner, db, stream
):
    chats.gate.clear()
    owner.client._transport.app = create_app(
        settings.model_copy(update={"chat_turn_s": 1}), ledger, models, None, objects, chats=chats
    )
    answer = await owner.client.post("/v1/chat/completions", json={"messages": QUESTION, "stream": stream})
    assert chats.left.is_set(), "the model has stopped"
    if not stream:
        assert answer.status_code == 500
        assert await holds(db) == [("voided", 0)]
        return
    frames = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert frames[-1] == "[DONE]"
    said, last = (json.loads(frame)["choices"][0] for frame in frames[:-1])
    assert said["delta"]["content"] == "Par"
    assert last["finish_reason"] == "length"
    assert await holds(db) == [("captured", 5)]


async def test_a_cold_start_keeps_the_stream_open_with_comments(owner, chats, monkeypatch):
    monkeypatch.setattr("gateway.completions.TICK_S", 0.01)
    began = chats.lines[0]

    async def cold(*_: object) -> AsyncGenerator[Event, None]:
        await asyncio.sleep(0.1)
        yield began
        yield Said("Hi", [], took(1))
        yield Ended("stop", took(1))

    chats.stream = cold  # type: ignore[method-assign]
    answer = await owner.client.post("/v1/chat/completions", json={"messages": QUESTION, "stream": True})
    assert answer.text.startswith(": starting\n\n")
    frames = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert frames[-1] == "[DONE]"
    assert json.loads(frames[0])["choices"][0]["delta"] == {"role": "assistant", "content": "Hi"}


async def test_a_model_given_up_is_503_and_nothing_is_held(owner, client_of, models, db):
    models.known["chat"] = ModelState(
        "chat", "unavailable", "The chat environment is not installed.", failed=True
    )
    with pytest.raises(openai.InternalServerError, match="chat environment is not installed"):
        await client_of(owner).chat.completions.create(model="qwen3-8b", messages=QUESTION)
    assert await holds(db) == []


async def test_calls_of_tools_pass_through(owner, client_of, chats):
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
    }
    chats.lines[1:] = [Said("", [call], took(9)), Ended("tool_calls", took(9))]
    parameters = {"type": "object", "properties": {"city": {"type": "string"}, "limit": {"maximum": 1.5}}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    ask = {"model": "qwen3-8b", "messages": QUESTION, "tools": tools}
    answer = await client_of(owner).chat.completions.create(**ask)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"
    assert chats.asked[0].tools == tools
    chunks = [chunk async for chunk in await client_of(owner).chat.completions.create(**ask, stream=True)]
    assert chunks[0].choices[0].delta.tool_calls[0].function.arguments == '{"city": "Paris"}'


async def test_what_the_client_was_answered_can_be_sent_back(owner, client_of, chats):
    client = client_of(owner)
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    chats.lines[1:] = [Said("", [call], took(9)), Ended("tool_calls", took(9))]
    answered = (await client.chat.completions.create(model="qwen3-8b", messages=QUESTION)).choices[0].message
    result = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "Sunny."}]}
    for sent in (answered, answered.model_dump()):
        await client.chat.completions.create(model="qwen3-8b", messages=[*QUESTION, sent, result])
        assert chats.asked[-1].messages == [
            *QUESTION,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
        ]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"n": 2}, "n"),
        ({"temperature": 2.5}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"logprobs": True}, "logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"max_tokens": 5, "max_completion_tokens": 9}, "max_completion_tokens"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type",
        ),
        ({"model": "gpt-9"}, "model"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_held(owner, wrong, field, db):
    answer = await owner.client.post("/v1/chat/completions", json={"messages": QUESTION, **wrong})
    assert answer.status_code == (404 if field == "model" else 400)
    assert answer.json()["error"]["param"] == field
    assert await holds(db) == []
