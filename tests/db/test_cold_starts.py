"""What is kept of measured starts: the last five of each model at each scale, of which the longest is told."""

from __future__ import annotations

from gateway.cold_starts import note_start, start_times


async def test_the_longest_of_the_last_five_starts_is_told(conn):
    for took_s in (90, 10, 11, 12, 13):
        await note_start(conn, "image", "gpu", took_s)
    assert await start_times(conn, "gpu") == {"image": 90}
    await note_start(conn, "image", "gpu", 14)
    assert await start_times(conn, "gpu") == {"image": 14}


async def test_scales_and_models_are_apart_and_a_start_takes_a_second_at_least(conn):
    await note_start(conn, "image", "gpu", 40)
    await note_start(conn, "image", "cluster", 300)
    await note_start(conn, "sfx", "gpu", 0)
    assert await start_times(conn, "gpu") == {"image": 40, "sfx": 1}
    assert await start_times(conn, "cluster") == {"image": 300}
