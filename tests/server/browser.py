"""Chromium, driven by Playwright, and what tests look at in a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

__all__ = ["Tab", "axe_violations", "chromium", "tab"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 20_000

expect.set_options(timeout=PATIENCE_MS)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. While it is open, no event loop can run in this thread."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    assert program is not None, "Chromium is missing: `make install-dev` installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Tab:
    """A page, and what went wrong in it."""

    page: Page
    problems: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def refresh(self) -> None:
        """Have the page poll now."""
        pause = self.page.locator("#pause")
        pause.click()
        with self.page.expect_response("**/v1/overview/workflows?*"):
            pause.click()


@contextmanager
def tab(browser: Browser, url: str, **options: Any) -> Iterator[Tab]:
    """A new tab with nothing remembered; options are Playwright's of a context."""
    context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
    context.set_default_timeout(PATIENCE_MS)
    try:
        found = Tab(context.new_page())
        found.page.on("pageerror", lambda error: found.problems.append(str(error)))
        found.page.on("console", lambda message: _note(found, message))
        found.page.on("request", lambda request: found.hosts.add(request.url.split("/")[2]))
        found.page.goto(url)
        yield found
    finally:
        context.close()


def _note(found: Tab, message: Any) -> None:
    # The browser says of each answer that is an error that it is one; tests that want it look.
    if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
        found.problems.append(message.text)


def axe_violations(page: Page) -> list[str]:
    """What axe-core finds wrong, a line for each kind with the first element that has it."""
    script = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(script)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']} ({one['impact']}): {one['help']}: {one['nodes'][0]['html'][:200]}"
        for one in found["violations"]
    ]
