"""The chat model as a deployment."""

from __future__ import annotations

from typing import Any

from deployments.models.chat import ChatServer
from kit.settings import load_settings
from kit.telemetry import configure_logging


class ChatReplica(ChatServer):
    """A ChatServer in a process of its own: it logs as every other process of the platform does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        settings = load_settings()
        configure_logging(settings.log_level, settings.log_format)
        super().__init__(*args, **kwargs)
