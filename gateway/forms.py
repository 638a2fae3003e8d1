"""Forms with files in them (`multipart/form-data`), read whole or refused by the name of the field.

Size is the edge's business (`middleware`): it counts the bytes while they are read.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from gateway.bodies import refuse_controls
from gateway.downloads import plain_name
from kit.errors import InvalidRequest, UnsupportedMediaType

FORM_TIMEOUT_S: Final = 300.0
"""The largest upload on a line of a megabit a second takes four minutes."""
SHOWN_NAME_CHARS: Final = 100
"""Names come from the caller and are repeated in the answer; no field of ours is longer."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a form: its name without a path, and its content."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Form:
    """What a form brought, by the names of its fields, in the order of sending."""

    texts: dict[str, list[str]]
    files: dict[str, list[Upload]]


def require_form(request: Request, hint: str) -> None:
    """Refuse a body that does not call itself a form. Raises: UnsupportedMediaType."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise UnsupportedMediaType(f"multipart/form-data (curl: {hint})")


async def read_form(request: Request, *, max_files: int, max_texts: int) -> Form:
    """Return a request's form.

    Raises: InvalidRequest; PayloadTooLarge from the edge.
    """
    form = Form({}, {})
    try:
        async with (
            asyncio.timeout(FORM_TIMEOUT_S),
            request.form(max_files=max_files, max_fields=max_texts) as sent,
        ):
            for name, value in sent.multi_items():
                shown = name[:SHOWN_NAME_CHARS]
                refuse_controls(name, shown)
                if isinstance(value, UploadFile):
                    file = Upload(plain_name(value.filename), await value.read())
                    form.files.setdefault(shown, []).append(file)
                else:
                    refuse_controls(value, shown)
                    form.texts.setdefault(shown, []).append(value)
    except TimeoutError as error:
        raise InvalidRequest("body", f"did not arrive within {FORM_TIMEOUT_S:.0f} s") from error
    except (HTTPException, FormParserError) as error:
        raise InvalidRequest("body", "cannot be read as multipart/form-data") from error
    return form
