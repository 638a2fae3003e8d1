"""One running Stripe twin: its settings, its state behind one lock, and the sender of its webhooks."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import string
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.stripe_state import TwinState
from sandbox.stripe_store import Store
from sandbox.stripe_webhooks import WebhookSender

# How ids are spelt at Stripe.
_ID_ALPHABET = string.ascii_letters + string.digits


def random_token(length: int) -> str:
    """Give that many random letters and digits; 24 of them cannot be guessed."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(length))


@dataclass(frozen=True)
class TwinSettings:
    """What a twin is told at its start.

    `webhook_url` None sends no webhooks. `public_url` None prints page addresses under the host that the
    API was called at. `state_file` None forgets everything at the end.
    """

    secret_key: str = field(repr=False)
    webhook_secret: str = field(repr=False)
    webhook_url: str | None = None
    public_url: str | None = None
    state_file: Path | None = None
    instance: str = field(default_factory=lambda: random_token(24))

    def __post_init__(self) -> None:
        """Refuse what would make the twin unsafe or useless."""
        if not self.secret_key.startswith("sk_test_"):
            message = "the sandbox takes a secret key that begins with sk_test_, and no other"
            raise ValueError(message)
        if not self.webhook_secret:  # an empty HMAC key would verify anything
            message = "the sandbox needs a webhook secret"
            raise ValueError(message)


class Twin:
    """Lets one task at a time at the state, and has what it did on disk before anyone hears of it."""

    def __init__(self, settings: TwinSettings, state: TwinState, store: Store) -> None:
        self.settings = settings
        self.sender: WebhookSender | None = None
        self._state = state
        self._store = store
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[TwinState]:
        """Hold the state still; what time itself changed (expired sessions) is saved first."""
        async with self._lock:
            if self._state.expire_overdue():
                self._save()
            yield self._state

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[TwinState]:
        """Hold the state for one change, and save it; also after a refusal, which may have been recorded."""
        async with self._lock:
            self._state.expire_overdue()
            try:
                yield self._state
            finally:
                self._save()

    def _save(self) -> None:
        # Not in a thread: two writers could then finish in the wrong order, and it takes milliseconds.
        self._store.save(self._state.document)
        if self.sender is not None:
            self.sender.wake()

    def new_request_id(self) -> str:
        """Name one API request, as in the answer's `Request-Id`."""
        return self._state.new_id("req_", 14)
