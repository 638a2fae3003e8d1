"""What `Prefer` asks for."""

from __future__ import annotations

import pytest

from gateway.watching import LONGEST_WAIT_S, wait_preferred


@pytest.mark.parametrize(
    ("sent", "wait_s"),
    [
        ([], None),
        (["wait=5"], 5),
        (["respond-async, Wait = 7"], 7),
        (["respond-async", 'wait="9"'], 9),
        (["wait=3; reason=test"], 3),
        (["wait=0"], 0),
        (["wait=999999999"], LONGEST_WAIT_S),
        (["wait=9999999999999999999999"], None),
        (["wait=-1"], None),
        (["wait=soon"], None),
        (["wait=٣"], None),
        (["await=5"], None),
        (["wait=4, wait=8"], 4),
    ],
)
def test_a_preference_to_wait_is_read_as_the_standard_says_and_bounded(sent, wait_s):
    assert wait_preferred(sent) == wait_s
