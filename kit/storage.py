"""The object store, by URL: where outputs and uploads lie, and who may download them for a while.

A directory (`file:///path` or a path), a bucket (`s3://bucket/prefix?endpoint=...&region=...`, credentials
from the usual AWS variables or `options`) or `memory://` for tests. An object is there whole or not at all.
Only S3 signs URLs of its own; for the others `UrlSigner` signs a path of ours.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import mimetypes
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, MemoryStore, S3Store

from kit.errors import Forbidden, InvalidRequest, NotFound, Unavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig  # exists for type checkers alone

KEY: Final = re.compile(r"[A-Za-z0-9._=+@-]{1,200}(/[A-Za-z0-9._=+@-]{1,200}){0,15}", re.ASCII)
"""Characters that mean themselves in a file name, a URL and S3; a segment has room for a draft's suffix."""
CHUNK_BYTES: Final = 256 << 10
"""What a stream holds in memory: large enough to be fast, small enough for hundreds of downloads at once."""
URL_OPTIONS: Final = frozenset({"endpoint", "region"})
"""What an S3 URL may carry in its query; credentials do not belong there, since URLs are logged."""
S3_TIMEOUTS: Final[ClientConfig] = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "10m"}
"""A store that says nothing for half a minute is away; a long video on a slow line is not."""
S3_RETRY_S: Final = 30
"""The job that waits for its result would rather fail over than hear nothing for longer."""
MAX_PRESIGN_S: Final = 7 * 24 * 3600
"""S3 signs for seven days at most. Source: Amazon S3, 'Authenticating Requests: Using Query Parameters'."""
EXPIRES: Final = re.compile(r"[0-9]{1,12}", re.ASCII)
"""Unix seconds: twelve digits last for 30,000 years."""
MIN_SECRET_BYTES: Final = 16
"""An empty key signs for everybody; below 128 bits a key can be guessed."""
AWAY_S: Final = 5
"""Seconds that a caller is told to wait when the store does not answer."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is known of a stored object. `content_type` is guessed from the name if the store keeps none."""

    key: str
    size_bytes: int
    content_type: str
    modified_at: datetime


class ObjectStream:
    """One object's content, or a part of it, in chunks of CHUNK_BYTES at most, and the whole object's `info`.

    Both are of the version that was opened, whatever is written meanwhile.
    """

    def __init__(self, info: ObjectInfo, result: obstore.GetResult) -> None:
        self.info = info
        self._result = result

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated(self.info.key):
            async for chunk in self._result.stream(min_chunk_size=CHUNK_BYTES):
                for begin in range(0, len(chunk), CHUNK_BYTES):
                    yield bytes(chunk[begin : begin + CHUNK_BYTES])


class ObjectStore:
    """Objects by key. A put is whole or not at all, and survives a power cut once it has returned.

    Keys are relative paths of plain ASCII segments; any other raises InvalidRequest before the store is
    touched. A missing object raises NotFound, a store that is out of reach or refuses us raises Unavailable.
    """

    def __init__(self, url: str, options: Mapping[str, str] | None = None) -> None:
        """Open the store; nothing is sent to a bucket yet.

        `options` are S3 settings such as `access_key_id`.

        Raises: ValueError for a URL of another kind.
        """
        self.local_dir: Path | None = None
        self._store: LocalStore | MemoryStore | S3Store
        scheme = url.partition("://")[0] if "://" in url else "file"
        match scheme:
            case "file":
                path = unquote(urlsplit(url).path) if "://" in url else url
                if "://" in url and (urlsplit(url).netloc or not path.startswith("/")):
                    raise ValueError(f"{url} names no absolute path: write file:///path")
                self.local_dir = Path(path).expanduser().resolve()
                # What customers made is private.
                self.local_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._store = LocalStore(self.local_dir)
            case "memory":
                self._store = MemoryStore()
            case "s3":
                self._store = _open_s3(url, options or {})
            case _:
                raise ValueError(
                    f"{scheme}:// is no object store: use a directory, file://, s3:// or memory://"
                )

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        """Store `data` under `key`, replacing what was there; a reader sees the old object or the new one."""
        _check_key(key)
        with _translated(key):
            if self.local_dir is None:
                # In one request: an upload in parts that breaks off leaves parts that cost money.
                await obstore.put_async(
                    self._store, key, data, attributes={"Content-Type": content_type}, use_multipart=False
                )
            else:
                await obstore.put_async(self._store, key, data, use_multipart=False)
                await asyncio.to_thread(_sync_file, self.local_dir, key)

    async def get(self, key: str) -> bytes:
        """Return a whole object; for large ones use `stream`."""
        with _translated(_check_key(key)):
            result = await obstore.get_async(self._store, key)
            return bytes(await result.bytes_async())

    async def stream(self, key: str, span: tuple[int, int] | None = None) -> ObjectStream:
        """Open an object for reading in chunks; a missing one raises here, before the first chunk.

        `span`: from which byte to before which; it must begin within the object.
        """
        with _translated(_check_key(key)):
            result = await obstore.get_async(self._store, key, options={"range": span} if span else {})
            return ObjectStream(_info(key, result.meta, result.attributes), result)

    async def head(self, key: str) -> ObjectInfo:
        """Return size, type and time without the content."""
        with _translated(_check_key(key)):
            result = await obstore.get_async(self._store, key, options={"head": True})
            return _info(key, result.meta, result.attributes)

    async def exists(self, key: str) -> bool:
        """Tell whether an object is there."""
        try:
            await self.head(key)
        except NotFound:
            return False
        return True

    async def delete(self, key: str) -> None:
        """Make sure that nothing is under `key`; that nothing was there is no error."""
        try:
            with _translated(_check_key(key)):
                await obstore.delete_async(self._store, key)
        except NotFound:
            return

    async def presigned_url(self, key: str, ttl_s: int) -> str | None:
        """Return a URL that downloads this object from its bucket for `ttl_s` seconds; None if only we can.

        Nothing is asked of the bucket: the URL of a missing object answers 404. Asynchronous because
        short-lived credentials may have to be fetched first.
        """
        _check_key(key)
        if not 1 <= ttl_s <= MAX_PRESIGN_S:
            raise ValueError(f"ttl_s is {ttl_s}: S3 signs for 1 to {MAX_PRESIGN_S} seconds")
        if not isinstance(self._store, S3Store):
            return None
        with _translated(key):
            return await obstore.sign_async(self._store, "GET", key, expires_in=timedelta(seconds=ttl_s))


class UrlSigner:
    """Signs paths of ours so that whoever has the URL may read it until it expires, and nothing else."""

    def __init__(self, secret: bytes) -> None:
        """Keep the secret.

        Raises: ValueError for one that is empty or short: such a key signs for everybody.
        """
        if len(secret) < MIN_SECRET_BYTES:
            raise ValueError(f"the secret for signed URLs needs at least {MIN_SECRET_BYTES} bytes")
        self._secret = secret

    def sign(self, path: str, expires_at: int) -> str:
        """Return the query string that makes `path` readable until `expires_at` (Unix seconds)."""
        if not EXPIRES.fullmatch(str(expires_at)):
            raise ValueError(f"expires_at is {expires_at}: give Unix seconds")
        return urlencode({"expires": expires_at, "signature": self._signature(path, str(expires_at))})

    def verify(self, path: str, params: Mapping[str, str], now: int) -> None:
        """Return if `params` were signed for exactly this path and have not expired at `now` (Unix seconds).

        Raises: Forbidden, with the same text for a wrong, a foreign and a missing signature.
        """
        expires = params.get("expires", "")
        given = params.get("signature", "")
        # Compared as bytes: a str with other characters than ASCII would make compare_digest raise.
        same = hmac.compare_digest(self._signature(path, expires).encode(), given.encode(errors="replace"))
        if not (same and EXPIRES.fullmatch(expires)):
            raise Forbidden("This download link is not valid.")
        if int(expires) <= now:
            raise Forbidden("This download link has expired: fetch the job again for a new one.")

    def _signature(self, path: str, expires: str) -> str:
        # The time comes first and is digits alone, so that no two pairs make one message.
        message = f"farebox download\n{expires}\n{path}".encode(errors="surrogatepass")
        return (
            base64.urlsafe_b64encode(hmac.digest(self._secret, message, hashlib.sha256)).decode().rstrip("=")
        )


def _open_s3(url: str, options: Mapping[str, str]) -> S3Store:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    if foreign := query.keys() - URL_OPTIONS:
        raise ValueError(f"an s3:// URL takes {sorted(URL_OPTIONS)} in its query, not {sorted(foreign)}")
    if not parts.netloc:
        raise ValueError("an s3:// URL names its bucket: s3://bucket/prefix")
    config: dict[str, Any] = {
        # One DELETE an object is what every S3-compatible store understands.
        "disable_bulk_delete": True,
        **query,
        **options,
    }
    plain_http = str(config.get("endpoint", "")).startswith("http://")
    return S3Store.from_url(
        f"s3://{parts.netloc}{parts.path}",
        config=config,  # type: ignore[arg-type]  # a TypedDict; the store checks the names itself
        client_options={**S3_TIMEOUTS, "allow_http": True} if plain_http else S3_TIMEOUTS,
        retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=S3_RETRY_S)},
    )


def _check_key(key: str) -> str:
    """Return `key` if no file system and no URL could take it for anything else."""
    if not KEY.fullmatch(key) or {".", ".."} & set(key.split("/")):
        raise InvalidRequest("key", "must be a relative path of letters, digits and ._=+@- without '..'")
    return key


def _info(key: str, meta: obstore.ObjectMeta, attributes: Mapping[Any, str]) -> ObjectInfo:
    guessed = mimetypes.guess_type(key)[0] or "application/octet-stream"
    return ObjectInfo(key, meta["size"], attributes.get("Content-Type", guessed), meta["last_modified"])


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """Raise our errors instead of the library's, whose texts hold paths and endpoints."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("file") from error
    except (BaseError, OSError) as error:
        error.add_note(f"object key: {key}")
        raise Unavailable("The object store", AWAY_S) from error


def _sync_file(root: Path, key: str) -> None:
    """Make a written file and the directories that lead to it survive a power cut."""
    path = root / key
    for part in (path, *path.parents[: len(Path(key).parts)]):
        try:
            handle = os.open(part, os.O_RDONLY)
        except FileNotFoundError:  # deleted already: then so be it
            continue
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
