"""The `farebox receipt` command: checks a receipt without asking the server that wrote it."""

from __future__ import annotations

import json
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.receipts import JWKS_PATH, read_receipt, signed_issuer, verify_receipt
from kit.signing import BadKeys, BadSignature

JWKS_TIMEOUT_S: Final = 10.0
MAX_BYTES: Final = 1 << 20
"""Of a receipt or a key set: a thousand times what either has."""

receipt_app = typer.Typer(no_args_is_help=True, help="Signed receipts of jobs: verify.")
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


@receipt_app.callback()
def _group() -> None:
    """Keep `verify` a command of its own: typer runs an only command under its group's name."""


@receipt_app.command()
def verify(
    file: Annotated[
        Path, typer.Argument(help="The receipt as it was downloaded, or its `jws`; - reads standard input.")
    ],
    jwks: Annotated[
        str,
        typer.Option(
            metavar="URL|FILE", help="The public keys. Empty: those of the issuer that the receipt names."
        ),
    ] = "",
) -> None:
    """Check that a receipt was signed by its issuer and not changed since; exit with 1 if not.

    Without --jwks the keys come from the issuer's own address: look whether that is whom you paid.
    """
    try:
        shown = read_receipt(_read(file))
        source = jwks or _issuers_keys(signed_issuer(shown))
        fields = verify_receipt(shown, _keys(source))
    except BadSignature as refusal:
        errors.print(f"[red]not valid:[/] the receipt {escape(str(refusal))}", soft_wrap=True)
        raise typer.Exit(1) from None
    except BadKeys as refusal:
        raise RuntimeError(f"{source} {refusal}") from refusal
    _print(fields, source)


def _read(file: Path) -> str:
    try:
        if str(file) == "-":
            raw = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with file.open("rb") as opened:
                raw = opened.read(MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise RuntimeError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadSignature("is not text") from error
    if len(raw) > MAX_BYTES:
        raise BadSignature("is too large to be one")
    return text


def _issuers_keys(issuer: str) -> str:
    """Return where an issuer publishes its keys. Plain HTTP is for this machine: elsewhere anyone could answer."""
    place = urlsplit(issuer)
    if place.scheme != "https" and not (place.scheme == "http" and _is_loopback(place.hostname or "")):
        raise BadSignature(
            f"names an issuer without HTTPS ({issuer!r}); get its keys yourself and give --jwks"
        )
    return issuer.rstrip("/") + JWKS_PATH


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _keys(source: str) -> Any:
    """Return a JWK Set from a URL or a file."""
    try:
        if source.startswith(("https://", "http://")):
            answer = httpx.get(source, timeout=JWKS_TIMEOUT_S)
            answer.raise_for_status()
            return answer.json()
        return json.loads(Path(source).read_bytes())
    except OSError as error:
        raise RuntimeError(f"{source}: {error.strerror}") from error
    except httpx.HTTPError as error:
        raise RuntimeError(f"the keys cannot be had from {source}: {error}") from error
    except ValueError as error:
        raise RuntimeError(f"{source}: not JSON") from error


def _print(fields: dict[str, Any], source: str) -> None:
    """Print what was signed: a table where a terminal is, plain lines where not."""
    rows = [("keys from", source)]
    for name, value in fields.items():
        if name == "outputs":
            rows += [("output", f"{output['sha256']}  {output['id']}") for output in value]
        else:
            rows.append((name, "-" if value is None else str(value)))
    if not console.is_terminal:
        typer.echo("valid")
        for name, value in rows:
            typer.echo(f"{name}\t{value}")
        return
    table = Table(title="[green]This receipt is valid[/]", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    console.print(table)
