"""The recordings of one call: whose turn it is, how many are open, what becomes of each. The test plays the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from deployments.models import recordings as module
from deployments.models import sound
from deployments.models.contract import (
    GenerateRequest,
    InputFile,
    Member,
    Metrics,
    ModelCanceled,
    ModelRefused,
    Output,
    Progress,
)
from deployments.models.recordings import Recordings
from deployments.models.windows import RATE, half_minutes
from kit.errors import AppError


class Caller:
    """Somebody with a recording of some seconds, who may go away."""

    def __init__(self, seconds: float, *, minutes: int = 10, **fields: object) -> None:
        samples = np.zeros((1, round(seconds * RATE)), "float32")
        media = {"audio": InputFile("audio/wav", sound.encode(samples, RATE, "wav", {}))}
        self.request = GenerateRequest("job_1", "audio.transcribe", dict(fields), minutes * 1000, media)
        self.seen: list[Progress] = []
        self.told: list[Output | AppError] = []
        self.is_gone = False

    @property
    def member(self) -> Member:
        return Member(self.request, self.seen.append, lambda: self.is_gone, self.told.append)


def call(*callers: Caller) -> Recordings:
    return Recordings([each.member for each in callers], half_minutes)


def output(place: int) -> Output:
    return Output([], Metrics(1, 0.0, 1), f"model of {place}")


def hear(recordings: Recordings, most: int = 4) -> list[int]:
    """Hear one turn; return whose windows it had."""
    turn = recordings.turn(most)
    for recording, window in turn:
        recording.hear(window, [])
    for recording in recordings.finished():
        recordings.end(recording.place, output(recording.place))
    return [recording.place for recording, _ in turn]


def hear_all(recordings: Recordings) -> list[list[int]]:
    turns = []
    while recordings.open():
        turns.append(hear(recordings))
    return turns


def test_windows_are_taken_from_all_in_turn_and_a_short_one_is_told_before_the_others() -> None:
    long, short = Caller(200), Caller(40)
    recordings = call(long, short)
    assert recordings.open()
    assert hear(recordings) == [1, 0, 1, 0]
    assert short.told == [output(1)]
    assert long.told == []
    assert hear_all(recordings) == [[0, 0, 0, 0], [0]]
    assert recordings.outcomes() == [output(0), output(1)]


def test_turns_go_on_where_the_last_one_ended() -> None:
    recordings = call(*(Caller(120) for _ in range(3)))
    assert recordings.open()
    assert [hear(recordings) for _ in range(3)] == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2]]


def test_the_smallest_are_opened_first_and_only_as_many_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HELD_S", 90)
    callers = [Caller(90), Caller(60), Caller(50), Caller(40)]
    recordings = call(*callers)
    assert recordings.open()
    assert [bool(each.seen) for each in callers] == [False, False, True, True]
    hear(recordings)
    assert recordings.open()
    assert [bool(each.seen) for each in callers] == [True, True, True, True]
    hear_all(recordings)
    assert recordings.outcomes() == [output(place) for place in range(4)]


def test_who_cannot_be_heard_is_refused_alone() -> None:
    callers = [
        Caller(20),
        Caller(61, minutes=1),
        Caller(1, language="tlh"),
        Caller(1, tone="x"),
        Caller(1),
        Caller(25),
    ]
    callers[4].request.media["audio"] = InputFile("audio/wav", b"noise")  # type: ignore[index]
    recordings = call(*callers)
    assert hear_all(recordings) == [[0, 5]]
    first, *refused, last = recordings.outcomes()
    assert (first, last) == (output(0), output(5))
    assert [type(each) for each in refused] == [ModelRefused] * 4
    assert [each.told for each in callers] == [[each] for each in recordings.outcomes()]


def test_a_recording_without_a_voice_is_over_at_once() -> None:
    recordings = Recordings([Caller(100).member], lambda _: [])
    assert hear_all(recordings) == [[]]
    assert recordings.outcomes() == [output(0)]


def test_who_is_gone_is_dropped_and_the_others_go_on() -> None:
    callers = [Caller(60), Caller(60), Caller(60)]
    recordings = call(*callers)
    assert recordings.open()
    assert hear(recordings, most=3) == [0, 1, 2]
    callers[1].is_gone = True
    assert [recordings.wants(place) for place in range(3)] == [True, False, True]
    hear(recordings, most=0)
    assert recordings.open()
    assert hear(recordings) == [0, 2]
    first, gone, last = recordings.outcomes()
    assert (first, gone, last) == (output(0), ModelCanceled(), output(2))
    assert callers[1].told == []


def test_who_is_gone_before_being_opened_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_S", 1)
    callers = [Caller(10), Caller(20)]
    recordings = call(*callers)
    assert recordings.open()
    callers[1].is_gone = True
    hear_all(recordings)
    assert callers[1].seen == []
    assert recordings.outcomes() == [output(0), ModelCanceled()]


def test_a_call_that_nobody_waits_for_is_canceled() -> None:
    callers = [Caller(10), Caller(20)]
    for each in callers:
        each.is_gone = True
    recordings = call(*callers)
    assert hear_all(recordings) == []
    with pytest.raises(ModelCanceled):
        recordings.outcomes()


@pytest.mark.parametrize("lengths", [[200, 40, 70.5], [1, 1]])
def test_each_is_told_its_own_progress_which_never_falls(lengths: Sequence[float]) -> None:
    callers = [Caller(each) for each in lengths]
    hear_all(call(*callers))
    for caller, seconds in zip(callers, lengths, strict=True):
        assert [at.fraction for at in caller.seen] == sorted(at.fraction for at in caller.seen)
        assert (caller.seen[0].fraction, caller.seen[-1].fraction) == (0, 1)
        assert {at.steps for at in caller.seen} == {-(-seconds // 1)}
        assert len(caller.seen) == 1 + -(-seconds // 30)
