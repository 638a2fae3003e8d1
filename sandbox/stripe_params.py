"""Form-encoded, nested request parameters, read strictly: a value that Stripe would refuse is refused here.

`parse_form` turns `a[b][0][c]=1` into dictionaries and lists of strings; `Params` reads typed values out of
them and names the offending parameter in every refusal, in Stripe's own bracket notation.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from sandbox.stripe_errors import ApiError, invalid, missing, unknown, unsupported

# Far above any honest request (100 line items of ten fields), far below what would hurt.
MAX_FIELDS = 2_000
# Stripe's deepest parameter here has five levels; a bound keeps the recursion harmless.
MAX_DEPTH = 8
# Stripe's documented limits of `metadata`.
METADATA_MAX_KEYS = 50
METADATA_MAX_KEY_LENGTH = 40
METADATA_MAX_VALUE_LENGTH = 500
# Stripe's general limit of a string parameter.
TEXT_MAX_LENGTH = 5_000

_KEY = re.compile(r"^([^\[\]]+)((?:\[[^\[\]]*\])*)$")
_INDEX = re.compile(r"^[0-9]{1,4}$")
_INTEGER = re.compile(r"^-?[0-9]{1,15}$")
# Deliberately loose: one @, no blanks, a dot in the domain. Stripe decides the same way at this point.
_EMAIL = re.compile(r"^[^@\s]+@[^@\s]+\.[^@\s.]+$")


def names(text: str) -> frozenset[str]:
    """Give the words of a text as a set: easier to read than fifty quoted strings."""
    return frozenset(text.split())


def parse_form(encoded: bytes) -> dict[str, Any]:
    """Turn a form-encoded body or query string into nested dictionaries and lists of strings.

    Raises: ApiError (400) if the text is not UTF-8, too long, nested too deep, or contradicts itself.
    """
    try:
        pairs = parse_qsl(
            encoded.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError as error:
        raise ApiError(400, "invalid_request_error", "The request's parameters could not be read.") from error
    root: dict[str, Any] = {}
    for key, value in pairs:
        match = _KEY.fullmatch(key)
        if match is None:
            raise invalid(key, f"Invalid parameter name: {key}")
        path = [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])]
        if len(path) > MAX_DEPTH:
            raise invalid(key, f"Parameter is nested too deeply: {key}")
        _insert(root, path, value, key)
    return {name: _with_lists(name, value) for name, value in root.items()}


def _insert(root: dict[str, Any], path: list[str], value: str, key: str) -> None:
    node = root
    for step in path[:-1]:
        child = node.setdefault(step or str(len(node)), {})
        if not isinstance(child, dict):
            raise invalid(key, f"Parameter is both a value and a hash: {key}")
        node = child
    last = path[-1] or str(len(node))
    if isinstance(node.get(last), dict):
        raise invalid(key, f"Parameter is both a value and a hash: {key}")
    node[last] = value  # the last of several equal names wins, as with Stripe


def _with_lists(name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    # Metadata keys are the caller's own, so `metadata[0]` is a key and not a position.
    if name != "metadata" and value and all(_INDEX.fullmatch(step) for step in value):
        return [_with_lists("", value[step]) for step in sorted(value, key=int)]
    return {step: _with_lists(step, child) for step, child in value.items()}


class Params:
    """One hash of request parameters, read by name; every refusal names the full path."""

    def __init__(self, values: dict[str, Any], path: str = "") -> None:
        self._values = values
        self._path = path

    def full_name(self, name: str) -> str:
        """Give the parameter's name as the client wrote it, brackets and all."""
        return f"{self._path}[{name}]" if self._path else name

    def only(self, known: frozenset[str], unsupported_here: frozenset[str] = frozenset()) -> None:
        """Refuse every parameter that Stripe, or this twin, does not have."""
        for name in self._values:
            if name in unsupported_here:
                raise unsupported(self.full_name(name))
            if name not in known:
                raise unknown(self.full_name(name))

    def without(self, name: str) -> Params:
        """Give the same parameters less one that has been read already."""
        return Params({key: value for key, value in self._values.items() if key != name}, self._path)

    def text(self, name: str, *, max_length: int = TEXT_MAX_LENGTH) -> str | None:
        """Read a string that may be absent; never an empty one."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise invalid(self.full_name(name), "Invalid string.", "parameter_invalid_string")
        if not value:
            raise invalid(
                self.full_name(name),
                "This parameter was sent empty; leave it out.",
                "parameter_invalid_empty",
            )
        if len(value) > max_length:
            raise invalid(
                self.full_name(name), f"At most {max_length} characters.", "parameter_invalid_string"
            )
        return value

    def required_text(self, name: str, *, max_length: int = TEXT_MAX_LENGTH) -> str:
        """Read a string that must be there."""
        value = self.text(name, max_length=max_length)
        if value is None:
            raise missing(self.full_name(name))
        return value

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        """Read one of a fixed set of words, or nothing."""
        value = self.text(name)
        if value is not None and value not in allowed:
            raise invalid(self.full_name(name), f"Invalid {name}: must be one of {', '.join(allowed)}")
        return value

    def integer(self, name: str, *, least: int, most: int) -> int | None:
        """Read a whole number within bounds, or nothing; no fractions, no exponents."""
        value = self._values.get(name)
        if value is None:
            return None
        full_name = self.full_name(name)
        if not isinstance(value, str) or not _INTEGER.fullmatch(value):
            raise invalid(full_name, f"Invalid integer: {value}", "parameter_invalid_integer")
        number = int(value)
        if not least <= number <= most:
            raise invalid(full_name, f"Must be between {least} and {most}.", "parameter_invalid_integer")
        return number

    def required_integer(self, name: str, *, least: int, most: int) -> int:
        """Read a whole number that must be there."""
        number = self.integer(name, least=least, most=most)
        if number is None:
            raise missing(self.full_name(name))
        return number

    def flag(self, name: str) -> bool:
        """Read `true` or `false`; absent means false."""
        return self.choice(name, ("true", "false")) == "true"

    def email(self, name: str) -> str | None:
        """Read an e-mail address, or nothing."""
        value = self.text(name, max_length=512)
        if value is not None and not _EMAIL.fullmatch(value):
            raise invalid(self.full_name(name), f"Invalid email address: {value}", "email_invalid")
        return value

    def url(self, name: str) -> str | None:
        """Read an absolute http or https address, or nothing."""
        value = self.text(name)
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            absolute = parts.scheme in {"http", "https"} and bool(parts.hostname)
        except ValueError:
            absolute = False
        if not absolute:
            raise invalid(self.full_name(name), "Not a valid URL", "url_invalid")
        return value

    def child(self, name: str) -> Params | None:
        """Read a nested hash, or nothing."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise invalid(self.full_name(name), "Invalid object")
        return Params(value, self.full_name(name))

    def children(self, name: str) -> list[Params]:
        """Read a list of hashes; absent means none."""
        value = self._values.get(name, [])
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise invalid(self.full_name(name), "Invalid array")
        return [Params(row, f"{self.full_name(name)}[{index}]") for index, row in enumerate(value)]

    def words(self, name: str) -> list[str]:
        """Read a list of strings; absent means none."""
        value = self._values.get(name, [])
        if not isinstance(value, list) or not all(isinstance(row, str) and row for row in value):
            raise invalid(self.full_name(name), "Invalid array")
        return value

    def metadata(self) -> dict[str, str]:
        """Read `metadata` within Stripe's limits; a key with an empty value is dropped."""
        value = self._values.get("metadata", {})
        full_name = self.full_name("metadata")
        if value == "":  # how a form says 'no metadata'
            return {}
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise invalid(full_name, "Metadata must be a flat hash of strings.")
        if len(value) > METADATA_MAX_KEYS:
            raise invalid(full_name, f"At most {METADATA_MAX_KEYS} metadata keys.")
        for key, text in value.items():
            if len(key) > METADATA_MAX_KEY_LENGTH:
                raise invalid(full_name, f"Metadata keys hold at most {METADATA_MAX_KEY_LENGTH} characters.")
            if len(text) > METADATA_MAX_VALUE_LENGTH:
                raise invalid(
                    f"{full_name}[{key}]",
                    f"Metadata values hold at most {METADATA_MAX_VALUE_LENGTH} characters.",
                )
        return {key: text for key, text in value.items() if text}
