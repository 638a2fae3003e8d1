"""The pages that people see: landing, prices, credits, account, sign-in, the ends of a checkout, the API reference.

All of it is local. What is personal comes by script from the API: a page itself holds nothing of anybody.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import Response

from gateway.deps import Parts, PartsOf, session_token
from gateway.responses import dump

PAGES: Final = Path(__file__).parent.parent / "pages"
STATIC: Final = PAGES / "static"
DOCS_ASSETS: Final = Path(str(files("fastapi_offline"))) / "static"
"""Swagger UI's files, carried by a wheel: version 5, the first that shows OpenAPI 3.1."""

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src {styles}; img-src 'self' data:; connect-src 'self';"
    " form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY.format(styles="'self'"),
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",  # a success page's address names its session
}
_DOCS_HEADERS: Final = _HEADERS | {"content-security-policy": _POLICY.format(styles="'self' 'unsafe-inline'")}
"""Swagger UI writes style attributes; scripts stay as strict as elsewhere."""

_SESSION: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")
"""Sessions of any provider, and purchases. The page writes it into a command to paste: a link must not add to that."""
_AFTER_SIGN_IN: Final = ("/account", "/credits")
"""Where a sign-in may lead: an address in the query must not send people elsewhere."""

_templates: Final = Environment(
    loader=FileSystemLoader(PAGES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

router = APIRouter(include_in_schema=False)


@router.get("/")
async def show_home(parts: PartsOf) -> Response:
    """What this server is, and the way from nothing to a picture as commands to paste."""
    catalog = await parts.price_list.last_known()
    return page(
        parts,
        "home.html",
        packages=list(catalog.packages.values()),
        tasks=list(catalog.tasks.values()),
    )


@router.get("/checkout/success")
async def show_success(parts: PartsOf, session_id: str = "", by: str = "stripe") -> Response:
    """Where the payment page sends the payer: shows the key, once, on request."""
    claim_path = f"/api/v1/claim/{'crypto' if by == 'crypto' else 'stripe'}"
    named = session_id if _SESSION.fullmatch(session_id) else ""
    return page(parts, "checkout_success.html", session_id=named, claim_path=claim_path)


@router.get("/checkout/canceled")
async def show_canceled(parts: PartsOf) -> Response:
    """Where the payment page sends a payer who turned back."""
    return page(parts, "checkout_canceled.html")


@router.get("/pricing")
async def show_pricing(parts: PartsOf) -> Response:
    """What everything costs."""
    catalog = await parts.price_list.last_known()
    return page(
        parts,
        "pricing.html",
        tools=list(catalog.tools.values()),
        packages=list(catalog.packages.values()),
        price_version=catalog.price_version,
        since=catalog.since,
    )


@router.get("/credits")
async def show_credits(request: Request, parts: PartsOf) -> Response:
    """The balance, and packages to buy for whoever is signed in."""
    return page(
        parts,
        "credits.html",
        packages=list(parts.catalog.packages.values()),
        signed_in=session_token(request) is not None,
    )


@router.get("/account")
async def show_account(request: Request, parts: PartsOf) -> Response:
    """Keys and one's data; the sign-in form for whoever has no session cookie of ours."""
    if session_token(request) is None:
        return _sign_in(parts, "/account")
    return page(parts, "account.html")


@router.get("/dashboard")
async def show_dashboard(parts: PartsOf) -> Response:
    """Keys, jobs and usage for whoever has an API key; the page holds it and nobody else."""
    return page(parts, "dashboard.html")


@router.get("/sign-in")
async def show_sign_in(request: Request, parts: PartsOf) -> Response:
    """Where a code is asked for and typed."""
    wanted = request.query_params.get("next", "")
    return _sign_in(parts, wanted if wanted in _AFTER_SIGN_IN else "/account")


@router.get("/docs")
async def show_docs(parts: PartsOf) -> Response:
    """The API reference."""
    return page(parts, "docs.html", headers=_DOCS_HEADERS)


@router.get("/openapi.json")
async def show_openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return Response(dump(request.app.openapi()), media_type="application/json")


def _sign_in(parts: Parts, after: str) -> Response:
    mails_stay = not parts.settings.smtp_url.get_secret_value()
    return page(parts, "sign_in.html", next=after, mails_stay=mails_stay)


def page(parts: Parts, name: str, headers: dict[str, str] = _HEADERS, **facts: Any) -> Response:
    """Return a page drawn from its template, which may load and run our own files alone."""
    in_coins = parts.crypto is not None and parts.crypto.sells
    html = _templates.get_template(name).render(
        base_url=parts.settings.base_url,
        in_sandbox=parts.in_sandbox,
        can_pay_by_card=parts.checkout is not None,
        can_pay_in_coins=in_coins,
        can_pay=parts.checkout is not None or in_coins,
        profile=parts.settings.profile,
        brand=parts.settings.key_brand,
        **facts,
    )
    return Response(html, headers=headers, media_type="text/html; charset=utf-8")
