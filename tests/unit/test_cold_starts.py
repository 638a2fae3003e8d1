"""Cold starts: measured from the first call that waits to the first replica that works, and told to who waits."""

from __future__ import annotations

from deployments.cold_starts import ColdStarts, StartTimes
from gateway.ports import ModelState
from kit.errors import Unavailable


class Watch:
    """A clock, states and books that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0
        self.state = "starting"
        self.noted: list[tuple[object, ...]] = []
        self.starts = ColdStarts(self.states, self.call, "gpu", clock=lambda: self.now)

    async def states(self):
        return {"image": ModelState("image", self.state, None)}

    async def call(self, *args):
        self.noted.append(args)


async def test_a_start_is_measured_from_the_first_call_that_waits():
    watch = Watch()
    await watch.starts.look({"image"})
    watch.now = 41.5
    await watch.starts.look({"image"})
    watch.state = "ready"
    await watch.starts.look({"image"})
    await watch.starts.look({"image"})
    assert watch.noted == [("note_start", "image", "gpu", 42)]


async def test_a_start_that_nobody_waited_through_is_no_measurement():
    watch = Watch()
    await watch.starts.look({"image"})
    await watch.starts.look(set())
    watch.now, watch.state = 900.0, "ready"
    await watch.starts.look({"image"})
    assert watch.noted == []


async def test_a_model_that_fails_while_it_starts_is_no_measurement():
    watch = Watch()
    await watch.starts.look({"image"})
    watch.state = "unavailable"
    await watch.starts.look({"image"})
    watch.state = "ready"
    await watch.starts.look({"image"})
    assert watch.noted == []


async def test_measurements_go_before_what_is_configured_and_books_that_are_away_change_nothing():
    async def measured(method: str, scale: str) -> dict[str, int]:
        assert (method, scale) == ("start_times", "gpu")
        return {"image": 33}

    async def away(*_: object) -> dict[str, int]:
        raise Unavailable("The ledger", 2)

    states = [
        ModelState("image", "starting", None, asleep=True),
        ModelState("video", "starting", None),
        ModelState("sfx", "ready", None),
    ]
    told = await StartTimes(measured, "gpu", 120).told(states)
    assert [each.starts_in_s for each in told] == [33, 120, None]
    told = await StartTimes(away, "gpu", 120).told(states)
    assert [each.starts_in_s for each in told] == [120, 120, None]
