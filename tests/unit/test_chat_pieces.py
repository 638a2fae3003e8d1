"""How often a turn's words travel."""

from __future__ import annotations

import pytest

from deployments.models.chat import PIECE_S, PIECES_A_S, SLOWEST_PIECE_S, piece_s


@pytest.mark.parametrize("turns", [1, 2, 4, 8, 16, 20])
def test_all_turns_together_send_no_more_messages_than_a_replica_can_afford(turns: int):
    assert turns / piece_s(turns) <= max(PIECES_A_S, 1 / PIECE_S)


def test_a_lone_turn_is_as_quick_as_a_reader_and_a_crowd_does_not_halt():
    assert piece_s(1) == PIECE_S
    assert piece_s(1_000) == SLOWEST_PIECE_S
