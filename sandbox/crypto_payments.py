"""What can be done with a crypto payment: send coins to it, have them confirmed, close it, send them back.

Coins have no checkout: an address takes whatever comes, too little, too much and too late.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Literal

from sandbox.crypto_state import CryptoState, WrongState, arrived, is_whole, refunded
from sandbox.stripe_shapes import Json

# What a payer sends who sends too much: enough to be seen.
EXCESS = Decimal("10.00")


def read_amount(text: str) -> Decimal:
    """Read an amount of money. Raises: WrongState for anything else."""
    try:
        amount = Decimal(text)
    except InvalidOperation as error:
        raise WrongState("The amount is not a decimal number.") from error
    if not amount.is_finite() or amount <= 0:
        raise WrongState("The amount must be more than nothing.")
    return amount


def receive(state: CryptoState, payment: Json, amount: Decimal, *, confirmed: bool) -> Json:
    """Have coins arrive at a payment's address."""
    if payment["state"] in {"failed", "deactivated"}:
        raise WrongState(f"Nobody pays a checkout that is {payment['state']}.")
    payment["arrivals"].append(
        {
            "id": state.token(24),
            "amount": f"{amount:f}",
            "confirmed": False,
            "late": payment["state"] == "expired",
            "at": state.now(),
        }
    )
    payment["updated"] = state.now()
    state.emit("received", payment)
    if payment["state"] == "open" and is_whole(payment, confirmed=False):
        state.change(payment, "processing")
        state.emit("processing", payment)
    return confirm(state, payment) if confirmed else payment


def confirm(state: CryptoState, payment: Json) -> Json:
    """Have everything that arrived confirmed by the chain; what is whole then is settled."""
    waiting = [arrival for arrival in payment["arrivals"] if not arrival["confirmed"]]
    if not waiting:
        raise WrongState("Nothing waits to be confirmed.")
    for arrival in waiting:
        arrival["confirmed"] = True
        state.emit("confirmed", payment)
    payment["updated"] = state.now()
    can_settle = {"open", "processing"} | ({"expired"} if state.house.late_settles else set())
    if payment["state"] in can_settle and is_whole(payment):
        state.change(payment, "settled")
        state.emit("settled", payment)
    return payment


def expire(state: CryptoState, payment: Json) -> Json:
    """Let the time of a payment run out now."""
    if payment["state"] != "open":
        raise WrongState(f"Only an open checkout expires; this one is {payment['state']}.")
    state.close(payment, "expired")
    return payment


def fail(state: CryptoState, payment: Json) -> Json:
    """Have the chain or the provider refuse what was sent: none of it was ever there."""
    if payment["state"] not in {"open", "processing"} or arrived(payment, confirmed=True):
        raise WrongState("What is confirmed or closed does not fail.")
    payment["arrivals"].clear()
    state.close(payment, "failed")
    return payment


def refund(state: CryptoState, payment: Json, amount: Decimal) -> Json:
    """Send coins of a completed payment back. Raises: WrongState for more than is there."""
    if payment["state"] != "settled":
        raise WrongState("Only a completed payment is refunded.")
    if amount > arrived(payment, confirmed=True) - refunded(payment):
        raise WrongState("More than is left of this payment.")
    payment["refunds"].append({"id": f"ref_{state.token(24)}", "amount": f"{amount:f}", "at": state.now()})
    payment["updated"] = state.now()
    state.emit("refunded", payment)
    return payment


def mark(state: CryptoState, payment: Json, how: Literal["Settled", "Invalid"]) -> Json:
    """Have the shop's operator decide what the chain left open."""
    payment["marked"] = how
    state.change(payment, "settled" if how == "Settled" else "failed")
    state.emit("marked", payment)
    return payment


def choose(state: CryptoState, payment: Json, outcome: str) -> Json:
    """Do what a payer or the time does: see the page. Raises: WrongState."""
    price = Decimal(payment["amount"])
    ways: dict[str, Callable[[], Json]] = {
        "pay": lambda: receive(state, payment, _left(payment), confirmed=True),
        "part": lambda: receive(state, payment, price / 2, confirmed=True),
        "over": lambda: receive(state, payment, price + EXCESS, confirmed=True),
        "slow": lambda: receive(state, payment, price, confirmed=False),
        "confirm": lambda: confirm(state, payment),
        "expire": lambda: expire(state, payment),
        "fail": lambda: fail(state, payment),
        "cancel": lambda: payment,
    }
    if outcome not in ways:
        raise WrongState(f"One of {', '.join(ways)}.")
    return ways[outcome]()


def _left(payment: Json) -> Decimal:
    """Give what is missing of the price. Raises: WrongState if nothing is: a second click sends no second payment."""
    left = Decimal(payment["amount"]) - arrived(payment, confirmed=False)
    if left <= 0:
        raise WrongState("The whole price is there already; nothing more was sent.")
    return left
