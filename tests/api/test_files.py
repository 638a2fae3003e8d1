"""Files over the real books: uploaded, listed, downloaded with a key or a signed URL, deleted."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
import pytest

from gateway.app import create_app
from gateway.downloads import disposition, media_type, plain_name
from gateway.file_answers import FileDeleted, Files, FileShown
from kit.errors import Unavailable
from kit.storage import ObjectStore

FILES = "/api/v1/files"
PNG = b"\x89PNG\r\n\x1a\n" + b"." * 100


async def upload(client: httpx.AsyncClient, data: bytes = PNG, name: str = "fox.png") -> dict[str, object]:
    answer = await client.post(FILES, files={"file": (name, data, "text/html")})
    assert answer.status_code == 200, answer.text
    FileShown.model_validate_json(answer.content)
    return dict(answer.json())


def path_of(url: object) -> str:
    address = urlsplit(str(url))
    return f"{address.path}?{address.query}"


async def test_an_upload_is_kept_under_the_type_that_its_content_shows(client, customer):
    owner = await customer()
    file = await upload(owner.client)
    assert (file["name"], file["contentType"], file["sizeBytes"]) == ("fox.png", "image/png", len(PNG))
    assert file["jobId"] is None
    by_key = await owner.client.get(f"{FILES}/{file['id']}/content")
    by_url = await client.get(path_of(file["url"]))
    for answer in (by_key, by_url):
        assert answer.status_code == 200
        assert answer.content == PNG
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-length"] == str(len(PNG))
    head = await client.head(path_of(file["url"]))
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(PNG)))


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [
        ("bytes=0-1", 0, 2),
        ("bytes=8-", 8, 108),
        ("bytes=-10", 98, 108),
        ("bytes=100-9999", 100, 108),
        ("bytes=-500", 0, 108),
    ],
)
async def test_206_a_player_gets_the_part_that_it_asks_for(client, customer, asked, begin, end):
    file = await upload((await customer()).client)
    whole = await client.get(path_of(file["url"]))
    assert whole.headers["accept-ranges"] == "bytes"
    part = await client.get(path_of(file["url"]), headers={"range": asked, "if-range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, PNG[begin:end])
    assert part.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(PNG)}"
    assert part.headers["content-length"] == str(end - begin)
    assert part.headers["etag"] == whole.headers["etag"]


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=0-1,4-5", "lines=0-1", "bytes=-", "bytes=x-y", "0-1"])
async def test_200_a_range_that_is_not_understood_is_passed_over(client, customer, asked):
    file = await upload((await customer()).client)
    answer = await client.get(path_of(file["url"]), headers={"range": asked})
    assert (answer.status_code, answer.content) == (200, PNG)


async def test_200_a_range_of_another_version_gets_the_whole_file(client, customer):
    file = await upload((await customer()).client)
    answer = await client.get(path_of(file["url"]), headers={"range": "bytes=0-1", "if-range": '"other"'})
    assert (answer.status_code, answer.content) == (200, PNG)


@pytest.mark.parametrize("asked", ["bytes=108-", "bytes=999999-9999999", "bytes=-0"])
async def test_416_a_range_beyond_the_end(client, customer, asked):
    file = await upload((await customer()).client)
    answer = await client.get(path_of(file["url"]), headers={"range": asked})
    assert (answer.status_code, answer.json()["error"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(PNG)}"


async def test_html_in_any_disguise_is_saved_and_never_shown(customer):
    owner = await customer()
    for name in ("page.html", "fox.png", "fox.svg"):
        file = await upload(owner.client, b"<svg onload=alert(1)>", name)
        answer = await owner.client.get(f"{FILES}/{file['id']}/content")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment;")
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_files_are_listed_in_pages_and_got_one_by_one(customer):
    owner = await customer()
    made = [(await upload(owner.client))["id"] for _ in range(3)]
    first = await owner.client.get(FILES, params={"limit": 2})
    Files.model_validate_json(first.content)
    rest = await owner.client.get(FILES, params={"limit": 2, "cursor": first.json()["nextCursor"]})
    assert [file["id"] for file in first.json()["data"] + rest.json()["data"]] == made[::-1]
    assert rest.json()["nextCursor"] is None
    one = await owner.client.get(f"{FILES}/{made[0]}")
    FileShown.model_validate_json(one.content)


async def test_a_deleted_file_is_gone_for_everyone(client, customer, objects):
    owner = await customer()
    file = await upload(owner.client)
    answer = await owner.client.delete(f"{FILES}/{file['id']}")
    FileDeleted.model_validate_json(answer.content)
    assert (await client.get(path_of(file["url"]))).status_code == 404
    assert (await owner.client.get(f"{FILES}/{file['id']}")).status_code == 404
    assert (await owner.client.delete(f"{FILES}/{file['id']}")).status_code == 404
    assert not await objects.exists(f"uploads/{file['id']}")


async def test_another_accounts_file_is_404(customer):
    owner, stranger = await customer(), await customer()
    file = await upload(owner.client)
    for answer in (
        await stranger.client.get(f"{FILES}/{file['id']}"),
        await stranger.client.get(f"{FILES}/{file['id']}/content"),
        await stranger.client.delete(f"{FILES}/{file['id']}"),
    ):
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    assert (await owner.client.get(f"{FILES}/{file['id']}/content")).status_code == 200


async def test_a_changed_signature_time_or_file_is_refused(client, customer):
    owner = await customer()
    file, other = await upload(owner.client), await upload(owner.client)
    url = path_of(file["url"])
    for wrong in (
        url[:-1] + ("A" if url[-1] != "A" else "B"),
        url.replace("expires=", "expires=9"),
        url.replace(str(file["id"]), str(other["id"])),
        url.split("&")[0] + "&signature=",
    ):
        answer = await client.get(wrong)
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden"), wrong
    assert (await client.get(url.split("&signature")[0])).status_code == 401


async def test_a_download_url_expires(client, customer, monkeypatch):
    owner = await customer()
    url = path_of((await upload(owner.client))["url"])
    monkeypatch.setattr("gateway.routes.files.time.time", lambda: 4e9)
    answer = await client.get(url)
    assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
    assert "expired" in answer.json()["message"]


async def test_a_bucket_is_downloaded_from_by_redirect(client, customer, objects, monkeypatch):
    owner = await customer()
    file = await upload(owner.client)

    async def presigned_url(key: str, ttl_s: int) -> str:
        return f"https://bucket.test/{key}?ttl={ttl_s}"

    monkeypatch.setattr(objects, "presigned_url", presigned_url)
    answer = await client.get(path_of(file["url"]))
    assert answer.status_code == 307
    assert answer.headers["location"] == f"https://bucket.test/uploads/{file['id']}?ttl=3600"


async def test_a_bucket_serves_for_a_week_though_our_own_urls_live_longer(
    client, customer, objects, settings, monkeypatch
):
    owner = await customer()
    url = path_of((await upload(owner.client))["url"])
    bucket = ObjectStore("s3://results", {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "secret"})
    monkeypatch.setattr(objects, "presigned_url", bucket.presigned_url)
    monkeypatch.setitem(settings.__dict__, "url_ttl_s", 30 * 24 * 3600)
    answer = await client.get(url)
    assert answer.status_code == 307
    assert "X-Amz-Expires=604800" in answer.headers["location"]


async def test_uploads_stop_at_the_limit_and_leave_no_bytes_behind(
    settings, server, customer, objects, monkeypatch
):
    monkeypatch.setattr(server, "_settings", settings.model_copy(update={"max_files_per_user": 1}))
    owner = await customer()
    await upload(owner.client)
    written: list[str] = []
    put = objects.put

    async def watched(key: str, data: bytes, content_type: str) -> None:
        written.append(key)
        await put(key, data, content_type)

    monkeypatch.setattr(objects, "put", watched)
    refused = await owner.client.post(FILES, files={"file": PNG})
    assert (refused.status_code, refused.json()["error"]) == (409, "too_many_files")
    assert len(written) == 1
    assert not await objects.exists(written[0])


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"files": {"picture": PNG}}, "picture"),
        ({"files": [("file", PNG), ("file", PNG)]}, "file"),
        ({"files": {"file": ("empty.png", b"")}}, "file"),
        ({"files": {"other": (None, b"text")}}, "other"),
        ({"files": {"file": (None, b"text")}}, "file"),
        ({"files": {"file": PNG}, "data": {"purpose": "x"}}, "purpose"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, "body"),
        ({"content": b"garbage", "headers": {"content-type": "multipart/form-data; boundary=x"}}, "body"),
        ({"content": b"--x--", "headers": {"content-type": "multipart/form-data; boundary=x"}}, "file"),
        (
            {
                "content": b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nhi\r\n--x--\r\n',
                "headers": {"content-type": "multipart/form-data; boundary=x; charset=klingon"},
            },
            "file",
        ),
    ],
)
async def test_another_form_is_refused_by_name(caller, stub_ledger, sent, field):
    answer = await caller.post(FILES, **sent)
    assert answer.status_code == 400, answer.text
    assert answer.json()["details"][0]["field"] == field
    assert "add_file" not in stub_ledger.calls


@pytest.mark.parametrize("kind", ["application/json", "image/png", "application/x-www-form-urlencoded"])
async def test_another_type_of_body_gets_415_with_a_hint(caller, kind):
    answer = await caller.post(FILES, content=PNG, headers={"content-type": kind})
    assert answer.status_code == 415
    assert "-F file=@" in answer.json()["message"]


async def test_a_file_over_the_limit_gets_413(caller, stub_ledger):
    answer = await caller.post(FILES, files={"file": b"x" * 200_000})
    assert (answer.status_code, answer.json()["error"]) == (413, "payload_too_large")
    assert "add_file" not in stub_ledger.calls


async def test_a_strangers_file_is_not_read(web, stub_ledger):
    answer = await web.post(FILES, files={"file": PNG}, headers={"x-api-key": "amai_live_" + "L" * 43})
    assert answer.status_code == 401
    assert stub_ledger.calls == ["whoami"]


async def test_bytes_stay_while_the_outcome_is_open(settings, stub_ledger, models, objects):
    """The books may have taken the row although the answer was lost: then its bytes must be there."""
    kept: list[str] = []

    async def add_file(command):
        kept.append(command.storage_key)
        raise Unavailable("The ledger", 2)

    stub_ledger.add_file = add_file
    app = create_app(settings, stub_ledger, models, None, objects)
    headers = {"x-api-key": "amai_live_" + "K" * 43}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://t", headers=headers
    ) as web:
        assert (await web.post(FILES, files={"file": PNG})).status_code == 503
    assert await objects.exists(kept[0])


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF....WEBPVP8 ", "image/webp"),
        (b"RIFF....WAVEfmt ", "audio/wav"),
        (b"....ftypisom", "video/mp4"),
        (b"....ftypM4A ", "audio/mp4"),
        (b"....ftypheic", "image/heic"),
        (b"....ftypavif", "image/avif"),
        (b"<html>", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
)
def test_types_are_read_from_content(head: bytes, kind: str):
    assert media_type(head) == kind


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("fox.png", "fox.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\fox.png", "fox.png"),
        ("a\r\nb\x00.png", "ab.png"),
        ("..", "file"),
        ("", "file"),
        (None, "file"),
        ("狐" * 300, "狐" * 200),
    ],
)
def test_names_are_made_plain(sent: str | None, kept: str):
    assert plain_name(sent) == kept


def test_a_disposition_cannot_be_broken_out_of():
    assert disposition('fox".png; x="', "image/png") == (
        "inline; filename=\"fox_.png_ x__\"; filename*=UTF-8''fox%22.png%3B%20x%3D%22"
    )
    disposition("狐.png", "image/png").encode("latin-1")
