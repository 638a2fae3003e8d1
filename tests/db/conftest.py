"""Fixtures of the database tier alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest_asyncio
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine


@pytest_asyncio.fixture
async def shared_superuser(postgres, shared_url) -> AsyncIterator[AsyncEngine]:
    """The rollback database as the superuser: what a forger with full rights could do."""
    url = make_url(postgres.superuser_url).set(database=make_url(shared_url).database)
    engine = create_async_engine(url)
    yield engine
    await engine.dispose()


class Line:
    """A wire between libpq and Postgres that passes bytes on until a test cuts it. Speaks TCP on loopback.

    libpq sends what belongs together in one write and waits for the answer, so that a chunk of bytes is a message.
    """

    def __init__(self, url: str) -> None:
        self._behind = make_url(url)
        self._sockets: list[asyncio.WriteTransport] = []
        self._serving: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None
        self._messages_left = 0
        self._cut_at = b""
        self._delivered = False
        self.mute = False
        self.cuts = 0

    async def open(self) -> Line:
        """Listen on a port of its own."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The address of the database through this line."""
        behind = self._behind
        through = URL.create(
            behind.drivername, behind.username, None, "127.0.0.1", self.port, behind.database
        )
        return through.render_as_string(hide_password=False)

    def cut(self, message: int, *, delivered: bool) -> None:
        """Cut the line at the n-th message from now; a delivered one takes effect, and its answer is lost."""
        self._messages_left, self._cut_at, self._delivered = message, b"", delivered

    def cut_at(self, words: bytes, *, delivered: bool) -> None:
        """Cut the line at the next message that contains these words."""
        self._messages_left, self._cut_at, self._delivered = 0, words, delivered

    def mend(self) -> None:
        """Forget a cut that did not come."""
        self._messages_left, self._cut_at = 0, b""

    async def close(self) -> None:
        """Cut every connection and take no more."""
        if self._server is not None:
            self._server.close()
        for transport in self._sockets:
            transport.abort()
        await asyncio.gather(*self._serving)

    def _is_cut_at(self, message: bytes) -> bool:
        if self._messages_left:
            self._messages_left -= 1
            return self._messages_left == 0
        if self._cut_at and self._cut_at in message:
            self._cut_at = b""
            return True
        return False

    def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._serving.append(asyncio.create_task(self._serve(client, to_client)))

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._sockets.append(to_client.transport)
        socket = Path(str(self._behind.query["host"])) / f".s.PGSQL.{self._behind.query['port']}"
        server, to_server = await asyncio.open_unix_connection(socket)
        self._sockets.append(to_server.transport)
        answers = asyncio.create_task(self._answers(server, to_client))
        with suppress(ConnectionError):
            while message := await client.read(1 << 20):
                if self._is_cut_at(message):
                    self.cuts += 1
                    answers.cancel()
                    if self._delivered:
                        with suppress(asyncio.CancelledError):
                            await answers
                        to_server.write(message)
                        await server.read(1 << 20)  # it took effect; nobody hears of it
                    break
                if not self.mute:
                    to_server.write(message)
        answers.cancel()
        to_server.transport.abort()
        to_client.transport.abort()

    async def _answers(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while answer := await server.read(1 << 20):
                to_client.write(answer)
        to_client.transport.abort()


@pytest_asyncio.fixture
async def line(fresh_url: str) -> AsyncIterator[Line]:
    """A line to this test's database that can be cut."""
    line = await Line(fresh_url).open()
    yield line
    await line.close()


@pytest_asyncio.fixture
async def second_line(fresh_url: str) -> AsyncIterator[Line]:
    """Another line to the same database: where it is found after a failover."""
    line = await Line(fresh_url).open()
    yield line
    await line.close()
