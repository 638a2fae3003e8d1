"""Mails leave by the real SMTP protocol, or lie in a directory that their owner alone may read."""

from __future__ import annotations

import asyncio
import email
import email.policy
from contextlib import asynccontextmanager

import pytest
import structlog

from gateway.mail import MailNotSent, OutboxDirectory, SmtpMailer, mailer_for
from kit.outbox import Mail
from kit.settings import Settings

MAIL = Mail(7, "ada@example.com", "Your sign-in code", "Your code is\n\n    1234 5678\n", None)
SENDER = "Farebox <no-reply@farebox.test>"


class Postbox:
    """An SMTP server that keeps what it is given. `greeting` and `rcpt` are its answers there."""

    def __init__(self, greeting=b"220 ready", rcpt=b"250 ok", extensions=()):
        self.greeting, self.rcpt, self.extensions = greeting, rcpt, extensions
        self.commands, self.messages, self.visits = [], [], []

    async def serve(self, reader, writer):
        self.visits.append(asyncio.current_task())
        try:
            await self.talk(reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()

    async def talk(self, reader, writer):
        def say(line):
            writer.write(line + b"\r\n")

        say(self.greeting)
        while line := await reader.readline():
            command = line.decode().strip()
            self.commands.append(command)
            match command.partition(" ")[0].upper():
                case "EHLO":
                    for each in self.extensions:
                        say(b"250-" + each)
                    say(b"250 postbox")
                case "RCPT":
                    say(self.rcpt)
                case "DATA":
                    say(b"354 go on")
                    self.messages.append((await reader.readuntil(b"\r\n.\r\n"))[:-5])
                    say(b"250 kept")
                case "QUIT":
                    say(b"221 bye")
                    break
                case _:
                    say(b"250 ok")
            await writer.drain()


@asynccontextmanager
async def listening(postbox):
    server = await asyncio.start_server(postbox.serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*postbox.visits)


def read(raw):
    return email.message_from_bytes(raw, policy=email.policy.default)


async def test_a_mail_travels_whole():
    postbox = Postbox()
    async with listening(postbox) as port:
        await SmtpMailer(f"smtp://127.0.0.1:{port}", SENDER).send(MAIL)
    message = read(postbox.messages[0])
    assert (message["from"], message["to"], message["subject"]) == (SENDER, MAIL.recipient, MAIL.subject)
    assert "    1234 5678" in message.get_content()
    assert message["message-id"].endswith("@farebox.test>")
    assert "MAIL FROM:<no-reply@farebox.test>" in " ".join(postbox.commands)


async def test_a_repeat_carries_the_same_message_id_and_another_mail_does_not():
    postbox = Postbox()
    async with listening(postbox) as port:
        mailer = SmtpMailer(f"smtp://127.0.0.1:{port}", SENDER)
        for mail in (MAIL, MAIL, Mail(8, MAIL.recipient, MAIL.subject, MAIL.body, None)):
            await mailer.send(mail)
    first, again, other = (read(raw)["message-id"] for raw in postbox.messages)
    assert first == again != other


async def test_html_travels_beside_the_text():
    postbox = Postbox()
    async with listening(postbox) as port:
        mail = Mail(1, "ada@example.com", "Hello", "the text", "<p>the text</p>")
        await SmtpMailer(f"smtp://127.0.0.1:{port}", SENDER).send(mail)
    message = read(postbox.messages[0])
    assert message.get_body(("plain",)).get_content().strip() == "the text"
    assert message.get_body(("html",)).get_content().strip() == "<p>the text</p>"


@pytest.mark.parametrize("postbox", [Postbox(greeting=b"554 go away"), Postbox(rcpt=b"550 no such mailbox")])
async def test_a_refusal_says_why(postbox):
    async with listening(postbox) as port:
        with pytest.raises(MailNotSent, match=r"554|550"):
            await SmtpMailer(f"smtp://127.0.0.1:{port}", SENDER).send(MAIL)
    assert postbox.messages == []


async def test_a_server_that_is_away_is_a_mail_not_sent():
    async with listening(Postbox()) as port:
        pass
    with pytest.raises(MailNotSent):
        await SmtpMailer(f"smtp://127.0.0.1:{port}", SENDER).send(MAIL)


async def test_a_password_never_goes_over_a_line_without_tls():
    postbox = Postbox(extensions=[b"AUTH PLAIN LOGIN"])
    async with listening(postbox) as port:
        with pytest.raises(MailNotSent, match="STARTTLS"):
            await SmtpMailer(f"smtp://ada:hush@127.0.0.1:{port}", SENDER).send(MAIL)
    assert not [command for command in postbox.commands if command.startswith(("AUTH", "MAIL"))]


async def test_without_a_server_mails_lie_in_the_outbox_and_the_log_holds_no_code(tmp_path):
    mailer = mailer_for(Settings(data_dir=tmp_path, secret="s", public_url="https://farebox.test"))
    assert isinstance(mailer, OutboxDirectory)
    with structlog.testing.capture_logs() as logs:
        await mailer.send(MAIL)
        await mailer.send(MAIL)
    (path,) = (tmp_path / "outbox").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert "1234 5678" in read(path.read_bytes()).get_content()
    assert [log["path"] for log in logs] == [str(path)] * 2
    assert "1234" not in str(logs)


async def test_a_configured_server_is_used(tmp_path):
    settings = Settings(data_dir=tmp_path, secret="s", smtp_url="smtps://mail.test", mail_from=SENDER)
    assert isinstance(mailer_for(settings), SmtpMailer)
