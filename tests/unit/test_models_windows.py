"""Windows of a recording: at pauses, half a minute at most, none of the voice lost, times as in the recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.models.windows import (
    LONGEST_GAP_S,
    PIECE_S,
    RATE,
    WINDOW_S,
    Stretch,
    Window,
    half_minutes,
    windows,
)


def at(seconds: float) -> int:
    return round(seconds * RATE)


def stretches(*edges: tuple[float, float]) -> tuple[Stretch, ...]:
    return tuple(Stretch(at(begin), at(end)) for begin, end in edges)


def numbered(seconds: float) -> np.ndarray:
    """A recording whose samples are their own places."""
    return np.arange(at(seconds))


def finder(voice: Sequence[Stretch], asked: list[tuple[int, int]] | None = None) -> Callable:
    """Finds what lies in a piece of a numbered recording, cut off at the piece's edges."""

    def find(piece: np.ndarray) -> list[Stretch]:
        low, high = int(piece[0]), int(piece[-1]) + 1
        if asked is not None:
            asked.append((low, high))
        return [
            Stretch(max(low, each.begin) - low, min(high, each.end) - low)
            for each in voice
            if each.begin < high and each.end > low
        ]

    return find


def cut(seconds: float, *edges: tuple[float, float]) -> list[tuple[Stretch, ...]]:
    return [each.stretches for each in windows(numbered(seconds), finder(stretches(*edges)))]


def test_a_recording_without_voice_has_no_window() -> None:
    assert cut(700) == []


def test_a_short_pause_stays_in_and_a_long_silence_is_left_out() -> None:
    short, long = LONGEST_GAP_S, LONGEST_GAP_S + 0.001
    assert cut(60, (1, 5), (5 + short, 8)) == [stretches((1, 8))]
    assert cut(60, (1, 5), (5 + long, 8)) == [stretches((1, 5), (5 + long, 8))]


def test_a_window_ends_at_the_last_pause_before_half_a_minute() -> None:
    assert cut(90, (0, 12), (12.2, 24), (24.5, 31), (31.2, 40)) == [
        stretches((0, 24)),
        stretches((24.5, 40)),
    ]
    assert cut(90, (0, 12), (50, 68)) == [stretches((0, 12), (50, 68))], "silence takes no room"
    assert cut(90, (0, 12), (50, 68.001)) == [stretches((0, 12)), stretches((50, 68.001))]


def test_voice_at_the_end_of_a_piece_is_looked_for_again_in_the_next() -> None:
    asked: list[tuple[int, int]] = []
    voice = stretches((10, 20), (PIECE_S - 3, PIECE_S + 4), (PIECE_S + 50, PIECE_S + 60))
    found = list(windows(numbered(400), finder(voice, asked)))
    assert [each.stretches for each in found] == [voice]
    assert asked == [(0, at(PIECE_S)), (at(PIECE_S - 3), at(400))]


def test_voice_is_looked_for_no_further_than_windows_are_asked_for() -> None:
    asked: list[tuple[int, int]] = []
    voice = stretches(*((place, place + 25) for place in range(0, 3 * PIECE_S, 30)))
    coming = windows(numbered(3 * PIECE_S), finder(voice, asked))
    next(coming)
    assert len(asked) == 1


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 6_000), st.integers(1, WINDOW_S * 1000)), max_size=15), st.booleans()
)
def test_all_voice_is_in_a_window_once_in_order_and_no_window_is_too_long(pairs, is_tail_silent) -> None:
    voice: list[Stretch] = []
    end = 0
    for gap_ms, length_ms in pairs:
        begin = end + gap_ms * RATE // 1000
        end = begin + length_ms * RATE // 1000
        voice.append(Stretch(begin, end))
    samples = np.arange(end + is_tail_silent * RATE)
    made = list(windows(samples, finder(voice)))
    assert all(0 < each.length <= WINDOW_S * RATE for each in made)
    heard = np.concatenate([each.cut_out(samples) for each in made] or [samples[:0]])
    assert (np.diff(heard) > 0).all()
    assert all(np.isin([each.begin, each.end - 1], heard).all() for each in voice)


def test_a_time_in_a_window_is_a_time_in_the_recording() -> None:
    window = Window(stretches((10, 12), (40, 45)))
    assert window.length == at(7)
    assert list(window.cut_out(numbered(60))[[0, at(2) - 1, at(2), -1]]) == [
        at(10),
        at(12) - 1,
        at(40),
        at(45) - 1,
    ]
    assert window.in_recording(500, 700) == (10_500, 10_700)
    assert window.in_recording(2_000, 3_000) == (40_000, 41_000)


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ((1_500, 2_300), (11_500, 12_000)),
        ((1_800, 2_900), (40_000, 40_900)),
        ((6_800, 9_000), (44_800, 45_000)),
    ],
)
def test_a_word_over_a_silence_lies_where_its_middle_is(said, heard) -> None:
    assert Window(stretches((10, 12), (40, 45))).in_recording(*said) == heard


def test_without_a_finder_each_half_minute_is_heard() -> None:
    assert half_minutes(numbered(65)) == list(stretches((0, 30), (30, 60), (60, 65)))
    assert [each.length for each in windows(numbered(615), half_minutes)] == [at(30)] * 20 + [at(15)]
