"""Pages in a real Chromium, over a whole platform."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # Chromium refuses to run as root otherwise; it opens our own pages alone
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The machine's Chromium; `FAREBOX_TEST_BROWSER` names another, and makes it an error to have none.

    Its driver keeps an event loop running in this thread: it must be over before any asynchronous test begins.
    """
    named = os.environ.get("FAREBOX_TEST_BROWSER", "")
    program = shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        assert not named, f"there is no browser {named}"
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture(scope="module")
def platform(start_platform: Callable) -> object:
    return start_platform()


@pytest.fixture
def context(browser: Browser, platform: object) -> Iterator[BrowserContext]:
    """A browser that nobody used before, in which every error of a page fails the test."""
    fresh = browser.new_context(base_url=platform.settings.base_url)
    fresh.set_default_timeout(30_000)
    yield fresh
    fresh.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    wrong: list[str] = []
    opened = context.new_page()
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on(
        "console",
        lambda said: (
            wrong.append(said.text)
            if said.type == "error" and "the server responded with a status of 4" not in said.text
            else None
        ),
    )
    yield opened
    assert wrong == []


@pytest.fixture
def funded_key(platform: object, fund: Callable) -> str:
    """A key of a new user with ten credits; made beside the driver's event loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fund, platform, 1_000).result()


@pytest.fixture
def outbox(platform: object) -> Path:
    return platform.settings.data_dir / "outbox"
