"""Chat over handles: what a failed call means to whoever asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.chats import ChatHandles
from deployments.models.contract import ModelRefused
from gateway.conversations import Conversation
from kit.errors import InvalidRequest


class Refusing:
    """The answer of a model that refuses."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.canceled = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        raise self.error

    def cancel(self) -> None:
        self.canceled = True


@pytest.mark.parametrize(
    ("refused", "field"), [("messages", "messages"), ("maxTokens", "max_tokens"), ("tools", "tools")]
)
async def test_a_models_refusal_names_the_field_as_its_caller_sent_it(monkeypatch, refused, field):
    answer = Refusing(ModelRefused(refused, "is too much"))
    handle = SimpleNamespace(stream=SimpleNamespace(remote=lambda _: answer))
    handle.options = lambda **_: handle
    monkeypatch.setattr("deployments.chats.serve.get_app_handle", lambda _: handle)
    turn = Conversation("turn", [], [], None, None, None, [], None)
    with pytest.raises(InvalidRequest) as raised:
        await anext(ChatHandles().stream("chat", turn))
    assert (raised.value.field, raised.value.problem) == (field, "is too much")
    assert answer.canceled
