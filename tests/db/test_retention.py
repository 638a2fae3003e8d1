"""Retention: files end when they were said to, their bytes go with certainty, and the job stays as it was."""

from __future__ import annotations

import asyncio
import io
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import pytest_asyncio
from PIL import Image
from sqlalchemy import text

from deployments.handles import local_ledger
from deployments.ledger import LedgerServer
from deployments.leftovers import FILES_A_SWEEP, Leftovers
from deployments.models.contract import Media, Metrics, Output
from deployments.runner import Runner
from gateway.app import create_app
from gateway.ports import NewFile, SubmitJob
from kit.errors import NotFound, Unavailable
from kit.ids import new_id
from kit.settings import Settings
from kit.storage import ObjectStore
from ledger import accounts, keys


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (640, 480), "teal").save(file, "PNG")
    return file.getvalue()


class Painter:
    async def generate(self, application, request):
        yield Output([Media("image/png", picture(), {"seed": 7, "model": "M"})], Metrics(1, 0.0, 1), "M")

    async def states(self):
        return {}


@pytest_asyncio.fixture
async def house(db, fresh_url, tmp_path, customers):
    settings = Settings(
        database_url=fresh_url,
        data_dir=tmp_path,
        secret="a secret of this run",
        public_url="http://farebox.test",
        output_days=30,
        upload_days=3,
    )
    server = LedgerServer(settings)
    async with db.transaction() as conn:
        owner = await customers(conn, 1_000)
    yield House(settings, server, db, owner, ObjectStore("memory://"))
    await server.close()


class House:
    def __init__(self, settings, server, db, owner, objects):
        self.settings, self.server, self.db, self.owner, self.objects = settings, server, db, owner, objects
        self.leftovers = Leftovers(self.call, objects)

    async def call(self, method, *args):
        return await getattr(self.server, method)(*args)

    async def upload(self):
        file_id = new_id("file")
        await self.objects.put(f"uploads/{file_id}", b"bytes", "image/png")
        await self.server.add_file(
            NewFile(self.owner.credential, file_id, "a", f"uploads/{file_id}", "image/png", 5, "0" * 64)
        )
        return file_id

    async def made(self):
        """Let a job make a picture; returns the job's id."""
        command = SubmitJob(
            self.owner.credential,
            new_id("job"),
            "image.generate",
            "image",
            "it",
            {},
            1_000,
            100,
            1,
            None,
            "f",
        )
        job_id = (await self.server.submit_job_many([command]))[0].job_id
        runner = Runner(self.settings, self.call, Painter(), self.objects, [], {"it": 1})
        task = asyncio.create_task(runner.run())
        try:
            async with asyncio.timeout(30):
                while (await self.server.job_many([(self.owner.credential, job_id)]))[0].finished_at is None:
                    await asyncio.sleep(0.02)
        finally:
            task.cancel()
            await asyncio.wait([task])
        return job_id

    async def pass_time(self, days):
        async with self.db.transaction() as conn:
            await conn.execute(
                text("UPDATE files SET expires_at = expires_at - make_interval(days => :days)"),
                {"days": days},
            )

    async def row(self, file_id):
        async with self.db.transaction() as conn:
            return (await conn.execute(text("SELECT * FROM files WHERE id = :id"), {"id": file_id})).one()

    @asynccontextmanager
    async def client(self):
        app = create_app(self.settings, local_ledger(self.server), Painter(), None, self.objects)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://farebox.test",
            headers={"x-api-key": self.owner.secret},
        ) as client:
            yield client


async def test_an_output_has_a_preview_an_end_and_then_only_its_facts(house, assert_sound):
    job_id = await house.made()
    async with house.client() as client:
        job = (await client.get(f"/api/v1/media/jobs/{job_id}")).json()
        [output] = job["output"]
        kept = datetime.fromisoformat(output["keptUntil"]) - datetime.now(UTC)
        assert timedelta(days=29) < kept <= timedelta(days=30)
        assert output["deletedAt"] is None
        small = await client.get(output["thumbnailUrl"], headers={"x-api-key": ""})
        assert (small.status_code, small.headers["content-type"]) == (200, "image/webp")
        assert Image.open(io.BytesIO(small.content)).size == (320, 240)
        assert (await client.get(output["thumbnailUrl"] + "x")).status_code == 403
        assert (await client.get(output["url"].replace("/content?", "/preview?"))).status_code == 403
        assert len((await client.get("/api/v1/files")).json()["data"]) == 1, "a preview is no output"
        assert job["cost"]["chargedTokens"] == 100

        await house.pass_time(31)
        await house.leftovers.clear()
        ended = (await client.get(f"/api/v1/media/jobs/{job_id}")).json()
        [gone] = ended["output"]
        assert (gone["id"], gone["url"], gone["seed"]) == (output["id"], None, 7)
        assert "thumbnailUrl" not in gone
        assert gone["deletedAt"] is not None
        for url in (output["url"], output["thumbnailUrl"]):
            assert (await client.get(url)).status_code == 404
        assert {**ended, "output": 0, "urls": 0} == {**job, "output": 0, "urls": 0}, "the job stays"
    row = await house.row(output["id"])
    for key in (row.storage_key, row.preview_key):
        assert not await house.objects.exists(key)
    await assert_sound(house.db)


async def test_a_customer_deletes_an_output_earlier_with_its_preview(house):
    job_id = await house.made()
    async with house.client() as client:
        [output] = (await client.get(f"/api/v1/media/jobs/{job_id}")).json()["output"]
        row = await house.row(output["id"])
        assert (await client.delete(f"/api/v1/files/{output['id']}")).status_code == 200
        assert not await house.objects.exists(row.storage_key)
        assert not await house.objects.exists(row.preview_key)
        [gone] = (await client.get(f"/api/v1/media/jobs/{job_id}")).json()["output"]
        assert gone["deletedAt"] is not None


async def test_a_file_without_a_preview_answers_404_for_it(house):
    file_id = await house.upload()
    async with house.client() as client:
        assert (await client.get(f"/api/v1/files/{file_id}/preview")).status_code == 404
        shown = (await client.get(f"/api/v1/files/{file_id}")).json()
        assert shown["keptUntil"] is not None


async def test_uploads_have_a_time_of_their_own_and_a_file_is_kept_until_then(house):
    file_id = await house.upload()
    await house.pass_time(2)
    await house.leftovers.clear()
    assert (await house.server.file(house.owner.credential, file_id)).id == file_id
    await house.pass_time(2)
    await house.leftovers.clear()
    with pytest.raises(NotFound):
        await house.server.file(house.owner.credential, file_id)
    assert not await house.objects.exists(f"uploads/{file_id}")


async def test_the_test_world_has_its_own_days_and_none_is_for_ever(house):
    async with house.db.transaction() as conn:
        await accounts.open_account(conn, house.owner.user_id, "test")
        minted = await keys.mint(conn, house.owner.user_id, "test", brand="amai", world="test")
    live, house.owner = house.owner, replace(house.owner, secret=minted.secret)
    left = (await house.row(await house.upload())).expires_at - datetime.now(UTC)
    assert timedelta(days=6) < left <= timedelta(days=7)
    house.server._settings = house.settings.model_copy(update={"test_file_days": 0})
    assert (await house.row(await house.upload())).expires_at is None
    house.owner = live
    assert (await house.row(await house.upload())).expires_at is not None


async def test_bytes_that_could_not_be_deleted_stay_due(house):
    file_id = await house.upload()
    await house.pass_time(4)

    class Away:
        async def delete(self, key):
            raise Unavailable("The object store", 5)

    with pytest.raises(Unavailable):
        await Leftovers(house.call, Away()).clear()
    assert (await house.row(file_id)).purged_at is None
    assert (await house.row(file_id)).deleted_at is not None, "it is gone for its owner all the same"
    await house.leftovers.clear()
    assert (await house.row(file_id)).purged_at is not None
    assert not await house.objects.exists(f"uploads/{file_id}")
    assert await house.server.deleted_files(10) == []


async def test_a_turn_is_bounded(house):
    for _ in range(3):
        await house.upload()
    await house.pass_time(4)
    assert len(await house.server.deleted_files(2)) == 2
    async with house.db.transaction() as conn:
        gone = (
            await conn.execute(text("SELECT count(*) FROM files WHERE deleted_at IS NOT NULL"))
        ).scalar_one()
    assert gone == 2
    assert FILES_A_SWEEP < 1_000
