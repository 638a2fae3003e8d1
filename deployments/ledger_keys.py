"""What a caller may do with keys: list, make, rotate, revoke; and test credits. Part of the Ledger deployment.

A limited key sees and touches itself and its descendants alone, whatever it knows of the others.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import idempotency
from gateway.catalog import TOKENS_PER_CREDIT
from gateway.errors import IdempotencyKeyReused
from gateway.ports import CreateKey, RotateKey
from kit.db import Database
from kit.errors import Forbidden
from kit.settings import Settings
from kit.telemetry import ledger_seconds
from ledger import accounts, families, keys, refills, scopes
from ledger.keys import ApiKey, Caller, Credential, NewApiKey
from ledger.refills import Refilled

T = TypeVar("T")

CREATE_ROUTE: Final = "keys"
ROTATE_ROUTE: Final = "keys.rotate"


class LedgerKeys:
    """The use cases of keys of `LedgerServer`."""

    _settings: Settings
    _db: Database

    async def keys(self, credential: Credential) -> list[ApiKey]:
        """Return the keys that the caller may see."""

        async def page(conn: AsyncConnection) -> list[ApiKey]:
            caller = await keys.caller_of(conn, credential, scopes.SEE_KEYS)
            return await keys.list_keys(conn, caller.user_id, caller.within, caller.only)

        return await self._timed("keys", self._db.read, page)

    async def create_key(self, command: CreateKey) -> NewApiKey:
        """Mint a key, narrower than a limited caller's own. With a test key come test credits."""

        async def make(conn: AsyncConnection, caller: Caller, root: bytes | None) -> NewApiKey:
            minted = await families.make(
                conn,
                caller,
                command.label,
                command.limits,
                brand=self._settings.key_brand,
                world=command.world,
                derive_from=root,
            )
            if minted.key.world == "test":
                await self._refill(conn, await accounts.account_in(conn, caller.user_id, "test"))
            return minted

        return await self._once("create_key", CREATE_ROUTE, command, make)

    async def rotate_key(self, command: RotateKey) -> NewApiKey:
        """Give a key a new secret; the old one ends after the overlap."""

        async def rotate(conn: AsyncConnection, caller: Caller, root: bytes | None) -> NewApiKey:
            return await families.rotate(
                conn,
                caller,
                command.prefix,
                timedelta(seconds=command.overlap_s),
                brand=self._settings.key_brand,
                derive_from=root,
            )

        return await self._once("rotate_key", ROTATE_ROUTE, command, rotate)

    async def revoke_key(self, credential: Credential, prefix: str) -> ApiKey:
        """Revoke the one key that begins so, and its descendants."""

        async def revoke(conn: AsyncConnection) -> ApiKey:
            caller = await keys.caller_of(conn, credential, scopes.KEYS)
            return await keys.revoke(conn, caller.user_id, prefix, caller.within, caller.only)

        return await self._timed("revoke_key", self._db.run, revoke)

    async def refill(self, credential: Credential) -> Refilled:
        """Fill the caller's test account up."""

        async def fill(conn: AsyncConnection) -> Refilled:
            caller = await keys.caller_of(conn, credential, scopes.CHECKOUT)
            if caller.world != "test":
                raise Forbidden("Only a test key can refill: live credits are bought.")
            return await self._refill(conn, caller.account_id)

        return await self._timed("refill", self._db.run, fill)

    async def _refill(self, conn: AsyncConnection, account_id: int) -> Refilled:
        return await refills.refill(conn, account_id, self._settings.test_credits * TOKENS_PER_CREDIT)

    async def _once(
        self,
        method: str,
        route: str,
        command: CreateKey | RotateKey,
        mint: Callable[[AsyncConnection, Caller, bytes | None], Awaitable[NewApiKey]],
    ) -> NewApiKey:
        """Mint under the accounts' locks; under an idempotency key a repeat shows the same key again."""

        async def once(conn: AsyncConnection) -> NewApiKey:
            caller = await keys.caller_of(conn, command.credential, scopes.KEYS)
            await accounts.lock_by_user(conn, caller.user_id)
            if command.idempotency_key is None:
                return await mint(conn, caller, None)
            place = (caller.account_id, command.idempotency_key)
            root = self._root(caller, command.idempotency_key)
            if answered := (await idempotency.find(conn, route, [place])).get(place):
                answer = answered.replay(command.idempotency_key, command.fingerprint)
                # A limited key must not be shown what others made: it would shed its limits.
                if caller.limited and answer.get("made_by") != caller.key_id:
                    raise IdempotencyKeyReused(command.idempotency_key)
                key = as_made(await keys.find(conn, answer["key_id"]), answer)
                secret = keys.spelled(self._settings.key_brand, key.world, keys.derive_secret(root, key.id))
                return NewApiKey(key, secret, replayed=True)
            minted = await mint(conn, caller, root)
            answer = {
                "key_id": minted.key.id,
                "made_by": caller.key_id,
                "parent_id": minted.key.parent_id,
                "expires_at": minted.key.expires_at,
            }
            await idempotency.remember(conn, route, [(*place, command.fingerprint, answer)])
            return minted

        return await self._timed(method, self._db.run, once)

    async def _timed(
        self,
        method: str,
        within: Callable[[Callable[[AsyncConnection], Awaitable[T]]], Awaitable[T]],
        work: Callable[[AsyncConnection], Awaitable[T]],
    ) -> T:
        began = time.perf_counter()
        try:
            return await within(work)
        finally:
            ledger_seconds.labels(method).observe(time.perf_counter() - began)

    def _root(self, caller: Caller, idempotency_key: str) -> bytes:
        """Return what a secret is derived from: a replay then shows it although only its hash is kept."""
        secret = self._settings.secret.get_secret_value()
        return b"|".join(part.encode() for part in (secret, str(caller.account_id), idempotency_key))


def as_made(key: ApiKey, answer: Mapping[str, Any]) -> ApiKey:
    """Return a key as the first answer showed it: a rotation since may have given it a parent and an end."""
    if "parent_id" not in answer:
        return key
    ends = answer["expires_at"]
    return replace(
        key, parent_id=answer["parent_id"], expires_at=None if ends is None else datetime.fromisoformat(ends)
    )
