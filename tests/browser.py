"""A real Chromium for the pages this project writes, cut off from every network."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass
class Visit:
    """A page on screen, and what went wrong on the way there.

    Attributes:
        page: the loaded page.
        requests: addresses it asked for beside its own file; all were refused.
        errors: exceptions and error messages of its console.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the Chromium that is installed, or skip the test."""
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip("NO BROWSER: the pages were not looked at; install one with `apt-get install chromium`")
    with sync_playwright() as playwright:
        # Containers run as root without user namespaces, where Chromium's sandbox cannot start.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def visit(browser: Browser, path: Path, *, width: int = 1280, dark: bool = False) -> Iterator[Visit]:
    """Open a page from disk, offline.

    Args:
        browser: from :func:`chromium`.
        path: of the page.
        width: of the window, in CSS pixels.
        dark: whether the reader prefers dark pages.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", offline=True
    )
    seen = Visit(context.new_page())
    address = path.resolve().as_uri()

    def answer(route: Route) -> None:
        if route.request.url == address:
            route.continue_()
        else:
            seen.requests.append(route.request.url)
            route.abort()

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error":
            seen.errors.append(message.text)

    seen.page.route("**/*", answer)
    seen.page.on("console", listen)
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.goto(address)
    yield seen
    context.close()
