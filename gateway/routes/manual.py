"""The manual for callers as pages and as markdown, and the two documents by which machines find their way."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.deps import Parts, PartsOf
from gateway.manual import NAMES, chapter_text, chapters, drawn, facts, llms_text
from gateway.responses import dump
from gateway.routes.pages import page
from kit.errors import NotFound

TEXT_HEADERS: Final = {
    "cache-control": "public, max-age=60",  # as the prices in it
    "access-control-allow-origin": "*",  # a page elsewhere may show it; nothing in it is anybody's own
}
OWN_PAGES: Final = {"receipts": "receipts.html"}
"""Chapters with more on their page than their text."""

router = APIRouter(include_in_schema=False)


@router.get("/docs/{name}")
async def show_chapter(request: Request, name: str, parts: PartsOf) -> Response:
    """A chapter of the manual; as markdown under its name with `.md`."""
    plain = name.removesuffix(".md")
    if plain not in NAMES:
        raise NotFound("path")
    text = chapter_text(plain, await _facts(request, parts))
    if name != plain:
        return Response(text, headers=TEXT_HEADERS, media_type="text/markdown; charset=utf-8")
    place = NAMES.index(plain)
    shown = page(
        parts,
        OWN_PAGES.get(plain, "manual.html"),
        chapters=chapters(),
        chapter=chapters()[place],
        next=chapters()[place + 1] if place + 1 < len(NAMES) else None,
        content=drawn(text),
    )
    shown.headers["link"] = f'</docs/{plain}.md>; rel="alternate"; type="text/markdown"'
    return shown


@router.get("/llms.txt")
async def show_llms_text(request: Request, parts: PartsOf) -> Response:
    """This server for language models: what it is, and where its manual and API are."""
    text = llms_text(await _facts(request, parts))
    return Response(text, headers=TEXT_HEADERS, media_type="text/plain; charset=utf-8")


@router.get("/.well-known/ai-plugin.json")
async def show_plugin(request: Request, parts: PartsOf) -> Response:
    """This server as a plugin: who it is, how to call it, and where its OpenAPI document is."""
    base_url = parts.settings.base_url
    told: dict[str, Any] = {
        "schema_version": "v1",
        "name_for_human": "Farebox",
        "name_for_model": "farebox",
        "description_for_human": request.app.openapi()["info"]["summary"],
        "description_for_model": "Run generative models and meter work by prepaid credits. Check the price first;"
        " repeat writes only under the same idempotency key. Tasks: "
        + " ".join(
            f"{task.name}: {task.summary}" for task in (await parts.price_list.last_known()).tasks.values()
        ),
        "auth": {"type": "user_http", "authorization_type": "bearer"},
        "api": {"type": "openapi", "url": f"{base_url}/openapi.json"},
        "logo_url": f"{base_url}/static/icon.svg",
        "contact_email": parts.settings.contact_email,
        "legal_info_url": f"{base_url}/",
    }
    return Response(dump(told), headers=TEXT_HEADERS, media_type="application/json")


async def _facts(request: Request, parts: Parts) -> dict[str, Any]:
    return facts(parts, await parts.price_list.last_known(), request.app.openapi())
