"""The outbox: a mail is written with its cause or not at all, leaves at least once, and is forgotten in the end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from deployments.ledger import LedgerServer
from deployments.postman import Postman
from gateway.mail import MailNotSent
from kit import outbox
from kit.settings import Settings


class Mailer:
    """Keeps what it sends; refuses the recipients that a test names."""

    def __init__(self, *refused):
        self.refused = refused
        self.sent = []

    async def send(self, mail):
        if mail.recipient in self.refused:
            raise MailNotSent("550 no such mailbox")
        if mail.recipient == "broken@example.com":
            raise RuntimeError("a bug of the mailer's")
        self.sent.append(mail)


async def write(db, recipient="ada@example.com", **fields):
    async with db.transaction() as conn:
        return await outbox.enqueue(conn, recipient, "Hello", "the text", "<p>the text</p>", **fields)


async def rows(db):
    async with db.transaction() as conn:
        return (await conn.execute(text("SELECT * FROM outbox ORDER BY id"))).all()


async def pass_time(db):
    async with db.transaction() as conn:
        await conn.execute(text("UPDATE outbox SET retry_at = now()"))


async def test_a_mail_is_written_with_its_cause_or_not_at_all(db):
    async def fail(conn):
        await outbox.enqueue(conn, "ada@example.com", "Hello", "the text")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await db.run(fail)
    assert await db.run(outbox.take_due, 10) == []


async def test_a_sent_mail_is_not_sent_again_and_its_text_is_forgotten(db):
    mail_id = await write(db)
    (mail,) = await db.run(outbox.take_due, 10)
    assert (mail.id, mail.recipient, mail.body, mail.html) == (
        mail_id,
        "ada@example.com",
        "the text",
        "<p>the text</p>",
    )
    await db.run(outbox.finish, mail_id, None)
    await pass_time(db)
    assert await db.run(outbox.take_due, 10) == []
    (row,) = await rows(db)
    assert row.sent_at is not None
    assert "the text" not in str(row)


async def test_a_mail_whose_sender_died_is_taken_again_after_its_pause(db):
    await write(db)
    assert len(await db.run(outbox.take_due, 10)) == 1
    assert await db.run(outbox.take_due, 10) == [], "its sender still has it"
    await pass_time(db)
    assert len(await db.run(outbox.take_due, 10)) == 1


async def test_senders_side_by_side_never_share_a_mail(db):
    ids = [await write(db) for _ in range(20)]
    taken = await asyncio.gather(*(db.run(outbox.take_due, 5) for _ in range(6)))
    assert sorted(mail.id for mails in taken for mail in mails) == ids


async def test_pauses_double_and_a_hopeless_mail_is_given_up(db):
    mail_id = await write(db)
    pauses = []
    while mails := await db.run(outbox.take_due, 10):
        await db.run(outbox.finish, mails[0].id, "no such mailbox")
        async with db.transaction() as conn:
            pause = await conn.scalar(text("SELECT extract(epoch FROM retry_at - now()) FROM outbox"))
        pauses.append(round(float(pause) / 30))
        await pass_time(db)
    assert pauses == [2**n for n in range(outbox.MAX_ATTEMPTS)]
    (row,) = await rows(db)
    assert (row.dead_at is not None, row.sent_at, row.body, row.problem) == (
        True,
        None,
        None,
        "no such mailbox",
    )
    assert [problem.id for problem in await db.run(outbox.problems)] == [mail_id]


async def test_a_mail_whose_time_is_over_is_not_sent(db):
    await write(db, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    kept = await write(db, expires_at=datetime.now(UTC) + timedelta(minutes=1))
    assert [mail.id for mail in await db.run(outbox.take_due, 10)] == [kept]
    assert (await rows(db))[0].dead_at is not None


async def test_ended_mails_are_forgotten_after_a_month_and_waiting_ones_are_not(db):
    sent, waiting = await write(db), await write(db)
    await db.run(outbox.take_due, 10)
    await db.run(outbox.finish, sent, None)
    assert await db.run(outbox.forget_old) == 0
    async with db.transaction() as conn:
        await conn.execute(text("UPDATE outbox SET created_at = now() - interval '31 days'"))
    assert await db.run(outbox.forget_old) == 1
    assert [row.id for row in await rows(db)] == [waiting]


@pytest.mark.parametrize("field", ["recipient", "subject"])
async def test_no_line_end_gets_into_a_header(conn, field):
    fields = {"recipient": "ada@example.com", "subject": "Hello", "body": "the text"}
    fields[field] += "\r\nBcc: everybody@example.com"
    with pytest.raises(IntegrityError):
        await outbox.enqueue(conn, **fields)


async def test_nothing_is_written_to_an_address_that_is_nobodys(conn):
    assert await outbox.enqueue(conn, "deleted-user_1@invalid", "Hello", "the text") is None
    assert (await conn.execute(text("SELECT count(*) FROM outbox"))).scalar_one() == 0


async def test_the_text_outlives_no_end(conn):
    await outbox.enqueue(conn, "ada@example.com", "Hello", "the text")
    with pytest.raises(IntegrityError):
        await conn.execute(text("UPDATE outbox SET sent_at = now()"))


async def test_the_postman_delivers_what_is_due_and_one_bad_mail_holds_up_no_other(db, fresh_url, tmp_path):
    server = LedgerServer(Settings(database_url=fresh_url, data_dir=tmp_path, secret="s"))

    async def call(method, *args):
        return await getattr(server, method)(*args)

    for recipient in ("gone@example.com", "broken@example.com", "ada@example.com"):
        await write(db, recipient)
    mailer = Mailer("gone@example.com")
    await Postman(call, mailer).deliver()
    await server.close()
    assert [mail.recipient for mail in mailer.sent] == ["ada@example.com"]
    gone, broken, sent = await rows(db)
    assert gone.problem == "550 no such mailbox"
    assert broken.problem == "RuntimeError: a bug of the mailer's"
    assert sent.sent_at is not None
    assert gone.sent_at is broken.sent_at is None
