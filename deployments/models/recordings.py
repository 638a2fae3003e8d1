"""The recordings of one call on their way: which are open, whose windows are next, what became of each.

Invariants:
- Windows are taken from all open recordings in turn: whoever has a minute does not wait for another's hour.
- The smallest files are opened first, and none further while those that are open last `HELD_S` together: memory is
  bounded by that and one recording.
- A recording that cannot be read is refused alone; one whose caller is gone is dropped at the next window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from deployments.models import fields, sound
from deployments.models.contract import GenerateRequest, Member, ModelCanceled, Output, Progress
from deployments.models.transcript import Segment
from deployments.models.windows import RATE, FindVoice, Window, windows
from gateway.task_schemas import WHISPER_LANGUAGES
from kit.errors import AppError

if TYPE_CHECKING:
    import numpy as np

HELD_S: Final = 3600
"""An hour of samples takes 230 MB."""
FIELDS: Final = frozenset({"audioUrl", "audioFileId", "language", "maxMinutes"})


def language_asked(request: GenerateRequest) -> str:
    """Check a request; return the language that it names, if it names one. Raises: ModelRefused, naming the field."""
    fields.refuse_unknown(request.input, request.task, FIELDS)
    fields.file(request, "audio")
    return fields.choice(request.input, "language", WHISPER_LANGUAGES, "")


class Recording:
    """What is still to be heard of one member's recording, and what was said so far.

    Raises: ModelRefused for what has no sound, or more than was paid for.
    """

    def __init__(self, place: int, member: Member, find_voice: FindVoice) -> None:
        self.place = place
        self.language = language_asked(member.request)
        paid_s = member.request.units_milli * 60 / 1000
        file = fields.file(member.request, "audio")
        self.samples: np.ndarray[Any, Any] = sound.decode(file, "audioUrl", RATE, paid_s)
        self.said: list[Segment] = []
        self._member = member
        self.tell(0)
        self._windows = windows(self.samples, find_voice)
        self._next = next(self._windows, None)

    @property
    def is_over(self) -> bool:
        """Tell whether its last window was taken."""
        return self._next is None

    def take(self) -> Window:
        """Return the next window, of which there must be one."""
        window, self._next = self._next, next(self._windows, None)
        assert window is not None
        return window

    def hear(self, window: Window, said: Sequence[Segment]) -> None:
        """Add what is said in the window after the one that was added last."""
        self.said += said
        self.tell(window.stretches[-1].end)

    def tell(self, at: int) -> None:
        """Tell the member how far its recording was heard."""
        length_s = -(-len(self.samples) // RATE)
        second = -(-at // RATE)
        self._member.on_progress(Progress(at / len(self.samples), second, length_s))


class Recordings:
    """The recordings of one call."""

    def __init__(self, members: Sequence[Member], find_voice: FindVoice) -> None:
        self._members = members
        self._find_voice = find_voice
        self._closed = deque(sorted(range(len(members)), key=self._size_bytes))
        self._open: deque[Recording] = deque()
        self._outcomes: dict[int, Output | AppError] = {}

    def open(self) -> bool:
        """Open those that there is room for; return whether any is open."""
        while self._closed and sum(len(each.samples) for each in self._open) < HELD_S * RATE:
            place = self._closed.popleft()
            if not self.wants(place):
                continue
            try:
                self._open.append(Recording(place, self._members[place], self._find_voice))
            except AppError as refused:
                self.end(place, refused)
        return bool(self._open)

    def turn(self, most: int) -> list[tuple[Recording, Window]]:
        """Take the next windows, one of each recording after the other."""
        taken: list[tuple[Recording, Window]] = []
        while len(taken) < most and not all(each.is_over for each in self._open):
            recording = self._open[0]
            self._open.rotate(-1)
            if not recording.is_over:
                taken.append((recording, recording.take()))
        return taken

    def wants(self, place: int) -> bool:
        """Ask every member, and tell whether this one's caller is still there."""
        for each, member in enumerate(self._members):
            if each not in self._outcomes and member.is_canceled():
                self._outcomes[each] = ModelCanceled()
        return place not in self._outcomes

    def finished(self) -> list[Recording]:
        """Close the recordings that are wanted no more, and those that were heard to their end; return the latter."""
        wanted = [each for each in self._open if self.wants(each.place)]
        self._open = deque(each for each in wanted if not each.is_over)
        return [each for each in wanted if each.is_over]

    def end(self, place: int, outcome: Output | AppError) -> None:
        """Tell a member its outcome, whatever the others' will be."""
        self._outcomes[place] = outcome
        self._members[place].on_outcome(outcome)

    def outcomes(self) -> list[Output | AppError]:
        """Return the outcome of each member. Raises: ModelCanceled if nobody's caller is there."""
        if all(isinstance(each, ModelCanceled) for each in self._outcomes.values()):
            raise ModelCanceled
        return [self._outcomes[place] for place in range(len(self._members))]

    def _size_bytes(self, place: int) -> int:
        file = self._members[place].request.media.get("audio")
        return len(file.data) if file else 0
