"""Page of the local server in a real browser: photos in, counts, bars and heat map out, and no foreign request."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from archives import COUNTS, photo
from browser import chromium
from local_server import LocalServer
from playwright.sync_api import Browser, FilePayload, Page, expect

pytestmark = pytest.mark.browser

_DROP = """([name, type, bytes]) => {
    const files = new DataTransfer();
    files.items.add(new File([new Uint8Array(bytes)], name, { type }));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
}"""
_PASTE = """bytes => {
    const files = new DataTransfer();
    files.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
    document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: files, bubbles: true }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@contextmanager
def opened(browser: Browser, served: LocalServer, **options: Any) -> Iterator[Page]:
    """Open the page; afterwards nothing was asked of another host, and nothing failed but what the server refused."""
    served.wait_until_ready()
    context = browser.new_context(**options)
    page = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(served.url)
    page.wait_for_selector("#about dd")
    yield page
    context.close()
    assert all(url.startswith((served.url, "blob:", "data:")) for url in asked)
    assert [error for error in errors if "422" not in error] == []


def payload(name: str, content: bytes) -> FilePayload:
    """A file as a person picks it."""
    return {"name": name, "mimeType": "image/jpeg", "buffer": content}


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_dropped_photo_is_counted_and_explained(
    browser: Browser, served: LocalServer, width: int, scheme: str
) -> None:
    answer = served.count(photo(3)).json()
    with opened(browser, served, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        page.evaluate(_DROP, ["bin.jpg", "image/jpeg", list(photo(3))])
        page.wait_for_selector("#slider:visible", timeout=60_000)
        assert page.inner_text("#count").split()[0] == str(answer["count"])
        assert page.inner_text("#expected") == f"Expected count {answer['expected_count']:.2f}"
        rows = page.locator("#probabilities tbody tr")
        shares = [answer["probabilities"][str(count)] for count in COUNTS]
        assert [row.split() for row in rows.all_inner_texts()] == [
            [str(count), f"{100 * share:.1f}", "%"] for count, share in zip(COUNTS, shares, strict=True)
        ]
        widths = page.locator("#probabilities .meter i").evaluate_all(
            "bars => bars.map(bar => bar.offsetWidth / bar.parentElement.offsetWidth)"
        )
        assert widths == pytest.approx(shares, abs=0.02)
        assert page.locator("tr.likely th").inner_text() == str(answer["count"])
        assert re.fullmatch(r"Answered in \d+ ms\.", page.inner_text("#took"))
        shade = page.evaluate(
            "() => { const canvas = document.getElementById('heat'), { width, height } = canvas;"
            "return [...canvas.getContext('2d').getImageData(0, 0, width, height).data].filter((_, i) => i % 4 == 3); }"
        )
        assert max(shade) > min(shade)
        page.fill("#strength", "0")
        expect(page.locator("#heat")).to_have_css("opacity", "0")
        assert page.locator("#photo").evaluate("image => image.naturalWidth") == 96
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_several_photos_are_listed_with_a_count_each(browser: Browser, served: LocalServer) -> None:
    counts = [served.count(photo(seed)).json()["count"] for seed in range(5)]
    with opened(browser, served) as page:
        page.set_input_files("#files", [payload(f"{seed}.jpg", photo(seed)) for seed in range(5)])
        expect(page.locator("#list strong")).to_have_text([str(count) for count in counts])
        page.locator("#list button").nth(3).focus()
        page.keyboard.press("Enter")
        assert page.inner_text("#of") == "3.jpg"
        assert page.locator("#list button[aria-current=true]").count() == 1
        assert page.inner_text("#count").split()[0] == str(counts[3])


def test_what_is_no_photo_gets_the_servers_sentence(browser: Browser, served: LocalServer) -> None:
    sentence = served.count(b"no photo").json()["error"]
    with opened(browser, served) as page:
        page.evaluate(_DROP, ["<b>notes</b>.txt", "text/plain", list(b"no photo")])
        expect(page.locator("#count")).to_have_text(sentence)
        assert page.inner_text("#of") == "<b>notes</b>.txt"
        assert page.locator("#probabilities").is_hidden()
        page.evaluate(_PASTE, list(photo(2, "PNG")))
        page.wait_for_selector("#probabilities:visible")
        assert page.inner_text("#of") == "image.png"


def test_the_model_is_described_and_the_keyboard_reaches_the_file_picker(browser: Browser, served: LocalServer) -> None:
    with opened(browser, served) as page:
        assert page.inner_text("#model") == served.ask("GET", "/ping").json()["model"]
        facts = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
        assert facts["Counts it can answer"] == "0 to 3"
        assert facts["Accuracy"] == "87.5 % on test photos of squares"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "files"
    policy = served.ask("GET", "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
