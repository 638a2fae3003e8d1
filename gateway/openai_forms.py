"""Forms under `/v1`: files by their names, and everything else checked as texts."""

from __future__ import annotations

from typing import Final, TypeVar

from fastapi import Request
from pydantic import ValidationError

from gateway.answered import unknown_field
from gateway.forms import Form, Upload, read_form
from gateway.openai_schemas import OpenAIForm
from gateway.problems import field_faults
from kit.errors import InvalidRequest

FormModel = TypeVar("FormModel", bound=OpenAIForm)

MAX_FILES: Final = 20
"""More than any model takes: the surplus is refused by name rather than read on."""
MAX_TEXTS: Final = 40
"""Twice the fields that there are."""


async def read(request: Request) -> Form:
    """Return a request's form; `image[]` and `image` are one name. Raises: InvalidRequest."""
    return await read_form(request, max_files=MAX_FILES, max_texts=MAX_TEXTS)


def checked(form: Form, model: type[FormModel]) -> FormModel:
    """Return a form's texts. Raises: InvalidRequest, InvalidFields."""
    sent: dict[str, object] = {}
    for name, values in form.texts.items():
        if name.endswith("[]"):
            sent[name] = values
        elif len(values) > 1:
            raise InvalidRequest(name, "appears twice")
        else:
            sent[name] = values[0]
    try:
        return model.model_validate(sent)
    except ValidationError as error:
        raise field_faults(
            error.errors(include_url=False, include_context=False, include_input=False)
        ) from error


def one_file(form: Form, name: str, also: tuple[str, ...] = ()) -> Upload:
    """Return the one file that a form has under a name. Raises: InvalidRequest for none, several, or others."""
    for other in form.files:
        if other not in (name, *also):
            raise unknown_field(other)
    files = [file for each in (name, *also) for file in form.files.get(each, [])]
    if len(files) != 1:
        raise InvalidRequest(name, "send one file" if not files else "this model takes one file; send one")
    if not files[0].data:
        raise InvalidRequest(name, "is empty")
    return files[0]
