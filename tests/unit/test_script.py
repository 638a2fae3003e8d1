"""The script of a dub: lines, voices and paces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.models.subtitles import Subtitle, srt, vtt
from deployments.script import (
    BRISK,
    FASTEST,
    LEAST_REFERENCE_MS,
    MOST_REFERENCE_MS,
    SLOWEST,
    Line,
    lines_of,
    pace,
    reference,
    slots_ms,
)
from deployments.soundtrack import Span

TIMES = st.floats(min_value=0, max_value=100, allow_nan=False)
SEGMENTS = st.lists(
    st.fixed_dictionaries({"start": TIMES, "end": TIMES, "text": st.sampled_from(["", " ", "One,", "Two."])})
)


def test_what_follows_without_a_pause_is_one_line_until_its_sentence_ends():
    segments = [
        {"start": 0.0, "end": 1.0, "text": "Good"},
        {"start": 1.1, "end": 2.0, "text": "evening."},
        {"start": 2.0, "end": 3.0, "text": "It is"},
        {"start": 4.0, "end": 5.0, "text": "late"},
    ]
    assert lines_of(segments, 4_500) == [
        Line(0, 2_000, "Good evening."),
        Line(2_000, 3_000, "It is"),
        Line(4_000, 4_500, "late"),
    ]


@given(SEGMENTS)
def test_lines_rise_within_the_film_and_leave_room_for_each(segments):
    lines = lines_of(segments, 60_000)
    edges = [edge for line in lines for edge in (line.start_ms, line.end_ms)]
    assert edges == sorted(edges)
    assert all(0 <= edge <= 60_000 for edge in edges)
    assert all(line.text and line.end_ms > line.start_ms for line in lines)
    assert all(
        slot >= line.end_ms - line.start_ms for line, slot in zip(lines, slots_ms(lines, 60_000), strict=True)
    )
    for place in range(len(lines)):
        length_ms = sum(span.end_ms - span.start_ms for span in reference(lines, place))
        assert LEAST_REFERENCE_MS <= length_ms <= MOST_REFERENCE_MS


def test_a_line_is_spoken_in_its_own_voice_and_a_short_one_borrows_of_its_neighbours():
    lines = [Line(0, 2_000, "a"), Line(3_000, 8_000, "b"), Line(9_000, 10_000, "c")]
    assert reference(lines, 1) == [Span(3_000, 8_000)]
    assert reference(lines, 2) == [Span(3_000, 8_000), Span(9_000, 10_000)]
    assert reference([Line(0, 500, "a")], 0) == [Span(0, 500)] * 3


@pytest.mark.parametrize(
    ("speech_ms", "slot_ms", "tempo"),
    [
        (1_000, 2_000, 1.0),
        (500, 2_000, SLOWEST),  # shorter: a little slower, the rest is silent
        (1_100, 1_000, 1.1),
        (2_000, 2_000, BRISK),  # goes on into the pause
        (2_600, 2_000, 1.3),  # hurried until the next line
        (9_000, 2_000, FASTEST),  # the rest is cut off
    ],
)
def test_a_line_is_paced_by_its_original_and_the_next_line(speech_ms, slot_ms, tempo):
    assert pace(speech_ms, 1_000, slot_ms) == tempo


def test_subtitles_are_written_as_players_read_them():
    shown = [Subtitle(0, 3_661_001, "a < b")]
    assert srt(shown) == b"1\n00:00:00,000 --> 01:01:01,001\na < b\n\n"
    assert vtt(shown, "not real") == b"WEBVTT\n\nNOTE not real\n\n00:00:00.000 --> 01:01:01.001\na &lt; b\n\n"
