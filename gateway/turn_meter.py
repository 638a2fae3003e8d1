"""What a turn takes, as the surface sees it: by the engine's own figures, and by the clock where they end.

Invariants:
- A turn that no model took up has no measures.
- The engine's figures are those of the last event. After it, while the surface waits for the next, the turn goes on to
  have its part of the engine: that much is reckoned. Time in which a caller does not read is nobody's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.conversations import Began, Event, MeteredTurn, Outcome


class TurnMeter:
    """Starts when the turn is asked for. `clock`: seconds, of which only differences count."""

    def __init__(self, turn_id: str, application: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._turn_id = turn_id
        self._application = application
        self._clock = clock
        self._asked = self._began = self._heard = self._until = clock()
        self._model = ""
        self._last: Event | None = None

    def heard(self, event: Event) -> None:
        """Note an event of the model."""
        self._heard = self._until = self._clock()
        if self._last is None:
            self._began = self._heard
        if isinstance(event, Began):
            self._model = event.model
        self._last = event

    def waited(self) -> None:
        """Note that the model was waited for until now."""
        self._until = self._clock()

    @property
    def tokens(self) -> tuple[int, int]:
        """The model's own tokens so far, of the prompt and of the completion."""
        return (self._last.took.prompt_tokens, self._last.took.completion_tokens) if self._last else (0, 0)

    def turn(self, outcome: Outcome) -> MeteredTurn | None:
        """Return what the turn took; None while no model took it up."""
        if self._last is None:
            return None
        took = self._last.took
        busy_s = took.busy_s + (self._until - self._heard) / max(1, took.beside)
        return MeteredTurn(
            self._turn_id,
            self._application,
            self._model,
            outcome,
            queue_ms=round((self._began - self._asked) * 1000),
            run_ms=round((self._until - self._began) * 1000),
            busy_us=round(busy_s * 1_000_000),
            on_gpu=took.on_gpu,
            prompt_tokens=took.prompt_tokens,
            completion_tokens=took.completion_tokens,
        )
