"""The fetcher on a local server, with a resolver and a judge of addresses that the test holds."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kit import fetch
from kit.fetch import Fetcher, InputRefused, InputUnreachable, is_public

LOOPBACK = ip_address("127.0.0.1")
BODY = b"\x89PNG\r\n\x1a\n" + b"pixels" * 100


class Server:
    """Answers each connection with the next of the given answers, and remembers what it was asked."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.heads: list[str] = []
        self.port = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(self.answers[min(len(self.heads), len(self.answers)) - 1])
        await writer.drain()
        writer.close()


@asynccontextmanager
async def serving(*answers: bytes, tls: ssl.SSLContext | None = None):
    server = Server(*answers)
    listening = await asyncio.start_server(server, "127.0.0.1", 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield server


def answer(body: bytes = BODY, status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    if "content_length" not in headers and "transfer_encoding" not in headers:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Names:
    """Knows hosts, each with the answers it gives one after the other."""

    def __init__(self, **hosts: list[str]) -> None:
        self.hosts = {host.replace("_", "."): answers for host, answers in hosts.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, _port: int):
        self.asked.append(host)
        if host not in self.hosts:
            raise socket.gaierror(8, "not known")
        answers = self.hosts[host]
        return [ip_address(each) for each in (answers.pop(0) if len(answers) > 1 else answers[0]).split(",")]


def fetcher(names: Names, *, inside: bool = False, tls: ssl.SSLContext | bool = True) -> Fetcher:
    """Return a fetcher that takes loopback for public unless the test is about what is `inside`."""
    return Fetcher(resolve=names, may_connect=is_public if inside else lambda _: True, tls=tls)


async def get(fetching: Fetcher, url: str, max_bytes: int = 10_000, check=lambda _: None) -> bytes:
    return await fetching.fetch(url, "input.sourceImageUrl", max_bytes=max_bytes, check=check)


async def test_a_public_url_is_fetched_from_the_address_that_was_checked():
    names = Names(cdn_example_com=["127.0.0.1"])
    async with serving(answer()) as server:
        body = await get(fetcher(names), f"http://cdn.example.com:{server.port}/in/a.webp?v=1#part")
    assert body == BODY
    [head] = server.heads
    assert head.startswith("GET /in/a.webp?v=1 HTTP/1.1\r\n")
    assert f"host: cdn.example.com:{server.port}\r\n" in head.lower()
    assert "accept-encoding: identity" in head.lower()
    assert names.asked == ["cdn.example.com"]


async def test_a_name_that_changes_after_the_check_changes_nothing():
    names = Names(cdn_example_com=["127.0.0.1", "169.254.169.254"])
    async with serving(answer()) as server:
        assert await get(fetcher(names), f"http://cdn.example.com:{server.port}/") == BODY
    assert len(names.asked) == 1, "the name is resolved once, and what was checked is what is used"


@pytest.mark.parametrize(
    "addresses",
    [
        "127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:7f00:1::", "::7f00:1",
        "fec0::1", "::ffff:0:7f00:1", "93.184.215.14,127.0.0.1",
    ],
)  # fmt: skip
async def test_an_address_inside_is_never_connected_to(addresses):
    async with serving(answer()) as server:
        with pytest.raises(InputRefused, match="public internet"):
            await get(
                fetcher(Names(evil_example_com=[addresses]), inside=True),
                f"http://evil.example.com:{server.port}/",
            )
    assert server.heads == []


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"]
)
def test_addresses_of_the_internet_are_public(address):
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:7f00:1]"]
)
async def test_the_machines_own_resolver_opens_no_way_inside(host):
    async with serving(answer()) as server:
        with pytest.raises((InputRefused, InputUnreachable)):
            await get(Fetcher(), f"http://{host}:{server.port}/")
    assert server.heads == []


async def test_a_redirect_inside_is_not_followed():
    names = Names(cdn_example_com=["93.184.215.14"], inner_example_com=["10.0.0.7"])
    async with serving(
        answer(b"", "302 Found", location="http://inner.example.com/latest/meta-data")
    ) as server:
        judge = Fetcher(resolve=_here(names), may_connect=lambda a: a == LOOPBACK or is_public(a))
        with pytest.raises(InputRefused, match="public internet"):
            await get(judge, f"http://cdn.example.com:{server.port}/")
    assert len(server.heads) == 1


def _here(names: Names):
    """Let the public address of the test be the local server."""

    async def resolve(host: str, port: int):
        return [LOOPBACK if str(each) == "93.184.215.14" else each for each in await names(host, port)]

    return resolve


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "gopher://x/", "ftp://x/y", "http://", "//", "http://[x"]
)
async def test_a_redirect_to_another_kind_of_url_is_refused(to):
    async with serving(answer(b"", "301 Moved", location=to)) as server:
        with pytest.raises((InputRefused, InputUnreachable)):
            await get(fetcher(Names(a_example=["127.0.0.1"])), f"http://a.example:{server.port}/")


async def test_redirects_are_followed_and_counted():
    names = Names(a_example=["127.0.0.1"])
    async with serving(answer(b"", "302 Found", location="/next"), answer()) as server:
        assert await get(fetcher(names), f"http://a.example:{server.port}/") == BODY
    async with serving(answer(b"", "302 Found", location="/again")) as server:
        with pytest.raises(InputRefused, match="redirects"):
            await get(fetcher(names), f"http://a.example:{server.port}/")
        assert len(server.heads) == fetch.MAX_REDIRECTS + 1


async def test_a_3xx_that_leads_nowhere_is_said_as_it_is():
    async with serving(answer(b"", "304 Not Modified")) as server:
        with pytest.raises(InputRefused, match="answered 304"):
            await get(fetcher(Names(a_example=["127.0.0.1"])), f"http://a.example:{server.port}/")
        assert len(server.heads) == 1


async def test_what_is_too_large_is_not_read_to_its_end():
    names = Names(a_example=["127.0.0.1"])
    async with serving(answer(b"x" * 100, content_length="999999")) as server:
        with pytest.raises(InputRefused, match="larger than 50 bytes"):
            await get(fetcher(names), f"http://a.example:{server.port}/", 50)
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"20\r\n" + b"y" * 32 + b"\r\n"
    async with serving(chunked * 1 + b"20\r\n" + b"y" * 32 + b"\r\n0\r\n\r\n") as server:
        with pytest.raises(InputRefused, match="larger than 50 bytes"):
            await get(fetcher(names), f"http://a.example:{server.port}/", 50)


async def test_what_is_sent_compressed_is_refused():
    async with serving(answer(content_encoding="gzip")) as server:
        with pytest.raises(InputRefused, match="compressed"):
            await get(fetcher(Names(a_example=["127.0.0.1"])), f"http://a.example:{server.port}/")


async def test_the_first_bytes_decide_before_the_rest_is_read():
    def check(head: bytes) -> None:
        assert len(head) <= fetch.HEAD_BYTES
        raise InputRefused("input.sourceImageUrl", "must be image")

    for body in (b"<html>" + b"x" * 5000, b"<html>"):
        async with serving(answer(body)) as server:
            with pytest.raises(InputRefused, match="must be image"):
                await get(
                    fetcher(Names(a_example=["127.0.0.1"])), f"http://a.example:{server.port}/", check=check
                )


@pytest.mark.parametrize(
    ("status", "retryable"),
    [("404 Not Found", False), ("403 Forbidden", False), ("503 Away", True), ("429 Slow", True)],
)
async def test_the_servers_answer_tells_whether_another_try_may_help(status, retryable):
    async with serving(answer(b"", status)) as server:
        with pytest.raises((InputRefused, InputUnreachable)) as refusal:
            await get(fetcher(Names(a_example=["127.0.0.1"])), f"http://a.example:{server.port}/")
    assert refusal.value.retryable is retryable
    assert status[:3] in refusal.value.message


async def test_a_host_that_is_unknown_closed_or_silent_is_unreachable(monkeypatch):
    monkeypatch.setattr(fetch, "TOTAL_TIMEOUT_S", 0.3)
    names = Names(a_example=["127.0.0.1"])
    with pytest.raises(InputUnreachable, match="not known"):
        await get(fetcher(names), "http://b.example/")
    async with serving(answer()) as server:
        port = server.port
    with pytest.raises(InputUnreachable, match="could not be fetched"):
        await get(fetcher(names), f"http://a.example:{port}/")
    gone = asyncio.Event()

    async def silent(reader, writer):
        await reader.read()
        writer.close()
        gone.set()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listening:
        with pytest.raises(InputUnreachable, match="too long"):
            await get(fetcher(names), f"http://a.example:{listening.sockets[0].getsockname()[1]}/")
        await gone.wait()


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1",
        "http://a.example:99999/",
        "http://",
        "data:,x",
        "http:///x",
        "http://a..example/",
        "http://" + "x" * 70 + ".example/",
    ],
)
async def test_a_broken_url_is_refused(url):
    with pytest.raises((InputRefused, InputUnreachable)):
        await get(fetcher(Names(a_example=["127.0.0.1"])), url)


async def test_tls_is_verified_against_the_name_and_not_the_address(tmp_path):
    theirs, ours = certificate("cdn.example.com", tmp_path)
    names = Names(cdn_example_com=["127.0.0.1"], other_example_com=["127.0.0.1"])
    async with serving(answer(), tls=theirs) as server:
        url = f"https://{{}}.example.com:{server.port}/"
        assert await get(fetcher(names, tls=ours), url.format("cdn")) == BODY
        with pytest.raises(InputUnreachable, match="could not be fetched"):
            await get(fetcher(names, tls=ours), url.format("other"))


def certificate(name: str, place):
    """Return a server's and a client's TLS contexts for one name that only they know."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = place / "server.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cadata=made.public_bytes(serialization.Encoding.PEM).decode())
