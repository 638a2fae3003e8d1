"""Download URLs: whoever has one may read its file until it expires, and nothing else."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

from gateway.deps import Parts
from gateway.errors import RangeNotSatisfiable
from gateway.ports import StoredFile

SHOWN_IN_PLACE: Final = re.compile(r"(image/(png|webp|jpeg|gif)|audio/[a-z0-9.+-]+|video/[a-z0-9.+-]+)")
"""What a browser may show rather than save. Anything that could carry a script, SVG too, is saved."""
_RANGE: Final = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII | re.IGNORECASE)

_SIGNATURES: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (8, b"WAVE", "audio/wav"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\xff\xfb", "audio/mpeg"),
    (0, b"\xff\xf3", "audio/mpeg"),
    (0, b"\xff\xf2", "audio/mpeg"),
    (0, b"OggS", "audio/ogg"),
    (0, b"fLaC", "audio/flac"),
    (4, b"ftypM4A", "audio/mp4"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftypheic", "image/heic"),
    (4, b"ftypheix", "image/heic"),
    (4, b"ftypmif1", "image/heif"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
)
"""Offset, first bytes, type: the media that tasks take, and telephones' pictures that would pass for films.

Source: the WHATWG MIME Sniffing standard; ISO/IEC 23008-12 (HEIF), annex B.
"""


def media_type(head: bytes) -> str:
    """Return the type that a file's first bytes show; what its sender called it is not believed."""
    for offset, signature, kind in _SIGNATURES:
        if head.startswith(signature, offset):
            return kind
    return "application/octet-stream"


def content_path(file_id: str) -> str:
    """Return the path that a download signature covers."""
    return f"/api/v1/files/{file_id}/content"


def signed_url(parts: Parts, file_id: str) -> tuple[str, datetime]:
    """Return a URL that downloads a file without a key, and when it stops to."""
    expires_at = int(time.time()) + parts.settings.url_ttl_s
    path = content_path(file_id)
    return (
        f"{parts.settings.base_url}{path}?{parts.signer.sign(path, expires_at)}",
        datetime.fromtimestamp(expires_at, UTC),
    )


def preview_path(file_id: str) -> str:
    """Return the path that the signature of a preview covers."""
    return f"/api/v1/files/{file_id}/preview"


def preview_url(parts: Parts, file: StoredFile) -> dict[str, str]:
    """Return the signed URL of a file's preview under its name, if it has one: thumbnail or poster."""
    if file.preview_key is None:
        return {}
    expires_at = int(time.time()) + parts.settings.url_ttl_s
    path = preview_path(file.id)
    name = "posterUrl" if file.content_type.startswith("video/") else "thumbnailUrl"
    return {name: f"{parts.settings.base_url}{path}?{parts.signer.sign(path, expires_at)}"}


def span_asked(headers: Mapping[str, str], etag: str, size_bytes: int) -> tuple[int, int] | None:
    """Return from which byte to before which a request wants a file; None: all of it.

    Players ask so: Safari plays nothing else, and nobody seeks without. Several ranges at once, other units and a
    range of another version are passed over, as the standard allows (RFC 9110, 13.1.5 and 14.2).

    Raises: RangeNotSatisfiable.
    """
    found = _RANGE.fullmatch(headers.get("range", "").strip())
    if found is None or headers.get("if-range", etag) != etag:
        return None
    first, last, tail = found.groups()
    begin = int(first) if first else max(0, size_bytes - int(tail))
    end = min(size_bytes, int(last) + 1) if last else size_bytes
    if last and int(last) < begin:
        return None
    if begin >= size_bytes:
        raise RangeNotSatisfiable(size_bytes)
    return begin, end


def disposition(name: str, content_type: str) -> str:
    """Return the Content-Disposition under which a browser shows or saves a file (RFC 6266)."""
    how = "inline" if SHOWN_IN_PLACE.fullmatch(content_type) else "attachment"
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
    return f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def plain_name(sent: str | None) -> str:
    """Return the last part of an upload's name, short and printable; senders may call a file anything."""
    last = re.split(r"[/\\]", sent or "")[-1]
    kept = "".join(char for char in last if char.isprintable()).strip(" .")
    return kept[:200] or "file"
