"""One's own data: all of it to take along, or none of it to stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import structlog
from fastapi import APIRouter
from starlette.responses import Response, StreamingResponse

from gateway import ports
from gateway.account_schemas import AccountDeleted, AccountExport, DeleteAccount
from gateway.bodies import StrictRoute
from gateway.deps import SECURED, SESSION_ONLY, CallerKey, CallerSession, Parts, PartsOf
from gateway.openapi import READ, WRITE, problems
from gateway.responses import dump, json_response
from gateway.routes import alerts, auto_topup, files, keys, media, purchases, usage, webhooks
from kit.errors import Unavailable
from ledger import scopes
from ledger.keys import Caller, Credential
from ledger.sessions import Session

log = structlog.get_logger(__name__)
router = APIRouter(prefix="/api/v1/account", tags=["Account"], route_class=StrictRoute)

PAGE: Final = 200
"""Rows read at a time: an export of any length takes the memory of one page."""
DELETIONS_AT_ONCE: Final = 16
"""Objects deleted side by side: a bucket takes some 50 ms for each."""


@router.get(
    "/export",
    operation_id="exportAccount",
    summary="Export everything that is kept of you",
    response_model=AccountExport,
    responses=problems(*READ),
    openapi_extra=SECURED,
)
async def export_account(credential: CallerKey, parts: PartsOf) -> Response:
    """One JSON document: you, your keys without secrets, sessions, purchases, automatic top-up, statement, jobs, files
    and webhooks.

    A limited key may not ask for it, and a test key neither. Statement, jobs, files and webhooks are the live ones: a
    test key lists those of the test world.
    """
    caller = await parts.ledger.whoami(credential, scopes.ANY)
    heads = {
        "keys": [keys.shown(key) for key in await parts.ledger.keys(credential)],
        "sessions": [_session(session) for session in await parts.ledger.sessions(credential)],
        "lowBalance": alerts.shown(await parts.ledger.low_balance(credential)),
        "autoTopup": auto_topup.shown(await parts.ledger.auto_topup(credential)),
        "webhookEndpoints": [
            webhooks.shown(endpoint) for endpoint in await parts.ledger.endpoints(credential)
        ],
    }
    return StreamingResponse(
        _export(parts, credential, caller, heads),
        media_type="application/json",
        headers={
            "cache-control": "no-store",
            "content-disposition": 'attachment; filename="farebox-export.json"',
        },
    )


@router.post(
    "/delete",
    operation_id="deleteAccount",
    summary="Delete the account",
    response_model=AccountDeleted,
    responses=problems(*WRITE, "balance_left", "account_in_use"),
    openapi_extra=SESSION_ONLY,
)
async def delete_account(body: DeleteAccount, credential: CallerSession, parts: PartsOf) -> Response:
    """Forgets you: e-mail, keys, sessions, inputs of jobs, files. Queued jobs are canceled. It can't be undone.

    The books keep the movements of credits under an id that names nobody. Only a signed-in browser may do this, a
    key may not. A balance is given up only with `forfeit`.
    """
    left = await parts.ledger.delete_account(ports.DeleteAccount(credential, body.email, body.forfeit))
    await _delete_bytes(parts, left)
    response = json_response({"ok": True, "deleted": True})
    parts.session_cookie.take_back(response)
    return response


async def _delete_bytes(parts: Parts, storage_keys: list[str]) -> None:
    places = asyncio.Semaphore(DELETIONS_AT_ONCE)

    async def delete(storage_key: str) -> None:
        async with places:
            try:
                await parts.objects.delete(storage_key)
            except Unavailable:
                log.exception("bytes of a deleted file stay behind", storage_key=storage_key)

    async with asyncio.TaskGroup() as group:
        for storage_key in storage_keys:
            group.create_task(delete(storage_key))


async def _export(
    parts: Parts, credential: Credential, caller: Caller, heads: dict[str, Any]
) -> AsyncIterator[bytes]:
    """Write the document piece by piece; an export that breaks off is no whole JSON, and so seen to be broken."""
    yield b'{"ok":true,"user":' + dump({"id": caller.user_id, "email": caller.email})
    for name, rows in heads.items():
        yield b',"' + name.encode() + b'":' + dump(rows)
    for name, pages in (
        ("statement", _statement(parts, credential)),
        ("purchases", _pages(lambda before: _purchases(parts, credential, before))),
        ("jobs", _pages(lambda before: _jobs(parts, credential, before))),
        ("files", _pages(lambda before: _files(parts, credential, before))),
        ("webhookDeliveries", _pages(lambda before: _deliveries(parts, credential, before))),
    ):
        yield b',"' + name.encode() + b'":['
        first = True
        async for page in pages:
            for row in page:
                yield dump(row) if first else b"," + dump(row)
                first = False
        yield b"]"
    yield b"}"


async def _statement(parts: Parts, credential: Credential) -> AsyncIterator[list[dict[str, Any]]]:
    before: int | None = None
    while True:
        page = await parts.ledger.statement(ports.StatementQuery(credential, PAGE, before, None, None))
        yield [usage.line(line) for line in page.lines]
        if page.next_before is None:
            return
        before = page.next_before


async def _pages(read: Callable[[str | None], Any]) -> AsyncIterator[list[dict[str, Any]]]:
    before: str | None = None
    while page := await read(before):
        yield page
        before = page[-1]["id"]


async def _purchases(parts: Parts, credential: Credential, before: str | None) -> list[dict[str, Any]]:
    return [purchases.shown(purchase) for purchase in await parts.ledger.purchases(credential, PAGE, before)]


async def _jobs(parts: Parts, credential: Credential, before: str | None) -> list[dict[str, Any]]:
    found = await parts.ledger.jobs(ports.JobQuery(credential, PAGE, before, None))
    return [media.shown(parts, job) for job in found]


async def _files(parts: Parts, credential: Credential, before: str | None) -> list[dict[str, Any]]:
    return [files.shown(parts, file) for file in await parts.ledger.files(credential, PAGE, before)]


async def _deliveries(parts: Parts, credential: Credential, before: str | None) -> list[dict[str, Any]]:
    found = await parts.ledger.deliveries(credential, PAGE, before, None)
    return [webhooks.shown_delivery(delivery) for delivery in found]


def _session(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "createdAt": session.created_at,
        "expiresAt": session.expires_at,
        "revokedAt": session.revoked_at,
    }
