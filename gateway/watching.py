"""Jobs watched until they end. A watcher reads the books with its own key each time, so that a revocation holds."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Final

from gateway.ports import FINAL_STATUSES, Job, Ledger
from ledger.keys import Credential

LOOK_S: Final = 0.5
"""Half of what a runner takes to write progress; all who look at one time share a read."""
LONGEST_WAIT_S: Final = 60
"""What proxies in between allow a silent request; whoever asks for longer hears the state after this."""

_WAIT: Final = re.compile(r"\s*wait\s*=\s*\"?(\d{1,9})\"?\s*", re.ASCII | re.IGNORECASE)


def wait_preferred(prefer: list[str]) -> int | None:
    """Return the seconds that `Prefer: wait=n` asks for (RFC 7240), at most `LONGEST_WAIT_S`.

    None without one; what else stands there is left alone, as the standard wants it.
    """
    for preference in ",".join(prefer).split(","):
        if found := _WAIT.fullmatch(preference.partition(";")[0]):
            return min(int(found[1]), LONGEST_WAIT_S)
    return None


async def watch(ledger: Ledger, credential: Credential, job_id: str) -> AsyncGenerator[Job | None, None]:
    """Yield the job now and at every change until it has ended; None at a look that found nothing new.

    Raises: NotFound; AuthRequired and Forbidden also in the middle, when the key has lost its right; Unavailable.
    """
    seen: Job | None = None
    while True:
        job = await ledger.job(credential, job_id)
        # A job's metrics are written with its end; its output's URLs are signed anew each time they are shown.
        changed = seen is None or replace(job, output=[]) != replace(seen, output=[])
        seen = job
        yield job if changed else None
        if job.status in FINAL_STATUSES:
            return
        await asyncio.sleep(LOOK_S)


async def ended_within(ledger: Ledger, credential: Credential, job_id: str, wait_s: int) -> Job:
    """Return the job when it has ended, or as it stands after `wait_s` seconds. Raises: as `watch`."""
    deadline = time.monotonic() + wait_s
    while True:
        job = await ledger.job(credential, job_id)
        left_s = deadline - time.monotonic()
        if job.status in FINAL_STATUSES or left_s <= 0:
            return job
        await asyncio.sleep(min(LOOK_S, left_s))
