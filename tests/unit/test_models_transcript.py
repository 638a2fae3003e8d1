"""Transcripts: words become segments that one can read, times rise, players read the files."""

from __future__ import annotations

import pytest

from deployments.models.transcript import (
    BREATH_MS,
    LONGEST_MS,
    PAUSE_MS,
    Segment,
    Word,
    files,
    rising,
    segments,
)


def spoken(text: str, *, word_ms: int = 300, pauses_ms: dict[int, int] | None = None) -> list[Word]:
    """Words of one length one after the other, each with the space before it; with pauses before some."""
    words: list[Word] = []
    at_ms = 0
    for place, word in enumerate(text.split()):
        at_ms += (pauses_ms or {}).get(place, 0)
        words.append(Word(at_ms, at_ms + word_ms, f" {word}", 0.5))
        at_ms += word_ms
    return words


def texts(words: list[Word]) -> list[str]:
    made = segments(words)
    assert [word.text for each in made for word in each.words] == [word.text.strip() for word in words]
    assert [(each.start_ms, each.end_ms) for each in made] == [
        (each.words[0].start_ms, each.words[-1].end_ms) for each in made
    ]
    return [each.text for each in made]


def test_no_words_are_no_segments() -> None:
    assert segments([]) == []
    assert segments([Word(0, 10, " \ufffd", 0.1)]) == []


def test_a_segment_is_a_sentence() -> None:
    assert texts(spoken("Who goes there? Nobody. Then come in!")) == [
        "Who goes there?",
        "Nobody.",
        "Then come in!",
    ]


def test_a_title_ends_no_sentence_unless_there_is_a_pause() -> None:
    assert texts(spoken("Ask Mr. Smith and Dr. Who.")) == ["Ask Mr. Smith and Dr. Who."]
    assert texts(spoken("I said No. Then I left.", pauses_ms={3: BREATH_MS})) == [
        "I said No.",
        "Then I left.",
    ]


def test_a_long_pause_ends_a_segment() -> None:
    assert texts(spoken("one two three", pauses_ms={2: PAUSE_MS - 1})) == ["one two three"]
    assert texts(spoken("one two three", pauses_ms={2: PAUSE_MS})) == ["one two", "three"]


def test_a_language_without_spaces_gets_none() -> None:
    words = [Word(place * 100, place * 100 + 100, each, 0.5) for place, each in enumerate("你好。再见。")]
    assert [each.text for each in segments(words)] == ["你好。", "再见。"]


def test_a_long_sentence_is_parted_near_its_middle_where_a_clause_ends() -> None:
    words = spoken("a, b c d e, f g h i j", word_ms=LONGEST_MS // 10 + 1)
    assert texts(words) == ["a, b c d e,", "f g h i j"]


def test_a_long_sentence_without_a_clause_is_parted_at_a_breath() -> None:
    words = spoken("a b c d e f g h i j", word_ms=LONGEST_MS // 10, pauses_ms={4: BREATH_MS})
    assert texts(words) == ["a b c d", "e f g h i j"]


@pytest.mark.parametrize("count", [2, 17, 90])
def test_no_segment_of_several_words_lasts_longer_than_one_reads(count: int) -> None:
    made = segments(spoken("word " * count, word_ms=LONGEST_MS // 2 + 1))
    assert [len(each.words) for each in made] == [1] * count
    made = segments(spoken("word " * count, word_ms=311))
    assert all(each.end_ms - each.start_ms <= LONGEST_MS for each in made)
    assert sum(len(each.words) for each in made) == count


def test_segments_that_would_not_last_give_their_words_to_the_one_before() -> None:
    given = [Segment(0, 5, "a"), Segment(3, 4, "b"), Segment(4, 9, "c"), Segment(9, 9, "d")]
    assert rising(given) == [Segment(0, 5, "a b"), Segment(5, 9, "c d")]


def test_words_lie_in_their_segment_and_in_their_order() -> None:
    words = (Word(0, 4, "a", 1.0), Word(3, 6, "b", 1.0), Word(5, 30, "c", 1.0), Word(40, 50, "d", 1.0))
    [segment] = rising([Segment(2, 20, "a b c d", words)])
    assert [(word.start_ms, word.end_ms) for word in segment.words] == [(2, 4), (4, 6), (6, 20), (20, 20)]


def test_subtitles_are_written_as_players_read_them() -> None:
    _, srt, vtt = files([Segment(3_723_004, 3_724_000, "a < b & c")], {})
    assert srt.data.decode() == "1\n01:02:03,004 --> 01:02:04,000\na < b & c\n\n"
    assert vtt.data.decode() == "WEBVTT\n\n01:02:03.004 --> 01:02:04.000\na &lt; b &amp; c\n\n"
