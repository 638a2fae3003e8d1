"""An operator gives an account a share of its own: it holds from the next claim on, and the log tells it."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from gateway.operator_ports import Share
from gateway.shares import COMMON, set_share, share_of
from gateway.tables import account_shares
from kit.errors import NotFound
from ledger.actions import Actor, list_actions

HAND = Actor(None, "ada", None)


async def test_a_share_is_set_logged_once_and_taken_back(conn, customers):
    owner = await customers(conn, 100)
    for _ in range(2):
        assert await set_share(conn, HAND, owner.user_id, Share(3, 8), "ticket 17") == Share(3, 8)
    assert await share_of(conn, owner.user_id) == Share(3, 8)
    await set_share(conn, HAND, owner.user_id, COMMON, "over")
    assert await share_of(conn, owner.user_id) == COMMON
    assert await conn.scalar(select(func.count()).select_from(account_shares)) == 0
    back, given = await list_actions(conn, 10)
    assert (given.action, given.before, given.after, given.reason) == (
        "account.share",
        {"weight": 1, "max_running": None},
        {"weight": 3, "max_running": 8},
        "ticket 17",
    )
    assert (back.user_id, back.after) == (owner.user_id, {"weight": 1, "max_running": None})


async def test_nobody_has_no_share(conn):
    with pytest.raises(NotFound):
        await set_share(conn, HAND, "user_x", Share(2), "why")
