"""API keys of the caller's account: list, create, rotate, revoke."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, time, timedelta
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from gateway import ports
from gateway.answers import KeyCreated, KeyRevoked, Keys
from gateway.bodies import StrictRoute
from gateway.deps import SECURED, CallerKey, PartsOf, RetryKey, agreed_key
from gateway.fingerprints import fingerprint
from gateway.openapi import READ, REPLAYED, WRITE, problems
from gateway.responses import in_credits, json_response
from gateway.schemas import CreateKey, RevokeKey, RotateKey
from kit.addresses import network, spelled
from ledger.keys import ApiKey, Limits, NewApiKey, SpendLimit

router = APIRouter(prefix="/api/v1", tags=["Keys"], route_class=StrictRoute)


@router.get(
    "/keys",
    operation_id="listKeys",
    summary="List API keys",
    response_model=Keys,
    responses=problems(*READ),
    openapi_extra=SECURED,
)
async def list_keys(credential: CallerKey, parts: PartsOf) -> Response:
    """The account's keys, newest first, revoked ones too; a limited key sees itself and its children, and theirs;
    a test key sees test keys alone. Of more than a thousand, those that work come before those that ended.

    Secrets are not kept and cannot be shown. Needs the scope `read` or `keys`.
    """
    keys = await parts.ledger.keys(credential)
    return json_response({"ok": True, "keys": [shown(key) for key in keys]})


@router.post(
    "/keys",
    operation_id="createKey",
    summary="Create an API key",
    response_model=KeyCreated,
    responses={200: {"headers": REPLAYED}, **problems(*WRITE, "idempotency_key_reused")},
    openapi_extra=SECURED,
)
async def create_key(
    body: CreateKey, credential: CallerKey, header_key: RetryKey, parts: PartsOf
) -> Response:
    """Makes a key for the same account, such as one per environment or agent. Only this answer shows it.

    A key with any limit makes children: never wider than itself in scopes, addresses and expiry (403 otherwise; what
    is left out is as the parent's), ended with it, and spending from its limit too. Needs the scope `keys`.

    With `"mode": "test"` the key is one to the test world, and its account is filled up with test credits.
    """
    created = await parts.ledger.create_key(
        ports.CreateKey(
            credential=credential,
            label=body.label,
            limits=body.limits,
            idempotency_key=agreed_key(
                [key for key in (header_key, body.idempotency_key) if key is not None]
            ),
            fingerprint=fingerprint(
                {"label": body.label, **_meant(body.limits)} | ({"mode": body.mode} if body.mode else {})
            ),
            world=body.mode,
        )
    )
    return _made(created)


@router.post(
    "/keys/rotate",
    operation_id="rotateKey",
    summary="Give an API key a new secret",
    response_model=KeyCreated,
    responses={
        200: {"headers": REPLAYED},
        **problems(*WRITE, "not_found", "ambiguous_prefix", "idempotency_key_reused"),
    },
    openapi_extra=SECURED,
)
async def rotate_key(
    body: RotateKey, credential: CallerKey, header_key: RetryKey, parts: PartsOf
) -> Response:
    """Makes a key with the same settings, which takes the old one's place and children. Only this answer shows it.

    The old key works on until the overlap ends, as a child of the new one: a limit counts both. Rotate the key that
    you call with an idempotency key and an overlap, so that a lost answer can be asked for again. Needs the scope
    `keys`.
    """
    rotated = await parts.ledger.rotate_key(
        ports.RotateKey(
            credential=credential,
            prefix=body.key_prefix,
            overlap_s=body.overlap_seconds,
            idempotency_key=agreed_key(
                [key for key in (header_key, body.idempotency_key) if key is not None]
            ),
            fingerprint=fingerprint({"prefix": body.key_prefix, "overlap_s": body.overlap_seconds}),
        )
    )
    return _made(rotated)


@router.post(
    "/keys/revoke",
    operation_id="revokeKey",
    summary="Revoke an API key by its prefix",
    response_model=KeyRevoked,
    responses=problems(*WRITE, "not_found", "ambiguous_prefix"),
    openapi_extra=SECURED,
)
async def revoke_key(body: RevokeKey, credential: CallerKey, parts: PartsOf) -> Response:
    """The key and its children stop working with their next request. A prefix of several keys revokes none and
    lists them. Needs the scope `keys`.
    """
    key = await parts.ledger.revoke_key(credential, body.key_prefix)
    return json_response({"ok": True, "keyPrefix": key.prefix, "revoked": True, "key": shown(key)})


def shown(key: ApiKey) -> dict[str, Any]:
    """Return a key as it may be shown at any time."""
    limit = key.spend_limit
    return {
        **_fields(key),
        "revokedAt": key.revoked_at,
        "lastUsedAt": key.last_used_at,
        "spendLimit": limit and _limit(limit) | _used(limit),
    }


def with_secret(created: NewApiKey) -> dict[str, Any]:
    """Return a new key as its one answer shows it."""
    key = created.key
    return {
        "apiKey": created.secret,
        **_fields(key),
        "spendLimit": key.spend_limit and _limit(key.spend_limit),
    }


def _fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "keyPrefix": key.prefix,
        "label": key.label,
        "mode": key.world,
        "createdAt": key.created_at,
        "expiresAt": key.expires_at,
        "parentId": key.parent_id,
        "scopes": key.scopes,
        "allowedIps": key.allowed_ips and [spelled(network(each)) for each in key.allowed_ips],
    }


def _made(created: NewApiKey) -> Response:
    return json_response(
        {"ok": True, **with_secret(created)},
        headers={"idempotent-replayed": "true"} if created.replayed else None,
    )


def _meant(limits: Limits) -> dict[str, Any]:
    """Return what the limits add to a request's meaning: nothing where there are none, as before there were any."""
    said = asdict(limits)
    return {name: said[name] for name in said if said[name] is not None or name == "expires_at"}


def _limit(limit: SpendLimit) -> dict[str, Any]:
    return {"credits": in_credits(limit.limit_tokens), "tokens": limit.limit_tokens, "per": limit.per}


def _used(limit: SpendLimit) -> dict[str, Any]:
    ends = {
        "day": limit.started + timedelta(days=1),
        "month": (limit.started + timedelta(days=31)).replace(day=1),
        "total": None,
    }[limit.per]
    return {
        "usedCredits": in_credits(limit.used_tokens),
        "usedTokens": limit.used_tokens,
        "resetsAt": ends and datetime.combine(ends, time(), UTC),
    }
