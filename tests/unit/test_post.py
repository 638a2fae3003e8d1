"""Posts go to the address that was checked, to no other, and read little of what comes back."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address

import pytest

from kit import post
from kit.post import NotPosted, Poster, check_url


@asynccontextmanager
async def serving(answer, got):
    """Answer every request on loopback, or none at all; yields the port. What was begun ends with it."""
    connections = []

    async def handle(reader, writer):
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            got.append(await reader.readuntil(b"\r\n\r\n"))
            if answer is None:
                await reader.read()  # until the caller gives up
            else:
                writer.write(answer)
                await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(
        lambda *ends: connections.append(asyncio.create_task(handle(*ends))), "127.0.0.1", 0
    )
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*connections)


def leading_to(*addresses):
    async def resolve(host, port):
        return [ip_address(address) for address in addresses]

    return resolve


def anywhere(address):
    return True


@pytest.mark.parametrize("addresses", [(), ("10.0.0.1",), ("93.184.216.34", "127.0.0.1")])
async def test_a_host_with_any_private_address_is_not_connected_to(addresses):
    with pytest.raises(NotPosted, match="public internet"):
        await Poster(resolve=leading_to(*addresses)).post("https://customer.example/", b"", {})


async def test_the_connection_goes_to_the_address_that_was_checked():
    got, looked_up = [], []

    async def resolve(host, port):
        looked_up.append((host, port))
        return [ip_address("127.0.0.1")]

    async with serving(b"HTTP/1.1 204 No Content\r\n\r\n", got) as port:
        answer = await Poster(resolve=resolve, may_connect=anywhere).post(
            f"http://nowhere.invalid:{port}/hooks?a=1", b"{}", {"webhook-id": "msg_1"}
        )
    assert (answer.status_code, answer.accepted) == (204, True)
    assert looked_up == [("nowhere.invalid", port)]
    head = got[0].decode()
    assert head.startswith("POST /hooks?a=1 HTTP/1.1\r\n")
    assert f"host: nowhere.invalid:{port}\r\n" in head.lower()
    assert "webhook-id: msg_1\r\n" in head.lower()


async def test_a_redirect_is_an_answer_and_not_a_way():
    got = []
    async with serving(
        b"HTTP/1.1 307 Elsewhere\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n", got
    ) as port:
        answer = await Poster(resolve=leading_to("127.0.0.1"), may_connect=anywhere).post(
            f"http://customer.example:{port}/", b"", {}
        )
    assert (answer.status_code, answer.accepted, len(got)) == (307, False, 1)


async def test_no_more_than_the_beginning_of_an_answer_is_read():
    async with serving(b"HTTP/1.1 500 No\r\ncontent-length: 1000000\r\n\r\n" + b"no\n" * 50_000, []) as port:
        answer = await Poster(resolve=leading_to("127.0.0.1"), may_connect=anywhere).post(
            f"http://customer.example:{port}/", b"", {}
        )
    assert len(answer.begins) <= post.ANSWER_BYTES
    assert answer.begins.startswith("no no no")


async def test_who_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(post, "TOTAL_TIMEOUT_S", 0.2)
    async with serving(None, []) as port:
        with pytest.raises(NotPosted, match="took longer"):
            await Poster(resolve=leading_to("127.0.0.1"), may_connect=anywhere).post(
                f"http://customer.example:{port}/", b"", {}
            )


async def test_who_is_not_there_is_not_reached():
    async with serving(b"", []) as port:
        pass
    with pytest.raises(NotPosted, match="could not be reached"):
        await Poster(resolve=leading_to("127.0.0.1"), may_connect=anywhere).post(
            f"http://customer.example:{port}/", b"", {}
        )


async def test_a_name_that_nobody_knows_is_not_reached():
    async def resolve(host, port):
        raise OSError("no such host")

    with pytest.raises(NotPosted, match="not known"):
        await Poster(resolve=resolve).post("https://customer.example/", b"", {})


async def test_tls_names_the_host_and_verifies_its_certificate():
    hello = []
    poster = Poster(resolve=leading_to("127.0.0.1"), may_connect=anywhere)

    async def handle(reader, writer):
        hello.append(await reader.read(4096))
        writer.close()
        await writer.wait_closed()

    connections = []
    server = await asyncio.start_server(
        lambda *ends: connections.append(asyncio.create_task(handle(*ends))), "127.0.0.1", 0
    )
    async with server:
        with pytest.raises(NotPosted):
            await poster.post(f"https://customer.example:{server.sockets[0].getsockname()[1]}/", b"", {})
    await asyncio.gather(*connections)
    assert b"customer.example" in hello[0]
    assert poster._tls.verify_mode == ssl.CERT_REQUIRED
    assert poster._tls.check_hostname


@pytest.mark.parametrize(
    "url", ["https://example.com", "https://example.com:8443/a?b=c", "https://93.184.216.34/", "https://[2606:4700::1]/"]
)  # fmt: skip
def test_https_urls_of_the_internet_may_be_named(url):
    check_url(url)


@pytest.mark.parametrize("url", ["http://localhost:9000/", "https://10.0.0.1/", "http://127.0.0.1/"])
def test_private_urls_may_be_named_only_where_that_is_allowed(url):
    check_url(url, private=True)
    with pytest.raises(ValueError, match="must"):
        check_url(url)


@pytest.mark.parametrize(
    "url",
    ["", "x", "https://", "https:///a", "ftp://example.com", "https://a b", "https://u:p@example.com", "https://@example.com",
     "https://example.com#a", "https://example.com:x", "https://example.com:70000", "https://[::1", "https://ex\u0000.com"],
)  # fmt: skip
def test_what_is_no_url_is_refused_even_where_private_ones_are_allowed(url):
    with pytest.raises(ValueError, match=r"must|is not"):
        check_url(url, private=True)
