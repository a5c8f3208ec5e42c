"""The console in a real browser: pages that fail on any error, and on any request to a stranger."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
SLOW_MS = 60_000
"""For what the worker does, on a machine with other work."""
NETWORK = "Failed to load resource"
"""How the browser's own notes of failed requests begin."""
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser."""
    assert CHROMIUM is not None, "no Chromium on the PATH: run `make browser`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(
    browser: Browser,
    address: str,
    *,
    refused: bool = False,
    prepare: Callable[[Page], None] = lambda _: None,
    **options: Any,
) -> Iterator[Page]:
    """Open an address of the console; fail on errors, and on requests to other hosts.

    ``prepare`` is called with the page before the address is opened.
    ``refused``: the worker refuses some requests of this test, or is away, and the browser says so.
    """
    context = browser.new_context(
        **{"viewport": DESKTOP, "timezone_id": "Europe/Vienna", **options}
    )
    page = context.new_page()
    errors: list[str] = []
    strangers: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error" and not (refused and message.text.startswith(NETWORK)):
            errors.append(message.text)

    def on_request(request: Request) -> None:
        if urlsplit(request.url).netloc not in {urlsplit(address).netloc, ""}:
            strangers.append(request.url)

    page.on("console", on_console)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", on_request)
    prepare(page)
    page.goto(address)
    try:
        yield page
        assert not errors, errors
        assert not strangers, strangers
    finally:
        context.close()


def wait_until_live(page: Page) -> None:
    """Wait until the page has everything that is under way."""
    expect(page.locator("#connection")).to_have_text("live", timeout=SLOW_MS)


def assert_accessible(page: Page) -> None:
    """Check a page with axe, by all rules of WCAG 2.2 AA and its best practices."""
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": RULES}})
    faults = [
        f"{fault['id']}: {fault['help']}\n"
        + "\n".join(
            f"  {node['html'][:300]}\n  {node.get('failureSummary')}" for node in fault["nodes"][:5]
        )
        for fault in found.response["violations"]
    ]
    assert not faults, "\n".join(faults)
