"""The audit: every invariant of the books is a query that returns the rows which break it - none, in sound books."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.accounts import World, queries
from ledger.chain import Block, last_block

SHOWN_ROWS: Final = 5
"""Enough to see a pattern; the query itself finds the rest."""
AUDIT_TIMEOUT_MS: Final = 600_000
"""An audit reads everything; ten minutes is far beyond tens of millions of entries."""


@dataclass(frozen=True, slots=True)
class Check:
    """An invariant by name, and the SQL that returns the rows which break it."""

    name: str
    sql: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw. `offending` holds the first rows that break it."""

    name: str
    offending: list[dict[str, Any]]

    @property
    def ok(self) -> bool:
        """Whether the invariant holds."""
        return not self.offending


@dataclass(frozen=True, slots=True)
class TrialBalanceRow:
    """The sum of entries over all accounts of a kind in a world. Units: tokens."""

    kind: str
    accounts: int
    entries: int
    amount_tokens: int
    world: World = "live"


@dataclass(frozen=True, slots=True)
class TrialBalance:
    """The sums by world and account kind, and the last sealed block of the hash chain, if there is one."""

    rows: list[TrialBalanceRow]
    last_block: Block | None

    @property
    def total_tokens(self) -> int:
        """What all sums add up to: zero, in sound books."""
        return sum(row.amount_tokens for row in self.rows)

    @property
    def balanced(self) -> bool:
        """Whether the sums of each world add up to zero: what is missing in one may not stand in the other."""
        return all(
            sum(row.amount_tokens for row in self.rows if row.world == world) == 0
            for world in get_args(World)
        )


LEDGER_CHECKS: Final = (
    Check(
        "the two sides of every transfer sum to zero",
        """SELECT t.id AS transfer_id, count(e.*) AS entries, sum(e.amount) AS sum
           FROM transfers t LEFT JOIN entries e ON e.transfer_id = t.id
           GROUP BY t.id HAVING count(e.*) <> 2 OR sum(e.amount) <> 0""",
    ),
    Check(
        "the two sides of every transfer are of one world",
        """SELECT e.transfer_id, count(DISTINCT a.world) AS worlds
           FROM entries e JOIN accounts a ON a.id = e.account_id
           GROUP BY e.transfer_id HAVING count(DISTINCT a.world) > 1""",
    ),
    Check(
        "every entry belongs to a transfer and an account",
        """SELECT e.account_id, e.version, e.transfer_id
           FROM entries e
           LEFT JOIN transfers t ON t.id = e.transfer_id
           LEFT JOIN accounts a ON a.id = e.account_id
           WHERE t.id IS NULL OR a.id IS NULL""",
    ),
    Check(
        "the user's side of every transfer carries its amount",
        """SELECT t.id AS transfer_id, t.amount, e.amount AS entry_amount
           FROM transfers t LEFT JOIN entries e ON e.transfer_id = t.id AND e.account_id = t.account_id
           WHERE e.amount IS DISTINCT FROM t.amount""",
    ),
    Check("all entries sum to zero", "SELECT sum(amount) AS sum FROM entries HAVING sum(amount) <> 0"),
    Check(
        "a user's entries run without a gap from 1 and each balance follows from the last",
        """SELECT account_id, version, amount, balance_after FROM (
               SELECT e.account_id, e.version, e.amount, e.balance_after,
                   row_number() OVER w AS place, lag(e.balance_after, 1, CAST(0 AS bigint)) OVER w AS before
               FROM entries e JOIN accounts a ON a.id = e.account_id AND a.kind = 'user'
               WINDOW w AS (PARTITION BY e.account_id ORDER BY e.version)
           ) numbered WHERE version <> place OR balance_after IS DISTINCT FROM before + amount""",
    ),
    Check(
        "a user's balance and version are those of the last entry",
        """SELECT a.id AS account_id, a.balance, a.version, e.balance_after, e.version AS last_version
           FROM accounts a
           LEFT JOIN LATERAL (
               SELECT version, balance_after FROM entries WHERE account_id = a.id ORDER BY version DESC LIMIT 1
           ) e ON true
           WHERE a.kind = 'user'
               AND (a.balance <> coalesce(e.balance_after, 0) OR a.version <> coalesce(e.version, 0))""",
    ),
    Check(
        "what is held is the sum of the pending holds",
        """SELECT a.id AS account_id, a.held, coalesce(sum(h.amount), 0) AS pending
           FROM accounts a LEFT JOIN holds h ON h.account_id = a.id AND h.state = 'pending'
           GROUP BY a.id HAVING a.held <> coalesce(sum(h.amount), 0)""",
    ),
    Check(
        "a captured hold has one transfer of the captured amount, any other hold has none",
        """SELECT h.id AS hold_id, h.state, h.captured, t.amount
           FROM holds h LEFT JOIN transfers t ON t.hold_id = h.id
           WHERE coalesce(-t.amount, 0) <> h.captured OR (t.id IS NOT NULL AND t.account_id <> h.account_id)""",
    ),
    Check(
        "a user's balance is the sum of the grants less what is not worked out yet",
        """SELECT a.id AS account_id, a.balance, g.remaining, d.undrawn
           FROM accounts a
           LEFT JOIN LATERAL (
               SELECT coalesce(sum(remaining), 0) AS remaining FROM grants
               WHERE account_id = a.id AND transfer_id IS NOT NULL AND remaining > 0
           ) g ON true
           LEFT JOIN LATERAL (
               SELECT coalesce(sum(amount), 0) AS undrawn FROM entries
               WHERE account_id = a.id AND version > a.allocated_version AND amount < 0
           ) d ON true
           WHERE a.kind = 'user' AND a.balance <> g.remaining + d.undrawn""",
    ),
    Check(
        "what remains of a grant is its amount less what was drawn on it",
        """SELECT g.id AS grant_id, g.amount, g.remaining, coalesce(d.drawn, 0) AS drawn
           FROM grants g
           LEFT JOIN (SELECT grant_id, sum(amount) AS drawn FROM draws GROUP BY grant_id) d ON d.grant_id = g.id
           WHERE g.remaining <> g.amount - coalesce(d.drawn, 0)""",
    ),
    Check(
        "a grant is opened by one transfer of its amount, and every credit of a user opens one",
        """SELECT g.id AS grant_id, t.id AS transfer_id, g.amount, t.amount AS posted
           FROM (SELECT * FROM grants WHERE transfer_id IS NOT NULL) g
           FULL JOIN (
               SELECT * FROM transfers
               WHERE kind IN ('purchase', 'grant', 'referral') OR (kind = 'adjustment' AND amount > 0)
           ) t ON t.id = g.transfer_id
           WHERE g.id IS NULL OR t.id IS NULL OR g.amount <> t.amount OR g.account_id <> t.account_id""",
    ),
    Check(
        "refunds and reversals of a transfer never exceed it",
        """SELECT t.id AS transfer_id, t.amount, sum(r.amount) AS returned
           FROM transfers r JOIN transfers t ON t.id = r.reverses_id
           GROUP BY t.id HAVING sign(t.amount) = sign(sum(r.amount)) OR abs(sum(r.amount)) > abs(t.amount)""",
    ),
    Check(
        "what is clawed back of grants was taken or is owed",
        """SELECT a.id AS account_id, coalesce(g.clawed, 0) AS clawed, coalesce(t.moved, 0) AS moved
           FROM accounts a
           LEFT JOIN (SELECT account_id, sum(clawed) AS clawed FROM grants GROUP BY account_id) g
               ON g.account_id = a.id
           LEFT JOIN (
               SELECT o.id, -sum(t.amount) AS moved
               FROM transfers t
               JOIN accounts w ON w.id = t.account_id
               JOIN accounts o ON o.id = CASE w.kind
                   WHEN 'debt' THEN CAST(split_part(w.code, ':', 2) AS bigint) ELSE w.id END
               LEFT JOIN transfers r ON r.id = t.reverses_id
               WHERE t.kind IN ('clawback', 'debt')
                   OR t.kind = 'reinstatement' AND r.kind IN ('clawback', 'debt')
               GROUP BY o.id
           ) t ON t.id = a.id
           WHERE coalesce(g.clawed, 0) <> coalesce(t.moved, 0)""",
    ),
    Check(
        "what a user owes is what the debt account says",
        """SELECT a.id AS account_id, a.debt, d.owed
           FROM accounts a
           LEFT JOIN LATERAL (
               SELECT -sum(e.amount) AS owed FROM accounts h JOIN entries e ON e.account_id = h.id
               WHERE h.code = 'debt:' || a.id AND h.world = a.world
           ) d ON true
           WHERE a.kind = 'user' AND a.debt <> coalesce(d.owed, 0)""",
    ),
)


async def run_checks(conn: AsyncConnection, checks: Sequence[Check]) -> list[Finding]:
    """Run every check on one snapshot of the books, changing nothing."""
    await conn.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
    await conn.execute(text(f"SET LOCAL statement_timeout = {AUDIT_TIMEOUT_MS}"))
    findings = []
    for check in checks:
        rows = await conn.execute(text(f"SELECT * FROM ({check.sql}) broken LIMIT {SHOWN_ROWS}"))  # noqa: S608
        findings.append(Finding(check.name, [dict(row) for row in rows.mappings()]))
    return findings


async def trial_balance(conn: AsyncConnection) -> TrialBalance:
    """Return the sums by world and account kind, and how far they are sealed."""
    found = await conn.execute(queries["trial_balance"])
    rows = [TrialBalanceRow(row.kind, row.accounts, row.entries, row.amount, row.world) for row in found]
    return TrialBalance(rows, await last_block(conn))
