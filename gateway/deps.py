"""What routes take from a request first: the parts of the house, the caller's key or session, the retry key.

A key or session is not resolved here: its hash and the caller's address ride in the ledger call and are checked in the
same transaction, so that a revocation holds from the next request on. A request with both is the key's: a program that
sends a key means it, whatever a browser adds. A write by cookie must repeat the session's CSRF token in `x-csrf-token`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, cast

from fastapi import Depends, Header, Request
from structlog.contextvars import get_contextvars

from gateway.catalog import Catalog
from gateway.conversations import Chats
from gateway.kept import Kept
from gateway.operator_ports import Signed
from gateway.patterns import RETRY_KEY, SENT_RETRY_KEY
from gateway.ports import Ledger, ModelState
from gateway.prices import PriceList
from gateway.session_cookie import CSRF_HEADER, SessionCookie
from kit.addresses import Network, caller_address
from kit.errors import AuthRequired, Forbidden, InvalidRequest, NotFound
from kit.settings import Settings
from kit.signing import SigningKeys
from kit.storage import ObjectStore, UrlSigner
from ledger.accounts import World
from ledger.audit import TrialBalance
from ledger.keys import Credential, hash_key
from payments.cards import CardCheckout
from payments.crypto import CryptoCheckouts
from payments.x402 import X402Checkout

KEY_BODY: Final = r"[0-9A-Za-z]{16,128}"
"""What follows the brand part of a key: ours have 43 characters; the books need not hear of anything else."""
SECURED: Final[dict[str, Any]] = {"security": [{"bearer": []}, {"apiKey": []}, {"session": []}]}
"""For `openapi_extra`: this route wants a key, in either header, or the cookie of a signed-in browser."""
SESSION_ONLY: Final[dict[str, Any]] = {"security": [{"session": []}]}
READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""What another site may make a browser do does no harm here: it can't see the answer."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes work with, built once by `create_app`."""

    settings: Settings
    ledger: Ledger
    checkout: CardCheckout | None
    crypto: CryptoCheckouts | None
    x402: X402Checkout | None
    """Sells single calls to wallets; None: strangers hear 401."""
    chats: Chats | None
    """None: there is no chat here."""
    objects: ObjectStore
    catalog: Catalog
    """The file as it was read. What is sold now, with the prices that hold now, is `await parts.price_list()`."""
    price_list: PriceList
    signer: UrlSigner
    receipt_keys: SigningKeys
    key_pattern: re.Pattern[str]
    operator_pattern: re.Pattern[str]
    proxies: tuple[Network, ...]
    health: Kept[tuple[int, bytes]]
    trial_balance: Kept[TrialBalance]
    session_cookie: SessionCookie
    model_states: Kept[dict[str, ModelState]]
    in_sandbox: bool
    """Whether payments are play money, which every page then says."""


def key_pattern(brand: str) -> re.Pattern[str]:
    """Return what a key of this server looks like; its first group is the key's world."""
    return re.compile(rf"{brand}_(live|test)_{KEY_BODY}")


def operator_pattern(brand: str) -> re.Pattern[str]:
    """Return what an operator's key looks like: never what a customer's looks like."""
    return re.compile(rf"{brand}_op_{KEY_BODY}")


def parts_of(request: Request) -> Parts:
    """Return the parts that this request's app was built from."""
    parts: Parts = request.app.state.parts
    return parts


def credential_of(request: Request) -> Credential:
    """Return the hash of the presented key, or else of the session, and its caller's address.

    What cannot be ours never reaches the ledger.

    Raises: AuthRequired; InvalidRequest when two keys are presented; Forbidden for a session's write without its
    CSRF token.
    """
    key = _presented(request)
    if key is None:
        return session_of(request)
    parts = parts_of(request)
    world = cast("World", _matched(key, parts.key_pattern)[1])
    return Credential(hash_key(key), ip_of(request, parts.proxies), world)


def paying_credential_of(request: Request) -> Credential | None:
    """Return the caller's credential; None for a stranger who may pay instead. Raises: as `credential_of`."""
    parts = parts_of(request)
    if parts.x402 and not has_key(request) and parts.session_cookie.name not in request.cookies:
        return None
    return credential_of(request)


def operator_credential_of(request: Request) -> bytes:
    """Return the hash of the presented operator key. Raises: AuthRequired, also for a customer's key or session."""
    return hash_key(_matched(_presented(request) or "", parts_of(request).operator_pattern)[0])


def _presented(request: Request) -> str | None:
    headers = request.headers
    presented = set(headers.getlist("x-api-key"))
    for value in headers.getlist("authorization"):
        scheme, _, key = value.partition(" ")
        if scheme.lower() != "bearer":
            raise AuthRequired
        presented.add(key.strip())
    if len(presented) > 1:
        raise InvalidRequest("x-api-key", "differs from the key in Authorization; send one of them")
    return presented.pop() if presented else None


def _matched(key: str, pattern: re.Pattern[str]) -> re.Match[str]:
    if (matched := pattern.fullmatch(key)) is None:
        raise AuthRequired
    return matched


def ip_of(request: Request, proxies: Sequence[Network]) -> str | None:
    """Return the caller's address, as these proxies of ours have it; None where it cannot be told."""
    peer = request.client.host if request.client else None
    return caller_address(peer, ",".join(request.headers.getlist("x-forwarded-for")), proxies)


def session_of(request: Request) -> Credential:
    """Return the hash of the session that the cookie names, and its caller's address.

    A forged one never reaches the ledger.

    Raises: AuthRequired; Forbidden for a write without the session's CSRF token.
    """
    token = session_token(request)
    if token is None:
        raise AuthRequired
    if request.method not in READS:
        given = request.headers.get(CSRF_HEADER, "")
        if not parts_of(request).session_cookie.is_csrf_token(token, given):
            raise Forbidden(
                f"Repeat this session's CSRF token (GET /api/v1/auth/session) in '{CSRF_HEADER}'."
            )
    return Credential(hash_key(token), ip_of(request, parts_of(request).proxies))


def session_token(request: Request) -> str | None:
    """Return the token of a session cookie that we signed, or None."""
    cookie = parts_of(request).session_cookie
    return cookie.token_of(request.cookies.get(cookie.name, ""))


def has_key(request: Request) -> bool:
    """Tell whether the request presents a key, which then wins over a cookie."""
    return "authorization" in request.headers or "x-api-key" in request.headers


async def parts(request: Request) -> Parts:
    """Give a route the parts of the house."""
    return parts_of(request)


async def caller_key(request: Request) -> Credential:
    """Give a route its caller's credential. Raises: AuthRequired, InvalidRequest."""
    return credential_of(request)


async def optional_key(request: Request) -> Credential | None:
    """Give a public route its caller's credential, or None. Raises: as `caller_key`."""
    presented = has_key(request) or parts_of(request).session_cookie.name in request.cookies
    return credential_of(request) if presented else None


async def paying_key(request: Request) -> Credential | None:
    """Give a route its caller's credential, or None for a stranger who may pay. Raises: as `caller_key`."""
    return paying_credential_of(request)


async def session_caller(request: Request) -> Credential:
    """Give a route the session of its caller, who must be a person: a key is not enough.

    Raises: AuthRequired; Forbidden for a key, or without the CSRF token.
    """
    if has_key(request):
        raise Forbidden("Only a signed-in browser may do this; a key may not.")
    return session_of(request)


async def operator_key(request: Request) -> Signed:
    """Give an operator's route who calls, under which request id. Raises: AuthRequired, InvalidRequest."""
    return Signed(operator_credential_of(request), get_contextvars().get("request_id"))


async def retry_key(
    request: Request,
    x_idempotency_key: Annotated[
        str | None,
        Header(
            description="Makes a retry safe: the same key and request return the first answer again,"
            " with `Idempotent-Replayed: true`. 1 to 255 printable ASCII characters.",
            examples=["job-001"],
            json_schema_extra=SENT_RETRY_KEY,
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="The same as `X-Idempotency-Key`, by its standard name; two that are sent must be equal.",
            json_schema_extra=SENT_RETRY_KEY,
        ),
    ] = None,
) -> str | None:
    """Give a route the idempotency key of its headers. Raises: InvalidRequest."""
    del x_idempotency_key, idempotency_key  # declared for the OpenAPI document; a header may come twice
    return retry_key_of(request)


def retry_key_of(request: Request) -> str | None:
    """Return the idempotency key of a request's headers. Raises: InvalidRequest."""
    return agreed_key(
        [
            _unquoted(value)
            for name in ("x-idempotency-key", "idempotency-key")
            for value in request.headers.getlist(name)
        ]
    )


def agreed_key(sent: list[str]) -> str | None:
    """Return the one idempotency key that all its places name. Raises: InvalidRequest."""
    if len(set(sent)) > 1:
        raise InvalidRequest("idempotencyKey", "differs between the headers and the body; send one")
    if not sent:
        return None
    if not re.fullmatch(RETRY_KEY, sent[0]):
        raise InvalidRequest("idempotencyKey", "must be 1 to 255 printable ASCII characters")
    return sent[0]


def own_id(prefix: str, value: str, what: str = "") -> str:
    """Return an id that could be ours; any other is unknown without asking the ledger. Raises: NotFound."""
    if not is_id(prefix, value):
        raise NotFound(what or prefix)
    return value


def page_before(prefix: str, cursor: str | None) -> str | None:
    """Return the id that the last page ended with. Raises: InvalidRequest for what is no cursor of ours."""
    if cursor is not None and not is_id(prefix, cursor):
        raise InvalidRequest("cursor", "is not a nextCursor of this list")
    return cursor


def is_id(prefix: str, value: str) -> bool:
    """Tell whether an id could be one of ours."""
    return re.fullmatch(rf"{prefix}_[0-9a-z]{{26}}", value, re.ASCII) is not None


def _unquoted(value: str) -> str:
    """Read a header value in both its forms, bare and as a quoted string (RFC 9651)."""
    quoted = re.fullmatch(r'"(.*)"', value)
    return re.sub(r'\\(["\\])', r"\1", quoted[1]) if quoted else value


PartsOf = Annotated[Parts, Depends(parts)]
CallerKey = Annotated[Credential, Depends(caller_key)]
CallerSession = Annotated[Credential, Depends(session_caller)]
PayingKey = Annotated[Credential | None, Depends(paying_key)]
OperatorKey = Annotated[Signed, Depends(operator_key)]
OptionalKey = Annotated[Credential | None, Depends(optional_key)]
RetryKey = Annotated[str | None, Depends(retry_key)]
