"""The manual for callers: chapters in markdown, filled in with what this server sells and allows, and drawn as HTML.

Nothing in it is written twice: prices come from the catalogue, errors and routes from the OpenAPI document, limits from
the settings, so that no page can say what the server does not do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from gateway.catalog import Catalog
from gateway.deps import Parts
from gateway.limits import BUCKETS, ROUTES, WINDOW_S
from gateway.openai_errors import speaks_openai
from gateway.openai_models import models_of
from gateway.openai_schemas import VOICES, formats_of

PAGES: Final = Path(__file__).with_name("pages")
NAMES: Final = (
    "quickstart",
    "authentication",
    "payments",
    "jobs",
    "tools",
    "openai",
    "idempotency",
    "errors",
    "rate-limits",
    "usage",
    "receipts",
)
"""In the order in which a newcomer reads them."""
KEPT_PAGES: Final = 4 * len(NAMES)
"""Drawing takes milliseconds and the pages are public; a page is drawn again when its text changes."""

_sources: Final = Environment(
    loader=FileSystemLoader(PAGES),
    autoescape=False,  # noqa: S701  # markdown and plain text; `_markdown` lets no HTML through
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True, slots=True)
class Chapter:
    """A page of the manual. `lead` says in a sentence or two what it is about."""

    name: str
    title: str
    lead: str


@cache
def chapters() -> tuple[Chapter, ...]:
    """Return all chapters in reading order."""
    return tuple(_headed(name) for name in NAMES)


def chapter_text(name: str, facts: Mapping[str, Any]) -> str:
    """Return a chapter as markdown."""
    return _sources.get_template(f"manual/{name}.md").render(facts)


def llms_text(facts: Mapping[str, Any]) -> str:
    """Return the map of this server for language models. Source: llmstxt.org."""
    return _sources.get_template("llms.txt").render(facts, chapters=chapters())


@lru_cache(maxsize=KEPT_PAGES)
def drawn(text: str) -> str:
    """Return what follows a chapter's title and lead as HTML. HTML in the text is shown, not obeyed."""
    html: str = _markdown().render(text.split("\n\n", 2)[2])
    return html


def facts(parts: Parts, catalog: Catalog, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the texts are filled in with."""
    settings = parts.settings
    found = _refusals(document)
    return {
        "base_url": settings.base_url,
        "brand": settings.key_brand,
        "profile": settings.profile,
        "in_sandbox": parts.in_sandbox,
        "can_pay": parts.checkout is not None,
        "packages": list(catalog.packages.values()),
        "tools": list(catalog.tools.values()),
        "tasks": list(catalog.tasks.values()),
        "tool_hold_s": settings.tool_hold_s,
        "url_ttl_s": settings.url_ttl_s,
        "max_body_bytes": settings.max_body_bytes,
        "operations": _operations(document),
        "refusals": [
            {"status": status, "code": code, "message": body["message"]} for (status, code), body in found
        ],
        "problem": lambda name: json.dumps(next(body for (_, code), body in found if code == name), indent=2),
        "limits": _limits(parts, document),
        "models": models_of(catalog),
        "voices": list(VOICES),
        "formats": formats_of,
        "answer_wait_s": settings.answer_wait_s,
    }


def _headed(name: str) -> Chapter:
    title, lead, _ = (PAGES / "manual" / f"{name}.md").read_text(encoding="utf-8").split("\n\n", 2)
    return Chapter(name, title.removeprefix("# "), lead.replace("\n", " "))


def _operations(document: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "id": operation["operationId"],
            "label": f"{method.upper()} {path}",
            "anchor": f"{operation['tags'][0].replace(' ', '%20')}/{operation['operationId']}",
            "summary": operation["summary"],
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def _refusals(document: Mapping[str, Any]) -> list[tuple[tuple[str, str], dict[str, Any]]]:
    """Return an example of each error that any operation describes, by status and code."""
    found = {
        (status, code): example["value"]
        for path, methods in document["paths"].items()
        if not speaks_openai(path)
        for operation in methods.values()
        for status, response in operation["responses"].items()
        for code, example in response.get("content", {})
        .get("application/json", {})
        .get("examples", {})
        .items()
    }
    return sorted(found.items(), key=lambda item: item[0])


def _limits(parts: Parts, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the buckets that this server counts in; one without named routes takes the rest."""
    labels = {operation["id"]: operation["label"] for operation in _operations(document)}
    rows = []
    for bucket in BUCKETS.values():
        routes = [
            labels[name] for name, counted in ROUTES.items() if counted == bucket.name and name in labels
        ]
        if bucket.limit(parts.settings) and (routes or bucket.rides):
            rows.append(
                {
                    "name": bucket.name,
                    "limit": bucket.limit(parts.settings),
                    "window_s": WINDOW_S,
                    "per": bucket.per,
                    "routes": routes,
                }
            )
    return rows


@cache
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer).enable("table")


class _Renderer(RendererHTML):
    """HTML with the classes of our style sheet: commands that can be copied, tables that scroll, named headings."""

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        box = "code" if tokens[idx].info in {"sh", "python"} else "sample"
        return f'<div class="{box}">{super().fence(tokens, idx, options, env)}</div>\n'

    def table_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f'<div class="scroll">{self.renderToken(tokens, idx, options, env)}'

    def table_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f"{self.renderToken(tokens, idx, options, env)}</div>"

    def th_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        tokens[idx].attrs = {"scope": "col"}
        return self.renderToken(tokens, idx, options, env)

    def heading_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        name = re.sub(r"[^a-z0-9]+", "-", tokens[idx + 1].content.lower()).strip("-")
        tokens[idx].attrs = {"id": name}
        return self.renderToken(tokens, idx, options, env)
