"""The invariants that tie jobs to the books."""

from __future__ import annotations

from typing import Final

from ledger.audit import Check

JOB_CHECKS: Final = (
    Check(
        "a job under way has a pending hold of its quote, an ended one has none",
        """SELECT j.id AS job_id, j.status, h.state, j.quoted, h.amount
           FROM jobs j JOIN holds h ON h.id = j.hold_id
           WHERE (j.status IN ('queued', 'running')) <> (h.state = 'pending') OR h.amount <> j.quoted""",
    ),
    Check(
        "a job is charged what its hold captured, and only for success",
        """SELECT j.id AS job_id, j.status, j.charged, h.captured, h.state
           FROM jobs j JOIN holds h ON h.id = j.hold_id
           WHERE coalesce(j.charged, 0) <> h.captured OR (h.state = 'captured' AND j.status <> 'succeeded')""",
    ),
    Check(
        "a job is paid in the world of its key",
        """SELECT j.id AS job_id, k.world AS of_key, a.world AS of_account
           FROM jobs j JOIN api_keys k ON k.id = j.key_id JOIN accounts a ON a.id = j.account_id
           WHERE k.world <> a.world OR k.user_id <> a.user_id""",
    ),
)
