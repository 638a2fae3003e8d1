"""Webhooks to customers: written with their cause, signed, tried again, given up, sent anew under the same id."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
import pytest_asyncio
from sqlalchemy import text
from standardwebhooks import Webhook, WebhookVerificationError

from deployments.courier import Courier
from deployments.ledger import LedgerServer
from deployments.models.contract import Media, Metrics, Output
from deployments.runner import Runner
from gateway import deliveries, jobs, leases, webhooks
from gateway.errors import EndpointDisabled, EndpointExists, TooManyEndpoints
from gateway.leases import Failure, LeaseLost, Settlement
from gateway.ports import StoredFile, SubmitJob
from gateway.webhook_ports import Outcome
from kit.errors import Forbidden, NotFound, Unavailable
from kit.fetch import is_public
from kit.ids import new_id
from kit.post import Poster
from kit.settings import Settings
from kit.storage import ObjectStore
from ledger.keys import Credential, Limits, hash_key, mint

HOUR = timedelta(hours=1)
LEASE = timedelta(seconds=30)
ROOT = b"the server's own secret"
URL = "https://customer.example/hooks"


async def submitted(conn, customer, url=URL, events=None):
    command = SubmitJob(
        credential=customer.credential,
        job_id=new_id("job"),
        task="image.generate",
        tool="image",
        application="image",
        input={"prompt": "fox"},
        units_milli=1000,
        cost_tokens=100,
        price_version=1,
        idempotency_key=None,
        fingerprint="a",
        webhook_url=url,
        webhook_events=events,
    )
    await jobs.submit_many(conn, [command], HOUR)
    return command.job_id


async def claimed(conn, job_id):
    return next(job for job in await leases.claim(conn, "run_a", "image", 9, LEASE) if job.id == job_id)


def output_of(job_id):
    return StoredFile(
        new_id("file"), "0.png", f"outputs/{job_id}", "image/png", 3, "ab" * 32, datetime.now(UTC), job_id, {"seed": 7}
    )  # fmt: skip


async def succeed(conn, customer, job_id):
    job = await claimed(conn, job_id)
    await leases.settle(conn, Settlement(job_id, job.fence, [output_of(job_id)], 100, {}))


async def fail(conn, customer, job_id):
    job = await claimed(conn, job_id)
    await leases.fail(conn, Failure(job_id, job.fence, "model_failed", "It broke.", False, {}), 3)


async def cancel_queued(conn, customer, job_id):
    await jobs.cancel(conn, customer.account_id, job_id)


async def cancel_running(conn, customer, job_id):
    job = await claimed(conn, job_id)
    await jobs.cancel(conn, customer.account_id, job_id)
    await leases.give_back(conn, job_id, job.fence)


async def expire(conn, customer, job_id):
    await conn.execute(
        text("UPDATE jobs SET expires_at = now() - interval '1 s' WHERE id = :id"), {"id": job_id}
    )
    await leases.sweep(conn, 3)


async def lose(conn, customer, job_id):
    await claimed(conn, job_id)
    await conn.execute(
        text("UPDATE jobs SET lease_until = now() - interval '1 s' WHERE id = :id"), {"id": job_id}
    )
    await leases.sweep(conn, 1)


async def told(conn, customer):
    return await deliveries.deliveries(conn, customer.account_id, 100, None, None)


async def taken(conn, busy=(), limit=100):
    return await deliveries.take_due(conn, limit, busy, ROOT)


async def come_due(conn):
    await conn.execute(text("UPDATE webhook_deliveries SET retry_at = now()"))


# -- written with the end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "event"),
    [
        (succeed, "job.succeeded"),
        (fail, "job.failed"),
        (lose, "job.failed"),
        (cancel_queued, "job.canceled"),
        (cancel_running, "job.canceled"),
        (expire, "job.expired"),
    ],
)
async def test_however_a_job_ends_its_url_is_told_once(conn, customers, end, event):
    customer = await customers(conn, 500)
    job_id = await submitted(conn, customer)
    assert await told(conn, customer) == []
    await end(conn, customer, job_id)
    (delivery,) = await told(conn, customer)
    assert (delivery.event, delivery.url, delivery.job_id, delivery.status) == (event, URL, job_id, "waiting")
    body = json.loads(delivery.body)
    assert body["type"] == event
    assert (body["data"]["jobId"], body["data"]["status"]) == (job_id, event.removeprefix("job."))
    assert body["data"]["charged"] == {
        "credits": 1.0 if end is succeed else 0.0,
        "tokens": 100 if end is succeed else 0,
    }
    assert [file["seed"] for file in body["data"]["output"]] == ([7] if end is succeed else [])


async def test_an_end_that_is_refused_tells_nothing(conn, customers):
    customer = await customers(conn, 500)
    job_id = await submitted(conn, customer)
    job = await claimed(conn, job_id)
    with pytest.raises(LeaseLost):
        await leases.settle(conn, Settlement(job_id, job.fence + 1, [], 100, {}))
    assert await told(conn, customer) == []


async def test_an_end_that_is_rolled_back_tells_nothing(db, customers):
    async with db.transaction() as conn:
        customer = await customers(conn, 500)
        job_id = await submitted(conn, customer)

    async def end_and_crash(conn):
        await cancel_queued(conn, customer, job_id)
        assert await told(conn, customer)
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        await db.run(end_and_crash)
    async with db.transaction() as conn:
        assert await told(conn, customer) == []


async def test_a_retry_of_the_job_is_not_its_end(conn, customers):
    customer = await customers(conn, 500)
    job_id = await submitted(conn, customer)
    job = await claimed(conn, job_id)
    await leases.fail(conn, Failure(job_id, job.fence, "interrupted", "Again.", True, {}), 3)
    assert await told(conn, customer) == []


async def test_a_job_tells_of_the_ends_that_it_names(conn, customers):
    customer = await customers(conn, 500)
    quiet = await submitted(conn, customer, events=("job.failed",))
    loud = await submitted(conn, customer, events=("job.canceled", "job.failed"))
    await cancel_queued(conn, customer, quiet)
    await cancel_queued(conn, customer, loud)
    assert [delivery.job_id for delivery in await told(conn, customer)] == [loud]


async def test_an_endpoint_is_told_of_the_events_that_it_names_and_of_nobody_elses(conn, customers):
    customer, stranger = await customers(conn, 500), await customers(conn, 500)
    every = await webhooks.add(conn, ROOT, customer.account_id, f"{URL}/all", None)
    await webhooks.add(conn, ROOT, customer.account_id, f"{URL}/failures", ("job.failed",))
    await cancel_queued(conn, customer, await submitted(conn, customer, url=None))
    await cancel_queued(conn, stranger, await submitted(conn, stranger, url=None))
    assert [delivery.endpoint_id for delivery in await told(conn, customer)] == [every.endpoint.id]
    assert await told(conn, stranger) == []


async def test_a_job_without_listeners_writes_nothing(conn, customers):
    customer = await customers(conn, 500)
    await cancel_queued(conn, customer, await submitted(conn, customer, url=None))
    assert await told(conn, customer) == []


# -- taken and noted -----------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def delivery(conn, customers):
    """A delivery that waits, and whose it is."""
    customer = await customers(conn, 500)
    await webhooks.add(conn, ROOT, customer.account_id, URL, None)
    await cancel_queued(conn, customer, await submitted(conn, customer, url=None))
    return customer, (await told(conn, customer))[0]


def outcome_of(due, answered=500, problem="answered 500"):
    return Outcome(due.id, due.endpoint_id, due.attempt, answered, problem)


async def test_what_was_taken_is_not_taken_again_before_its_time(conn, delivery):
    (first,) = await taken(conn)
    assert await taken(conn) == []
    await come_due(conn)
    (again,) = await taken(conn)
    assert (again.id, again.body, again.attempt) == (first.id, first.body, 2)


async def test_a_delivery_is_tried_for_three_days_with_growing_pauses_and_then_given_up(conn, delivery):
    customer, _ = delivery
    pauses = []
    while (await told(conn, customer))[0].status == "waiting":
        (due,) = await taken(conn)
        await deliveries.finish(conn, outcome_of(due))
        now = (await conn.execute(text("SELECT now()"))).scalar_one()
        pauses.append((await told(conn, customer))[0].retry_at - now)
        await come_due(conn)
    assert tuple(pauses[:-1]) == deliveries.PAUSES
    assert sorted(pauses[:-1]) == pauses[:-1]
    assert timedelta(days=3) <= sum(pauses[:-1], timedelta()) <= timedelta(days=3.5)
    over = (await told(conn, customer))[0]
    assert (over.status, over.attempts, over.answered, over.problem) == (
        "given_up", 10, 500, "answered 500",
    )  # fmt: skip
    assert await taken(conn) == []


async def test_a_late_note_of_an_attempt_changes_nothing(conn, delivery):
    customer, _ = delivery
    (first,) = await taken(conn)
    await come_due(conn)
    (second,) = await taken(conn)
    await deliveries.finish(conn, outcome_of(first, 200, None))
    assert (await told(conn, customer))[0].status == "waiting"
    await deliveries.finish(conn, outcome_of(second, 200, None))
    assert (await told(conn, customer))[0].status == "delivered"
    await deliveries.finish(conn, outcome_of(second))
    assert (await told(conn, customer))[0].status == "delivered"


async def test_410_disables_the_endpoint_and_all_that_waits_for_it(conn, delivery):
    customer, _ = delivery
    await cancel_queued(conn, customer, await submitted(conn, customer, url=None))
    due = (await taken(conn))[0]
    await deliveries.finish(conn, outcome_of(due, 410, "answered 410"))
    assert [each.status for each in await told(conn, customer)] == ["given_up", "given_up"]
    await cancel_queued(conn, customer, await submitted(conn, customer, url=None))
    assert len(await told(conn, customer)) == 2
    with pytest.raises(EndpointDisabled):
        await deliveries.replay(conn, customer.account_id, due.id)


async def test_410_from_a_jobs_url_ends_that_delivery_alone(conn, customers):
    customer = await customers(conn, 500)
    for _ in range(2):
        await cancel_queued(conn, customer, await submitted(conn, customer))
    first, _ = await taken(conn)
    await deliveries.finish(conn, outcome_of(first, 410, "answered 410"))
    assert {each.id: each.status for each in await told(conn, customer)}[first.id] == "given_up"
    assert sorted(each.status for each in await told(conn, customer)) == ["given_up", "waiting"]
    await cancel_queued(conn, customer, await submitted(conn, customer))
    assert len(await told(conn, customer)) == 3


async def test_a_replay_goes_out_anew_under_its_own_id(conn, delivery):
    customer, waiting = delivery
    (due,) = await taken(conn)
    await deliveries.finish(conn, outcome_of(due, 200, None))
    assert await taken(conn) == []
    replayed = await deliveries.replay(conn, customer.account_id, waiting.id)
    assert (replayed.status, replayed.attempts, replayed.problem) == ("waiting", 0, None)
    (again,) = await taken(conn)
    assert (again.id, again.body) == (due.id, due.body)


async def test_nobody_replays_anothers_delivery(conn, delivery, customers):
    stranger = await customers(conn, 0)
    with pytest.raises(NotFound):
        await deliveries.replay(conn, stranger.account_id, delivery[1].id)


async def test_one_endpoint_takes_few_places_at_once(conn, customers):
    flood, quiet = await customers(conn, 5000), await customers(conn, 500)
    for customer, count in ((flood, 9), (quiet, 1)):
        await webhooks.add(conn, ROOT, customer.account_id, URL, None)
        for _ in range(count):
            await cancel_queued(conn, customer, await submitted(conn, customer, url=None))
    due = await taken(conn)
    mine = (await told(conn, quiet))[0]
    assert [each.id == mine.id for each in due].count(True) == 1
    assert len(due) == deliveries.EACH + 1
    loud = next(each.endpoint_id for each in due if each.id != mine.id)
    assert await taken(conn, busy=[loud]) == []


async def test_two_couriers_never_take_the_same_delivery(db, customers):
    async with db.transaction() as conn:
        customer = await customers(conn, 5000)
        for number in range(5):
            await webhooks.add(conn, ROOT, customer.account_id, f"{URL}/{number}", None)
        await cancel_queued(conn, customer, await submitted(conn, customer, url=None))
    batches = await asyncio.gather(*(db.run(taken, (), 2) for _ in range(6)))
    ids = [due.id for batch in batches for due in batch]
    assert len(ids) == len(set(ids)) == 5


async def test_what_ended_long_ago_is_forgotten_and_what_waits_is_not(conn, delivery):
    customer, _ = delivery
    await conn.execute(text("UPDATE webhook_deliveries SET created_at = now() - interval '40 days'"))
    assert await deliveries.forget_old(conn) == 0
    (due,) = await taken(conn)
    await deliveries.finish(conn, outcome_of(due, 200, None))
    assert await deliveries.forget_old(conn) == 1
    assert await told(conn, customer) == []


# -- endpoints -----------------------------------------------------------------------------------------------------


async def test_an_account_has_one_endpoint_for_a_url_and_twenty_at_most(conn, customers):
    customer = await customers(conn, 0)
    for url in (URL, None):
        await webhooks.add(conn, ROOT, customer.account_id, url, None)
        with pytest.raises(EndpointExists):
            await webhooks.add(conn, ROOT, customer.account_id, url, None)
    for number in range(webhooks.MAX_ENDPOINTS - 2):
        await webhooks.add(conn, ROOT, customer.account_id, f"{URL}/{number}", None)
    with pytest.raises(TooManyEndpoints):
        await webhooks.add(conn, ROOT, customer.account_id, f"{URL}/more", None)


async def test_dropping_an_endpoint_takes_its_deliveries_along_while_one_travels(conn, delivery):
    customer, waiting = delivery
    (due,) = await taken(conn)
    await webhooks.drop(conn, customer.account_id, waiting.endpoint_id)
    await deliveries.finish(conn, outcome_of(due, 200, None))
    assert await told(conn, customer) == []
    with pytest.raises(NotFound):
        await webhooks.drop(conn, customer.account_id, waiting.endpoint_id)


async def test_nobody_touches_anothers_endpoint(conn, delivery, customers):
    stranger = await customers(conn, 0)
    with pytest.raises(NotFound):
        await webhooks.rotate(conn, ROOT, stranger.account_id, delivery[1].endpoint_id, HOUR)
    with pytest.raises(NotFound):
        await webhooks.drop(conn, stranger.account_id, delivery[1].endpoint_id)


# -- the courier, over a real line ---------------------------------------------------------------------------------


class Receiver:
    """An HTTP server on loopback that keeps what it got and answers as it is told."""

    def __init__(self):
        self.got = []
        self.answers = []
        self.port = 0
        self.connections = []

    def accept(self, reader, writer):
        self.connections.append(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
        body = await reader.readexactly(int(headers["content-length"]))
        self.got.append((lines[0], headers, body))
        answer = self.answers.pop(0) if self.answers else b"HTTP/1.1 204 No Content\r\n\r\n"
        writer.write(answer)
        with suppress(ConnectionError):
            await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    @property
    def ids(self):
        return [headers["webhook-id"] for _, headers, _ in self.got]


@pytest_asyncio.fixture
async def receiver():
    receiver = Receiver()
    server = await asyncio.start_server(receiver.accept, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    yield receiver
    server.close()
    await server.wait_closed()
    await asyncio.gather(*receiver.connections)


@pytest_asyncio.fixture
async def house(db, fresh_url, tmp_path, customers, receiver):
    server = LedgerServer(Settings(database_url=fresh_url, data_dir=tmp_path, secret="s"))
    async with db.transaction() as conn:
        customer = await customers(conn, 500)
    yield House(db, server, customer, receiver)
    await server.close()


async def at_home(host, port):
    return [ip_address("127.0.0.1")]


class House:
    """The books, a customer, and a courier whose names all lead to the receiver."""

    def __init__(self, db, server, customer, receiver):
        self.db, self.server, self.customer, self.receiver = db, server, customer, receiver
        self.url = f"http://customer.example:{receiver.port}/hooks?a=1"
        self.lost = []
        self.noted = asyncio.Event()

    async def call(self, method, *args):
        if method in self.lost:
            self.lost.remove(method)
            raise Unavailable("The ledger", 2)
        answer = await getattr(self.server, method)(*args)
        if method == "finish_delivery":
            self.noted.set()
        return answer

    async def deliver(self, **poster):
        """A courier's one round; what it begins has ended when this returns."""
        courier = Courier(self.call, Poster(**{"resolve": at_home, "may_connect": lambda _: True} | poster))
        async with asyncio.TaskGroup() as group:
            await courier.start_due(group)

    async def end_a_job(self, url=None):
        async with self.db.transaction() as conn:
            await cancel_queued(conn, self.customer, await submitted(conn, self.customer, url))

    async def told(self):
        return await self.server.deliveries(self.customer.credential, 100, None, None)


async def test_a_delivery_is_signed_as_standard_webhooks_has_it(house):
    made = await house.server.add_endpoint(house.customer.credential, house.url, None)
    await house.end_a_job()
    await house.deliver()
    ((line, headers, body),) = house.receiver.got
    assert line == "POST /hooks?a=1 HTTP/1.1"
    assert headers["host"] == f"customer.example:{house.receiver.port}"
    assert headers["content-type"] == "application/json"
    assert Webhook(made.secret).verify(body, headers)["type"] == "job.canceled"
    with pytest.raises(WebhookVerificationError):
        Webhook(made.secret).verify(body.replace(b"job", b"jab"), headers)
    (delivery,) = await house.told()
    assert (delivery.status, delivery.answered, delivery.attempts, delivery.body) == (
        "delivered", 204, 1, body.decode(),
    )  # fmt: skip


async def test_after_a_rotation_both_secrets_sign_until_the_overlap_is_over(house):
    old = await house.server.add_endpoint(house.customer.credential, house.url, None)
    new = await house.server.rotate_endpoint(house.customer.credential, old.endpoint.id, 3600)
    assert new.secret != old.secret
    await house.end_a_job()
    await house.deliver()
    _, headers, body = house.receiver.got[-1]
    assert Webhook(old.secret).verify(body, headers) == Webhook(new.secret).verify(body, headers)
    await house.db.run(_end_overlaps)
    await house.end_a_job()
    await house.deliver()
    _, headers, body = house.receiver.got[-1]
    Webhook(new.secret).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(old.secret).verify(body, headers)


async def _end_overlaps(conn):
    await conn.execute(text("UPDATE webhook_endpoints SET old_until = now() - interval '1 s'"))


async def test_an_endpoint_with_more_to_hear_than_is_looked_at_keeps_nobody_waiting(
    house, customers, monkeypatch
):
    monkeypatch.setattr("gateway.deliveries.LOOKED_AT", 5)
    await house.server.add_endpoint(house.customer.credential, house.url, None)
    for _ in range(3 * deliveries.EACH):
        await house.end_a_job()
    async with house.db.transaction() as conn:
        quiet = await customers(conn, 500)
        await webhooks.add(conn, ROOT, quiet.account_id, house.url, None)
        await cancel_queued(conn, quiet, await submitted(conn, quiet, url=None))
    await house.deliver()
    (delivery,) = await house.server.deliveries(quiet.credential, 9, None, None)
    assert delivery.status == "delivered"


async def test_a_jobs_own_url_is_signed_by_the_endpoint_without_a_url(house):
    await house.end_a_job(house.url)
    (signer,) = await house.server.endpoints(house.customer.credential)
    assert signer.url is None
    secret = (await house.server.rotate_endpoint(house.customer.credential, signer.id, 0)).secret
    await house.deliver()
    _, headers, body = house.receiver.got[0]
    Webhook(secret).verify(body, headers)


async def test_a_courier_that_dies_after_posting_posts_again_under_the_same_id(house):
    await house.end_a_job(house.url)
    house.lost = ["finish_delivery"]
    await house.deliver()
    (delivery,) = await house.told()
    assert (delivery.status, house.receiver.ids) == ("waiting", [delivery.id])
    await house.db.run(come_due)
    await house.deliver()
    assert house.receiver.ids == [delivery.id] * 2
    assert house.receiver.got[0][2] == house.receiver.got[1][2]
    assert (await house.told())[0].status == "delivered"


@pytest.mark.parametrize(
    ("answer", "answered", "problem"),
    [
        (b"HTTP/1.1 500 No\r\ncontent-length: 8\r\n\r\nno\x00 luck", 500, "answered 500: no  luck"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n", 302, "answered 302: "),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n" + b"x" * 9000, 200, None),
        (b"nonsense\r\n\r\n", None, "could not be reached (RemoteProtocolError)"),
        (b"", None, "could not be reached (RemoteProtocolError)"),
    ],
)  # fmt: skip
async def test_only_2xx_is_a_delivery_and_redirects_are_not_followed(house, answer, answered, problem):
    await house.end_a_job(house.url)
    house.receiver.answers = [answer]
    await house.deliver()
    (delivery,) = await house.told()
    assert (delivery.answered, delivery.problem) == (answered, problem)
    assert delivery.status == ("delivered" if problem is None else "waiting")
    assert len(house.receiver.got) == 1


PICTURE = Output(
    [Media("image/png", b"PNG", {"width": 8, "height": 8, "seed": 1})], Metrics(12, 0.0, 1), "Qwen-Image"
)


class Painter:
    """A model that paints at once."""

    async def generate(self, application, request):
        yield PICTURE


@pytest.mark.parametrize("private", [True, False])
async def test_the_runner_delivers_to_private_addresses_only_where_that_is_allowed(
    house, private, fresh_url, tmp_path
):
    url = f"http://127.0.0.1:{house.receiver.port}/"
    async with house.db.transaction() as conn:
        job_id = await submitted(conn, house.customer, url)
    settings = Settings(database_url=fresh_url, data_dir=tmp_path, secret="s", private_webhooks=private)
    runner = Runner(settings, house.call, Painter(), ObjectStore("memory://"), [], {"image": 1})
    task = asyncio.create_task(runner.run())
    async with asyncio.timeout(20):
        await house.noted.wait()
    task.cancel()
    await asyncio.wait([task])
    (delivery,) = await house.told()
    assert (delivery.job_id, delivery.event) == (job_id, "job.succeeded")
    assert delivery.status == ("delivered" if private else "waiting")
    assert len(house.receiver.got) == private


async def test_a_private_address_is_never_connected_to(house):
    await house.end_a_job(house.url)
    await house.deliver(may_connect=is_public)
    assert house.receiver.got == []
    assert (await house.told())[0].problem == "its host is not one of the public internet"


async def test_a_limited_key_sets_nothing_up(house):
    async with house.db.transaction() as conn:
        made = await mint(
            conn, house.customer.user_id, "limited", brand="amai", limits=Limits(scopes=("read",))
        )
    credential = Credential(hash_key(made.secret))
    with pytest.raises(Forbidden):
        await house.server.add_endpoint(credential, house.url, None)
    with pytest.raises(Forbidden):
        await house.server.set_low_balance(credential, 100, None)
