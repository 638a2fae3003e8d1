"""What a turn takes: the engine's own figures to its last event, the clock after it; time that several share."""

from __future__ import annotations

import pytest

from deployments.models.meter import SharedTime
from gateway.conversations import Began, Ended, Said, Took
from gateway.turn_meter import TurnMeter


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> TurnMeter:
    return TurnMeter("chatcmpl_1", "chat", clock)


def took(completion_tokens: int, busy_s: float, beside: int = 4) -> Took:
    return Took(True, 12, completion_tokens, busy_s, beside)


def test_a_turn_that_no_model_took_up_has_no_measures(meter: TurnMeter, clock: Clock) -> None:
    clock.now += 30
    meter.waited()
    assert meter.turn("failed") is None
    assert meter.tokens == (0, 0)


def test_a_whole_turn_took_what_its_engine_says(meter: TurnMeter, clock: Clock) -> None:
    clock.now += 2
    meter.waited()
    meter.heard(Began("Played-1B", None, took(0, 0.0)))
    clock.now += 3
    meter.waited()
    meter.heard(Ended("stop", took(7, 0.9)))
    turn = meter.turn("succeeded")
    assert turn is not None
    assert (turn.id, turn.application, turn.model, turn.outcome) == (
        "chatcmpl_1",
        "chat",
        "Played-1B",
        "succeeded",
    )
    assert (turn.queue_ms, turn.run_ms, turn.busy_us, turn.on_gpu) == (2000, 3000, 900_000, True)
    assert (turn.prompt_tokens, turn.completion_tokens) == meter.tokens == (12, 7)


def test_a_turn_that_was_left_has_its_part_of_the_wait_after_the_last_word(
    meter: TurnMeter, clock: Clock
) -> None:
    meter.heard(Began("Played-1B", None, took(0, 0.0)))
    clock.now += 1
    meter.heard(Said("Par", [], took(1, 0.25)))
    clock.now += 2
    meter.waited()
    turn = meter.turn("canceled")
    assert turn is not None
    assert (turn.run_ms, turn.busy_us, turn.completion_tokens) == (3000, 750_000, 1)


def test_the_time_in_which_a_caller_does_not_read_is_nobodys(meter: TurnMeter, clock: Clock) -> None:
    meter.heard(Began("Played-1B", None, took(0, 0.0)))
    clock.now += 1
    meter.heard(Said("Par", [], took(1, 0.25)))
    clock.now += 600
    turn = meter.turn("canceled")
    assert turn is not None
    assert (turn.run_ms, turn.busy_us) == (1000, 250_000)


def test_the_parts_of_a_shared_time_add_up_to_the_time_that_one_was_there(clock: Clock) -> None:
    shared = SharedTime(clock)
    clock.now += 5  # nobody is there
    first = shared.join()
    clock.now += 1
    second = shared.join()
    clock.now += 2
    first_s = shared.part_s(first)
    shared.leave()
    clock.now += 4
    second_s = shared.part_s(second)
    shared.leave()
    clock.now += 8
    third = shared.join()
    clock.now += 1
    assert (first_s, second_s, shared.part_s(third)) == (2.0, 5.0, 1.0)
    assert shared.sharing == 1
