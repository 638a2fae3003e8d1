"""How mails leave: by SMTP, or into a directory of this machine while no server is configured."""

from __future__ import annotations

import asyncio
import hashlib
import os
from email.message import EmailMessage
from email.utils import format_datetime, localtime
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

import aiosmtplib
import structlog

from kit.outbox import Mail
from kit.settings import Settings

log = structlog.get_logger(__name__)

SEND_TIMEOUT_S: Final = 10.0
"""For each step of the conversation; below the pause after which another sender takes the mail over."""
SMTP_PORTS: Final = {"smtp": 587, "smtps": 465}
"""Submission (RFC 6409) and submission over TLS (RFC 8314)."""


class MailNotSent(Exception):
    """The mail did not leave; the text says why, for the operator."""


class Mailer(Protocol):
    """A way out for mails."""

    async def send(self, mail: Mail) -> None:
        """Return once the mail is somebody else's to deliver. Raises: MailNotSent."""


class SmtpMailer:
    """Sends by an SMTP server, over TLS wherever a password is involved."""

    def __init__(self, url: str, sender: str) -> None:
        """Read the URL, whose form the settings have checked; nothing is sent yet."""
        parts = urlsplit(url)
        self._sender = sender
        self._host = parts.hostname
        self._port = parts.port or SMTP_PORTS[parts.scheme]
        self._username = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        self._tls_at_once = parts.scheme == "smtps"
        # None: TLS where the server offers it. A password never goes over a line without it.
        self._start_tls = None if self._password is None or self._tls_at_once else True

    async def send(self, mail: Mail) -> None:
        """Hand the mail to the server."""
        try:
            await aiosmtplib.send(
                message_of(mail, self._sender),
                hostname=self._host,
                port=self._port,
                username=self._username,
                password=self._password,
                use_tls=self._tls_at_once,
                start_tls=self._start_tls,
                timeout=SEND_TIMEOUT_S,
            )
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            raise MailNotSent(f"{type(error).__name__}: {error}") from error


class OutboxDirectory:
    """Writes each mail as a file that its owner alone may read."""

    def __init__(self, directory: Path, sender: str) -> None:
        self.directory = directory
        self._sender = sender

    async def send(self, mail: Mail) -> None:
        """Write the mail down, whole or not at all, and log where; never what it says."""
        try:
            path = await asyncio.to_thread(self._write, mail)
        except (OSError, ValueError) as error:
            raise MailNotSent(f"{type(error).__name__}: {error}") from error
        log.info("mail written; no SMTP server is configured", path=str(path))

    def _write(self, mail: Mail) -> Path:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.directory / f"{mail.id:08}.eml"
        draft = path.with_suffix(".draft")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(bytes(message_of(mail, self._sender)))
        return draft.replace(path)


def mailer_for(settings: Settings) -> Mailer:
    """Return the configured way out."""
    if url := settings.smtp_url.get_secret_value():
        return SmtpMailer(url, settings.mail_from)
    host = urlsplit(settings.base_url).hostname or "localhost"
    return OutboxDirectory(outbox_directory(settings), settings.mail_from or f"Farebox <no-reply@{host}>")


def outbox_directory(settings: Settings) -> Path:
    """Return where mails lie while no SMTP server is configured."""
    return settings.data_dir / "outbox"


def message_of(mail: Mail, sender: str) -> EmailMessage:
    """Return the mail as it travels. A repeat carries the same Message-ID, so that mailboxes show it once.

    Raises: ValueError for an address or subject that is no header.
    """
    message = EmailMessage()
    message["From"] = sender
    message["To"] = mail.recipient
    message["Subject"] = mail.subject
    message["Date"] = format_datetime(localtime())
    identity = "\n".join((str(mail.id), mail.recipient, mail.subject, mail.body))
    domain = sender.rpartition("@")[2].strip("> ") or "localhost"
    message["Message-ID"] = f"<{hashlib.sha256(identity.encode()).hexdigest()[:32]}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers, please
    message.set_content(mail.body)
    if mail.html:
        message.add_alternative(mail.html, subtype="html")
    return message
