"""API keys of the caller's account: list, create, revoke."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from gateway import ports
from gateway.answers import KeyCreated, KeyRevoked, Keys
from gateway.bodies import StrictRoute
from gateway.deps import SECURED, CallerKey, PartsOf, RetryKey, agreed_key
from gateway.fingerprints import fingerprint
from gateway.openapi import READ, REPLAYED, WRITE, problems
from gateway.responses import json_response
from gateway.schemas import CreateKey, RevokeKey
from ledger.keys import ApiKey, NewApiKey

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
    """The account's keys, newest first, revoked ones too. Secrets are not kept and cannot be shown."""
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
    """Makes a key for the same account, such as one per environment or agent. Only this answer shows it."""
    created = await parts.ledger.create_key(
        ports.CreateKey(
            credential=credential,
            label=body.label,
            expires_at=body.expires_at,
            idempotency_key=agreed_key(
                [key for key in (header_key, body.idempotency_key) if key is not None]
            ),
            fingerprint=fingerprint({"label": body.label, "expires_at": body.expires_at}),
        )
    )
    return json_response(
        {"ok": True, **with_secret(created)},
        headers={"idempotent-replayed": "true"} if created.replayed else None,
    )


@router.post(
    "/keys/revoke",
    operation_id="revokeKey",
    summary="Revoke an API key by its prefix",
    response_model=KeyRevoked,
    responses=problems(*WRITE, "not_found", "ambiguous_prefix"),
    openapi_extra=SECURED,
)
async def revoke_key(body: RevokeKey, credential: CallerKey, parts: PartsOf) -> Response:
    """The key stops working with its next request. A prefix of several keys revokes none and lists them."""
    key = await parts.ledger.revoke_key(credential, body.key_prefix)
    return json_response({"ok": True, "keyPrefix": key.prefix, "revoked": True, "key": shown(key)})


def shown(key: ApiKey) -> dict[str, Any]:
    """Return a key as it may be shown at any time."""
    return {
        "id": key.id,
        "keyPrefix": key.prefix,
        "label": key.label,
        "createdAt": key.created_at,
        "expiresAt": key.expires_at,
        "revokedAt": key.revoked_at,
    }


def with_secret(created: NewApiKey) -> dict[str, Any]:
    """Return a new key as its one answer shows it."""
    key = created.key
    return {
        "apiKey": created.secret,
        "keyPrefix": key.prefix,
        "id": key.id,
        "label": key.label,
        "createdAt": key.created_at,
        "expiresAt": key.expires_at,
    }
