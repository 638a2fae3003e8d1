"""The object store on all its backends: a directory, memory, and a small S3-speaking twin of a bucket."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit

import httpx
import pytest

from kit.errors import Forbidden, InvalidRequest, NotFound, Unavailable
from kit.storage import CHUNK_BYTES, ObjectStore, UrlSigner

CREDENTIALS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "not-a-real-secret"}
Objects = dict[str, tuple[bytes, str]]
SECRET = b"0123456789abcdef0123456789abcdef"


class TwinBucket(BaseHTTPRequestHandler):
    """The part of S3 that the store uses. It refuses requests without a signature, and checks none."""

    objects: ClassVar[Objects]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._allowed():
            self.objects[self._key()] = (body, self.headers["Content-Type"])
            self._answer(200)

    def do_GET(self) -> None:
        if self._allowed():
            found = self.objects.get(self._key())
            if found is None:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml")
            elif asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                (data, kind), (first, last) = found, map(int, asked.groups())
                self._answer(206, data[first : last + 1], kind, f"bytes {first}-{last}/{len(data)}")
            else:
                self._answer(200, *found)

    do_HEAD = do_GET  # noqa: N815  # the name that http.server looks for

    def do_DELETE(self) -> None:
        if self._allowed():
            self.objects.pop(self._key(), None)
            self._answer(204)

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _allowed(self) -> bool:
        signed = self.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 ")
        presigned = "X-Amz-Signature" in parse_qs(urlsplit(self.path).query)
        if not (signed or presigned):
            self._answer(403, b"<Error><Code>AccessDenied</Code></Error>", "application/xml")
        return signed or presigned

    def _answer(
        self, status: int, body: bytes = b"", content_type: str = "text/plain", content_range: str = ""
    ) -> None:
        self.send_response(status)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Last-Modified", formatdate(usegmt=True))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def bucket() -> Iterator[tuple[ObjectStore, Objects]]:
    objects: Objects = {}

    class OwnBucket(TwinBucket):
        pass

    OwnBucket.objects = objects
    server = ThreadingHTTPServer(("127.0.0.1", 0), OwnBucket)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        url = f"s3://results/outputs?endpoint={quote(endpoint)}&region=eu-x-1"
        yield ObjectStore(url, CREDENTIALS), objects
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(params=["directory", "memory", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "bucket":
        found: ObjectStore = request.getfixturevalue("bucket")[0]
        return found
    return ObjectStore(str(tmp_path / "objects") if request.param == "directory" else "memory://")


def file_names(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*")]


async def test_an_object_comes_back_as_it_was_put(store: ObjectStore) -> None:
    await store.put("jobs/job_1/0.png", b"\x89PNG\x00\xff", "image/png")
    assert await store.get("jobs/job_1/0.png") == b"\x89PNG\x00\xff"
    info = await store.head("jobs/job_1/0.png")
    assert (info.key, info.size_bytes, info.content_type) == ("jobs/job_1/0.png", 6, "image/png")
    assert info.modified_at.tzinfo is not None
    assert await store.exists("jobs/job_1/0.png")


async def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    await store.put("empty", b"", "text/plain")
    assert await store.get("empty") == b""
    assert [chunk async for chunk in await store.stream("empty") if chunk] == []
    assert (await store.head("empty")).size_bytes == 0


async def test_a_missing_object_is_not_found_by_every_way_of_reading(store: ObjectStore) -> None:
    await store.put("there/one", b"1", "text/plain")
    for key in ("missing", "there", "there/one2"):  # 'there' is a directory on a disk, and no object anywhere
        for read in (store.get, store.head, store.stream):
            with pytest.raises(NotFound):
                await read(key)
        assert not await store.exists(key)


async def test_delete_leaves_nothing_and_may_be_repeated(store: ObjectStore) -> None:
    await store.put("a/b", b"1", "text/plain")
    await store.delete("a/b")
    assert not await store.exists("a/b")
    await store.delete("a/b")


async def test_a_large_object_streams_in_small_chunks(store: ObjectStore) -> None:
    data = hashlib.shake_256(b"large").digest(12 << 20)
    await store.put("large.bin", data, "application/octet-stream")
    stream = await store.stream("large.bin")
    chunks = [chunk async for chunk in stream]
    assert stream.info.size_bytes == len(data)
    assert b"".join(chunks) == data
    assert max(map(len, chunks)) <= CHUNK_BYTES


async def test_a_part_streams_alone_and_knows_the_whole(store: ObjectStore) -> None:
    data = hashlib.shake_256(b"film").digest(1 << 20)
    await store.put("film.mp4", data, "video/mp4")
    stream = await store.stream("film.mp4", (300_001, 900_002))
    assert b"".join([chunk async for chunk in stream]) == data[300_001:900_002]
    assert stream.info.size_bytes == len(data)


@pytest.mark.parametrize(
    "key",
    [
        "", ".", "..", "/", "/etc/passwd", "../secret", "a/../../secret", "a/..", "a//b", "a/", "a/./b",
        "a\\..\\b", "a%2e%2e/b", "a b", "a\nb", "a\x00b", "ä", "a#1", "a?b", "~root", "C:/x", "x" * 201,
        "/".join("a" * 17),
    ],
)  # fmt: skip
async def test_a_key_that_could_lead_elsewhere_is_refused(key: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("outside")
    store = ObjectStore(f"file://{tmp_path}/objects")
    for act in (store.get, store.head, store.stream, store.delete, store.exists):
        with pytest.raises(InvalidRequest):
            await act(key)
    with pytest.raises(InvalidRequest):
        await store.put(key, b"x", "text/plain")
    with pytest.raises(InvalidRequest):
        await store.presigned_url(key, 60)
    assert (tmp_path / "secret").read_text() == "outside"
    assert file_names(tmp_path / "objects") == []


async def test_a_reader_never_sees_half_an_overwrite(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    versions = [bytes([byte]) * (3 << 20) for byte in b"ab"]
    await store.put("object", versions[0], "text/plain")
    done = asyncio.Event()
    seen: list[bytes] = []

    async def write() -> None:
        for turn in range(1, 12):
            await store.put("object", versions[turn % 2], "text/plain")
        done.set()

    async def read() -> None:
        while not done.is_set():
            seen.append(await store.get("object"))

    await asyncio.gather(write(), read(), read())
    assert set(seen) <= set(versions)
    assert len(seen) > 4
    assert file_names(tmp_path) == ["object"]  # and no drafts


async def test_a_stream_keeps_the_version_that_it_opened(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    await store.put("object", b"a" * (4 << 20), "text/plain")
    stream = await store.stream("object")
    await store.put("object", b"b", "text/plain")
    assert b"".join([chunk async for chunk in stream]) == b"a" * (4 << 20)


async def test_a_directory_by_path_and_by_url_is_the_same_store(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    await ObjectStore(str(folder)).put("a", b"1", "text/plain")
    assert await ObjectStore(f"file://{quote(str(folder))}").get("a") == b"1"
    assert folder.stat().st_mode & 0o077 == 0  # what customers made is private


@pytest.mark.parametrize(
    "url",
    [
        "gs://bucket",
        "http://host/x",
        "file://relative",
        "s3://",
        "s3:///prefix",
        "s3://b?secret_access_key=x",
    ],
)
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"store|path|bucket|query"):
        ObjectStore(url)


async def test_a_bucket_that_is_away_is_unavailable_and_says_nothing_of_where_it_is() -> None:
    store = ObjectStore(
        "s3://results?endpoint=http://127.0.0.1:1",
        {**CREDENTIALS, "region": "eu-x-1", "skip_signature": "true"},
    )
    with pytest.raises(Unavailable) as caught:
        await store.get("a")
    assert "127.0.0.1" not in caught.value.message


async def test_only_a_bucket_signs_urls_of_its_own(tmp_path: Path) -> None:
    for url in (str(tmp_path), "memory://"):
        assert await ObjectStore(url).presigned_url("a", 60) is None


async def test_a_presigned_url_carries_the_signature_that_s3_computes() -> None:
    store = ObjectStore("s3://results/outputs?region=eu-central-1", CREDENTIALS)
    url = await store.presigned_url("jobs/a.png", 600)
    assert url is not None
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    given = query.pop("X-Amz-Signature")
    assert parts.path.endswith("/outputs/jobs/a.png")
    assert query["X-Amz-Expires"] == "600"
    assert CREDENTIALS["secret_access_key"] not in url

    # Source: Amazon S3, 'Authenticating Requests: Using Query Parameters (AWS Signature Version 4)'.
    day, region, service, last = query["X-Amz-Credential"].split("/")[1:]
    assert region == "eu-central-1"
    encoded = "&".join(
        f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(query.items())
    )
    request = f"GET\n{parts.path}\n{encoded}\nhost:{parts.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
    scope = f"{day}/{region}/{service}/{last}"
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{query['X-Amz-Date']}\n{scope}\n{digest}"
    key = b"AWS4" + CREDENTIALS["secret_access_key"].encode()
    for part in (day, region, service, last):
        key = hmac.digest(key, part.encode(), "sha256")
    assert given == hmac.digest(key, text.encode(), "sha256").hex()


@pytest.mark.parametrize("ttl_s", [0, -1, 7 * 24 * 3600 + 1])
async def test_a_presigned_url_lives_for_a_second_to_a_week(ttl_s: int) -> None:
    with pytest.raises(ValueError, match="ttl_s"):
        await ObjectStore("memory://").presigned_url("a", ttl_s)


async def test_a_bucket_keeps_prefix_and_type_and_serves_a_presigned_url(
    bucket: tuple[ObjectStore, Objects],
) -> None:
    store, objects = bucket
    await store.put("jobs/a.bin", b"pixels", "image/webp")
    assert objects == {"/results/outputs/jobs/a.bin": (b"pixels", "image/webp")}
    assert (await store.head("jobs/a.bin")).content_type == "image/webp"
    url = await store.presigned_url("jobs/a.bin", 60)
    assert url is not None
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        assert (await client.get(url)).content == b"pixels"
        assert (await client.get(url.partition("?")[0])).status_code == 403


def test_a_signed_path_verifies_until_it_expires() -> None:
    signer = UrlSigner(SECRET)
    params = dict(parse_qsl(signer.sign("/files/jobs/a.png", 1_000)))
    signer.verify("/files/jobs/a.png", params, now=999)
    with pytest.raises(Forbidden, match="expired"):
        signer.verify("/files/jobs/a.png", params, now=1_000)


@pytest.mark.parametrize(
    "change",
    [
        {"expires": "2000"},
        {"expires": "+1000"},
        {"expires": "01000"},
        {"expires": "1000\n"},
        {"expires": "\u0661\u0660\u0660\u0660"},  # Arabic digits, which int() reads as 1000
        {"expires": ""},
        {"signature": ""},
        {"signature": "A" * 43},
        {"signature": "é" * 43},
        {"signature": "\ud800"},
    ],
)
def test_a_tampered_link_is_forbidden(change: dict[str, str]) -> None:
    signer = UrlSigner(SECRET)
    params = dict(parse_qsl(signer.sign("/files/a", 1_000))) | change
    with pytest.raises(Forbidden, match="not valid"):
        signer.verify("/files/a", params, now=1)


def test_a_signature_of_any_other_length_is_forbidden() -> None:
    signer = UrlSigner(SECRET)
    params = dict(parse_qsl(signer.sign("/files/a", 1_000)))
    for signature in (params["signature"][:-1], params["signature"] + "A", params["signature"] + "="):
        with pytest.raises(Forbidden):
            signer.verify("/files/a", {**params, "signature": signature}, now=1)


def test_a_signature_is_good_for_one_path_and_one_secret() -> None:
    signer = UrlSigner(SECRET)
    params = dict(parse_qsl(signer.sign("/files/a", 1_000)))
    for path in ("/files/b", "/files/a/", "/files/A", "/files/a\n", ""):
        with pytest.raises(Forbidden):
            signer.verify(path, params, now=1)
    with pytest.raises(Forbidden):
        UrlSigner(b"another secret of 32 bytes length").verify("/files/a", params, now=1)
    with pytest.raises(Forbidden):
        signer.verify("/files/a", {}, now=1)


def test_a_line_break_cannot_move_from_the_path_into_the_time() -> None:
    signer = UrlSigner(SECRET)
    params = dict(parse_qsl(signer.sign("x\n/files/a", 1_000)))
    with pytest.raises(Forbidden):
        signer.verify("/files/a", {**params, "expires": "1000\nx"}, now=1)


@pytest.mark.parametrize("secret", [b"", b"short", b"x" * 15])
def test_a_secret_that_signs_for_everybody_is_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match="secret"):
        UrlSigner(secret)
