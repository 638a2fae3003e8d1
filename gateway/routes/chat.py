"""Chat completions in OpenAI's shape, whole or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Send

from gateway.bodies import StrictRoute
from gateway.catalog import Task
from gateway.chat_answers import ChatCompletion
from gateway.chat_schemas import CreateChatCompletion
from gateway.completions import Completion, Finished, Waiting, with_cost
from gateway.conversations import BeginTurn, ChatBusy, ChatFailed, Said, TurnUnderWay
from gateway.deps import SECURED, CallerKey, Parts, PartsOf, RetryKey
from gateway.errors import TaskUnavailable
from gateway.fingerprints import fingerprint
from gateway.openai_errors import ModelNotFound, openai_body
from gateway.openai_models import task_for
from gateway.openapi import OPENAI, REPLAYED, WRITE, problems
from gateway.responses import REPLAY, dump, json_response
from gateway.worlds import working_application
from kit.errors import AppError, Internal, Unavailable
from kit.ids import new_id
from ledger.accounts import World

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"], route_class=StrictRoute)

log = structlog.get_logger(__name__)

TASK: Final = "chat.complete"
UNREAD_S: Final = 30
"""Below what a hold outlives the longest turn by. Some seconds of words lie in the buffers on the way before that."""
_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}
_DONE: Final = b"data: [DONE]\n\n"
_STARTING: Final = b": starting\n\n"
_EXAMPLE: Final = (
    'data: {"id":"chatcmpl_01k8z0c6m5n7q2r4t6v8x0y2z4","object":"chat.completion.chunk","created":1795600000,'
    '"model":"Qwen3-8B","choices":[{"index":0,"delta":{"role":"assistant","content":"Paris"},"logprobs":null,'
    '"finish_reason":null}]}\n\ndata: [DONE]\n\n'
)


@router.post(
    "/chat/completions",
    operation_id="createChatCompletion",
    summary="Answer a conversation",
    response_model=ChatCompletion,
    responses={
        200: {
            "headers": REPLAYED,
            "content": {"text/event-stream": {"example": _EXAMPLE}},
        },
        **problems(
            *WRITE,
            "insufficient_credits",
            "account_frozen",
            "key_limit_reached",
            "idempotency_key_reused",
            ModelNotFound("gpt-9", ["qwen3-8b", TASK]),
            TurnUnderWay("turn-001"),
            ChatBusy(5),
            ChatFailed("The chat engine failed."),
            shape=OPENAI,
        ),
    },
    openapi_extra=SECURED,
)
async def create_chat_completion(
    body: CreateChatCompletion, credential: CallerKey, header_key: RetryKey, parts: PartsOf, request: Request
) -> Response:
    """Each turn costs the same. Its cost is held first and charged when the turn ends; a failed one costs nothing.

    A stream that its caller leaves after words were delivered is charged, and the model stops. While the model starts,
    a stream is kept open with comments. The last chunk with `choices` has `usage` and its `cost`.
    """
    task = task_for(await parts.price_list(), TASK, body.model)
    application, refusal = task.application, None
    try:
        application = await _application(parts, credential.world, task)
    except (Unavailable, TaskUnavailable) as error:
        refusal = error  # unless the caller may not ask at all, or this is a retry of what was answered
    completion_id = new_id("chatcmpl")
    begun = await parts.ledger.begin_turn(
        BeginTurn(credential, completion_id, task.tool.price, header_key, _meaning(body), refusal)
    )
    if begun.answer is not None:
        answered = dict(begun.answer)
        return _again(with_cost(answered, answered.pop("charged")), body)
    assert parts.chats is not None, "without a model nothing is begun"
    completion = Completion(
        parts.settings,
        parts.ledger,
        parts.chats,
        application,
        body.conversation(completion_id),
        begun.hold_id,
        streamed=bool(body.stream),
        kept=header_key is not None,
    )
    if not body.stream:
        return json_response(await _whole(completion, request))
    events = completion.events()
    first = await anext(events)  # a refusal that comes at once keeps its status
    return _Stream(_frames(completion, first, events, body), headers=_HEADERS, media_type="text/event-stream")


async def _application(parts: Parts, world: World, task: Task) -> str:
    """Return who answers. Raises: Unavailable, TaskUnavailable."""
    if parts.chats is None:
        raise Unavailable("The chat model", 300)
    return await working_application(parts, world, task)


async def _whole(completion: Completion, request: Request) -> dict[str, Any]:
    """Return the finished completion. Who hangs up meanwhile pays nothing: nothing was delivered."""
    async with aclosing(completion.events()) as events:
        async for event in events:
            if isinstance(event, Finished):
                return event.body
            if await request.is_disconnected():
                break
    raise ChatFailed("The caller left before the answer was whole.")


async def _frames(
    completion: Completion, first: Any, events: AsyncGenerator[Any, None], body: CreateChatCompletion
) -> AsyncGenerator[bytes, None]:
    """Yield the stream's frames; closed, it closes the turn."""
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    delta: dict[str, Any] = {"role": "assistant"}
    async with aclosing(events):
        event = first
        try:
            while True:
                if isinstance(event, Finished):
                    for frame in _ending(event.body, delta, include_usage=include_usage):
                        yield frame
                    return
                if isinstance(event, Said):
                    yield _chunk(_head(completion), delta | _said(event.text, event.tool_calls))
                    delta = {}
                elif isinstance(event, Waiting):
                    yield _STARTING
                event = await anext(events)
        except AppError as error:
            yield _frame(openai_body(error))
        except StopAsyncIteration:
            yield _frame(openai_body(Internal()))


def _ending(body: dict[str, Any], delta: dict[str, Any], *, include_usage: bool) -> list[bytes]:
    """Return the last frames. Usage rides on the last choice, or in a chunk of its own where that was asked for."""
    head = {name: body[name] for name in ("id", "created", "model")} | {"notice": body.get("notice")}
    reason = body["choices"][0]["finish_reason"]
    if include_usage:
        alone = _frame(_headed(head) | {"choices": [], "usage": body["usage"]})
        return [_chunk(head, delta, reason), alone, _DONE]
    return [_chunk(head, delta, reason, body["usage"]), _DONE]


def _again(body: dict[str, Any], asked: CreateChatCompletion) -> Response:
    """Send a first answer again, in the form that is asked for now."""
    if not asked.stream:
        return json_response(body, headers=REPLAY)
    message = body["choices"][0]["message"]
    head = {name: body[name] for name in ("id", "created", "model")} | {"notice": body.get("notice")}
    said = _said(message["content"] or "", message.get("tool_calls", []))
    include_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    frames = [
        _chunk(head, {"role": "assistant"} | said),
        *_ending(body, {}, include_usage=include_usage),
    ]
    return Response(b"".join(frames), headers=_HEADERS | REPLAY, media_type="text/event-stream")


def _said(text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    said: dict[str, Any] = {"content": text} if text or not calls else {}
    if calls:
        said["tool_calls"] = [{"index": place, **call} for place, call in enumerate(calls)]
    return said


def _head(completion: Completion) -> dict[str, Any]:
    return {
        "id": completion.id,
        "created": completion.created,
        "model": completion.model,
        "notice": completion.notice,
    }


def _headed(head: dict[str, Any]) -> dict[str, Any]:
    return {"object": "chat.completion.chunk"} | {
        name: value for name, value in head.items() if value is not None
    }


def _chunk(
    head: dict[str, Any],
    delta: dict[str, Any],
    reason: str | None = None,
    usage: dict[str, Any] | None = None,
) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return _frame(_headed(head) | {"choices": [choice]} | ({"usage": usage} if usage else {}))


def _frame(body: dict[str, Any]) -> bytes:
    return b"data: " + dump(body) + b"\n\n"


def _meaning(body: CreateChatCompletion) -> str:
    saying = {"stream", "stream_options", "user"}
    return fingerprint(body.model_dump(mode="json", exclude=saying, exclude_none=True))


class _Stream(StreamingResponse):
    """A stream that is closed at once when its caller leaves, so that the model stops and the turn is settled.

    Who stops reading has left: the words that were delivered would otherwise be free once the hold runs out.
    """

    body_iterator: AsyncGenerator[bytes, None]

    async def stream_response(self, send: Send) -> None:
        async def taken(message: Message) -> None:
            async with asyncio.timeout(UNREAD_S):
                await send(message)

        async with aclosing(self.body_iterator):
            try:
                await super().stream_response(taken)
            except TimeoutError:
                log.info("a stream that nobody reads is closed")
