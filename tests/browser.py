"""A headless Chromium (Debian's package ``chromium``) for tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.common import REPOSITORY

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
# Folder of the screenshots, which CI keeps; by default in the ignored folder of builds.
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", REPOSITORY / "build/screenshots"))


@contextmanager
def open_page(url: str, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator:
    """Open ``url`` in Chromium and yield playwright's page; its files download to a temporary folder.

    At the end, raise an AssertionError if the console had an error, or a request went elsewhere than to ``url``'s
    file or server. ``dark`` sets the preference for dark colours.
    """
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    origin = "/".join(url.split("/", 3)[:3])  # file:// or http://127.0.0.1:7860
    prefixes = ("data:", "blob:", origin, origin.replace("http", "ws", 1))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = browser.new_page(
                viewport={"width": width, "height": height},
                color_scheme="dark" if dark else "light",
                accept_downloads=True,
            )
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on(
                "request",
                lambda request: None if request.url.startswith(prefixes) else problems.append(f"request {request.url}"),
            )
            page.goto(url)
            yield page
            assert not problems, problems
        finally:
            browser.close()


def save_screenshot(page, name: str) -> Path:
    """Save ``page``, from its top to its bottom, as ``<name>.png`` in SCREENSHOTS; return the path."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
    return SCREENSHOTS / f"{name}.png"


def wait_until(page, condition: str) -> None:
    """Wait until the JavaScript expression ``condition`` is true: also where the page's policy forbids ``eval``."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"not within 10 seconds: {condition}")
