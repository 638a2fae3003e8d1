"""Two records of the same payments: what is equal shows nothing, what differs shows, only what is paid is granted."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments.checkout import ProviderSession
from payments.reconcile import FREEZE, GRANT, NOTE, RETURN, TAKE, Booked, Difference, compare
from payments.returns import Return

REFUND = Return("re_1", "refund", 2_000, "succeeded", 1, stands=True)
FAILED = Return("re_1", "refund", 2_000, "failed", 2, stands=False)


def session(number: int = 1, **facts) -> ProviderSession:
    base = ProviderSession(
        id=f"cs_{number}",
        url="",
        purchase_id=f"pur_{number:026}",
        paid=True,
        amount_minor=5_000,
        currency="usd",
        livemode=False,
        paid_minor=5_000,
    )
    return replace(base, **facts)


def booked(number: int = 1, **facts) -> Booked:
    base = Booked(
        purchase_id=f"pur_{number:026}",
        session_id=f"cs_{number}",
        payment_id=None,
        amount_minor=5_000,
        currency="usd",
        world="live",
        granted=True,
        paid_minor=5_000,
        received_minor=5_000,
        returns=(),
        warned=False,
    )
    return replace(base, **facts)


def unpaid(number: int = 1, **facts) -> Booked:
    return booked(number, granted=False, paid_minor=None, received_minor=0, **facts)


def seen(theirs: list[ProviderSession], ours: list[Booked], *, livemode: bool = False) -> list[Difference]:
    return compare("stripe", theirs, ours, livemode=livemode)


@pytest.mark.parametrize(
    ("theirs", "ours", "kinds", "repair"),
    [
        ([session()], [booked()], [], None),
        ([session(paid=False)], [unpaid()], [], None),
        ([], [unpaid()], [], None),
        ([session(paid=False, purchase_id="pur_00000000000000000000000009")], [], [], None),
        ([session(purchase_id="an order of a shop beside ours")], [], [], None),
        ([session(returns=(FAILED,))], [booked()], [], None),
        ([session()], [booked(session_id=None)], [], None),
        ([session()], [unpaid()], ["not_granted"], GRANT),
        ([session()], [unpaid(session_id=None)], ["not_granted"], GRANT),
        ([session()], [], ["unknown"], None),
        ([], [booked()], ["not_paid"], None),
        ([session(paid=False, closed=True)], [booked()], ["not_paid"], None),
        ([session(), session(id="cs_again")], [booked()], ["paid_twice"], None),
        ([session(), session(id="cs_again", paid=False)], [booked()], [], None),
        ([session(currency="eur")], [unpaid()], ["currency", "not_granted"], None),
        ([session(amount_minor=4_999)], [unpaid()], ["not_granted", "price"], None),
        ([session(livemode=True)], [unpaid()], ["mode", "not_granted"], None),
        ([session(paid_minor=5_950)], [booked()], ["amount"], None),
        ([session(returns=(REFUND,))], [booked()], ["refund"], TAKE),
        ([session(returns=(FAILED,))], [booked(returns=(REFUND,))], ["refund"], RETURN),
        ([session()], [booked(returns=(REFUND,))], ["refund"], None),
        ([session(returns=(replace(REFUND, kind="dispute"),))], [booked()], ["dispute"], TAKE),
        (
            [session(returns=(replace(REFUND, amount_minor=1),))],
            [booked(returns=(REFUND,))],
            ["refund"],
            TAKE,
        ),
        ([session(paid=False, closed=True, received_minor=700)], [unpaid()], ["arrived"], NOTE),
        ([session(received_minor=6_000)], [booked()], ["arrived"], NOTE),
        ([session(warned=True)], [booked()], ["warning"], FREEZE),
        ([session(warned=True)], [booked(warned=True)], [], None),
        ([session()], [booked(warned=True)], [], None),
    ],
)
def test_what_differs_is_named_with_what_would_mend_it(theirs, ours, kinds, repair):
    found = seen(theirs, ours)
    assert [each.kind for each in found] == kinds
    assert {each.repair for each in found} <= {repair}


def test_a_test_accounts_purchase_is_never_paid_with_real_money():
    found = seen([session(livemode=True)], [unpaid(world="test")], livemode=True)
    assert [(each.kind, each.repair) for each in found] == [("mode", None), ("not_granted", None)]


MONEY = st.integers(1, 9_000)
RETURNS = st.dictionaries(
    st.sampled_from(["re_1", "re_2", "du_1"]), st.tuples(MONEY, st.booleans()), max_size=3
).map(
    lambda found: tuple(
        Return(name, "dispute" if name[0] == "d" else "refund", amount, "x", 1, stands)
        for name, (amount, stands) in found.items()
    )
)
FACT = st.fixed_dictionaries(
    {"there": st.booleans(), "here": st.booleans(), "paid": st.booleans(), "granted": st.booleans(),
     "theirs": MONEY, "ours": MONEY, "back": RETURNS, "taken": RETURNS}
)  # fmt: skip


def _standing(returns: tuple[Return, ...]) -> dict[str, int]:
    return {each.id: each.amount_minor for each in returns if each.stands}


@given(st.lists(FACT, max_size=6), st.randoms(use_true_random=False))
def test_exactly_what_differs_is_found_in_whatever_order(facts, chance: random.Random):
    theirs, ours, differ = [], [], set()
    for number, fact in enumerate(facts):
        paid, granted = fact["there"] and fact["paid"], fact["here"] and fact["granted"]
        if fact["there"]:
            theirs.append(
                session(
                    number,
                    paid=paid,
                    amount_minor=fact["theirs"],
                    paid_minor=fact["theirs"],
                    returns=fact["back"],
                )
            )
        if fact["here"]:
            money = {"amount_minor": fact["ours"], "received_minor": fact["ours"], "returns": fact["taken"]}
            ours.append(booked(number, paid_minor=fact["ours"], **money) if granted else unpaid(number))
        same_money = fact["theirs"] == fact["ours"] and _standing(fact["back"]) == _standing(fact["taken"])
        if paid != granted or (paid and not same_money):
            differ.add(f"pur_{number:026}")
    found = seen(theirs, ours)
    assert {each.purchase_id for each in found} == differ
    for each in found:
        one = next((s for s in theirs if s.id == each.session_id), None)
        if each.repair is not None:  # what is mended was paid, for a purchase that is there
            assert one is not None
            assert one.paid
            assert any(b.purchase_id == one.purchase_id for b in ours)
    chance.shuffle(theirs)
    chance.shuffle(ours)
    assert seen(theirs + theirs, ours) == found
