"""The mails of automatic top-ups that did not go through: a subject and a text each."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from payments.auto_topups import Reason
from payments.currencies import amount_text
from payments.packages import Package

_WHAT: Final[dict[Reason, str]] = {
    "card_declined": "Your bank declined the card.",
    "authentication_required": "Your bank wants you to confirm the payment yourself.",
    "no_card": "No card is saved with the payment provider any more.",
    "not_offered": "It is not offered here for this package, or not any more; no bank was asked.",
    "package_changed": "The package that you chose is not sold at that price any more.",
}
_NEXT: Final[dict[Reason, str]] = {
    "card_declined": "Save another card and switch automatic top-up on again",
    "authentication_required": "Buy the package there, where your bank can ask you, then switch this on again",
    "no_card": "Save a card and switch automatic top-up on again",
    "not_offered": "Top up yourself",
    "package_changed": "Look at the packages and switch automatic top-up on again",
}


def refusal_mail(reason: Reason, package: Package, base_url: str, *, ends: bool = True) -> tuple[str, str]:
    """Say why nothing was charged, and what to do. `ends`: nothing is tried again by itself."""
    if ends:
        subject = "Automatic top-up is off" if reason == "card_declined" else "Automatic top-up is paused"
        then = f"It will not be tried again by itself. {_NEXT[reason]}:"
    else:
        subject = "Your automatic top-up was declined"
        then = "It will be tried again in some days. To change the card or the settings:"
    return subject, (
        f"Your balance fell below your threshold, and the top-up of {package.credits_tokens // 100} credits for"
        f" {package.price_text} was not made: nothing was charged. {_WHAT[reason]}\n\n"
        f"{then}\n{base_url}/credits\n"
    )


def ceiling_mail(package: Package, most_minor: int, until: datetime, base_url: str) -> tuple[str, str]:
    """Say that the month's ceiling leaves no room for another top-up."""
    most = f"{amount_text(most_minor, package.currency)} {package.currency.upper()}"
    return "Automatic top-up has reached its ceiling", (
        f"Your balance is below your threshold, and another {package.price_text} would go past the {most} that you"
        f" allowed for a month: nothing was charged. The next automatic top-up is possible from {until:%Y-%m-%d}"
        f" (UTC).\n\nTop up yourself, or change the ceiling:\n{base_url}/credits\n"
    )
