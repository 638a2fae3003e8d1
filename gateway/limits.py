"""Rate limits: every route names its bucket here, and the one gate in front of all routes counts.

A request is counted once. In a bucket that rides, its take travels in the first call that the route makes to the
ledger and is decided there before anything else: no round trip of its own. In any other the gate asks before the
route begins. A route that answers without the ledger is counted before its answer leaves.

While the ledger is away, limited routes answer 503 as they would without limits; nothing is let through uncounted.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.deps import credential_of, ip_of, parts_of
from gateway.errors import RateLimited
from gateway.problems import problem_response
from gateway.quotas import Quota, Take, used_up
from kit.addresses import Network
from kit.errors import AppError
from kit.settings import Settings

WINDOW_S: Final = 60
"""The published limits are all by the minute."""

BucketName = Literal["referral_read", "referral_apply", "sensitive_auth", "purchase", "key"]


@dataclass(frozen=True, slots=True)
class Bucket:
    """What is counted together. `per`: each key by itself, or a user with all keys.

    `rides`: whether its takes travel in the route's own ledger call.
    """

    name: BucketName
    per: Literal["key", "user"]
    rides: bool

    def limit(self, settings: Settings) -> int:
        """Return the requests that one identity may send in a window; 0 switches the bucket off."""
        limit: int = getattr(settings, f"limit_{self.name}")
        return limit


BUCKETS: Final[Mapping[BucketName, Bucket]] = {
    bucket.name: bucket
    for bucket in (
        Bucket("referral_read", "user", rides=False),
        Bucket("referral_apply", "user", rides=False),
        Bucket("sensitive_auth", "user", rides=False),
        Bucket("purchase", "user", rides=False),
        Bucket("key", "key", rides=True),
    )
}

ROUTES: Final[Mapping[str, BucketName]] = {
    "startStripeCheckout": "purchase",
    "startCryptoCheckout": "purchase",
    "buyWithX402": "purchase",
    "openBillingPortal": "purchase",
    "settleCheckout": "purchase",
    "claimStripeKey": "sensitive_auth",
    "claimCryptoKey": "sensitive_auth",
    "createKey": "sensitive_auth",
    "rotateKey": "sensitive_auth",
    "revokeKey": "sensitive_auth",
    "getReferral": "referral_read",
    "applyReferral": "referral_apply",
    "startSignIn": "sensitive_auth",
    "verifySignIn": "sensitive_auth",
    "signOutEverywhere": "sensitive_auth",
    "exportAccount": "sensitive_auth",
    "deleteAccount": "sensitive_auth",
    "redeemVoucher": "sensitive_auth",
    "setAlerts": "sensitive_auth",
    "setAutoTopup": "purchase",
    "saveCard": "purchase",
    "addWebhookEndpoint": "sensitive_auth",
    "rotateWebhookEndpoint": "sensitive_auth",
    # Each sends us out to somebody else's server.
    "replayWebhookDelivery": "sensitive_auth",
}
"""By operation id. A route that wants a key and is not named here is counted in `key`."""

UNLIMITED: Final = frozenset(
    {
        # Asked by machines that must never hear 429; their answers are kept and cost nothing.
        "getHealth",
        "get_metrics",
        "getTrialBalance",
        # The same for everyone, out of memory.
        "listPackages",
        "getPricing",
        "getJwks",
        "show_home",
        "show_success",
        "show_canceled",
        "show_dashboard",
        "show_docs",
        "show_account",
        "show_credits",
        "show_pricing",
        "show_sign_in",
        "show_chapter",
        "show_llms_text",
        "show_plugin",
        "show_openapi",
        # A provider's deliveries: the signature guards them, and a refused one would come again.
        "receiveStripeWebhook",
        "receiveCryptoWebhook",
    }
)
"""By operation id, or by the function's name where the OpenAPI document does not show the route."""

OPERATOR: Final = "Operator"
"""The tag of routes behind an operator's key: who puts things right in a hurry is never told to wait."""


class UndeclaredRoute(RuntimeError):
    """A public route is in neither list above: say in which bucket it counts, or that it need not."""


class Counter(Protocol):
    """Where takes are counted: the ledger."""

    async def take(self, take: Take) -> Quota:
        """Count a request. Raises: RateLimited."""


class Tally:
    """The count of the request under way: a take until it has gone out, then the quota that came back."""

    __slots__ = ("_take", "_waits", "quota")

    def __init__(self, take: Take, *, waits: bool) -> None:
        """`waits`: whether the take may be sent as it is; otherwise it waits for `limit_by` to name a stranger."""
        self._take = take
        self._waits = waits
        self.quota: Quota | None = None

    def board(self) -> Take | None:
        """Return the take for the call that now goes out; None when it went out before, or has nobody to count."""
        take = None if not self._waits else self._take
        self._waits = False
        return take

    async def count(self, counter: Counter) -> None:
        """Have the take counted now, unless it went out. Raises: RateLimited."""
        take = self.board()
        if take is not None:
            await self._ask(counter, take)

    async def count_as(self, counter: Counter, stranger: str) -> None:
        """Count a request against whom it names, whatever key it carries. Raises: RateLimited."""
        await self._ask(counter, replace(self._take, credential=None, stranger=stranger))

    async def _ask(self, counter: Counter, take: Take) -> None:
        try:
            self.settle(await counter.take(take))
        except RateLimited as refusal:
            self.settle(used_up(refusal))
            raise

    def settle(self, quota: Quota) -> None:
        """Keep what came back; of two counts of one request, the tighter."""
        if self.quota is None or quota.remaining < self.quota.remaining:
            self.quota = quota


tallies: Final[ContextVar[Tally | None]] = ContextVar("tallies", default=None)
"""The tally of the request that this task serves; None on an unlimited route."""


async def limit_by(request: Request, kind: Literal["email", "session", "wallet"], value: str) -> None:
    """Count this request against what it names too, in its route's bucket: an e-mail, a checkout session.

    To be called first by every limited route that works without a key: nobody else may be known to count. A key
    that the route does not check is no excuse, since anyone can make one up. A wallet is counted once its signature
    was verified: a stranger could use up its requests otherwise. Raises: RateLimited.
    """
    if tally := tallies.get():
        await tally.count_as(parts_of(request).ledger, stranger(kind, value.casefold()))


def bucket_of(route: APIRoute) -> Bucket | None:
    """Return where a route is counted, None for an unlimited one. Raises: UndeclaredRoute."""
    name = route.operation_id or route.name
    if name in ROUTES:
        return BUCKETS[ROUTES[name]]
    if name in UNLIMITED or OPERATOR in route.tags:
        return None
    if any((route.openapi_extra or {}).get("security", ())):
        return BUCKETS["key"]
    raise UndeclaredRoute(f"{name} ({route.path}) is in no bucket and not among the unlimited routes")


def limited(route: BaseRoute, settings: Settings) -> BaseRoute:
    """Return the route behind its gate. Raises: UndeclaredRoute."""
    assert isinstance(route, APIRoute), "routers hold routes alone"
    bucket = bucket_of(route)
    if bucket is None or not (limit := bucket.limit(settings)):
        return route
    gated = copy(route)  # the router's own route may serve another app of this process
    gated.app = Gate(route.app, bucket, limit)
    return gated


class Gate:
    """Stands in front of one route: counts each request once, and writes the RateLimit fields on its answer."""

    def __init__(self, app: ASGIApp, bucket: Bucket, limit: int) -> None:
        self._app = app
        self.bucket = bucket
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        tally = self._tally(request)
        token = tallies.set(tally)
        try:
            answer = _Answer(tally, parts_of(request).ledger, scope, receive, send)
            if not self.bucket.rides:
                try:
                    await tally.count(parts_of(request).ledger)
                except AppError as refusal:
                    await problem_response(refusal, scope["path"])(scope, receive, answer.send)
                    return
            await self._app(scope, receive, answer.send)
        finally:
            tallies.reset(token)

    def _tally(self, request: Request) -> Tally:
        try:
            credential = credential_of(request)
        except AppError:  # none, none of ours, or another site's write: the route says so, if it matters
            credential = None
        address = network_of(request)
        known = stranger("address", address) if address else ""
        if credential and not known:
            known = stranger("credential", credential.hash.hex())
        take = Take(self.bucket.name, self.bucket.per, credential, known, self.limit, WINDOW_S)
        # A riding bucket counts keys: what holds no possible key is refused, or has a signature, without the books.
        return Tally(take, waits=bool(credential or (known and not self.bucket.rides)))


class _Answer:
    """The answer on its way out: it gets its fields, or gives way to a 429 that only now could be known."""

    __slots__ = ("_counter", "_receive", "_refused", "_scope", "_send", "_tally")

    def __init__(self, tally: Tally, counter: Counter, scope: Scope, receive: Receive, send: Send) -> None:
        self._tally = tally
        self._counter = counter
        self._scope, self._receive, self._send = scope, receive, send
        self._refused = False

    async def send(self, message: Message) -> None:
        """Pass on a piece of the answer."""
        if self._refused:
            return
        if message["type"] == "http.response.start":
            try:
                await self._tally.count(self._counter)
            except RateLimited as refusal:
                self._refused = True
                answer = problem_response(refusal, self._scope["path"])
                await answer(self._scope, self._receive, self._send_counted)
                return
            except AppError:  # the books are away; this answer did not need them
                pass
        await self._send_counted(message)

    async def _send_counted(self, message: Message) -> None:
        if message["type"] == "http.response.start" and (quota := self._tally.quota):
            message = {**message, "headers": [*message.get("headers", ()), *fields(quota)]}
        await self._send(message)


def fields(quota: Quota) -> list[tuple[bytes, bytes]]:
    """Return the answer's fields: structured lists of one item.

    Source: draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4.
    """
    return [
        (b"ratelimit-policy", f'"{quota.bucket}";q={quota.limit};w={quota.window_s}'.encode()),
        (b"ratelimit", f'"{quota.bucket}";r={quota.remaining};t={quota.reset_s}'.encode()),
    ]


def stranger(kind: Literal["address", "credential", "email", "session", "wallet"], value: str) -> str:
    """Return the identity of someone without a valid key; hashed, so that the counters hold no personal data."""
    return f"{kind}:{hashlib.sha256(value.encode()).hexdigest()[:32]}"


def network_of(request: Request) -> str | None:
    """Return the network that a request came from, which is one household's; None where an operator named no proxies.

    The launcher's own alone does not do: it could stand behind another, which nobody named.
    """
    parts = parts_of(request)
    return address_of(request, parts.proxies if parts.settings.trusted_proxies else ())


def address_of(request: Request, proxies: Sequence[Network]) -> str | None:
    """Return the address that the proxies saw; None where an operator named no proxies, or they name nobody.

    A proxy that nobody named would stand for all its callers. An IPv6 caller is a /64.
    """
    written = ip_of(request, proxies) if proxies else None
    if written is None:
        return None
    address = ipaddress.ip_address(written)
    if any(address in each for each in proxies):
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return written
