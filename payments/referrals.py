"""Referrals: an account applies another's code before its first paid order, and that order rewards the code's owner.

    applied -> ordered    the referee's first order was paid (`purchases.fulfil`)
    ordered -> rewarded   it stood for the holding time: a grant to the referrer, once
    ordered -> refused    it was taken back in part or whole, or the programme's rules forbid the reward
    rewarded -> reversed  it was taken back after all: the reward is clawed back, what was spent of it is owed

The last three are decided by the sweep, under the locks of both accounts (`settle`), but for the refusal of an order
that is taken back while it waits: a trigger writes that with the clawback itself. What was refused or reversed stays
so, also when a dispute is won.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.errors import Forbidden, NotFound
from kit.ids import new_id
from kit.queries import load_queries
from kit.settings import Settings
from ledger import debts, grants, scopes
from ledger.accounts import lock, lock_one
from ledger.credits import credit
from ledger.grants import Terms
from ledger.keys import Credential, caller_of
from payments.errors import AlreadyReferred, ReferralRing, ReferralTooLate, SelfReferral
from payments.tables import referrals

queries: Final = load_queries(Path(__file__).with_suffix(".sql"))

ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Source: Crockford's Base32: without I, L, O (read as 1 and 0) and U (no words by accident)."""
CODE_CHARS: Final = 8
"""40 bits: at ten tries a minute a guesser needs centuries even for one of a million codes; short enough to dictate."""
MISREAD: Final = str.maketrans("OIL", "011", " -")
HOUSE: Final = "promotion:referral"

Refusal = Literal["taken_back", "same_person", "suspended", "month_cap", "total_cap"]


@dataclass(frozen=True, slots=True)
class Programme:
    """The operator's rules. A reward of 0 closes the programme to new referrals; what was promised stands.

    Units: tokens; `rewards_a_month` counts the rewards of one referrer in a UTC month that stand, `total_tokens` sums
    all of theirs. `hold`: how long an order stands before it is rewarded. `life`: how long a reward may be spent.
    """

    reward_tokens: int
    hold: timedelta
    rewards_a_month: int
    total_tokens: int
    life: timedelta


@dataclass(frozen=True, slots=True)
class Application:
    """The code that an account applied."""

    code: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """What an account's code has brought. Units: tokens.

    `pending_tokens`: promised for orders that are waiting. `applied`, `ordered`, `rewarded`: referrals in that state.
    """

    code: str
    reward_tokens: int
    earned_tokens: int
    pending_tokens: int
    applied: int
    ordered: int
    rewarded: int
    own: Application | None


def programme(settings: Settings) -> Programme:
    """Return the rules that the settings state."""
    return Programme(
        settings.referral_reward_tokens,
        timedelta(seconds=settings.referral_hold_s),
        settings.referral_rewards_a_month,
        settings.referral_total_tokens,
        timedelta(days=settings.referral_life_days),
    )


def read_code(written: str) -> str | None:
    """Return a code as the books keep it, however it was written down; None for what cannot be one."""
    code = written.upper().translate(MISREAD)
    return code if re.fullmatch(f"[{ALPHABET}]{{{CODE_CHARS}}}", code) else None


def mailbox(email: str) -> str:
    """Return what stays the same however a person varies their address: no dots, no plus-tag, one Gmail.

    Two people may share it (dots count at some hosts): it may cost a reward and nothing else.
    """
    local, _, host = email.strip().lower().rpartition("@")
    name = local.partition("+")[0].replace(".", "") or local
    return f"{name}@{'gmail.com' if host == 'googlemail.com' else host}"


async def standing(conn: AsyncConnection, account_id: int, rules: Programme) -> Standing:
    """Return an account's code, made at the first look, and what it has brought."""
    code = await _code_of(conn, account_id)
    of = {"account_id": account_id}
    sums = (await conn.execute(queries["standing"], of)).one()
    own = (await conn.execute(queries["applied"], of)).one_or_none()
    return Standing(
        code,
        rules.reward_tokens,
        earned_tokens=sums.earned,
        pending_tokens=sums.pending,
        applied=sums.applied,
        ordered=sums.ordered,
        rewarded=sums.rewarded,
        own=Application(own.code, own.applied_at) if own else None,
    )


async def _code_of(conn: AsyncConnection, account_id: int) -> str:
    of = {"account_id": account_id}
    code: str | None = (await conn.execute(queries["code_of"], of)).scalar_one_or_none()
    while code is None:
        drawn = "".join(secrets.choice(ALPHABET) for _ in range(CODE_CHARS))
        code = (await conn.execute(queries["make_code"], of | {"code": drawn})).scalar_one_or_none()
        # In conflict with this account's other first look, or, once in ages, with another account's code.
        code = code or (await conn.execute(queries["code_of"], of)).scalar_one_or_none()
    return code


async def apply(conn: AsyncConnection, credential: Credential, code: str, rules: Programme) -> Application:
    """Note that the caller was brought by a code's owner, once and for good; the same code again changes nothing.

    An unknown code, and one whose owner is suspended, takes the same statements as any other and the same answer.
    Raises: AuthRequired; Forbidden, also while the programme is closed; NotFound; SelfReferral; AlreadyReferred;
    ReferralTooLate once an order of the account was paid; ReferralRing.
    """
    await conn.execute(queries["lock_parties"], {"code": code, "hash": credential.hash})
    caller = await caller_of(conn, credential, scopes.CHECKOUT)
    caller.require_live()
    account_id = caller.account_id
    owner = (await conn.execute(queries["owner_of_code"], {"code": code})).one_or_none()
    owner_id = owner.account_id if owner else account_id
    await conn.execute(queries["one_at_a_time"])
    facts = (await conn.execute(queries["may_apply"], {"account_id": account_id, "owner_id": owner_id})).one()
    if owner is None:
        raise NotFound("referral code")
    if facts.applied_to == owner_id:
        return Application(code, facts.applied_at)
    if owner.suspended:
        raise NotFound("referral code")
    if owner_id == account_id or mailbox(owner.email) == mailbox(caller.email):
        raise SelfReferral
    if facts.applied_to is not None:
        raise AlreadyReferred
    if not rules.reward_tokens:
        raise Forbidden("This server has no referral programme.")
    if facts.has_ordered:
        raise ReferralTooLate
    if facts.brought_owner:
        raise ReferralRing
    made = insert(referrals).values(
        id=new_id("ref"), referee_id=account_id, referrer_id=owner_id, reward=rules.reward_tokens
    )
    at: datetime = (await conn.execute(made.returning(referrals.c.applied_at))).scalar_one()
    return Application(code, at)


async def note_order(conn: AsyncConnection, account_id: int, purchase_id: str) -> None:
    """Let a referral wait for its reward from the account's first paid order on. The account is locked."""
    await conn.execute(queries["note_order"], {"account_id": account_id, "purchase_id": purchase_id})


async def due(conn: AsyncConnection, hold: timedelta, limit: int) -> list[str]:
    """Return referrals to be settled: orders that stood for the holding time, rewards whose order was taken back."""
    return list((await conn.scalars(queries["due"], {"hold": hold, "limit": limit})).all())


async def settle(conn: AsyncConnection, referral_id: str, rules: Programme) -> None:
    """Reward a referral whose order has stood long enough, or refuse it; take back the reward of one that did not.

    Safe to repeat, and from several sweeps at once: the first decision stands, and one that is not due changes nothing.
    """
    pair = select(referrals.c.referrer_id, referrals.c.referee_id).where(referrals.c.id == referral_id)
    await lock(conn, (await conn.execute(pair)).one())
    now = await grants.clock(conn)
    facts = (await conn.execute(queries["decide"], {"id": referral_id, "now": now, "hold": rules.hold})).one()
    if facts.state == "rewarded" and facts.taken_back_at is not None:
        await _take_back(conn, facts)
    elif facts.state == "ordered" and facts.ripe:
        refusal = _refusal(facts, rules)
        if refusal:
            await _move(conn, referral_id, state="refused", refusal=refusal)
        else:
            await _reward(conn, facts, rules, now)


def _refusal(facts: Row[Any], rules: Programme) -> Refusal | None:
    """Return why the programme gives nothing for an order that stood, or None."""
    referee = {mailbox(facts.referee_email), mailbox(facts.payer_email)}
    if facts.same_card or mailbox(facts.referrer_email) in referee:
        return "same_person"
    if facts.suspended:
        return "suspended"
    if facts.this_month >= rules.rewards_a_month:
        return "month_cap"
    if facts.tokens + facts.reward > rules.total_tokens:
        return "total_cap"
    return None


async def _reward(conn: AsyncConnection, facts: Row[Any], rules: Programme, now: datetime) -> None:
    # The grant names the order that it came from, so that it is clawed back like that order's own.
    transfer_id = await credit(
        conn,
        facts.referrer_id,
        kind="referral",
        house=HOUSE,
        amount_tokens=facts.reward,
        reference=facts.id,
        event_at=now,
        terms=Terms(expires_at=now + rules.life, purchase_id=facts.purchase_id),
    )
    await _move(conn, facts.id, state="rewarded", transfer_id=transfer_id, rewarded_at=now)


async def _take_back(conn: AsyncConnection, facts: Row[Any]) -> None:
    """Claw back what of the reward was there to be used: what ran out or was reversed before is not owed."""
    await grants.settle(conn, await lock_one(conn, facts.referrer_id))
    left = (
        await conn.execute(
            queries["reward_left"], {"account_id": facts.referrer_id, "purchase_id": facts.purchase_id}
        )
    ).scalar_one()
    if left:
        await debts.clawback(
            conn,
            facts.referrer_id,
            purchase_id=facts.purchase_id,
            amount_tokens=left,
            reference=facts.id,
            event_at=facts.taken_back_at,
            reason="the referred order was taken back",
        )
    await _move(conn, facts.id, state="reversed")


async def _move(conn: AsyncConnection, referral_id: str, **values: object) -> None:
    await conn.execute(update(referrals).where(referrals.c.id == referral_id).values(**values))
