"""The Postman: takes mails that are due from the books, sends them, notes what became of each."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from deployments.handles import Call
from gateway.mail import Mailer, MailNotSent
from kit.outbox import Mail
from kit.telemetry import errors_total

log = structlog.get_logger(__name__)

MAILS_A_ROUND: Final = 10
"""Sent side by side, so that one round ends within one server's timeout."""


class Postman:
    """Carries mails from the outbox to the mailer, with no transaction open while one travels."""

    def __init__(self, ledger: Call, mailer: Mailer) -> None:
        self._ledger = ledger
        self._mailer = mailer

    async def deliver(self) -> None:
        """Send what is due now. A mail that can't be sent holds up no other."""
        mails: list[Mail] = await self._ledger("take_mails", MAILS_A_ROUND)
        await asyncio.gather(*(self._deliver(mail) for mail in mails))

    async def _deliver(self, mail: Mail) -> None:
        problem: str | None = None
        try:
            await self._mailer.send(mail)
        except MailNotSent as error:
            problem = str(error)
        except Exception as error:
            errors_total.labels("mail").inc()
            log.exception("a mail broke the mailer", mail_id=mail.id)
            problem = f"{type(error).__name__}: {error}"
        if problem is not None:
            log.warning("mail not sent; it is tried again", mail_id=mail.id, problem=problem)
        await self._ledger("finish_mail", mail.id, problem)
