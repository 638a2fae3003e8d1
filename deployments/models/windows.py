"""Where a recording is cut: into windows of half a minute at most, at pauses, without its long silences.

Each window is heard by itself, so that windows of one recording and of several share a call of the model.

Units: places are samples at `RATE` from the beginning of the recording; times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

RATE: Final = 16_000
WINDOW_S: Final = 30
"""What the model was trained on. A shorter window costs as much."""
PIECE_S: Final = 300
"""Voice is looked for in so much at once: the search takes some megabytes a second, and three hours would be
gigabytes."""
LONGEST_GAP_S: Final = 1.2
"""Between two stretches, each of which keeps 0.4 s around its voice: a silence of two seconds. The model hears words in
longer ones; shorter ones belong to the manner of speaking, and it errs more where they are taken out."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """From where to where there is voice."""

    begin: int
    end: int


FindVoice = Callable[["np.ndarray[Any, Any]"], Sequence[Stretch]]
"""Returns where there is voice in samples: stretches of a window's length at most, in order, that end at pauses."""


@dataclass(frozen=True, slots=True)
class Window:
    """What the model hears at once: one stretch of the recording, or several with long silences between them."""

    stretches: tuple[Stretch, ...]

    @property
    def length(self) -> int:
        """How many samples it has."""
        return sum(each.end - each.begin for each in self.stretches)

    def cut_out(self, samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the window's sound."""
        import numpy as np

        return np.concatenate([samples[each.begin : each.end] for each in self.stretches])

    def in_recording(self, start_ms: int, end_ms: int) -> tuple[int, int]:
        """Return when in the recording something is said of which the window's times are given.

        It lies within the stretch in which its middle is.
        """
        middle = (start_ms + end_ms) * RATE // 2000
        before = 0
        for stretch in self.stretches:
            length = stretch.end - stretch.begin
            if middle < before + length or stretch is self.stretches[-1]:
                break
            before += length
        later_ms = (stretch.begin - before) * 1000 // RATE
        low_ms, high_ms = (edge * 1000 // RATE for edge in (stretch.begin, stretch.end))
        start_ms, end_ms = (min(max(low_ms, at + later_ms), high_ms) for at in (start_ms, end_ms))
        return start_ms, end_ms


def windows(samples: np.ndarray[Any, Any], find_voice: FindVoice) -> Iterator[Window]:
    """Yield the windows of a recording one by one; voice is looked for no further than they are asked for."""
    held: tuple[Stretch, ...] = ()
    for stretch in _voiced(samples, find_voice):
        longer = Window(_joined(held, stretch))
        if held and longer.length > WINDOW_S * RATE:
            yield Window(held)
            longer = Window((stretch,))
        held = longer.stretches
    if held:
        yield Window(held)


def half_minutes(samples: np.ndarray[Any, Any]) -> list[Stretch]:
    """Return all of the sound, as if there were voice in each half minute of it."""
    step = WINDOW_S * RATE
    return [Stretch(at, min(at + step, len(samples))) for at in range(0, len(samples), step)]


def _voiced(samples: np.ndarray[Any, Any], find_voice: FindVoice) -> Iterator[Stretch]:
    at = 0
    while at < len(samples):
        end = min(at + PIECE_S * RATE, len(samples))
        found = [Stretch(at + each.begin, at + each.end) for each in find_voice(samples[at:end])]
        if found and found[-1].end == end < len(samples) and found[-1].begin > at:
            # The piece may have cut a word in two: the next one begins with this stretch.
            end = found.pop().begin
        yield from found
        at = end


def _joined(held: tuple[Stretch, ...], stretch: Stretch) -> tuple[Stretch, ...]:
    if held and stretch.begin - held[-1].end <= LONGEST_GAP_S * RATE:
        return (*held[:-1], Stretch(held[-1].begin, stretch.end))
    return (*held, stretch)
