"""Sign-in by e-mail and the sessions that it opens."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import ports
from gateway.account_schemas import (
    SignedIn,
    SignedOut,
    SignedOutEverywhere,
    SignInStarted,
    StartSignIn,
    VerifySignIn,
    WhoAmI,
)
from gateway.bodies import StrictRoute
from gateway.deps import (
    SECURED,
    SESSION_ONLY,
    CallerKey,
    CallerSession,
    PartsOf,
    has_key,
    session_token,
)
from gateway.limits import limit_by, network_of
from gateway.openapi import READ, problems
from gateway.responses import json_response
from gateway.sign_in import DIGITS, LIFETIME
from ledger import scopes
from ledger.keys import hash_key

router = APIRouter(prefix="/api/v1/auth", tags=["Sign-in"], route_class=StrictRoute)

_PUBLIC_WRITE = ("invalid_request", "payload_too_large", "unsupported_media_type", "unavailable")


@router.post(
    "/email/start",
    operation_id="startSignIn",
    summary="Send a sign-in code by e-mail",
    response_model=SignInStarted,
    responses=problems(*_PUBLIC_WRITE, "forbidden"),
)
async def start_sign_in(body: StartSignIn, request: Request, parts: PartsOf) -> Response:
    """Sends a one-time code to the address. The answer is the same whether or not somebody has an account there.

    A new code voids the one before.
    """
    await limit_by(request, "email", body.email)
    await parts.ledger.start_sign_in(body.email, network_of(request))
    return json_response(
        {"ok": True, "email": body.email, "digits": DIGITS, "expiresInS": int(LIFETIME.total_seconds())}
    )


@router.post(
    "/email/verify",
    operation_id="verifySignIn",
    summary="Redeem a sign-in code for a session",
    response_model=SignedIn,
    responses=problems(*_PUBLIC_WRITE, "invalid_code", "forbidden"),
)
async def verify_sign_in(body: VerifySignIn, request: Request, parts: PartsOf) -> Response:
    """Sets the session cookie (HttpOnly, SameSite=Lax, Secure under https) for 30 days and gives its CSRF token.

    A code works once, for ten minutes and five tries. An address without an account gets an empty one. The session
    that the browser had before ends.
    """
    await limit_by(request, "email", body.email)
    cookie = parts.session_cookie
    token, older = cookie.new_token(), session_token(request)
    signed_in = await parts.ledger.verify_sign_in(
        ports.VerifySignIn(
            email=body.email,
            code=body.code,
            session=hash_key(token),
            replaces=None if older is None else hash_key(older),
        )
    )
    response = json_response(
        {
            "ok": True,
            "userId": signed_in.user_id,
            "email": signed_in.email,
            "csrfToken": cookie.csrf_token(token),
            "expiresAt": signed_in.expires_at,
            "opened": signed_in.opened,
        }
    )
    cookie.put(response, token)
    return response


@router.get(
    "/session",
    operation_id="getSession",
    summary="Who am I?",
    response_model=WhoAmI,
    responses=problems(*READ),
    openapi_extra=SECURED,
)
async def get_session(request: Request, credential: CallerKey, parts: PartsOf) -> Response:
    """Whom this key or session speaks for, and the session's CSRF token. A request with both is the key's."""
    caller = await parts.ledger.whoami(credential, scopes.ANY)
    token = None if has_key(request) else session_token(request)
    return json_response(
        {
            "ok": True,
            "userId": caller.user_id,
            "email": caller.email,
            "via": "key" if token is None else "session",
            "csrfToken": None if token is None else parts.session_cookie.csrf_token(token),
        }
    )


@router.post(
    "/sign-out",
    operation_id="signOut",
    summary="Sign out",
    response_model=SignedOut,
    responses=problems(*READ),
    openapi_extra=SESSION_ONLY,
)
async def sign_out(credential: CallerSession, parts: PartsOf) -> Response:
    """Ends this session and takes its cookie back. Ending one that is over already is no error."""
    await parts.ledger.sign_out(credential)
    response = json_response({"ok": True, "signedOut": True})
    parts.session_cookie.take_back(response)
    return response


@router.post(
    "/sign-out-everywhere",
    operation_id="signOutEverywhere",
    summary="Sign out everywhere",
    response_model=SignedOutEverywhere,
    responses=problems(*READ),
    openapi_extra=SECURED,
)
async def sign_out_everywhere(credential: CallerKey, parts: PartsOf) -> Response:
    """Ends every session of the account, from the next request on. Keys go on working. A limited key may not."""
    ended = await parts.ledger.sign_out_everywhere(credential)
    response = json_response({"ok": True, "signedOut": True, "sessions": ended})
    parts.session_cookie.take_back(response)
    return response
