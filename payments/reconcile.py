"""A provider's record of payments beside the books' own: every difference, and what would mend it.

Pure: two lists in, differences out, whatever their order. A difference that the ordinary fulfilment mends, and nothing
else can be right, says so in `repair`; the rest is a person's: no credits are taken because a provider's list lacks
them, and none are given that nobody paid for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from payments.checkout import OWN_ID, ProviderSession
from payments.currencies import amount_text
from payments.returns import Return

Kind = Literal[
    "not_granted",
    "not_paid",
    "unknown",
    "paid_twice",
    "price",
    "currency",
    "mode",
    "amount",
    "arrived",
    "refund",
    "dispute",
    "warning",
    "unsettled",
]
"""What differs. `not_granted`: paid there, nothing here. `not_paid`: granted here, not paid there. `unknown`: paid
there for a purchase that the books lack. `paid_twice`: through a second session. `warning`: a card network calls it
fraudulent, and its account was never frozen. `unsettled`: of a wallet, and nobody knows what became of it."""

GRANT: Final = "grant its credits"
TAKE: Final = "take back its share of the credits"
RETURN: Final = "give back the credits that were taken for it"
NOTE: Final = "note what arrived"
FREEZE: Final = "freeze its account"


@dataclass(frozen=True, slots=True)
class Booked:
    """A purchase as the books have it. `warned`: it froze its account, whatever became of that. Units: minor units."""

    purchase_id: str
    session_id: str | None
    payment_id: str | None
    amount_minor: int
    currency: str
    world: str
    granted: bool
    paid_minor: int | None
    received_minor: int
    returns: tuple[Return, ...]
    warned: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference of one payment. `repair`: what fulfilling it again would do; None: a person decides."""

    kind: Kind
    provider: str
    purchase_id: str | None
    session_id: str | None
    theirs: str
    ours: str
    repair: str | None


def is_ours(session: ProviderSession) -> bool:
    """Tell whether a session names a purchase of our form: a shop beside ours may sell through the same account."""
    return re.fullmatch(OWN_ID, session.purchase_id) is not None


def compare(
    provider: str, theirs: Iterable[ProviderSession], ours: Iterable[Booked], *, livemode: bool
) -> list[Difference]:
    """Return every difference between a provider's payments and the purchases of the books, in a fixed order.

    `ours` holds each purchase that `theirs` names, if the books have it; `theirs` holds each payment that `ours` was
    granted for, if the provider has it. `livemode`: whether this server takes real money there.
    """
    booked = {each.purchase_id: each for each in ours}
    sessions = [session for session in theirs if is_ours(session)]
    found: list[Difference] = []
    for session in sessions:
        one = booked.get(session.purchase_id)
        found += [
            Difference(kind, provider, session.purchase_id, session.id, said, ours_say, repair)
            for kind, said, ours_say, repair in _of_session(session, one, livemode=livemode)
        ]
    heard_of = {session.purchase_id for session in sessions if session.id == _session_of(booked, session)}
    for one in booked.values():
        if one.granted and one.purchase_id not in heard_of:
            found.append(
                Difference(
                    "not_paid",
                    provider,
                    one.purchase_id,
                    one.session_id,
                    "no such payment",
                    _granted(one),
                    None,
                )
            )
    return sorted(
        set(found), key=lambda each: (each.purchase_id or "", each.session_id or "", each.kind, each.theirs)
    )


_Row = tuple[Kind, str, str, str | None]


def _of_session(session: ProviderSession, one: Booked | None, *, livemode: bool) -> Iterator[_Row]:
    paid = _paid(session)
    if one is None:
        if session.paid:
            yield "unknown", paid, "no such purchase", None
        return
    if one.session_id not in (None, session.id):
        if session.paid:
            yield "paid_twice", paid, f"sold through {one.session_id}", None
        return
    if not session.paid:
        if one.granted:
            yield "not_paid", _unpaid(session), _granted(one), None
        else:
            yield from _arrived(session, one)
        return
    mismatches = list(_terms(session, one, livemode=livemode))
    yield from mismatches
    if not one.granted:
        yield "not_granted", paid, "not granted", None if mismatches else GRANT
        return
    if one.paid_minor != _paid_minor(session):
        yield "amount", paid, f"paid {_money(one.paid_minor or 0, one.currency)}", None
    yield from _arrived(session, one)
    yield from _returned(session, one)
    if session.warned and not one.warned:
        yield "warning", "called fraudulent", "not heard of", FREEZE


def _terms(session: ProviderSession, one: Booked, *, livemode: bool) -> Iterator[_Row]:
    """Compare what was sold: fulfilment refuses all of these."""
    if session.currency.lower() != one.currency:
        yield "currency", session.currency.upper(), one.currency.upper(), None
    elif session.amount_minor != one.amount_minor:
        yield (
            "price",
            _money(session.amount_minor, session.currency),
            _money(one.amount_minor, one.currency),
            None,
        )
    if session.livemode != livemode or (session.livemode and one.world == "test"):
        yield "mode", "real money" if session.livemode else "test money", f"the {one.world} world", None


def _arrived(session: ProviderSession, one: Booked) -> Iterator[_Row]:
    """Compare what came in, where the provider tells it: a payment in coins may be short, over or late."""
    if session.received_minor is not None and session.received_minor > one.received_minor:
        yield (
            "arrived",
            f"{_money(session.received_minor, session.currency)} arrived",
            f"{_money(one.received_minor, one.currency)} arrived",
            NOTE,
        )


def _returned(session: ProviderSession, one: Booked) -> Iterator[_Row]:
    """Compare refunds and disputes, each by its id; what does not stand on either side is no difference."""
    there = {each.id: each for each in session.returns}
    here = {each.id: each for each in one.returns}
    for return_id in there | here:
        their, our = there.get(return_id), here.get(return_id)
        standing, kept = bool(their and their.stands), bool(our and our.stands)
        same_amount = their is not None and our is not None and their.amount_minor == our.amount_minor
        if standing == kept and (same_amount or not standing):
            continue
        known = their or our
        assert known is not None, "it came from one of the two"
        repair = None if their is None else TAKE if standing else RETURN
        yield known.kind, _told(their, session.currency), _told(our, one.currency), repair


def _session_of(booked: dict[str, Booked], session: ProviderSession) -> str:
    one = booked.get(session.purchase_id)
    return session.id if one is None or one.session_id is None else one.session_id


def _told(found: Return | None, currency: str) -> str:
    if found is None:
        return "none"
    gone = "" if found.stands else ", not standing"
    return f"{_money(found.amount_minor, currency)} {found.status}{gone} ({found.id})"


def _paid_minor(session: ProviderSession) -> int:
    return session.amount_minor if session.paid_minor is None else session.paid_minor


def _paid(session: ProviderSession) -> str:
    return f"paid {_money(_paid_minor(session), session.currency)}"


def _unpaid(session: ProviderSession) -> str:
    return "closed, not paid" if session.closed else "not paid"


def _granted(one: Booked) -> str:
    return f"granted for {_money(one.amount_minor, one.currency)}"


def _money(amount_minor: int, currency: str) -> str:
    return f"{amount_text(amount_minor, currency)} {currency.upper()}"
